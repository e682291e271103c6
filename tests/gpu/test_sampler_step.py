"""The CUDA kernel of `sampler_step`, executed on the CPU: the bits of the reference."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
import torch
from gpu.launcher import ALL_DTYPES, ARCHS, DTYPES, Counts, Launcher, Memory
from torch import Tensor

from pysora import ops

MOST_OUTS, MOST_INPUTS = 8, 16


class SamplerStepParams(ctypes.Structure):
    """csrc/include/pysora/sampler_step.h"""

    _fields_ = (
        ("n", ctypes.c_int64),
        ("sample", ctypes.c_void_p),
        ("prediction", ctypes.c_void_p),
        ("uncond", ctypes.c_void_p),
        ("dtype", ctypes.c_int),
        ("guidance", ctypes.c_float),
        ("R", ctypes.c_int),
        ("J", ctypes.c_int),
        ("others", ctypes.c_void_p * (MOST_INPUTS - 2)),
        ("coefficients", ctypes.c_float * MOST_INPUTS * MOST_OUTS),
        ("outs", ctypes.c_void_p * MOST_OUTS),
        ("threads", ctypes.c_int),
    )


def launch(
    sample: Tensor,
    prediction: Tensor,
    uncond: Tensor | None,
    others: list[Tensor],
    coefficients: Tensor,
    guidance: float = 1.0,
    *,
    shift: int = 0,
    **how: Any,
) -> tuple[list[Tensor], Counts]:
    """Run the kernel; return its results and its counts. `how` goes to the launcher."""
    memory, (R, J) = Memory(shift), coefficients.shape
    outs = [torch.full_like(sample, torch.nan) for _ in range(R)]
    params = SamplerStepParams(
        *(sample.numel(), memory.address(sample), memory.address(prediction), memory.address(uncond)),
        *(DTYPES[prediction.dtype], guidance, R, J),
    )
    for j, other in enumerate(others):
        params.others[j] = memory.address(other)
    for r, out in enumerate(outs):
        params.outs[r] = memory.address(out)
        for j in range(J):
            params.coefficients[r][j] = float(coefficients[r, j])
    return outs, Launcher("sampler_step", SamplerStepParams, **how)(params, memory)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal, and zeros have the same sign; a NaN equals any NaN."""
    return bool(((a.view(torch.int32) == b.view(torch.int32)) | (a.isnan() & b.isnan())).all())


def agrees(n: int, R: int, h: int, guided: bool, dtype: torch.dtype, **how: Any) -> bool:
    """Whether R results from h more tensors, n values each, have the reference's bits."""
    sample, *others = torch.randn(1 + h, n).unbind()
    prediction, uncond = torch.randn(2, n).to(dtype)
    coefficients = torch.randn(R, 2 + h, dtype=torch.float64)
    args = sample, prediction, uncond if guided else None, others, coefficients, 4.7
    outs, expected = launch(*args, **how)[0], ops.sampler_step.reference(*args)
    return all(same_bits(a, b) for a, b in zip(outs, expected, strict=True))


STEPS = {"Euler": (1, 0), "DPM-Solver++": (2, 2), "UniPC": (3, 3), "the most": (8, 14)}


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", ALL_DTYPES.values(), ids=ALL_DTYPES)
@pytest.mark.parametrize("guided", [True, False], ids=["guided", "alone"])
@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_bits(step, guided, dtype, arch):
    """A round of a block, whole tiles and the rest of one."""
    for n in (1, 63, 200, 2048, 2605) if step == (3, 3) else (2304,):
        assert agrees(n, *step, guided, dtype, arch=arch), n


def test_every_number_of_results():
    assert all(agrees(40, R, 1, True, torch.bfloat16) for R in range(1, MOST_OUTS + 1))


def test_every_history():
    assert all(agrees(40, 2, h, False, torch.float32) for h in range(MOST_INPUTS - 1))


@pytest.mark.parametrize("dtype", ALL_DTYPES.values(), ids=ALL_DTYPES)
def test_special_values(dtype):
    """NaN, infinities, signed zeros and numbers too large for 16 bits come out as the reference's."""
    special = torch.tensor([0.0, -0.0, torch.nan, torch.inf, -torch.inf, 3e38, -3e38, 1e-45, 7e4, 1e-8])
    sample, prediction = (t.clone() for t in torch.cartesian_prod(special, special).unbind(1))
    args = sample, prediction.to(dtype), prediction.flip(0).to(dtype), [], torch.tensor([[1.0, -0.5]]), 7.5
    assert same_bits(launch(*args)[0][0], ops.sampler_step.reference(*args)[0])


def test_blocks_go_on_to_further_tiles():
    """Where there are more values than the grid has room for: here one block."""
    assert agrees(256 * 8 * 2 + 300, 3, 2, True, torch.bfloat16, blocks=1)
    assert agrees(2048 * 3 + 300, 1, 1, True, torch.float32, blocks=2)


def test_alignment():
    """Single accesses where tensors start between multiples of 16 bytes."""
    sample, prediction, coefficients = torch.randn(300), torch.randn(300).bfloat16(), torch.tensor([[0.5, -2.0]])
    outs, counts = launch(sample, prediction, prediction * 3, [], coefficients, 2.0, shift=4)
    assert counts.wide_share() == 0
    assert same_bits(outs[0], ops.sampler_step.reference(sample, prediction, prediction * 3, [], coefficients, 2.0)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def test_one_pass_over_memory(dtype):
    """Whole tiles: each input is read once and each result written once, 128 bits at a time."""
    n, R, h = 4096, 3, 2
    sample, *others = torch.randn(1 + h, n).unbind()
    prediction, uncond = torch.randn(2, n).to(dtype)
    _, counts = launch(sample, prediction, uncond, [t.clone() for t in others], torch.randn(R, 2 + h), 5.0)
    assert counts.bytes("st") == R * 4 * n
    assert counts.bytes("ld") == n * (4 * (1 + h) + 2 * dtype.itemsize)
    assert counts.wide_share() == 1 and counts.coalescing() == 1
