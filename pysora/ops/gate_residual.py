"""The gated residual sum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pysora.ops import _cpu as _native
from pysora.ops import _cuda, _triton
from pysora.ops._checks import at_least_fp32, need, need_rows, need_shape, rows_per_token
from pysora.ops._registry import op


def _check(x: Tensor, y: Tensor, gate: Tensor, index: Tensor | None) -> None:
    need(x.ndim == 3, "x", "[B, L, D]", list(x.shape))
    need_shape(y, "y", "[B, L, D] as x", tuple(x.shape))
    need(gate.ndim == 2 and gate.shape[1] == x.shape[2], "gate", f"[U, D = {x.shape[2]}]", list(gate.shape))
    need_rows(gate, index, x.shape[0], x.shape[1], "gate")


def _fake(x: Tensor, y: Tensor, gate: Tensor, index: Tensor | None) -> Tensor:
    _check(x, y, gate, index)
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
    _check(x, y, gate, index)
    wide = at_least_fp32(x.dtype)
    rows = rows_per_token(gate.to(wide), index)
    return (x.to(wide) + y.to(wide) * rows).to(x.dtype).contiguous()


def _cpu(x: Tensor, y: Tensor, gate: Tensor, index: Tensor | None) -> Tensor:
    out = _native.placed(_fake(x, y, gate, index))
    _native.native().gate_residual(*map(_native.borrow, (x, y, gate, index, out)), _native.threads())
    return out


class _Recorded(torch.autograd.Function):
    """The native kernel and that of its gradients."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        ctx.save_for_backward(*args[1:])
        return _cpu(*args)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        _native.need_no_graph()
        y, gate, index = ctx.saved_tensors
        grad, out, threads = grad.contiguous(), torch.empty(y.shape, dtype=y.dtype), _native.threads()
        sums = torch.zeros(threads, *gate.shape)
        tensors = map(_native.borrow, (grad, y, gate, index, out, sums))
        _native.native().gate_residual_backward(*tensors, threads)
        return grad, out, sums.sum(0).to(gate.dtype), None


def _cpu_refuses(x: Tensor, y: Tensor, gate: Tensor, index: Tensor | None) -> str | None:
    return (
        _native.refuses(_native.NATIVE_DTYPES, x=x, y=y, gate=gate)
        or _native.refuses((torch.int32,), index=index)
        or _native.scattered(x=x, y=y, gate=gate)
    )


def _on_gpu(launch: Callable[..., None]) -> Callable[..., Tensor]:
    """The op by what `launch` launches: the extension's kernel or Triton's."""

    def run(x: Tensor, y: Tensor, gate: Tensor, index: Tensor | None) -> Tensor:
        out = _fake(x, y, gate, index)
        launch("gate_residual", out, x, y, gate, index, out)
        return out

    return run


def _gpu_refuses(x: Tensor, y: Tensor, gate: Tensor, index: Tensor | None) -> str | None:
    return (
        _triton.refuses(_triton.DTYPES, x.device, x=x, y=y, gate=gate)
        or _triton.refuses((torch.int32,), x.device, index=index)
        or _native.scattered(x=x, y=y, gate=gate)
        or _triton.too_many(x.numel() // max(1, x.shape[-1]), "tokens")
    )


gate_residual.register("cuda", _on_gpu(_cuda.launch), _gpu_refuses, _cuda.unavailable)
gate_residual.register("triton", _on_gpu(_triton.launch), _gpu_refuses, _triton.unavailable)
gate_residual.register("cpu", _cpu, _cpu_refuses, _native.unavailable, _native.record(_Recorded))
