"""The gated residual sum in one pass."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def gate_residual_kernel(
    x, y, gate, index, out,
    x_b, x_l, y_b, y_l, gate_u, index_b, index_l, U, L, D, tiles, parts,
    R: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """One program: BD values of R tokens of one sample, so that without an index they share their gate."""
    place = tl.program_id(0) // parts
    b = (place // tiles).to(tl.int64)
    i = (place % tiles * R + tl.arange(0, R)).to(tl.int64)
    d = tl.program_id(0) % parts * BD + tl.arange(0, BD)
    columns = (d < D)[None, :]
    here = (i < L)[:, None] & columns
    if index is None:  # U is 1, or row b belongs to sample b
        row = tl.minimum(b, U - 1) + tl.zeros([1], tl.int64)
    else:
        row = tl.load(index + b * index_b + i * index_l, mask=i < L, other=0).to(tl.int64)
    # A row that the gate lacks is not read: its tokens become NaN.
    known = ((row >= 0) & (row < U))[:, None] & columns
    factor = tl.load(gate + row[:, None] * gate_u + d[None, :], mask=known, other=float("nan")).to(tl.float32)
    branch = tl.load(y + b * y_b + i[:, None] * y_l + d[None, :], mask=here, other=0.0).to(tl.float32)
    stream = tl.load(x + b * x_b + i[:, None] * x_l + d[None, :], mask=here, other=0.0).to(tl.float32)
    total = stream + branch * factor
    tl.store(out + (b * L + i[:, None]) * D + d[None, :], total.to(out.dtype.element_ty), mask=here)


def gate_residual(x: Tensor, y: Tensor, gate: Tensor, index: Tensor | None, out: Tensor) -> None:
    """Fill `out` `[B, L, D]`; D lies side by side everywhere, out is contiguous."""
    B, L, D = x.shape
    # 32 values of x and of y a thread: eight 128-bit loads of bf16 are on their way at once. Tiles are tall, since
    # their rows share a gate.
    BD = min(512, triton.next_power_of_2(D))
    R = max(1, min(4096 // BD, triton.next_power_of_2(L)))
    tiles, parts = triton.cdiv(L, R), triton.cdiv(D, BD)
    index_strides = (0, 0) if index is None else index.expand(B, L).stride()
    gate_residual_kernel[(B * tiles * parts,)](
        x, y, gate, index, out,
        *x.stride()[:2], *y.stride()[:2], gate.stride(0), *index_strides, gate.shape[0], L, D, tiles, parts,
        R=R, BD=BD,
        # The sum's two roundings are part of the op's definition: no fused multiply-add.
        num_warps=max(1, R * BD // 1024), enable_fp_fusion=False,
    )  # fmt: skip
