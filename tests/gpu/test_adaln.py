"""The CUDA kernel of `adaln`, executed on the CPU."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
import torch
from close import check, check_all
from gpu.launcher import ALL_DTYPES, ARCHS, DTYPES, Counts, Launcher, Memory, TimestepRows, Values, array
from torch import Tensor

from pysora import ops


class AdalnParams(ctypes.Structure):
    """csrc/include/pysora/adaln.h"""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("x_strides", ctypes.c_int64 * 2),
        ("out", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in "BLD"),
        ("table", TimestepRows),
        ("to_scale", ctypes.c_int64),
        ("gain", Values),
        ("bias", Values),
        ("eps", ctypes.c_float),
        ("layer", ctypes.c_bool),
        ("dtype", ctypes.c_int),
        ("threads", ctypes.c_int),
    )


def launch(
    x: Tensor,
    table: Tensor | None = None,
    index: Tensor | None = None,
    gain: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-6,
    norm: str = "layer",
    *,
    out: Tensor | None = None,
    shift: int = 0,
    **how: Any,
) -> tuple[Tensor, Counts]:
    """Run the kernel; return its result and its counts. `how` goes to the launcher."""
    memory = Memory(shift)
    out = torch.full(x.shape, torch.nan, dtype=x.dtype) if out is None else out
    rows = TimestepRows() if table is None else memory.timestep_rows(table, index)
    params = AdalnParams(
        *(memory.address(x), array(x.stride()[:2]), memory.address(out), *x.shape, rows),
        *(0 if table is None else table.stride(1), memory.values(gain), memory.values(bias)),
        *(eps, norm == "layer", DTYPES[x.dtype], 1),
    )
    return out, Launcher("adaln", AdalnParams, **how)(params, memory)


SHAPES = {
    "a model's": (1, 2, 1536),
    "two samples": (2, 13, 64),
    "odd": (3, 5, 7),
    "63 wide": (2, 3, 63),
    "200 wide": (1, 4, 200),
    "a wide row": (1, 2, 5120),
    "an odd number of packs": (2, 3, 24),
    "one": (1, 1, 1),
}


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", ALL_DTYPES.values(), ids=ALL_DTYPES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_accuracy(shape, dtype, arch):
    """A model's three uses, and all operands together."""
    B, L, D = shape
    x, gain, bias = torch.randn(shape).to(dtype), torch.randn(D), torch.randn(D).to(dtype)
    index = torch.randint(3, (B, L), dtype=torch.int32)
    cases = [
        (x, torch.randn(1, 2, D)),
        (x, torch.randn(B, 2, D).to(dtype)),
        (x, None, None, gain, bias),
        (x, torch.randn(3, 2, D), index, gain, bias, 1e-5, "rms"),
    ]
    check_all(lambda *args: launch(*args, arch=arch)[0], ops.adaln.reference, cases)


def test_a_large_mean_costs_no_digits():
    """As little as in torch's own layer norm."""
    x = torch.randn(2, 5, 1000) + 300
    check(launch(x)[0], ops.adaln.reference, (x,))


def test_rounded_once():
    """Where the shift takes away most of a value, what was rounded before it would show."""
    x, table = torch.randn(1, 8, 1000).bfloat16(), torch.full((1, 2, 1000), 3.0)
    table[:, 0] = -4.0 * ops.adaln.reference(x)[:, 3].float()
    exact = ops.adaln.reference(x.double(), table.double())
    error = (launch(x, table)[0].double() - exact).abs()
    half_a_place = 2 ** (exact.abs().log2().floor() - 8)
    assert (error <= half_a_place + 1e-5).all()


def rows_of_six(table: Tensor) -> Tensor:
    """Return the same values as two of the six rows that a block's modulation has; the others are NaN."""
    whole = torch.full((table.shape[0], 6, table.shape[2]), torch.nan, dtype=table.dtype)
    whole[:, 3:5] = table
    return whole[:, 3:5]


LAYOUTS = {
    "part of a fused projection": lambda x: torch.cat([x * torch.nan, x, x * torch.nan], 2)[..., 32:64],
    "tokens before samples": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "one sample repeated": lambda x: x[:1].expand_as(x),
    "an odd stride": lambda x: torch.cat([x, x[..., :1] * torch.nan], 2)[..., :-1],
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_strides(layout, norm):
    """Also where they forbid 128-bit accesses; the index skips."""
    x, table = layout(torch.randn(2, 6, 32)), torch.randn(3, 2, 32)
    index = torch.randint(3, (2, 6), dtype=torch.int32)
    skipping = torch.stack([index, torch.full_like(index, 99)], -1)[..., 0]
    expected = launch(x.contiguous(), table, index, norm=norm)[0]
    actual = launch(x, rows_of_six(table), skipping, norm=norm)[0]
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ALL_DTYPES.values(), ids=ALL_DTYPES)
def test_alignment(dtype):
    """Single accesses where tensors start between multiples of 16 bytes."""
    args = torch.randn(1, 5, 64).to(dtype), torch.randn(1, 2, 64)
    moved, counts = launch(*args, shift=4)
    assert counts.wide_share() == 0
    torch.testing.assert_close(moved, launch(*args)[0], rtol=1e-2 if dtype.itemsize == 2 else 1e-6, atol=1e-6)


def test_in_place():
    args = torch.randn(2, 5, 64), torch.randn(2, 2, 64)
    expected = launch(*args)[0]
    assert torch.equal(launch(*args, out=args[0])[0], expected)


def test_blocks_go_on_to_further_rows():
    """Where there are more rows than the grid has room for: here two blocks."""
    for shape in ((1, 7, 1024), (2, 21, 16)):
        args = torch.randn(shape), torch.randn(shape[0], 2, shape[2])
        assert torch.equal(launch(*args, blocks=2)[0], launch(*args)[0])


def test_special_values():
    """NaN and infinity stay in their token; a constant token becomes the shift."""
    x, table = torch.randn(1, 4, 64), torch.randn(1, 2, 64)
    x[0, 0, 7], x[0, 1, 3], x[0, 2] = torch.nan, torch.inf, 2.5
    out = launch(x, table)[0]
    assert out[0, :2].isnan().all() and out[0, 3].isfinite().all()
    assert torch.equal(out[0, 2], table[0, 0])


def test_an_index_that_names_no_row_makes_nan():
    args = torch.randn(1, 5, 64).bfloat16(), torch.randn(3, 2, 64)
    out = launch(*args, torch.tensor([0, 3, 2, -1, 1], dtype=torch.int32))[0]
    assert out[0, [1, 3]].isnan().all() and out[0, [0, 2, 4]].isfinite().all()


@pytest.mark.parametrize("dtype", ALL_DTYPES.values(), ids=ALL_DTYPES)
def test_one_pass_over_memory(dtype):
    """Aligned, as in a model: x, its row of the table and the result once for each token, all of them 128 bits wide."""
    B, L, D = 1, 6, 1536
    _, counts = launch(torch.randn(B, L, D).to(dtype), torch.randn(1, 2, D))
    assert counts.bytes("st") == L * D * dtype.itemsize
    assert counts.bytes("ld") == L * D * (dtype.itemsize + 2 * 4)
    assert counts.wide_share() >= 0.95 and counts.coalescing() <= 1.05 and counts.conflicts() <= 1.05
