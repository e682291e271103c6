"""RMS norm over channels and SiLU in one pass: a program holds all channels of some pixels in registers."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def norm_silu_kernel(
    x, gamma, out,
    x0, x1, x2, x_pixel, x_channel, out0, out1, out2, out_pixel, out_channel,
    n1, n2, run, C, tiles, root,
    SILU: tl.constexpr, P: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """One program: P pixels of a run, which lie at one distance from each other."""
    place = (tl.program_id(0) // tiles).to(tl.int64)
    i0, i1, i2 = place // n2 // n1, place // n2 % n1, place % n2
    p = (tl.program_id(0) % tiles * P + tl.arange(0, P)).to(tl.int64)
    c = tl.arange(0, BC).to(tl.int64)
    here = (p < run)[:, None] & (c < C)[None, :]
    x += i0 * x0 + i1 * x1 + i2 * x2
    out += i0 * out0 + i1 * out1 + i2 * out2
    y = tl.load(x + p[:, None] * x_pixel + c[None, :] * x_channel, mask=here, other=0.0).to(tl.float32)
    squares = tl.sum(y * y, 1)
    # A length of at least 1e-12; written so that NaN stays NaN.
    y *= tl.rsqrt(tl.where(squares < 1e-24, 1e-24, squares))[:, None]
    y *= (tl.load(gamma + c, mask=c < C, other=0.0).to(tl.float32) * root)[None, :]
    if SILU:
        y *= tl.sigmoid(y)
    tl.store(out + p[:, None] * out_pixel + c[None, :] * out_channel, y.to(out.dtype.element_ty), mask=here)


def _runs(shape: list[int], x: list[int], out: list[int]) -> list[tuple[int, int, int]]:
    """Merge dimensions that both tensors step through evenly: four of (size, stride of x, stride of out)."""
    merged: list[tuple[int, int, int]] = []
    for size, a, b in zip(shape, x, out, strict=True):
        if merged and merged[-1][1:] == (a * size, b * size):
            merged[-1] = (merged[-1][0] * size, a, b)
        elif size > 1:
            merged.append((size, a, b))
    return [(1, 0, 0)] * (4 - len(merged)) + merged


def norm_silu(x: Tensor, gamma: Tensor, silu: bool, out: Tensor) -> None:
    """Fill `out`, of the shape of x `[B, C, ...]`, any strides; gamma is contiguous, C is at most 16384."""
    C = x.shape[1]
    pixels = [0, *range(2, x.ndim)]
    runs = _runs(*([values[i] for i in pixels] for values in (x.shape, x.stride(), out.stride())))
    BC = triton.next_power_of_2(C)
    # 32 values a thread; at least 8 pixels, so that where pixels lie side by side 128 bits of bf16 are one access.
    P = max(8, min(4096 // BC, triton.next_power_of_2(runs[3][0])))
    tiles = triton.cdiv(runs[3][0], P)
    norm_silu_kernel[(runs[0][0] * runs[1][0] * runs[2][0] * tiles,)](
        x, gamma, out,
        *(r[1] for r in runs), x.stride(1), *(r[2] for r in runs), out.stride(1),
        runs[1][0], runs[2][0], runs[3][0], C, tiles, C**0.5,
        SILU=silu, P=P, BC=BC,
        num_warps=min(16, max(1, P * BC // 1024)), enable_fp_fusion=True,
    )  # fmt: skip
