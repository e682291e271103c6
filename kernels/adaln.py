"""Adaptive normalisation in one pass: a program holds whole rows in registers."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _timestep(table, row, table_u, to_scale, d, U, D):
    """Load the shift and the scale of these rows; a row that the table lacks is not read and gives NaN."""
    known = ((row >= 0) & (row < U))[:, None] & (d < D)[None, :]
    shift = table + row[:, None] * table_u + d[None, :]
    scale = tl.load(shift + to_scale, mask=known, other=float("nan")).to(tl.float32)
    return tl.load(shift, mask=known, other=float("nan")).to(tl.float32), scale


@triton.jit
def adaln_kernel(
    x, table, index, gain, bias, out,
    x_b, x_l, table_u, to_scale, index_b, index_l, U, L, D, tiles, inverse_D, eps,
    LAYER: tl.constexpr, STEPS: tl.constexpr, R: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """One program: STEPS times R tokens of one sample, which without an index share their row of the table."""
    b = (tl.program_id(0) // tiles).to(tl.int64)
    d = tl.arange(0, BD)
    columns = (d < D)[None, :]
    if table is not None and index is None:  # U is 1, or row b belongs to sample b
        shift, scale = _timestep(table, tl.minimum(b, U - 1) + tl.zeros([1], tl.int64), table_u, to_scale, d, U, D)
    for step in range(STEPS):
        i = ((tl.program_id(0) % tiles * STEPS + step) * R + tl.arange(0, R)).to(tl.int64)
        here = (i < L)[:, None] & columns
        y = tl.load(x + b * x_b + i[:, None] * x_l + d[None, :], mask=here, other=0.0).to(tl.float32)
        if LAYER:
            y = tl.where(here, y - (tl.sum(y, 1) * inverse_D)[:, None], 0.0)
        y *= tl.rsqrt(tl.sum(y * y, 1) * inverse_D + eps)[:, None]
        if gain is not None:
            y *= tl.load(gain + d[None, :], mask=columns, other=0.0).to(tl.float32)
        if bias is not None:
            y += tl.load(bias + d[None, :], mask=columns, other=0.0).to(tl.float32)
        if table is not None:
            if index is not None:
                row = tl.load(index + b * index_b + i * index_l, mask=i < L, other=0).to(tl.int64)
                shift, scale = _timestep(table, row, table_u, to_scale, d, U, D)
            y = y * (1.0 + scale) + shift
        tl.store(out + (b * L + i[:, None]) * D + d[None, :], y.to(out.dtype.element_ty), mask=here)


def adaln(
    x: Tensor,
    table: Tensor | None,
    index: Tensor | None,
    gain: Tensor | None,
    bias: Tensor | None,
    eps: float,
    layer: bool,
    out: Tensor,
) -> None:
    """Fill `out` `[B, L, D]`; D, at most 16384, lies side by side everywhere, out is contiguous."""
    B, L, D = x.shape
    BD = triton.next_power_of_2(D)
    R = max(1, min(4096 // BD, triton.next_power_of_2(L)))
    # The table's rows are fp32 and as long as a token: each is read from the cache once for 8 tokens, not for each.
    steps = triton.cdiv(min(8, L), R)
    tiles = triton.cdiv(L, R * steps)
    index_strides = (0, 0) if index is None else index.expand(B, L).stride()
    table_strides, U = ((0, 0), 0) if table is None else (table.stride()[:2], table.shape[0])
    adaln_kernel[(B * tiles,)](
        x, table, index, gain, bias, out,
        *x.stride()[:2], *table_strides, *index_strides, U, L, D, tiles, 1.0 / D, eps,
        LAYER=layer, STEPS=steps, R=R, BD=BD,
        # 32 values a thread: four 128-bit loads of bf16 are on their way at once, and registers allow full occupancy.
        num_warps=min(16, max(1, R * BD // 1024)), enable_fp_fusion=True,
    )  # fmt: skip
