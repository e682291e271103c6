"""A step of any linear sampler in one pass."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 512


@triton.jit
def sampler_step_kernel(
    sample, prediction, uncond, others, coefficients, guidance, outs, n, J: tl.constexpr, BLOCK: tl.constexpr
):
    """One program: BLOCK values of every result."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = i < n
    guided = tl.load(prediction + i, mask=here, other=0.0).to(tl.float32)
    if uncond is not None:
        dtype = uncond.dtype.element_ty  # in which guidance is rounded after each operation
        base = tl.load(uncond + i, mask=here, other=0.0).to(tl.float32)
        away = (guidance * (guided - base).to(dtype).to(tl.float32)).to(dtype).to(tl.float32)
        guided = (base + away).to(dtype).to(tl.float32)
    inputs = (tl.load(sample + i, mask=here, other=0.0), guided)
    for j in tl.static_range(J - 2):
        # Triton has no unpacking, and mypy no growing tuples.
        inputs = inputs + (tl.load(others[j] + i, mask=here, other=0.0),)  # type: ignore[assignment]  # noqa: RUF005
    for r in tl.static_range(len(outs)):
        total = coefficients[r * J] * inputs[0]
        for j in tl.static_range(1, J):
            total = total + coefficients[r * J + j] * inputs[j]
        tl.store(outs[r] + i, total, mask=here)


def sampler_step(
    sample: Tensor,
    prediction: Tensor,
    uncond: Tensor | None,
    others: Sequence[Tensor],
    coefficients: Sequence[float],
    guidance: float,
    outs: Sequence[Tensor],
) -> None:
    """Fill each of `outs`; all tensors are contiguous, coefficients `[R * (2 + len(others))]` go by value."""
    n = sample.numel()
    sampler_step_kernel[(triton.cdiv(n, BLOCK),)](
        sample, prediction, uncond, tuple(others), tuple(coefficients), guidance, tuple(outs), n,
        J=2 + len(others), BLOCK=BLOCK,
        # 4 values a thread: 128-bit loads of fp32, on which a warp wastes no sector. Each product and sum is rounded.
        num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
