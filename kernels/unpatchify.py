"""The inverse of cutting a video into patches, in one pass."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def unpatchify_kernel(
    tokens, out,
    s_b, s_l, s_f, gh, gw, pixels, C, tiles, parts,
    pt: tl.constexpr, ph: tl.constexpr, pw: tl.constexpr, P: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """One program: P pixels, side by side in the video, of BC channels, side by side in a token."""
    place = tl.program_id(0) // parts
    b = (place // tiles).to(tl.int64)
    p = place % tiles * P + tl.arange(0, P)
    c = tl.program_id(0) % parts * BC + tl.arange(0, BC)
    x, row = p % (gw * pw), p // (gw * pw)
    y, t = row % (gh * ph), row // (gh * ph)
    token = ((t // pt * gh + y // ph) * gw + x // pw).to(tl.int64)
    first = (((t % pt) * ph + y % ph) * pw + x % pw) * C
    here = (p < pixels)[:, None] & (c < C)[None, :]
    values = tl.load(
        tokens + b * s_b + (token * s_l)[:, None] + (first[:, None] + c[None, :]).to(tl.int64) * s_f, mask=here
    )
    tl.store(out + (b * C + c[None, :]) * pixels + p[:, None], values, mask=here)


def unpatchify(tokens: Tensor, grid: Sequence[int], patch: Sequence[int], out: Tensor) -> None:
    """Fill `out` `[B, C, T, H, W]`, contiguous; one sample has fewer than 2**31 values."""
    B, C, T, H, W = out.shape
    # 32 values a thread for the way through shared memory that turns pixels and channels.
    BC = min(64, triton.next_power_of_2(C))
    P = max(8, min(4096 // BC, triton.next_power_of_2(T * H * W)))
    tiles, parts = triton.cdiv(T * H * W, P), triton.cdiv(C, BC)
    unpatchify_kernel[(B * tiles * parts,)](
        tokens, out,
        *tokens.stride(), grid[1], grid[2], T * H * W, C, tiles, parts,
        pt=patch[0], ph=patch[1], pw=patch[2], P=P, BC=BC,
        num_warps=max(1, P * BC // 1024), enable_fp_fusion=False,
    )  # fmt: skip
