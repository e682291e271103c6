"""The CUDA kernel of `noise`, executed on the CPU: the bits of the CPU's."""

from __future__ import annotations

import ctypes
import re
from typing import Any

import pytest
import torch
from gpu.launcher import ARCHS, Counts, Launcher, Memory, array
from ptx import compile
from torch import Tensor

from pysora import ops

LAST = 2**32 - 1


class NoiseParams(ctypes.Structure):
    """csrc/include/pysora/noise.h"""

    _fields_ = (
        ("out", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in "CTHW"),
        ("seed", ctypes.c_uint32),
        ("sample", ctypes.c_uint32),
        ("origin", ctypes.c_uint32 * 3),
        ("threads", ctypes.c_int),
    )


def launch(
    shape: tuple[int, ...], seed: int, sample: int = 0, origin: tuple[int, ...] = (0, 0, 0), shift: int = 0, **how: Any
) -> tuple[Tensor, Counts]:
    """Run the kernel; return its result and its counts. `how` goes to the launcher."""
    memory, out = Memory(shift), torch.full(shape, torch.nan)
    params = NoiseParams(memory.address(out), *shape, seed, sample, array(origin, ctypes.c_uint32), 1)
    return out, Launcher("noise", NoiseParams, **how)(params, memory)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal, and zeros have the same sign."""
    return torch.equal(a.view(torch.int32), b.view(torch.int32))


CASES = {
    "a latent": ((16, 2, 6, 8), 42, 0, (0, 0, 0)),
    "another sample": ((16, 1, 3, 8), 42, 1, (0, 0, 0)),
    "an origin": ((4, 2, 3, 12), 7, 3, (5, 60, 7)),
    "the last positions": ((4, 2, 3, 4), LAST, LAST, (LAST - 1, LAST - 2, LAST - 3)),
    "three channels": ((3, 2, 2, 4), 0, 0, (1, 0, 0)),
    "odd": ((5, 3, 7, 9), 123456789, 2, (0, 1, 2)),
    "63 wide": ((1, 1, 2, 63), 1, 0, (0, 0, 0)),
    "200 wide": ((6, 1, 1, 200), 2**31, 0, (0, 0, 0)),
    "one": ((1, 1, 1, 1), 9, 9, (9, 9, 9)),
}


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_bits(case, arch):
    """Those of the reference, and so of every other backend."""
    assert same_bits(launch(*case, arch=arch)[0], ops.noise.reference(*case))


def test_bits_of_the_tails():
    """Enough values to reach the outer polynomial on both sides many times."""
    shape = (16, 4, 32, 32)
    out, expected = launch(shape, 5)[0], ops.noise.reference(shape, 5)
    assert (expected > 3.5).any() and (expected < -3.5).any()
    assert same_bits(out, expected) and same_bits(out, ops.noise(shape, 5))  # the latter on the CPU's own kernel


@pytest.mark.parametrize("arch", ARCHS)
def test_every_operation_is_an_ieee_one(arch):
    """None is approximate and none may be fused: the runner computes such ones exactly, a GPU does not."""
    code = compile("csrc/cuda/noise.cu", arch=arch)
    found = set(re.findall(r"^\s*(?:@!?%p\d+\s+)?([a-z0-9]+\.[\w.]*f32[\w.]*)\s", code, re.MULTILINE))
    moves = {op for op in found if op.split(".")[0] in ("mov", "ld", "st", "selp", "setp", "neg")}
    assert found - moves <= {"add.rn.f32", "sub.rn.f32", "mul.rn.f32", "sqrt.rn.f32", "cvt.rn.f32.s32"}, found
    assert {"add.rn.f32", "sqrt.rn.f32"} <= found


def test_bits_without_alignment():
    """Single stores where the result starts between multiples of 16 bytes."""
    out, counts = launch((4, 2, 3, 8), 3, shift=4)
    assert counts.wide_share() == 0 and same_bits(out, ops.noise.reference((4, 2, 3, 8), 3))


@pytest.mark.parametrize("W", [16, 17])
def test_blocks_go_on_to_further_places(W):
    """Where there are more than the grid has room for: here one block."""
    out, _ = launch((8, 3, 5, W), 11, blocks=1)
    assert same_bits(out, ops.noise.reference((8, 3, 5, W), 11))


def test_one_pass_over_memory():
    """Aligned: nothing is read, and every value is written once, 128 bits at a time."""
    _, counts = launch((16, 2, 8, 32), 1)
    assert counts.bytes("ld") == 0 and counts.bytes("st") == 4 * 16 * 2 * 8 * 32
    assert counts.wide_share() == 1 and counts.coalescing() == 1
