"""The CUDA kernel of `gate_residual`, executed on the CPU."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
import torch
from close import check
from gpu.launcher import ALL_DTYPES, ARCHS, DTYPES, Counts, Launcher, Memory, TimestepRows, Values, array
from torch import Tensor

from pysora import ops


class GateResidualParams(ctypes.Structure):
    """csrc/include/pysora/gate_residual.h"""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("y", Values),
        ("x_strides", ctypes.c_int64 * 2),
        ("y_strides", ctypes.c_int64 * 2),
        ("gate", TimestepRows),
        ("out", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in "BLD"),
        ("dtype", ctypes.c_int),
        ("threads", ctypes.c_int),
    )


def launch(
    x: Tensor,
    y: Tensor,
    gate: Tensor,
    index: Tensor | None = None,
    *,
    out: Tensor | None = None,
    shift: int = 0,
    **how: Any,
) -> tuple[Tensor, Counts]:
    """Run the kernel; return its result and its counts. `how` goes to the launcher."""
    memory = Memory(shift)
    out = torch.full(x.shape, torch.nan, dtype=x.dtype) if out is None else out
    params = GateResidualParams(
        *(memory.address(x), memory.values(y), array(x.stride()[:2]), array(y.stride()[:2])),
        *(memory.timestep_rows(gate, index), memory.address(out), *x.shape, DTYPES[x.dtype], 1),
    )
    return out, Launcher("gate_residual", GateResidualParams, **how)(params, memory)


SHAPES = {
    "a model's": (1, 3, 1536),
    "two samples": (2, 13, 64),
    "odd": (3, 5, 7),
    "63 wide": (2, 3, 63),
    "200 wide": (1, 4, 200),
    "several rounds": (1, 2, 8264),
    "an odd number of packs": (2, 3, 24),
    "one": (1, 1, 1),
}
# Of x, y and gate: as the residual stream of a model in fp32 or in one 16-bit type has them, and unlike ones.
MIXES = {
    "fp32": (torch.float32,) * 3,
    "bf16": (torch.bfloat16,) * 3,
    "fp16": (torch.float16,) * 3,
    "bf16 and an fp32 gate": (torch.bfloat16, torch.bfloat16, torch.float32),
    "fp32 and a bf16 branch": (torch.float32, torch.bfloat16, torch.float32),
    "fp16, fp32 and bf16": (torch.float16, torch.float32, torch.bfloat16),
}


def inputs(shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...], U: int) -> tuple[Tensor, Tensor, Tensor]:
    B, L, D = shape
    return torch.randn(B, L, D).to(dtypes[0]), torch.randn(B, L, D).to(dtypes[1]), torch.randn(U, D).to(dtypes[2])


def same_bits(actual: Tensor, expected: Tensor) -> bool:
    """Equal, where a NaN equals any NaN and zeros have signs."""
    bits = torch.int32 if actual.dtype == torch.float32 else torch.int16
    number = ~expected.isnan()
    return torch.equal(actual.isnan(), ~number) and torch.equal(actual[number].view(bits), expected[number].view(bits))


@pytest.mark.parametrize("dtypes", MIXES.values(), ids=MIXES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_bits_of_the_reference(shape, dtypes):
    """One gate for each sample, and one for each token."""
    for U, index in ((shape[0], None), (4, torch.randint(4, shape[1:2], dtype=torch.int32))):
        args = *inputs(shape, dtypes, U), index
        assert same_bits(launch(*args)[0], ops.gate_residual.reference(*args))


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", ALL_DTYPES.values(), ids=ALL_DTYPES)
def test_accuracy(dtype, arch):
    """One gate for all, on odd and on aligned sizes."""
    for shape in ((1, 9, 200), (2, 3, 63)):
        args = inputs(shape, (dtype,) * 3, 1)
        check(launch(*args, arch=arch)[0], lambda x, y, gate: x + y * gate, args)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_rounding(dtype):
    """Ties, subnormals, overflow, infinities and NaN: random bits, and the middles between neighbours."""
    gate = torch.randint(-(2**31), 2**31, (1 << 13,), dtype=torch.int64).int()
    low = 16 if dtype == torch.bfloat16 else 13
    gate[::2] = gate[::2] >> low << low | 1 << (low - 1)
    gate = gate.view(torch.float32).unsqueeze(0)
    x, y = torch.zeros(1, 1, 1 << 13, dtype=dtype), torch.ones(1, 1, 1 << 13, dtype=dtype)
    assert same_bits(launch(x, y, gate)[0], gate.to(dtype).unsqueeze(0))


def halves(t: Tensor) -> Tensor:
    """Return the same values as every other row of memory whose other rows are NaN."""
    return torch.stack([torch.full_like(t, torch.nan), t], t.ndim - 1).select(t.ndim - 1, 1)


LAYOUTS = {
    "rows of a larger table": halves,
    "an odd stride": lambda t: torch.cat([t, torch.full_like(t[..., :1], torch.nan)], -1)[..., :-1],
    "one row repeated": lambda t: t[:1].expand_as(t),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("which", range(3), ids=["x", "y", "gate"])
def test_strides(layout, which):
    """Also where they forbid 128-bit accesses; the index skips, and differs between samples."""
    args = list(inputs((2, 6, 32), (torch.bfloat16,) * 3, 3))
    index = torch.randint(3, (2, 6), dtype=torch.int32)
    args[which] = layout(args[which])
    skipping = torch.stack([index, torch.full_like(index, 99)], -1)[..., 0]
    expected = ops.gate_residual.reference(*args, index)
    assert torch.equal(launch(*args, skipping)[0], expected)


@pytest.mark.parametrize("dtype", ALL_DTYPES.values(), ids=ALL_DTYPES)
def test_alignment(dtype):
    """Single accesses where tensors start between multiples of 16 bytes."""
    args = inputs((1, 5, 64), (dtype,) * 3, 1)
    moved, counts = launch(*args, shift=4)
    assert counts.wide_share() == 0 and torch.equal(moved, launch(*args)[0])


def test_in_place():
    args = inputs((2, 5, 64), (torch.bfloat16,) * 3, 2)
    expected = launch(*args)[0]
    assert torch.equal(launch(*args, out=args[0])[0], expected)


def test_blocks_go_on_to_further_rows():
    """Where there are more rows than the grid has room for: here two blocks."""
    for shape in ((1, 7, 1024), (2, 21, 16)):
        args = inputs(shape, (torch.bfloat16, torch.bfloat16, torch.float32), shape[0])
        assert torch.equal(launch(*args, blocks=2)[0], launch(*args)[0])


def test_an_index_that_names_no_row_makes_nan():
    args = inputs((1, 5, 64), (torch.bfloat16, torch.bfloat16, torch.float32), 3)
    out = launch(*args, torch.tensor([0, 3, 2, -1, 1], dtype=torch.int32))[0]
    assert out[0, [1, 3]].isnan().all() and out[0, [0, 2, 4]].isfinite().all()


@pytest.mark.parametrize("dtypes", list(MIXES.values())[:4], ids=list(MIXES)[:4])
def test_one_pass_over_memory(dtypes):
    """Aligned, as in a model: x, y, the gate and the result once for each token, all of them 128 bits wide."""
    B, L, D = 1, 6, 1536
    _, counts = launch(*inputs((B, L, D), dtypes, 1))
    x, y, gate = (dtype.itemsize for dtype in dtypes)
    assert counts.bytes("st") == L * D * x
    assert counts.bytes("ld") == L * D * (x + y + gate)
    assert counts.wide_share() >= 0.95 and counts.coalescing() <= 1.05
