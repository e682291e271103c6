"""The gated residual sum."""

from __future__ import annotations

import torch
from torch import Tensor

from pysora.ops._checks import at_least_fp32, need, need_shape, rows_per_token
from pysora.ops._registry import op


def _check(x: Tensor, y: Tensor, gate: Tensor) -> None:
    need(x.ndim == 3, "x", "[B, L, D]", list(x.shape))
    need_shape(y, "y", "[B, L, D] as x", tuple(x.shape))
    need(gate.ndim == 2 and gate.shape[1] == x.shape[2], "gate", f"[U, D = {x.shape[2]}]", list(gate.shape))


def _fake(x: Tensor, y: Tensor, gate: Tensor, index: Tensor | None) -> Tensor:
    _check(x, y, gate)
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@op("(Tensor x, Tensor y, Tensor gate, Tensor? index=None) -> Tensor", _fake)
def gate_residual(x: Tensor, y: Tensor, gate: Tensor, index: Tensor | None = None) -> Tensor:
    """Add a branch, scaled by its timestep's gate, to the residual stream: `x + y*gate`.

    Args:
        x, y: `[B, L, D]`, fp32 or bf16.
        gate: `[U, D]`, float, one row for each of U distinct timesteps.
        index: int32 `[L]` or `[B, L]`, the gate's row of each token; None: U is 1, or B with row b for sample b.

    Returns:
        like x, contiguous; the sum is taken in fp32 and rounded once.

    Raises:
        ValueError: a shape does not fit.

    Source: Peebles and Xie 2023, section 3.2 (adaLN-Zero).
    """
    _check(x, y, gate)
    wide = at_least_fp32(x.dtype)
    rows = rows_per_token(gate.to(wide), index, x.shape[0], x.shape[1], "gate")
    return (x.to(wide) + y.to(wide) * rows).to(x.dtype).contiguous()
