"""The CUDA kernels of `causal_conv3d`, executed on the CPU."""

from __future__ import annotations

import ctypes

import pytest
import torch
import torch.nn.functional as F
from close import channels_last, check, part, strided, transposed
from gpu.launcher import DTYPES, Counts, Launcher, Memory, Values, array
from torch import Tensor

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
KINDS = {  # the PTX of both types differs in the opcodes' types alone
    "bf16, sm_80": (torch.bfloat16, "compute_80"),
    "fp16, sm_80": (torch.float16, "compute_80"),
    "bf16, sm_90": (torch.bfloat16, "compute_90"),
}


class CausalConv3dParams(ctypes.Structure):
    """csrc/include/pysora/causal_conv3d.h"""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("x_shape", ctypes.c_int64 * 5),
        ("x_strides", ctypes.c_int64 * 5),
        ("weight", ctypes.c_void_p),
        ("weight_shape", ctypes.c_int64 * 5),
        ("weight_strides", ctypes.c_int64 * 5),
        ("bias", ctypes.c_void_p),
        ("bias_stride", ctypes.c_int64),
        ("cache", ctypes.c_void_p),
        ("cache_strides", ctypes.c_int64 * 5),
        ("gamma", Values),
        ("residual", ctypes.c_void_p),
        ("residual_strides", ctypes.c_int64 * 5),
        ("out", ctypes.c_void_p),
        ("out_strides", ctypes.c_int64 * 5),
        ("new_cache", ctypes.c_void_p),
        ("new_cache_strides", ctypes.c_int64 * 5),
        ("scales", ctypes.c_void_p),
        ("upsample", ctypes.c_bool),
        ("dtype", ctypes.c_int),
    )


def launch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    cache: Tensor | None = None,
    gamma: Tensor | None = None,
    residual: Tensor | None = None,
    upsample: bool = False,
    *,
    arch: str = "compute_80",
    shift: int = 0,
    text: str | None = None,
) -> tuple[Tensor, Tensor, Counts, Launcher]:
    """Run the kernels; return the result, the new cache, the counts and the launcher."""
    memory, (B, C, T, H, W), past = Memory(shift), x.shape, weight.shape[2] - 1

    def empty(*shape: int) -> Tensor:
        nan = torch.full(shape, torch.nan, dtype=x.dtype)
        return channels_last(nan) if C > 1 and x.stride(1) == 1 else nan

    def placed(tensor: Tensor | None) -> tuple[object, object]:
        return memory.address(tensor), array([0] * 5 if tensor is None else tensor.stride())

    out = empty(B, weight.shape[0], T, H * (1 + upsample), W * (1 + upsample))
    new_cache = empty(B, C, past, H, W)
    scales = None if gamma is None else torch.full((B, past + T, H, W), torch.nan)
    params = CausalConv3dParams(
        *(memory.address(x), array(x.shape), array(x.stride())),
        *(memory.address(weight), array(weight.shape), array(weight.stride())),
        *(memory.address(bias), 0 if bias is None else bias.stride(0)),
        *placed(cache),
        memory.values(gamma),
        *placed(residual),
        *placed(out),
        *placed(new_cache),
        *(memory.address(scales), upsample, DTYPES[x.dtype]),
    )
    launcher = Launcher("causal_conv3d", CausalConv3dParams, arch, text)
    counts = launcher(params, memory)
    return out, new_cache, counts, launcher


