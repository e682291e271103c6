"""Patch embedding: a linear projection of each spacetime patch of a latent video."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from pysora.ops import _cpu as _native
from pysora.ops import _cuda, _triton
from pysora.ops._checks import need, need_shape
from pysora.ops._registry import op


def _check(video: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    need(video.ndim == 5, "video", "[B, C, T, H, W]", list(video.shape))
    need(weight.ndim == 5, "weight", "[D, C, pt, ph, pw]", list(weight.shape))
    need(weight.shape[1] == video.shape[1], "weight", f"C = {video.shape[1]} channels as video", weight.shape[1])
    for name, size, patch in zip("THW", video.shape[2:], weight.shape[2:], strict=True):
        need(size % patch == 0, "video", f"{name} a multiple of the patch's {patch}", size)
    if bias is not None:
        need_shape(bias, "bias", "[D]", (weight.shape[0],))


def _fake(video: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    _check(video, weight, bias)
    pt, ph, pw = weight.shape[2:]
    B, _, T, H, W = video.shape
    return video.new_empty(B, (T // pt) * (H // ph) * (W // pw), weight.shape[0])


@op("(Tensor video, Tensor weight, Tensor? bias=None) -> Tensor", _fake)
def patch_embed(video: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Project each patch of a video to a token: a 3D convolution whose stride is its kernel.

    Args:
        video: `[B, C, T, H, W]`, fp32 or bf16, any strides; T, H, W are multiples of the patch.
        weight: `[D, C, pt, ph, pw]`, dtype of video.
        bias: `[D]`, dtype of video, or None.

    Returns:
        `[B, L, D]`, dtype of video, L = (T/pt)(H/ph)(W/pw) tokens in t, h, w order.

    Raises:
        ValueError: a shape does not fit.
    """
    _check(video, weight, bias)
    pt, ph, pw = weight.shape[2:]
    patches = video.unflatten(4, (-1, pw)).unflatten(3, (-1, ph)).unflatten(2, (-1, pt))
    patches = patches.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(1, 3)
    return F.linear(patches, weight.flatten(1), bias)


def _cpu(video: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out = _native.placed(_fake(video, weight, bias))
    tokens, depth, threads = out.shape[0] * out.shape[1], math.prod(weight.shape[1:]), _native.threads()
    scratch = _native.workspace(_native.native().patch_embed_workspace(tokens, weight.shape[0], depth, threads))
    _native.native().patch_embed(*map(_native.borrow, (video, weight, bias, out, scratch)), threads)
    return out


def _cpu_refuses(video: Tensor, weight: Tensor, bias: Tensor | None) -> str | None:
    return _native.refuses((video.dtype,), weight=weight, bias=bias) or _native.refuses(
        _native.NATIVE_DTYPES, video=video
    )


def _on_cuda(video: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out = _fake(video, weight, bias)
    _cuda.launch("patch_embed", out, video, weight, bias, out, None)
    return out


def _on_triton(video: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out = _fake(video, weight, bias)
    _triton.launch("patch_embed", out, video, weight, bias, out)
    return out


def _triton_refuses(video: Tensor, weight: Tensor, bias: Tensor | None) -> str | None:
    reason = _triton.refuses(_triton.DTYPES, video.device, video=video)
    reason = reason or _triton.refuses((video.dtype,), video.device, weight=weight, bias=bias)
    reason = reason or _native.scattered(bias=bias) or _triton.too_many(video.numel(), "pixels")
    if reason is None and weight.ndim == 5:
        if weight.shape[4] not in (1, 2):
            reason = f"a patch is {weight.shape[4]} wide, not 1 or 2"
        elif weight.numel() and not weight[0].is_contiguous():
            reason = f"weight has strides {list(weight.stride())}: a patch does not lie side by side"
    return reason


def _cuda_refuses(video: Tensor, weight: Tensor, bias: Tensor | None) -> str | None:
    reason = _triton.refuses((torch.bfloat16, torch.float16), video.device, video=video)
    reason = reason or _triton.refuses((video.dtype,), video.device, weight=weight, bias=bias)
    if reason is None and (values := math.prod(weight.shape[1:])) > 512:
        reason = f"a patch has {values} values, more than 512"
    return reason or _triton.too_many(max(video.numel(), weight.numel()), "values")


patch_embed.register("cuda", _on_cuda, _cuda_refuses, _cuda.unavailable)
patch_embed.register("triton", _on_triton, _triton_refuses, _triton.unavailable)
patch_embed.register("cpu", _cpu, _cpu_refuses, _native.unavailable)
