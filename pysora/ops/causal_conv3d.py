"""A 3D convolution that sees the past alone, for videos that arrive a few frames at a time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pysora.ops._checks import need, need_shape
from pysora.ops._registry import op
from pysora.ops.norm_silu import norm_silu


def _check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    cache: Tensor | None,
    norm_gamma: Tensor | None,
    residual: Tensor | None,
    upsample: bool,
) -> tuple[int, int, int, int, int]:
    """Raise ValueError where shapes do not fit; return the output's shape."""
    need(x.ndim == 5, "x", "[B, C, T, H, W]", list(x.shape))
    need(weight.ndim == 5, "weight", "[C', C, kt, kh, kw]", list(weight.shape))
    B, C, T, H, W = x.shape
    out, kt, kh, kw = weight.shape[0], *weight.shape[2:]
    need(weight.shape[1] == C, "weight", f"C = {C} input channels as x", weight.shape[1])
    need(kh % 2 == 1 and kw % 2 == 1, "weight", "odd kh and kw", (kh, kw))
    if bias is not None:
        need_shape(bias, "bias", "[C']", (out,))
    if cache is not None:
        need_shape(cache, "cache", "[B, C, kt-1, H, W]", (B, C, kt - 1, H, W))
    if norm_gamma is not None:
        need_shape(norm_gamma, "norm_gamma", "[C]", (C,))
    shape = (B, out, T, H * (1 + upsample), W * (1 + upsample))
    if residual is not None:
        need_shape(residual, "residual", "[B, C', T, H', W']", shape)
    return shape


def _fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    cache: Tensor | None,
    norm_gamma: Tensor | None,
    residual: Tensor | None,
    upsample: bool,
) -> tuple[Tensor, Tensor]:
    shape = _check(x, weight, bias, cache, norm_gamma, residual, upsample)
    return x.new_empty(shape), x.new_empty(*x.shape[:2], weight.shape[2] - 1, *x.shape[3:])


@op(
    "(Tensor x, Tensor weight, Tensor? bias=None, Tensor? cache=None, Tensor? norm_gamma=None, "
    "Tensor? residual=None, bool upsample=False) -> (Tensor, Tensor)",
    _fake,
)
def causal_conv3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    cache: Tensor | None = None,
    norm_gamma: Tensor | None = None,
    residual: Tensor | None = None,
    upsample: bool = False,
) -> tuple[Tensor, Tensor]:
    """Convolve frames with those before them; in space the input is padded with zeros to keep its size.

    On load the input goes through `norm_silu` (where `norm_gamma` is given) and nearest 2x upsampling in space (where
    `upsample`), in this order; on store the residual is added.

    Args:
        x: `[B, C, T, H, W]`, fp32 or bf16.
        weight: `[C', C, kt, kh, kw]`, dtype of x; kh and kw odd.
        bias: `[C']`, dtype of x, or None.
        cache: `[B, C, kt-1, H, W]`, dtype of x: the frames before x, as they were passed in (before norm and
            upsampling); None stands for zeros, the start of a video.
        norm_gamma: `[C]`, or None for no norm on load.
        residual: `[B, C', T, H', W']`, dtype of x, or None.
        upsample: doubles H and W on load.

    Returns:
        y `[B, C', T, H', W']` and the next call's cache `[B, C, kt-1, H, W]`, a contiguous copy; dtype of x.

    Raises:
        ValueError: a shape does not fit.

    Source: the causal convolution with feature cache of the Wan VAE (Wan 2025, section 4.1).
    """
    _check(x, weight, bias, cache, norm_gamma, residual, upsample)
    B, C, _, H, W = x.shape
    kt, kh, kw = weight.shape[2:]
    past = x.new_zeros(B, C, kt - 1, H, W) if cache is None else cache
    frames = torch.cat((past, x), 2) if kt > 1 else x
    new_cache = frames[:, :, frames.shape[2] - (kt - 1) :].clone(memory_format=torch.contiguous_format)
    if norm_gamma is not None:
        frames = norm_silu.reference(frames, norm_gamma)
    if upsample:
        frames = F.interpolate(frames, scale_factor=(1, 2, 2), mode="nearest")
    y = F.conv3d(frames, weight, bias, padding=(0, kh // 2, kw // 2))
    return (y if residual is None else y + residual), new_cache
