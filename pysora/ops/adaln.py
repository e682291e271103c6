"""Adaptive normalisation: a norm over the width, then a scale and a shift that depend on the timestep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pysora.ops import _cpu as _native
from pysora.ops import _cuda, _triton
from pysora.ops._checks import at_least_fp32, need, need_rows, need_shape, rows_per_token
from pysora.ops._registry import op


def _check(
    x: Tensor, table: Tensor | None, index: Tensor | None, gain: Tensor | None, bias: Tensor | None, norm: str
) -> None:
    need(x.ndim == 3, "x", "[B, L, D]", list(x.shape))
    need(norm in ("layer", "rms"), "norm", "'layer' or 'rms'", repr(norm))
    D = x.shape[2]
    if table is not None:
        need(table.ndim == 3, "table", "[U, 2, D]", list(table.shape))
        need_shape(table, "table", "[U, 2, D]", (table.shape[0], 2, D))
        need_rows(table, index, x.shape[0], x.shape[1], "table")
    for name, vector in (("gain", gain), ("bias", bias)):
        if vector is not None:
            need_shape(vector, name, "[D]", (D,))


def _fake(
    x: Tensor,
    table: Tensor | None,
    index: Tensor | None,
    gain: Tensor | None,
    bias: Tensor | None,
    eps: float,
    norm: str,
) -> Tensor:
    _check(x, table, index, gain, bias, norm)
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@op(
    "(Tensor x, Tensor? table=None, Tensor? index=None, Tensor? gain=None, Tensor? bias=None, float eps=1e-06, "
    "str norm='layer') -> Tensor",
    _fake,
)
def adaln(
    x: Tensor,
    table: Tensor | None = None,
    index: Tensor | None = None,
    gain: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-6,
    norm: str = "layer",
) -> Tensor:
    """Normalise each token, then apply its timestep's scale and shift: `(norm(x)*gain + bias)*(1 + scale) + shift`.

    Args:
        x: `[B, L, D]`, fp32 or bf16.
        table: `[U, 2, D]`, float: (shift, scale) of each of U distinct timesteps; None leaves both out.
        index: int32 `[L]` or `[B, L]`, the table's row of each token; None: U is 1, or B with row b for sample b.
        gain, bias: `[D]`, float, or None.
        eps: added to the variance or the mean square.
        norm: "layer" (mean and variance) or "rms" (root mean square).

    Returns:
        like x, contiguous; computed in fp32 and rounded once.

    Raises:
        ValueError: a shape does not fit, or `norm` is unknown.

    Sources: Ba et al. 2016 (layer norm); Peebles and Xie 2023, section 3.2 (adaLN).
    """
    _check(x, table, index, gain, bias, norm)
    y = x.to(at_least_fp32(x.dtype))
    wide_gain = None if gain is None else gain.to(y.dtype)
    if norm == "layer":
        y = F.layer_norm(
            y, y.shape[-1:], wide_gain, None if wide_gain is None or bias is None else bias.to(y.dtype), eps
        )
        bias = bias if wide_gain is None else None
    else:
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)
        y = y if wide_gain is None else y * wide_gain
    y = y if bias is None else y + bias.to(y.dtype)
    if table is not None:
        shift, scale = rows_per_token(table.to(y.dtype), index).unbind(-2)
        y = y * (1 + scale) + shift
    return y.to(x.dtype).contiguous()


def _cpu(
    x: Tensor,
    table: Tensor | None,
    index: Tensor | None,
    gain: Tensor | None,
    bias: Tensor | None,
    eps: float,
    norm: str,
) -> Tensor:
    out = _native.placed(_fake(x, table, index, gain, bias, eps, norm))
    inputs = map(_native.borrow, (x, table, index, gain, bias))
    _native.native().adaln(*inputs, eps, norm == "layer", _native.borrow(out), _native.threads())
    return out


class _Recorded(torch.autograd.Function):
    """The native kernel and that of its gradients."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        x, table, index, gain, bias, ctx.eps, ctx.norm = args
        ctx.save_for_backward(x, table, index, gain, bias)
        return _cpu(*args)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        _native.need_no_graph()
        x, table, index, gain, bias = ctx.saved_tensors
        out, threads, D = torch.empty_like(x, memory_format=torch.contiguous_format), _native.threads(), x.shape[2]
        U = 0 if table is None else table.shape[0]
        sums = torch.zeros(threads, (2 * U + 3) * D)
        tensors = map(_native.borrow, (grad.contiguous(), x, table, index, gain, bias))
        _native.native().adaln_backward(
            *tensors, ctx.eps, ctx.norm == "layer", _native.borrow(out), _native.borrow(sums), threads
        )
        of_table, of_gain, of_bias, _ = sums.sum(0).split((2 * U * D, D, D, D))
        return (
            out,
            None if table is None else of_table.view(table.shape).to(table.dtype),
            None,
            None if gain is None else of_gain.to(gain.dtype),
            None if bias is None else of_bias.to(bias.dtype),
            None,
            None,
        )


def _cpu_refuses(
    x: Tensor,
    table: Tensor | None,
    index: Tensor | None,
    gain: Tensor | None,
    bias: Tensor | None,
    eps: float,
    norm: str,
) -> str | None:
    floats = {"x": x, "table": table, "gain": gain, "bias": bias}
    return (
        _native.refuses(_native.NATIVE_DTYPES, **floats)
        or _native.refuses((torch.int32,), index=index)
        or _native.scattered(**floats)
    )


def _on_gpu(launch: Callable[..., None]) -> Callable[..., Tensor]:
    """The op by what `launch` launches: the extension's kernel or Triton's."""

    def run(
        x: Tensor,
        table: Tensor | None,
        index: Tensor | None,
        gain: Tensor | None,
        bias: Tensor | None,
        eps: float,
        norm: str,
    ) -> Tensor:
        out = _fake(x, table, index, gain, bias, eps, norm)
        launch("adaln", out, x, table, index, gain, bias, eps, norm == "layer", out)
        return out

    return run


def _gpu_refuses(
    x: Tensor,
    table: Tensor | None,
    index: Tensor | None,
    gain: Tensor | None,
    bias: Tensor | None,
    eps: float,
    norm: str,
) -> str | None:
    floats = {"x": x, "table": table, "gain": gain, "bias": bias}
    reason = _triton.refuses(_triton.DTYPES, x.device, **floats)
    reason = reason or _triton.refuses((torch.int32,), x.device, index=index) or _native.scattered(**floats)
    reason = reason or _triton.too_many(x.numel() // max(1, x.shape[-1]), "tokens")
    return reason or (f"x is {x.shape[-1]} wide, more than 16384" if x.shape[-1] > 16384 else None)


adaln.register("cuda", _on_gpu(_cuda.launch), _gpu_refuses, _cuda.unavailable)
adaln.register("triton", _on_gpu(_triton.launch), _gpu_refuses, _triton.unavailable)
adaln.register("cpu", _cpu, _cpu_refuses, _native.unavailable, _native.record(_Recorded))
