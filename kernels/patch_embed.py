"""Patch embedding as one product: patches go from the video straight into the tensor cores."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def patch_embed_kernel(
    video, weight, bias, out,
    v_b, v_c, v_t, v_h, v_w, w_d, gt, gh, W, lines, D, tokens, parts,
    pt: tl.constexpr, ph: tl.constexpr, pw: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """One program: BM tokens, BN of their values. A line is the part of a patch that lies side by side: pw pixels."""
    m = tl.program_id(0) // parts * BM
    d = tl.program_id(0) % parts * BN + tl.arange(0, BN)
    # The lines of tokens that follow each other follow each other in memory too: wide loads.
    f = m * pw + tl.arange(0, BM * pw)
    x, row = f % W, f // W
    h, t, b = row % gh, row // gh % gt, row // gh // gt
    base = video + b.to(tl.int64) * v_b + t.to(tl.int64) * (pt * v_t) + h.to(tl.int64) * (ph * v_h)
    base += x.to(tl.int64) * v_w
    acc = tl.zeros([BM, BN], tl.float32)
    for start in range(0, lines, BL):
        line = start + tl.arange(0, BL)
        c, i, j = line // (pt * ph), line // ph % pt, line % ph
        offset = c.to(tl.int64) * v_c + i.to(tl.int64) * v_t + j.to(tl.int64) * v_h
        inside = (line < lines)[:, None] & (f < tokens * pw)[None, :]
        pixels = tl.load(base[None, :] + offset[:, None], mask=inside, other=0.0)
        e = start * pw + tl.arange(0, BL * pw)
        known = (d < D)[:, None] & (e < lines * pw)[None, :]
        features = tl.load(weight + d[:, None].to(tl.int64) * w_d + e[None, :], mask=known, other=0.0)
        if pw == 1:
            acc = tl.dot(tl.trans(pixels), tl.trans(features), acc, input_precision="ieee")
        else:  # one product for the left pixels of all lines and one for the right: nothing moves between threads
            left, right = tl.split(tl.reshape(pixels, [BL, BM, 2]))
            for_left, for_right = tl.split(tl.reshape(features, [BN, BL, 2]))
            acc = tl.dot(tl.trans(left), tl.trans(for_left), acc, input_precision="ieee")
            acc = tl.dot(tl.trans(right), tl.trans(for_right), acc, input_precision="ieee")
    if bias is not None:
        acc += tl.load(bias + d[None, :], mask=(d < D)[None, :], other=0.0).to(tl.float32)
    token = m + tl.arange(0, BM)
    here = (token < tokens)[:, None] & (d < D)[None, :]
    tl.store(out + token[:, None].to(tl.int64) * D + d[None, :], acc.to(out.dtype.element_ty), mask=here)


def patch_embed(video: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """Fill `out` `[B, L, D]`, contiguous; each row of weight `[D, C, pt, ph, pw]` is contiguous, pw is 1 or 2."""
    _, C, T, H, W = video.shape
    D, _, pt, ph, pw = weight.shape
    # A thread holds 64 sums. Features are the fastest: programs that run side by side share their patches.
    BM, BN = 128, 128
    tokens, parts = out.shape[0] * out.shape[1], triton.cdiv(D, BN)
    lines = C * pt * ph
    depth = 64 if video.element_size() == 2 else 32  # of one step
    BL = max(16, min(depth // pw, triton.next_power_of_2(lines)))
    patch_embed_kernel[(triton.cdiv(tokens, BM) * parts,)](
        video, weight, bias, out,
        *video.stride(), weight.stride(0), T // pt, H // ph, W, lines, D, tokens, parts,
        pt=pt, ph=ph, pw=pw, BM=BM, BN=BN, BL=BL,
        num_warps=8, num_stages=1, enable_fp_fusion=True,
    )  # fmt: skip
