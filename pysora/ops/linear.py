"""A linear layer with what follows it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pysora.ops import _cpu as _native
from pysora.ops._checks import need, need_shape
from pysora.ops._registry import needs_gradient, op
from pysora.ops.gate_residual import gate_residual

EPILOGUES = ("none", "gelu", "gate_residual")
DEEP = 4096
"""Values along which a block of either operand no longer fits a core's cache."""
LONGEST = 2048
"""Values whose sum, by a matrix unit in one chain, is as near as torch's in fp32."""


def check(
    x: Tensor, weight: Tensor, bias: Tensor | None, epilogue: str, residual: Tensor | None, gate: Tensor | None
) -> None:
    """Raise ValueError where arguments of a linear layer do not fit each other."""
    need(weight.ndim == 2, "weight", "[E, D]", list(weight.shape))
    need(x.ndim >= 1 and x.shape[-1] == weight.shape[1], "x", f"[..., D = {weight.shape[1]}]", list(x.shape))
    need(epilogue in EPILOGUES, "epilogue", f"one of {EPILOGUES}", repr(epilogue))
    if bias is not None:
        need_shape(bias, "bias", "[E]", (weight.shape[0],))
    gated = epilogue == "gate_residual"
    need((residual is not None) == gated, "residual", "a tensor with the epilogue gate_residual alone", epilogue)
    need((gate is not None) == gated, "gate", "a tensor with the epilogue gate_residual alone", epilogue)


def _fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    epilogue: str,
    residual: Tensor | None,
    gate: Tensor | None,
    index: Tensor | None,
) -> Tensor:
    check(x, weight, bias, epilogue, residual, gate)
    return (x if residual is None else residual).new_empty(*x.shape[:-1], weight.shape[0])


@op(
    "(Tensor x, Tensor weight, Tensor? bias=None, str epilogue='none', Tensor? residual=None, Tensor? gate=None, "
    "Tensor? index=None) -> Tensor",
    _fake,
)
def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    epilogue: str = "none",
    residual: Tensor | None = None,
    gate: Tensor | None = None,
    index: Tensor | None = None,
) -> Tensor:
    """Multiply by a weight matrix, add a bias, then apply the epilogue to the result y.

    Args:
        x: `[..., D]`, fp32 or bf16.
        weight: `[E, D]`, dtype of x.
        bias: `[E]`, dtype of x, or None.
        epilogue: "none"; "gelu", in its tanh form; "gate_residual": `residual + y*gate`, where x is `[B, L, D]`.
        residual: `[B, L, E]`, with "gate_residual" alone.
        gate: `[U, E]`, with "gate_residual" alone.
        index: int32 `[L]` or `[B, L]`, the gate's row of each token, or None, as in `gate_residual`.

    Returns:
        `[..., E]`, dtype of x (of residual where there is one).

    Raises:
        ValueError: a shape does not fit, or the epilogue is unknown.

    Source: Hendrycks and Gimpel 2016 (GELU and its tanh form).
    """
    check(x, weight, bias, epilogue, residual, gate)
    return finish(F.linear(x, weight, bias), epilogue, residual, gate, index)


def finish(y: Tensor, epilogue: str, residual: Tensor | None, gate: Tensor | None, index: Tensor | None) -> Tensor:
    """Return y after its epilogue."""
    if epilogue == "gelu":
        return F.gelu(y, approximate="tanh")
    if residual is not None and gate is not None:
        out: Tensor = gate_residual.reference(residual, y, gate, index)
        return out
    return y


def scratch_bytes(tokens: int, D: int, E: int) -> int:
    """Return the bytes that the backend which `linear` picks on the CPU takes beside its result; 0 for torch's."""
    if linear.explain(None).backend != "cpu":
        return 0
    return 4 * int(_native.native().linear_workspace(tokens, E, D, _native.threads(), _splits(torch.float32)))


def _cpu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    epilogue: str,
    residual: Tensor | None,
    gate: Tensor | None,
    index: Tensor | None,
) -> Tensor:
    if not _torch_is_ahead(x, weight, bias, epilogue):
        out = _native.placed(_fake(x, weight, bias, epilogue, residual, gate, index))
        tokens, threads, split = x.shape[:-1].numel(), _native.threads(), _splits(x.dtype)
        scratch = _native.workspace(_native.native().linear_workspace(tokens, *weight.shape, threads, split))
        rows, out_rows = (t if t.ndim == 3 else t.view(1, -1, t.shape[-1]) for t in (x, out))
        if _native.native().linear(
            *map(_native.borrow, (rows, weight, bias)),
            epilogue,
            *map(_native.borrow, (residual, gate, index, out_rows, scratch)),
            threads,
            split,
        ):
            return out
    if residual is None:
        return linear.reference(x, weight, bias, epilogue)
    gated: Tensor = gate_residual(residual, F.linear(x, weight, bias), gate, index)
    return gated


class _Gelu(torch.autograd.Function):
    """GELU in its tanh form, and its gradient, by the native kernel."""

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        ctx.save_for_backward(y)
        return _gelu(y, None)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        _native.need_no_graph()
        (y,) = ctx.saved_tensors
        return _gelu(y, grad.contiguous())


def _gelu(y: Tensor, grad: Tensor | None) -> Tensor:
    out = torch.empty_like(y)
    _native.native().gelu(*map(_native.borrow, (y, grad, out)), _native.threads())
    return out


_record_gelu = _native.record(_Gelu)


def _recorded(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    epilogue: str,
    residual: Tensor | None,
    gate: Tensor | None,
    index: Tensor | None,
) -> Tensor:
    """torch's product, whose gradients are products of torch's too, and the native epilogues."""
    check(x, weight, bias, epilogue, residual, gate)
    y = F.linear(x, weight, bias)
    if epilogue == "gelu" and y.dtype in _native.NATIVE_DTYPES:
        activated: Tensor = _record_gelu(y)
        return activated
    if residual is not None:
        gated: Tensor = gate_residual(residual, y, gate, index)
        return gated
    return finish(y, epilogue, None, None, None)


def _splits(dtype: torch.dtype) -> bool:
    """Whether the kernel multiplies in bf16 parts, where bf16 holds the weight: fp32 beside a matrix unit."""
    return dtype == torch.float32 and _native.matrix_unit(torch.bfloat16)


def _torch_is_ahead(x: Tensor, weight: Tensor, bias: Tensor | None, epilogue: str) -> bool:
    """Whether torch's product, and the epilogue after it, are faster than the kernel: where the sums are long, and, in
    bf16 with a matrix unit (AMX), where there is nothing to fuse."""
    depth = weight.shape[1]
    if x.dtype == torch.float32:
        # Few tokens would be faster in torch, but a video's bits must not depend on how many others are made with it.
        return depth > (LONGEST if _splits(x.dtype) else DEEP)
    plain = bias is None or bias.dtype == x.dtype
    return _native.matrix_unit(x.dtype) and plain and (epilogue == "none" or depth > DEEP)


def _cpu_refuses(
    x: Tensor,
    weight: Tensor,
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
        # What is recorded is torch's product, which may be under autocast.
        or _native.refuses(_native.NATIVE_DTYPES if needs_gradient((x, weight)) else (x.dtype,), weight=weight)
        or _native.refuses((torch.int32,), index=index)
        or _native.scattered(weight=weight, bias=bias, residual=residual, gate=gate)
    )


linear.register("cpu", _cpu, _cpu_refuses, _native.unavailable, _recorded)