def tensors(shape: tuple[int, ...], out: int, kernel: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    """Return x, weights and a bias; channels lie side by side."""
    x, weight = torch.randn(shape).to(dtype), torch.randn(out, shape[1], *kernel).to(dtype)
    return [channels_last(x), channels_last(weight), torch.randn(out).to(dtype)]


def plain(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A convolution after padding."""
    kt, kh, kw = weight.shape[2:]
    return F.conv3d(F.pad(x, (kw // 2, kw // 2, kh // 2, kh // 2, kt - 1, 0)), weight, bias)


def fused(
    x: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor | None, residual: Tensor | None, up: int = 1
) -> Tensor:
    """Norm and SiLU, upsampling, convolution, residual."""
    if gamma is not None:
        x = F.silu(F.normalize(x, dim=1) * x.shape[1] ** 0.5 * gamma.to(x.dtype)[:, None, None, None])
    frames = [F.interpolate(f, scale_factor=up, mode="nearest-exact") for f in x.unbind(2)]
    y = plain(torch.stack(frames, 2), weight, bias)
    return y if residual is None else y + residual


def last(x: Tensor, cache: Tensor | None, past: int) -> Tensor:
    """The next call's cache."""
    cache = torch.zeros_like(x[:, :, :1]).expand(-1, -1, past, -1, -1) if cache is None else cache
    frames = torch.cat((cache, x), 2)
    return frames[:, :, frames.shape[2] - past :]


CASES = {  # x, C', kernel
    "3 channels in, odd sizes": ((1, 3, 2, 9, 17), 16, (3, 3, 3)),
    "3 channels out": ((2, 16, 1, 5, 7), 3, (3, 3, 3)),
    "48 channels": ((1, 48, 1, 7, 5), 48, (1, 3, 3)),
    "96 channels": ((1, 24, 2, 3, 5), 96, (3, 1, 1)),
    "100 channels, pointwise": ((1, 96, 1, 3, 5), 100, (1, 1, 1)),
    "5x5": ((1, 8, 2, 9, 4), 8, (2, 5, 5)),
    "temporal, many frames": ((2, 5, 4, 3, 1), 3, (3, 1, 1)),
    "one": ((1, 1, 1, 1, 1), 1, (3, 3, 3)),
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_accuracy(case, kind):
    dtype, arch = kind
    x, weight, bias = tensors(*case, dtype)
    y, cache, _, _ = launch(x, weight, bias, arch=arch)
    check(y, plain, (x, weight, bias))
    assert torch.equal(cache, last(x, None, case[2][0] - 1))


FUSED = {  # x, C', kernel, upsample
    "3x3x3, aligned": ((2, 16, 2, 3, 11), 24, (3, 3, 3), False),
    "3x3x3, twice as large": ((1, 6, 2, 5, 9), 5, (3, 3, 3), True),
    "1x3x3, twice as large, aligned": ((1, 24, 2, 5, 9), 16, (1, 3, 3), True),
    "3x5x1, twice as large": ((1, 8, 1, 3, 9), 8, (3, 5, 1), True),
    "pointwise": ((1, 40, 1, 3, 5), 16, (1, 1, 1), False),
}


@pytest.mark.parametrize("dtype", HALVES.values(), ids=HALVES)
@pytest.mark.parametrize("case", FUSED.values(), ids=FUSED)
def test_norm_upsampling_and_residual(case, dtype):
    *sizes, upsample = case
    x, weight, bias = tensors(*sizes, dtype)
    up = 1 + upsample
    residual = channels_last(torch.randn(x.shape[0], sizes[1], x.shape[2], up * x.shape[3], up * x.shape[4]).to(dtype))
    gamma = torch.rand(x.shape[1]) + 0.5
    y, cache, _, _ = launch(x, weight, bias, None, gamma.to(dtype), residual, upsample)
    check(y, fused, (x, weight, bias, gamma.to(dtype), residual), up=up)
    assert torch.equal(cache, last(x, None, sizes[2][0] - 1))
    y = launch(x, weight, bias, None, gamma, None, upsample)[0]
    check(y, fused, (x, weight, bias, gamma, None), up=up)


@pytest.mark.parametrize("normed", [False, True], ids=["as they are", "normed"])
@pytest.mark.parametrize("channels", [8, 3], ids=["aligned", "single values"])
def test_frames_may_come_in_pieces(channels, normed):
    """The cache is read in place, from any frame on, and the next one written, to the last bit."""
    x, weight, bias = tensors((1, channels, 5, 4, 5), 3, (4, 3, 3), torch.bfloat16)
    gamma = torch.rand(channels) + 0.5 if normed else None
    whole, end, _, _ = launch(x, weight, bias, None, gamma)
    cache, pieces = None, []
    for piece in x.split([1, 1, 3], 2):
        before = cache
        y, cache, _, _ = launch(piece, weight, bias, before, gamma)
        assert torch.equal(cache, last(piece, before, 3))
        pieces.append(y)
    assert torch.equal(torch.cat(pieces, 2), whole) and torch.equal(cache, end)


LAYOUTS = {
    "part of the rows": lambda t: part(t, 3),
    "part of the columns": lambda t: part(t, 4),
    "part of the frames": lambda t: part(t, 2),
    "part of the channels": lambda t: channels_last(torch.cat([t * torch.nan, t, t], 1))[:, t.shape[1] : -t.shape[1]],
    "channels apart": lambda t: t.contiguous(),
    "every other": strided,
    "transposed": transposed,
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_strides(layout):
    """Strides do not change a bit, where they forbid 128-bit accesses neither."""
    x, weight, bias = tensors((1, 8, 1, 3, 5), 8, (2, 3, 3), torch.bfloat16)
    cache, gamma = channels_last(torch.randn(1, 8, 1, 3, 5).bfloat16()), torch.rand(8) + 0.5
    residual = channels_last(torch.randn(1, 8, 1, 3, 5).bfloat16())
    expected = launch(x, weight, bias, cache, gamma, residual)
    views = [layout(t) for t in (x, weight, cache, residual)]
    actual = launch(views[0], views[1], strided(bias), views[2], gamma, views[3])
    assert torch.equal(actual[0], expected[0]) and torch.equal(actual[1], expected[1])


def test_alignment():
    """Single accesses where tensors start between multiples of 16 bytes."""
    x, weight, bias = tensors((1, 8, 1, 3, 5), 8, (2, 3, 3), torch.bfloat16)
    moved, cache, counts, _ = launch(x, weight, bias, shift=2)
    assert counts.wide_share() == 0
    assert torch.equal(moved, launch(x, weight, bias)[0]) and torch.equal(cache, x)


def test_no_frames():
    """An empty piece leaves the cache as it was; no samples and no channels are results too."""
    x, weight, bias = tensors((1, 8, 1, 3, 5), 8, (3, 3, 3), torch.bfloat16)
    cache = channels_last(torch.randn(1, 8, 2, 3, 5).bfloat16())
    assert torch.equal(launch(x[:, :, :0], weight, bias, cache)[1], cache)
    assert launch(x[:0], weight, bias)[0].shape == (0, 8, 1, 3, 5)
    assert torch.equal(launch(x[:, :0], weight[:, :0], bias)[0], bias.view(1, 8, 1, 1, 1).expand(1, 8, 1, 3, 5))


def test_zeros_and_special_values():
    """A pixel of zeros has no direction: it stays zero. NaN reaches the pixels around it alone."""
    x, weight, bias = tensors((1, 8, 1, 3, 9), 8, (1, 3, 3), torch.bfloat16)
    gamma = torch.ones(8)
    assert torch.equal(launch(x * 0, weight, bias, None, gamma)[0][0, :, 0, 1, 1], bias)
    x[0, 3, 0, 1, 6] = torch.nan
    y = launch(x, weight, bias, None, gamma)[0]
    assert y[..., 5:8].isnan().all() and y[..., :5].isfinite().all() and y[..., 8].isfinite().all()


def test_the_largest_kernel_fits_into_every_cards_memory():
    x, weight, bias = tensors((1, 8, 1, 1, 3), 96, (5, 5, 5), torch.bfloat16)
    gamma = torch.rand(8) + 0.5
    check(launch(x, weight, bias, None, gamma)[0], fused, (x, weight, bias, gamma, None))


WORK = {  # C, C', kernel, columns of a block, norm, upsample
    "96 columns, norm": (32, 96, (3, 3, 3), 96, True, False),
    "64 columns, twice as large": (16, 64, (1, 3, 3), 64, False, True),
    "16 columns, temporal": (64, 16, (3, 1, 1), 16, False, False),
}


@pytest.mark.parametrize("case", WORK.values(), ids=WORK)
def test_work(case):
    """Aligned: a multiplication for each 16x8x16 values, and what each block reads no more than once."""
    C, out, kernel, columns, normed, upsample = case
    T, H, W, up = 1, 8, 16, 1 + upsample
    x, weight, bias = tensors((1, C, T, H, W), out, kernel, torch.bfloat16)
    cache = channels_last(torch.randn(1, C, kernel[0] - 1, H, W).bfloat16()) if kernel[0] > 1 else None
    residual = channels_last(torch.randn(1, out, T, up * H, up * W).bfloat16())
    gamma = torch.rand(C) if normed else None
    _, _, counts, launcher = launch(x, weight, bias, cache, gamma, residual, upsample)
    taps, pixels = kernel[0] * kernel[1] * kernel[2], T * up * H * up * W
    mma = sum(n for op, n in launcher.instructions.items() if op.startswith("mma."))
    assert mma == pixels // 16 * (out // 8) * (C // 16) * taps
    *_, (_, grid, _) = launcher.launches
    assert grid[0] == pixels // 128 * (out // columns)
    assert counts.wide_share() >= 0.95 and counts.coalescing() <= 1.05 and counts.conflicts() <= 1.05
    # The pass before reads what it measures or keeps; a block its weights, residual, bias, and pixels with an edge.
    copied = (kernel[0] - 1) * H * W * C * 2
    passed = (kernel[0] - 1 + T) * H * W * C * 2 if normed else copied
    scales = (kernel[0] - 1 + T) * H * W * 8 if normed else 0  # 4 bytes each, 16 of them count as a sector of 32
    assert counts.bytes("st") == pixels * out * 2 + copied + scales
    edges = grid[0] * kernel[0] * (8 // up + 2 * (kernel[1] > 1)) * (16 // up + 2 * (kernel[2] > 1)) * C * 2
    least = passed + grid[0] * columns * taps * C * 2 + pixels * out * 2
    assert least < counts.bytes() - counts.bytes("st") <= 1.02 * (least + edges)
