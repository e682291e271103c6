"""RMS norm of queries or keys, then rotary positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pysora.ops import _cpu as _native
from pysora.ops import _cuda, _triton
from pysora.ops._checks import at_least_fp32, need, need_shape
from pysora.ops._registry import needs_gradient, op


def _check(x: Tensor, gain: Tensor, cos: Tensor | None, sin: Tensor | None) -> None:
    need(x.ndim == 4, "x", "[B, L, N, K]", list(x.shape))
    _, L, N, K = x.shape
    need(tuple(gain.shape) in ((N * K,), (K,)), "gain", f"[N*K] = [{N * K}] or [K] = [{K}]", list(gain.shape))
    need((cos is None) == (sin is None), "cos, sin", "both or neither", "one")
    if cos is not None and sin is not None:
        need(K % 2 == 0, "x", "an even K where cos and sin are given", K)
        need_shape(cos, "cos", "[L, K/2]", (L, K // 2))
        need_shape(sin, "sin", "[L, K/2]", (L, K // 2))


def _fake(x: Tensor, gain: Tensor, cos: Tensor | None, sin: Tensor | None, eps: float) -> Tensor:
    _check(x, gain, cos, sin)
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@op("(Tensor x, Tensor gain, Tensor? cos=None, Tensor? sin=None, float eps=1e-06) -> Tensor", _fake)
def qk_norm_rope(
    x: Tensor, gain: Tensor, cos: Tensor | None = None, sin: Tensor | None = None, eps: float = 1e-6
) -> Tensor:
    """Normalise queries or keys by their root mean square, then rotate interleaved pairs by their position's angles.

    The norm runs over all heads together where `gain` has N*K values (Wan), and over each head where it has K.

    Args:
        x: `[B, L, N, K]`, fp32 or bf16, any strides.
        gain: `[N*K]` or `[K]`, any float dtype. With one head the two are the same.
        cos, sin: `[L, K/2]`, fp32, of the angle of each pair `(x[2i], x[2i+1])`; both None leaves positions out.
        eps: added to the mean square.

    Returns:
        like x, contiguous; computed in fp32 and rounded once.

    Raises:
        ValueError: a shape does not fit.

    Sources: Zhang and Sennrich 2019 (RMSNorm); Su et al. 2021, equation 34 (RoFormer, interleaved pairs).
    """
    _check(x, gain, cos, sin)
    N, K = x.shape[2:]
    over_heads = gain.shape[0] == N * K
    y = x.to(at_least_fp32(x.dtype))
    y = y * torch.rsqrt(y.square().mean((2, 3) if over_heads else 3, keepdim=True) + eps)
    y = y * (gain.view(N, K) if over_heads else gain).to(y.dtype)
    if cos is not None and sin is not None:
        # A pair times e^(i angle): one complex product, and one more for its gradient.
        turn = torch.complex(cos.to(y.dtype), sin.to(y.dtype)).unsqueeze(1)
        y = torch.view_as_real(torch.view_as_complex(y.contiguous().unflatten(-1, (-1, 2))) * turn).flatten(-2)
    return y.to(x.dtype).contiguous()


def _cpu(x: Tensor, gain: Tensor, cos: Tensor | None, sin: Tensor | None, eps: float) -> Tensor:
    out = _native.placed(_fake(x, gain, cos, sin, eps))
    inputs = map(_native.borrow, (x, gain, cos, sin))
    _native.native().qk_norm_rope(*inputs, eps, _native.borrow(out), _native.threads())
    return out


class _Recorded(torch.autograd.Function):
    """The native kernel and that of its gradients; positions have none."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        *tensors, ctx.eps = args
        ctx.save_for_backward(*tensors)
        return _cpu(*args)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        _native.need_no_graph()
        x, gain, cos, sin = ctx.saved_tensors
        out, threads = torch.empty(x.shape, dtype=x.dtype), _native.threads()
        sums = torch.zeros(threads, 2, x.shape[2] * x.shape[3])
        tensors = map(_native.borrow, (grad.contiguous(), x, gain, cos, sin))
        _native.native().qk_norm_rope_backward(*tensors, ctx.eps, _native.borrow(out), _native.borrow(sums), threads)
        return out, sums[:, 0, : gain.shape[0]].sum(0).to(gain.dtype), None, None, None


def _cpu_refuses(x: Tensor, gain: Tensor, cos: Tensor | None, sin: Tensor | None, eps: float) -> str | None:
    if needs_gradient((cos, sin)):
        return "cos and sin need gradients"
    return (
        _native.refuses(_native.NATIVE_DTYPES, x=x, gain=gain)
        or _native.refuses((torch.float32,), cos=cos, sin=sin)
        or _native.scattered(x=x, gain=gain, cos=cos, sin=sin)
    )


def _on_gpu(launch: Callable[..., None]) -> Callable[..., Tensor]:
    """The op by what `launch` launches: the extension's kernel or Triton's."""

    def run(x: Tensor, gain: Tensor, cos: Tensor | None, sin: Tensor | None, eps: float) -> Tensor:
        out = _fake(x, gain, cos, sin, eps)
        launch("qk_norm_rope", out, x, gain, cos, sin, eps, out)
        return out

    return run


def _triton_refuses(x: Tensor, gain: Tensor, cos: Tensor | None, sin: Tensor | None, eps: float) -> str | None:
    reason = (
        _triton.refuses(_triton.DTYPES, x.device, x=x, gain=gain)
        or _triton.refuses((torch.float32,), x.device, cos=cos, sin=sin)
        or _native.scattered(x=x, gain=gain, cos=cos, sin=sin)
    )
    if reason is None and x.ndim == 4 and _triton.padded(*x.shape[2:]) > 16384:
        reason = f"x has {x.shape[2]} heads of {x.shape[3]}, more than 16384 in powers of two"
    return reason


def _cuda_refuses(x: Tensor, gain: Tensor, cos: Tensor | None, sin: Tensor | None, eps: float) -> str | None:
    reason = (
        _triton.refuses(_triton.DTYPES, x.device, x=x, gain=gain)
        or _triton.refuses((torch.float32,), x.device, cos=cos, sin=sin)
        or _native.scattered(x=x, gain=gain, cos=cos, sin=sin)
        or _triton.too_many(x.numel() // max(1, x.shape[-1]), "heads of all tokens")
    )
    if reason is None and gain.numel() > 16384:
        reason = f"the norm runs over {gain.numel()} values, more than 16384"
    return reason


qk_norm_rope.register("cuda", _on_gpu(_cuda.launch), _cuda_refuses, _cuda.unavailable)
qk_norm_rope.register("triton", _on_gpu(_triton.launch), _triton_refuses, _triton.unavailable)
qk_norm_rope.register("cpu", _cpu, _cpu_refuses, _native.unavailable, _native.record(_Recorded))
