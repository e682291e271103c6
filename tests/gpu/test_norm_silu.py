"""The CUDA kernels of `norm_silu`, executed on the CPU."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
import torch
from close import channels_last, check, check_all, part
from gpu.launcher import ALL_DTYPES, ARCHS, DTYPES, Counts, Launcher, Memory, Values, array
from torch import Tensor

from pysora import ops


class NormSiluParams(ctypes.Structure):
    """csrc/include/pysora/norm_silu.h"""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("C", ctypes.c_int64),
        ("run", ctypes.c_int64),
        *((name, ctypes.c_int64 * 4) for name in ("outer", "x_outer_strides", "out_outer_strides")),
        *((name, ctypes.c_int64) for name in ("x_pixel", "out_pixel", "x_channel", "out_channel")),
        ("by_channels", ctypes.c_bool),
        ("gamma", Values),
        ("silu", ctypes.c_bool),
        ("dtype", ctypes.c_int),
        ("threads", ctypes.c_int),
    )


def launch(
    x: Tensor, gamma: Tensor, silu: bool = True, *, merged: bool = True, shift: int = 0, **how: Any
) -> tuple[Tensor, Counts]:
    """Run the kernels; return the result and the counts.

    merged: the pixels of a sample of x [B, C, T, H, W] are one run; False makes one of each row.
    """
    memory, out = Memory(shift), torch.full_like(x, torch.nan)
    by_channels = x.stride(1) == 1 and x.shape[1] > 1
    sizes, x_strides, out_strides = ([t[i] for i in (0, 2, 3, 4)] for t in (x.shape, x.stride(), out.stride()))
    run, x_pixel, out_pixel = sizes.pop(), x_strides.pop(), out_strides.pop()
    if merged:
        run, sizes[1:], x_strides[1:], out_strides[1:] = run * sizes[1] * sizes[2], [1, 1], [0, 0], [0, 0]
    params = NormSiluParams(
        *(memory.address(x), memory.address(out), x.shape[1], run),
        *(array([first, *values]) for first, values in ((1, sizes), (0, x_strides), (0, out_strides))),
        *(x_pixel, out_pixel, x.stride(1), out.stride(1), by_channels, memory.values(gamma), silu, DTYPES[x.dtype], 1),
    )
    return out, Launcher("norm_silu", NormSiluParams, **how)(params, memory)


SHAPES = {
    "a decoder's": [(1, 96, 1, 8, 16)],
    "200 pixels": [(1, 17, 1, 10, 20)],
    # Judged as one, with many values: else luck would decide.
    "63 channels": [(1, 63, 2, 3, 3), (2, 63, 2, 9, 11)],
    "odd": [(1, 1, 1, 1, 1), (1, 1, 2, 3, 5), (2, 5, 1, 3, 7), (8, 5, 1, 9, 31)],
}
FORMATS = {"channels": channels_last, "pixels": torch.clone}
plain = ops.norm_silu.reference


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("layout", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("dtype", ALL_DTYPES.values(), ids=ALL_DTYPES)
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_accuracy(shapes, dtype, layout, arch):
    xs = [layout(torch.randn(shape).to(dtype)) for shape in shapes]
    check_all(lambda *args: launch(*args, arch=arch)[0], plain, [(x, torch.randn(x.shape[1])) for x in xs])
    cases = [(x, torch.randn(x.shape[1]).to(dtype), False) for x in xs]
    check_all(lambda *args: launch(*args, arch=arch)[0], plain, cases)


@pytest.mark.parametrize("layout", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("C", [384, 600, 1024])
def test_many_channels(C, layout):
    """Several warps share a pixel, or hold a tile of them: with 600 channels its other shape, with 1024 the largest."""
    for W in (16, 15):
        args = layout(torch.randn(1, C, 1, 1, W)).bfloat16(), torch.randn(C)
        check(launch(*args)[0], plain, args)


def test_most_channels():
    """As many as a block's threads hold where they lie side by side."""
    for C in (8192, 8191):
        args = channels_last(torch.randn(1, C, 1, 1, 2)).bfloat16(), torch.randn(C)
        check(launch(*args)[0], plain, args)


LAYOUTS = {
    "a crop": lambda x: part(x, 3),
    "a crop, channels last": lambda x: part(x.movedim(1, -1), 2).movedim(-1, 1),
    "some channels, channels last": lambda x: part(x.movedim(1, -1), 4).movedim(-1, 1),
    "every other frame": lambda x: part(x, 2)[:, :, 2:3],
    "one repeated": lambda x: x[:1].expand_as(x),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 8, 2, 3, 8), (2, 5, 2, 3, 7)], ids=["aligned", "odd"])
def test_strides(layout, shape):
    x, gamma = layout(torch.randn(shape)), torch.randn(shape[1])
    out = launch(x, gamma, merged=False)[0]
    torch.testing.assert_close(out, plain(x, gamma).contiguous(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layout", FORMATS.values(), ids=FORMATS)
def test_alignment(layout):
    """Single accesses where tensors start between multiples of 16 bytes."""
    args = layout(torch.randn(1, 16, 1, 4, 8)).bfloat16(), torch.randn(16)
    moved, counts = launch(*args, shift=4)
    assert counts.wide_share() == 0
    torch.testing.assert_close(moved, launch(*args)[0], rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("layout", FORMATS.values(), ids=FORMATS)
def test_blocks_go_on_to_further_pixels(layout):
    """Where there are more pixels than the grid has room for: here one block."""
    args = layout(torch.randn(2, 40, 1, 10, 16)), torch.randn(40)
    assert torch.equal(launch(*args, blocks=1)[0], launch(*args)[0])


@pytest.mark.parametrize("layout", FORMATS.values(), ids=FORMATS)
def test_special_values(layout):
    """NaN stays in its pixel, zeros stay zeros, and SiLU goes from where it vanishes to where it is the identity."""
    x = torch.ones(1, 16, 1, 2, 8)
    x[0, 2, 0, 1, 7], x[0, :, 0, 0, 0], x[0, :, 0, 0, 1] = torch.nan, 0, 1e-14
    gamma = torch.linspace(-120, 120, 16)
    x = layout(x)
    out = launch(x, gamma)[0]
    assert out[0, :, 0, 1, 7].isnan().all() and int(out.isnan().sum()) == 16
    assert not out[0, :, 0, 0, 0].any()
    keep = [i for i in range(16) if i != 15]
    check(out.flatten(2)[..., keep], lambda x, gamma: plain(x, gamma).flatten(2)[..., keep], (x, gamma))


@pytest.mark.parametrize(
    ("dtype", "of_gamma"),
    [(torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32), (torch.float32, torch.float32)],
    ids=["bf16", "bf16, gamma fp32", "fp32"],
)
def test_one_pass_over_memory(dtype, of_gamma):
    """Aligned: the bytes of x and out, and gamma once for each warp, at least 95 % of them 128 bits wide."""
    x, gamma = torch.randn(1, 96, 1, 16, 16).to(dtype), torch.randn(96).to(of_gamma)
    values, warps = x.numel() * dtype.itemsize, 256 // 4
    _, counts = launch(channels_last(x), gamma)
    assert counts.bytes("st") == values
    assert counts.bytes("ld") == values + warps * 96 * of_gamma.itemsize
    assert counts.wide_share() == 1 and counts.coalescing() <= 1.05 and counts.conflicts() == 1
    _, counts = launch(x, gamma)
    assert counts.bytes("st") == values
    assert values < counts.bytes("ld") <= values * 1.1
    assert counts.wide_share() >= 0.95 and counts.coalescing() <= 1.05 and counts.conflicts() <= 1.05
