"""A 3D convolution that sees the past alone, for videos that arrive a few frames at a time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pysora.ops import _cpu as _native
from pysora.ops import _cuda, _triton
from pysora.ops._checks import need, need_shape
from pysora.ops._onednn import convolution, pictures
from pysora.ops._registry import op
from pysora.ops.norm_silu import norm_silu, norm_silu_into


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
    return _empty(x, *shape), _empty(x, *x.shape[:2], weight.shape[2] - 1, *x.shape[3:])


def _format(x: Tensor) -> torch.memory_format:
    """How the results lie: channels side by side where those of x do."""
    side_by_side = x.shape[1] > 1 and x.stride(1) == 1
    return torch.channels_last_3d if side_by_side else torch.contiguous_format


def _empty(x: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=_format(x))


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
        y `[B, C', T, H', W']` and the next call's cache `[B, C, kt-1, H, W]`, a copy; dtype of x. Both are contiguous,
        in torch's channels_last_3d format where the channels of x lie side by side.

    Raises:
        ValueError: a shape does not fit.

    Source: the causal convolution with feature cache of the Wan VAE (Wan 2025, section 4.1).
    """
    _check(x, weight, bias, cache, norm_gamma, residual, upsample)
    B, C, _, H, W = x.shape
    kt, kh, kw = weight.shape[2:]
    past = x.new_zeros(B, C, kt - 1, H, W) if cache is None else cache
    frames = torch.cat((past, x), 2) if kt > 1 else x
    new_cache = frames[:, :, frames.shape[2] - (kt - 1) :].clone(memory_format=_format(x))
    if norm_gamma is not None:
        frames = norm_silu.reference(frames, norm_gamma)
    if upsample:
        frames = F.interpolate(frames, scale_factor=(1, 2, 2), mode="nearest")
    y = F.conv3d(frames, weight, bias, padding=(0, kh // 2, kw // 2))
    y = y if residual is None else y + residual
    return y.contiguous(memory_format=_format(x)), new_cache


def _cpu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    cache: Tensor | None,
    norm_gamma: Tensor | None,
    residual: Tensor | None,
    upsample: bool,
) -> tuple[Tensor, Tensor]:
    """oneDNN's convolution, which reaches this machine's limit where channels lie side by side, between one pass that
    lays out and normalises what it reads and one in place that adds the residual."""
    _check(x, weight, bias, cache, norm_gamma, residual, upsample)
    past = weight.shape[2] - 1
    new_cache = _empty(x, *x.shape[:2], past, *x.shape[3:])
    _keep(x, cache, new_cache)
    if cache is None and past:
        # Before the start there are zeros: the first taps of the kernel meet nothing else.
        past = min(past, x.shape[2] - 1)
        weight = weight[:, :, weight.shape[2] - 1 - past :]
    frames = _laid_out(x, cache, past, norm_gamma)
    if upsample and weight.shape[2:] == (1, 3, 3):
        y = _doubled(frames, weight, bias)
    else:
        if upsample:
            frames = F.interpolate(frames, scale_factor=(1, 2, 2), mode="nearest")
        y = convolution(frames, weight, bias, (1, 1, 1), (0, weight.shape[3] // 2, weight.shape[4] // 2))
    y = y.contiguous(memory_format=_format(x))
    y = y if residual is None else y.add_(residual)
    return y.to(x.dtype), new_cache


def _keep(x: Tensor, cache: Tensor | None, new_cache: Tensor) -> None:
    """Fill the next call's cache: the last frames of the old one and x."""
    past, T = new_cache.shape[2], x.shape[2]
    if past <= T:
        new_cache.copy_(x[:, :, T - past :])
        return
    older = new_cache[:, :, : past - T]
    if cache is None:
        older.zero_()
    else:
        older.copy_(cache[:, :, T:])
    new_cache[:, :, past - T :].copy_(x)


def _laid_out(x: Tensor, cache: Tensor | None, past: int, gamma: Tensor | None) -> Tensor:
    """`past` frames before x, and x, normed: `[B, C, past+T, H, W]`; x itself where there is nothing to do."""
    if gamma is None and not past:
        return x
    B, C, T, H, W = x.shape
    frames = _empty(x, B, C, past + T, H, W)
    before, own = frames[:, :, :past], frames[:, :, past:]
    if cache is None:
        before.zero_()
    for source, target in [(cache, before), (x, own)] if cache is not None and past else [(x, own)]:
        if gamma is None:
            target.copy_(source)
        else:
            norm_silu_into(source, gamma, target)
    return frames


def _doubled(frames: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution of `frames` at twice their height and width, on the frames as they are.

    Three taps on doubled rows see two rows: one alone and one twice, which of them depends on the row's parity. So each
    of the four parities is a kernel of 2x2, the sums of the 3x3 taps, with 4/9 of the arithmetic.
    """
    B, _, T, H, W = frames.shape
    made = weight.shape[0]
    taps = weight[:, :, 0].float()
    rows = torch.stack((_pairs(taps, 2, 0), _pairs(taps, 2, 1)))  # [parity, C', C, 2, 3]
    kernels = torch.stack((_pairs(rows, 4, 0), _pairs(rows, 4, 1)), 1)  # [parity, parity, C', C, 2, 2]
    kernels = kernels.flatten(0, 2).to(weight.dtype)
    y = convolution(pictures(frames), kernels, None if bias is None else bias.repeat(4), (1, 1), (1, 1))
    out = _empty(frames, B, made, T, 2 * H, 2 * W)
    y = y.unflatten(1, (2, 2, made)).unflatten(0, (B, T))  # [B, T, 2, 2, C', H+1, W+1]
    for down in (0, 1):
        for right in (0, 1):
            part = y[:, :, down, right, :, down : down + H, right : right + W]
            out[:, :, :, down::2, right::2] = part.transpose(1, 2)
    return out


def _pairs(taps: Tensor, dim: int, parity: int) -> Tensor:
    """Three taps along `dim` as the two that a doubled picture's even (0) or odd (1) rows need."""
    first, middle, last = taps.unbind(dim)
    return torch.stack((first + middle, last) if parity else (first, middle + last), dim)


def _cpu_refuses(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    cache: Tensor | None,
    norm_gamma: Tensor | None,
    residual: Tensor | None,
    upsample: bool,
) -> str | None:
    tensors = {"x": x, "weight": weight, "bias": bias, "cache": cache, "norm_gamma": norm_gamma, "residual": residual}
    reason = _native.refuses(_native.NATIVE_DTYPES, **tensors)
    if reason is None and x.ndim == 5 and x.shape[1] > 1 and x.stride(1) != 1:
        reason = "the channels of x do not lie side by side"
    return reason or _native.scattered(norm_gamma=norm_gamma)


def _on_cuda(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    cache: Tensor | None,
    norm_gamma: Tensor | None,
    residual: Tensor | None,
    upsample: bool,
) -> tuple[Tensor, Tensor]:
    out, new_cache = _fake(x, weight, bias, cache, norm_gamma, residual, upsample)
    scales = None
    if norm_gamma is not None:  # of each pixel that is normed on load
        frames = (x.shape[0], weight.shape[2] - 1 + x.shape[2], *x.shape[3:])
        scales = torch.empty(frames, dtype=torch.float32, device=x.device)
    inputs = (x, weight, bias, cache, norm_gamma, residual, upsample)
    _cuda.launch("causal_conv3d", out, *inputs, out, new_cache, scales)
    return out, new_cache


def _cuda_refuses(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    cache: Tensor | None,
    norm_gamma: Tensor | None,
    residual: Tensor | None,
    upsample: bool,
) -> str | None:
    reason = (
        _triton.refuses((torch.bfloat16, torch.float16), x.device, x=x)
        or _triton.refuses((x.dtype,), x.device, weight=weight, bias=bias, cache=cache, residual=residual)
        or _triton.refuses(_triton.DTYPES, x.device, norm_gamma=norm_gamma)
        or _native.scattered(norm_gamma=norm_gamma)
    )
    if reason is None and x.ndim == weight.ndim == 5:
        C, made, taps = x.shape[1], weight.shape[0], list(weight.shape[2:])
        if max(taps) > 3:
            reason = f"the kernel is {taps}, larger than 3 in a direction"
        elif C > 4096:
            reason = f"x has {C} channels, more than 4096"
        else:
            pixels = x.numel() // max(1, C)
            reason = _triton.too_many(max(C, made * (4 if upsample else 1)) * pixels, "values")
    return reason


causal_conv3d.register("cuda", _on_cuda, _cuda_refuses, _cuda.unavailable)
causal_conv3d.register("cpu", _cpu, _cpu_refuses, _native.unavailable)
