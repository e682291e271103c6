"""RMS norm over channels, then SiLU: the norm of the Wan VAE."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from pysora.ops import _cpu as _native
from pysora.ops import _cuda, _triton
from pysora.ops._checks import at_least_fp32, need, need_shape
from pysora.ops._registry import op


def _check(x: Tensor, gamma: Tensor) -> None:
    need(x.ndim in (4, 5), "x", "[B, C, T, H, W] or [B, C, H, W]", list(x.shape))
    need_shape(gamma, "gamma", "[C]", (x.shape[1],))


def _fake(x: Tensor, gamma: Tensor, silu: bool) -> Tensor:
    _check(x, gamma)
    return torch.empty_like(x)


@op("(Tensor x, Tensor gamma, bool silu=True) -> Tensor", _fake)
def norm_silu(x: Tensor, gamma: Tensor, silu: bool = True) -> Tensor:
    """Scale each position's channels to length sqrt(C), times gamma, then SiLU: `silu(x/|x| * sqrt(C) * gamma)`.

    Args:
        x: `[B, C, T, H, W]` or `[B, C, H, W]`, fp32 or bf16; |x| is the Euclidean norm over C, at least 1e-12.
        gamma: `[C]`, any float dtype.
        silu: False leaves SiLU out.

    Returns:
        like x, in the memory format of x; computed in fp32 and rounded once.

    Raises:
        ValueError: a shape does not fit.

    Source: Zhang and Sennrich 2019 (RMSNorm) without eps, as the Wan VAE writes it; Elfwing et al. 2018 (SiLU).
    """
    _check(x, gamma)
    y = x.to(at_least_fp32(x.dtype))
    # torch's vector norm walks a strided dimension five times slower than this sum.
    length = y.square().sum(1, keepdim=True).sqrt().clamp_min(1e-12)
    y = y / length * (gamma.to(y.dtype) * x.shape[1] ** 0.5).view(-1, *[1] * (x.ndim - 2))
    return (F.silu(y) if silu else y).to(x.dtype)


def _cpu(x: Tensor, gamma: Tensor, silu: bool) -> Tensor:
    out = _native.placed(_fake(x, gamma, silu))
    norm_silu_into(x, gamma, out, silu)
    return out


def norm_silu_into(x: Tensor, gamma: Tensor, out: Tensor, silu: bool = True) -> None:
    """The native kernel on tensors that it takes, into one of the shape and dtype of x that lies anywhere."""
    _native.native().norm_silu(*map(_native.borrow, (x, gamma)), silu, _native.borrow(out), _native.threads())


def _cpu_refuses(x: Tensor, gamma: Tensor, silu: bool) -> str | None:
    reason = _native.refuses(_native.NATIVE_DTYPES, x=x, gamma=gamma) or _native.scattered(gamma=gamma)
    if reason is None and x.ndim in (4, 5) and 1 not in (x.stride(1), x.stride(-1)):
        reason = f"x has strides {list(x.stride())}: neither its channels nor its pixels lie side by side"
    return reason


def _on_gpu(launch: Callable[..., None]) -> Callable[..., Tensor]:
    """The op by what `launch` launches: the extension's kernel or Triton's."""

    def run(x: Tensor, gamma: Tensor, silu: bool) -> Tensor:
        out = _fake(x, gamma, silu)
        launch("norm_silu", out, x, gamma, silu, out)
        return out

    return run


def _triton_refuses(x: Tensor, gamma: Tensor, silu: bool) -> str | None:
    reason = _triton.refuses(_triton.DTYPES, x.device, x=x, gamma=gamma) or _native.scattered(gamma=gamma)
    if reason is None and x.ndim in (4, 5) and x.shape[1] > 16384:
        reason = f"x has {x.shape[1]} channels, more than 16384"
    return reason or _triton.too_many(x.numel() // max(1, gamma.shape[0]), "pixels")


def _cuda_refuses(x: Tensor, gamma: Tensor, silu: bool) -> str | None:
    reason = _triton.refuses(_triton.DTYPES, x.device, x=x, gamma=gamma) or _native.scattered(gamma=gamma)
    most = 8192 if x.ndim > 1 and x.stride(1) == 1 else 1024
    if reason is None and x.ndim in (4, 5) and x.shape[1] > most:
        reason = f"x has {x.shape[1]} channels, more than {most} with a stride of {x.stride(1)}"
    return reason or _triton.too_many(x.numel() // max(1, gamma.shape[0]), "pixels")


norm_silu.register("cuda", _on_gpu(_cuda.launch), _cuda_refuses, _cuda.unavailable)
norm_silu.register("triton", _on_gpu(_triton.launch), _triton_refuses, _triton.unavailable)
norm_silu.register("cpu", _cpu, _cpu_refuses, _native.unavailable)
