"""A linear layer in 8-bit integers, an approximation that a caller asks for."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pysora.ops import _cpu as _native
from pysora.ops._checks import need, need_shape
from pysora.ops._registry import op
from pysora.ops.linear import check, finish

LARGEST = 127


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """`[E, D]` -> int8 `[E, D]` and fp32 `[E]`: each row divided by a scale of its own, and rounded to -127..127."""
    wide = weight.float()
    top = wide.abs().amax(1) if weight.shape[1] else wide.new_zeros(weight.shape[0])
    inverse = torch.where(top > 0, LARGEST / top, 0.0)
    return (wide * inverse[:, None]).round().to(torch.int8), top / LARGEST


def _check(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    epilogue: str,
    residual: Tensor | None,
    gate: Tensor | None,
) -> None:
    check(x, weight, bias, epilogue, residual, gate)
    need(weight.dtype == torch.int8, "weight", "torch.int8", weight.dtype)
    need_shape(scale, "scale", "[E]", (weight.shape[0],))


def _fake(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    epilogue: str,
    residual: Tensor | None,
    gate: Tensor | None,
    index: Tensor | None,
) -> Tensor:
    _check(x, weight, scale, bias, epilogue, residual, gate)
    return (x if residual is None else residual).new_empty(*x.shape[:-1], weight.shape[0])


@op(
    "(Tensor x, Tensor weight, Tensor scale, Tensor? bias=None, str epilogue='none', Tensor? residual=None, "
    "Tensor? gate=None, Tensor? index=None) -> Tensor",
    _fake,
)
def linear_int8(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    epilogue: str = "none",
    residual: Tensor | None = None,
    gate: Tensor | None = None,
    index: Tensor | None = None,
) -> Tensor:
    """Multiply by a weight matrix of 8-bit integers, with each token rounded to 8 bits; otherwise as `linear`.

    A token is divided by 1/127 of its largest magnitude and rounded; products are summed exactly and multiplied by
    both scales in fp32. A token that holds NaN or infinity becomes NaN.

    Args:
        x: `[..., D]`, fp32 or bf16.
        weight: int8 `[E, D]`, as `quantize_rows` makes it.
        scale: fp32 `[E]`: row e of the weight stands for `scale[e] * weight[e]`.
        bias: `[E]`, dtype of x, or None.
        epilogue, residual, gate, index: as in `linear`.

    Returns:
        `[..., E]`, dtype of x (of residual where there is one).

    Raises:
        ValueError: a shape or the weight's dtype does not fit, or the epilogue is unknown.

    Source: Dettmers et al. 2022 (arXiv:2208.07339), vector-wise quantisation.
    """
    _check(x, weight, scale, bias, epilogue, residual, gate)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    top = wide.abs().amax(-1, keepdim=True) if x.shape[-1] else wide.new_zeros(*x.shape[:-1], 1)
    inverse = torch.where(top > 0, LARGEST / top, 0.0)
    # Sums of integers are exact in float64.
    sums = F.linear((wide * inverse).round().double(), weight.double())
    y = sums.to(wide.dtype) * (top / LARGEST * scale)
    y = finish(y if bias is None else y + bias, epilogue, residual, gate, index)
    return y if epilogue == "gate_residual" else y.to(x.dtype)


def _cpu(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    epilogue: str,
    residual: Tensor | None,
    gate: Tensor | None,
    index: Tensor | None,
) -> Tensor:
    out = _native.placed(_fake(x, weight, scale, bias, epilogue, residual, gate, index))
    tokens, threads = x.shape[:-1].numel(), _native.threads()
    scratch = _native.workspace(_native.native().linear_int8_workspace(tokens, *weight.shape, threads))
    rows, out_rows = (t if t.ndim == 3 else t.view(1, -1, t.shape[-1]) for t in (x, out))
    _native.native().linear_int8(
        *map(_native.borrow, (rows, weight, scale, bias)),
        epilogue,
        *map(_native.borrow, (residual, gate, index, out_rows, scratch)),
        threads,
    )
    return out


def _cpu_refuses(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    epilogue: str,
    residual: Tensor | None,
    gate: Tensor | None,
    index: Tensor | None,
) -> str | None:
    if x.ndim != 3 and not x.is_contiguous():
        return "x has other than three dimensions and is not contiguous"
    return (
        _native.refuses(_native.NATIVE_DTYPES, x=x, bias=bias, residual=residual, gate=gate)
        or _native.refuses((torch.int8,), weight=weight)
        or _native.refuses((torch.float32,), scale=scale)
        or _native.refuses((torch.int32,), index=index)
        or _native.scattered(weight=weight, scale=scale, bias=bias, residual=residual, gate=gate)
    )


linear_int8.register("cpu", _cpu, _cpu_refuses, _native.unavailable)
