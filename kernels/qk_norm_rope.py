"""RMS norm of queries or keys and rotary positions in one pass: a program holds whole tokens in registers."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def qk_norm_rope_kernel(
    x, gain, cos, sin, out,
    x_b, x_l, x_n, cos_l, sin_l, L, N, K, tiles, inverse_width, eps,
    OVER_HEADS: tl.constexpr, STEPS: tl.constexpr, R: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """One program: STEPS times R tokens of one sample."""
    b = (tl.program_id(0) // tiles).to(tl.int64)
    n = tl.arange(0, BN)[None, :, None]
    k = tl.arange(0, BK)[None, None, :]
    pair = tl.arange(0, BK // 2)[None, None, :]
    head = (n < N) & (k < K)
    if OVER_HEADS:
        factor = tl.load(gain + n * K + k, mask=head, other=0.0).to(tl.float32)
    else:
        factor = tl.load(gain + k, mask=k < K, other=0.0).to(tl.float32)
    for step in range(STEPS):
        i = ((tl.program_id(0) % tiles * STEPS + step) * R + tl.arange(0, R)).to(tl.int64)[:, None, None]
        here = (i < L) & head
        y = tl.load(x + b * x_b + i * x_l + n.to(tl.int64) * x_n + k, mask=here, other=0.0).to(tl.float32)
        squares = tl.sum(y * y, 2)
        if OVER_HEADS:
            y *= tl.rsqrt(tl.sum(squares, 1) * inverse_width + eps)[:, None, None] * factor
        else:
            y *= tl.rsqrt(squares * inverse_width + eps)[:, :, None] * factor
        if cos is not None:
            angle = (i < L) & (pair < K // 2)
            c = tl.load(cos + i * cos_l + pair, mask=angle, other=0.0)
            s = tl.load(sin + i * sin_l + pair, mask=angle, other=0.0)
            even, odd = tl.split(tl.reshape(y, [R, BN, BK // 2, 2]))
            y = tl.reshape(tl.join(even * c - odd * s, even * s + odd * c), [R, BN, BK])
        tl.store(out + ((b * L + i) * N + n) * K + k, y.to(out.dtype.element_ty), mask=here)


def qk_norm_rope(x: Tensor, gain: Tensor, cos: Tensor | None, sin: Tensor | None, eps: float, out: Tensor) -> None:
    """Fill `out` `[B, L, N, K]`; K lies side by side everywhere, out is contiguous."""
    B, L, N, K = x.shape
    over_heads = gain.shape[0] == N * K
    BN, BK = triton.next_power_of_2(N), max(2, triton.next_power_of_2(K))
    R = max(1, min(4096 // (BN * BK), triton.next_power_of_2(L)))
    # The gain is as long as a token: it is read from the cache once for 8 tokens, not for each.
    steps = triton.cdiv(min(8, L), R)
    tiles = triton.cdiv(L, R * steps)
    qk_norm_rope_kernel[(B * tiles,)](
        x, gain, cos, sin, out,
        *x.stride()[:3], 0 if cos is None else cos.stride(0), 0 if sin is None else sin.stride(0),
        L, N, K, tiles, 1.0 / (N * K if over_heads else K), eps,
        OVER_HEADS=over_heads, STEPS=steps, R=R, BN=BN, BK=BK,
        # 32 values a thread: four 128-bit loads of bf16 are on their way at once, and registers allow full occupancy.
        num_warps=min(16, max(1, R * BN * BK // 1024)), enable_fp_fusion=True,
    )  # fmt: skip
