"""The CUDA kernels of `unpatchify`, executed on the CPU."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import pytest
import torch
from close import strided, transposed
from gpu.launcher import ALL_DTYPES, ARCHS, DTYPES, Counts, Launcher, Memory, array
from torch import Tensor

from pysora import ops


class UnpatchifyParams(ctypes.Structure):
    """csrc/include/pysora/unpatchify.h"""

    _fields_ = (
        ("tokens", ctypes.c_void_p),
        ("strides", ctypes.c_int64 * 3),
        ("out", ctypes.c_void_p),
        ("B", ctypes.c_int64),
        ("C", ctypes.c_int64),
        ("grid", ctypes.c_int64 * 3),
        ("patch", ctypes.c_int64 * 3),
        ("dtype", ctypes.c_int),
        ("threads", ctypes.c_int),
    )


def launch(
    tokens: Tensor, grid: tuple[int, ...], patch: tuple[int, ...], *, shift: int = 0, **how: Any
) -> tuple[Tensor, Counts]:
    """Run the kernels; return the result and the counts. `how` goes to the launcher."""
    memory, B, C = Memory(shift), tokens.shape[0], tokens.shape[2] // math.prod(patch)
    out = torch.full((B, C, *(g * p for g, p in zip(grid, patch, strict=True))), torch.nan, dtype=tokens.dtype)
    params = UnpatchifyParams(
        *(memory.address(tokens), array(tokens.stride()), memory.address(out), B, C, array(grid), array(patch)),
        *(DTYPES[tokens.dtype], 1),
    )
    return out, Launcher("unpatchify", UnpatchifyParams, **how)(params, memory)


def tokens_of(B: int, C: int, grid: tuple[int, ...], patch: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.randn(B, math.prod(grid), math.prod(patch) * C).to(dtype)


CASES = {
    "a model's": (1, 16, (2, 3, 8), (1, 2, 2)),
    "48 channels": (1, 48, (1, 2, 8), (1, 2, 2)),
    "samples and long patches": (2, 8, (2, 2, 4), (2, 1, 4)),
    "24 channels": (1, 24, (1, 3, 8), (1, 1, 1)),
    "odd": (2, 3, (3, 5, 7), (1, 2, 3)),
    "ragged rows": (1, 16, (1, 2, 5), (1, 2, 2)),
    "63 tokens": (1, 5, (1, 1, 63), (1, 2, 2)),
    "one": (1, 1, (1, 1, 1), (1, 1, 1)),
}


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", ALL_DTYPES.values(), ids=ALL_DTYPES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_places(case, dtype, arch):
    """Every value is moved, none is changed."""
    B, C, grid, patch = case
    tokens = tokens_of(B, C, grid, patch, dtype)
    assert torch.equal(launch(tokens, grid, patch, arch=arch)[0], ops.unpatchify.reference(tokens, grid, patch))


LAYOUTS = {
    "scattered": strided,
    "transposed": transposed,
    "the first of more tokens": lambda x: torch.cat([x, torch.full_like(x, torch.nan)], 1)[:, : x.shape[1]],
    "wider tokens": lambda x: torch.cat([x, torch.full_like(x, torch.nan)], 2)[..., : x.shape[2]],
    "an odd stride": lambda x: torch.cat([x, torch.full_like(x[..., :1], torch.nan)], 2)[..., :-1],
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_strides(layout):
    grid, patch = (2, 2, 4), (1, 2, 2)
    tokens = layout(tokens_of(2, 16, grid, patch, torch.bfloat16))
    assert torch.equal(launch(tokens, grid, patch)[0], ops.unpatchify.reference(tokens, grid, patch))


@pytest.mark.parametrize("C", [16, 5])
def test_blocks_go_on_to_further_places(C):
    """Where there are more than the grid has room for: here one block."""
    grid, patch = (4, 4, 8), (1, 2, 2)
    tokens = tokens_of(2, C, grid, patch, torch.bfloat16)
    assert torch.equal(launch(tokens, grid, patch, blocks=1)[0], ops.unpatchify.reference(tokens, grid, patch))


def test_alignment():
    """Single accesses where tensors start between multiples of 16 bytes."""
    grid, patch = (1, 2, 8), (1, 2, 2)
    tokens = tokens_of(1, 16, grid, patch, torch.bfloat16)
    out, counts = launch(tokens, grid, patch, shift=2)
    assert counts.wide_share() == 0 and torch.equal(out, ops.unpatchify.reference(tokens, grid, patch))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def test_one_pass_over_memory(dtype):
    """Aligned: every value is read once and written once, 128 bits at a time, in whole sectors."""
    grid, patch = (2, 4, 64), (1, 2, 2)
    tokens = tokens_of(1, 16, grid, patch, dtype)
    _, counts = launch(tokens, grid, patch)
    assert counts.bytes("ld") == counts.bytes("st") == tokens.numel() * dtype.itemsize
    assert counts.wide_share() == 1 and counts.coalescing() <= 1.05
