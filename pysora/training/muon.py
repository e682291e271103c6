"""Muon: momentum whose update matrix is made orthogonal.

Source: K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024), with its quintic
Newton-Schulz coefficients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from pysora.ops._cpu import multiplies_bf16

_QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """The nearest (semi-)orthogonal matrix of each, roughly: singular values end between 0.7 and 1.2.

    matrices: `[..., R, C]` floating point. returns: `[..., R, C]` float32.
    """
    X = matrices.float() / (matrices.float().norm(dim=(-2, -1), keepdim=True) + 1e-7)
    tall = X.shape[-2] > X.shape[-1]
    X = X.mT if tall else X
    # A convolution's matrix is far wider than high: there the polynomial is cheaper on the small Gram matrix.
    X = _through_gram(X, steps) if X.shape[-1] >= 6 * X.shape[-2] else _direct(X, steps)
    return X.mT if tall else X


def _direct(X: Tensor, steps: int) -> Tensor:
    a, b, c = _QUINTIC
    # The polynomial forgives bf16's rounding.
    X = X.bfloat16() if multiplies_bf16() else X
    for _ in range(steps):
        G = X @ X.mT
        X = a * X + (b * G + c * G @ G) @ X
    return X.float()


def _through_gram(X: Tensor, steps: int) -> Tensor:
    a, b, c = _QUINTIC
    G = X @ X.mT
    identity = torch.eye(G.shape[-1], dtype=G.dtype, device=G.device)
    Q = identity.expand_as(G)
    for _ in range(steps):
        P = a * identity + b * G + c * G @ G
        Q, G = P @ Q, P @ (P @ G)
    return Q @ X


class Muon(torch.optim.Optimizer):
    """For weights with two or more dimensions (a convolution's are flattened to `[out, rest]`); others need AdamW.

    lr: step as a share of an orthogonal matrix. momentum: of the Nesterov average.
    """

    def __init__(self, params: Iterable[Tensor], lr: float = 0.02, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    # torch declares a second signature that takes no closure.
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Apply one update from the gradients."""
        for group in self.param_groups:
            # Matrices of one shape together: many small products in one call keep all threads at work.
            alike: dict[torch.Size, list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    alike.setdefault(p.flatten(1).shape, []).append(p)
            for shape, parameters in alike.items():
                updates = torch.stack([self._update(p, group["momentum"]) for p in parameters])
                scale = max(1.0, shape[0] / shape[1]) ** 0.5
                for p, made in zip(parameters, orthogonalize(updates), strict=True):
                    p.add_(made.reshape(p.shape), alpha=-group["lr"] * scale)

    def _update(self, p: Tensor, momentum: float) -> Tensor:
        """The parameter's momentum with its new gradient, looking ahead (Nesterov), `[R, C]`."""
        assert p.grad is not None
        average = self.state[p].setdefault("average", torch.zeros_like(p))
        average.mul_(momentum).add_(p.grad)
        return p.grad.add(average, alpha=momentum).flatten(1)
