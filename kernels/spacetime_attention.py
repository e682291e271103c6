"""Attention in one pass over the keys, with a running maximum and sum (Dao 2023, FlashAttention-2, algorithm 1)."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _keys(
    q, k, v, key_bias, k_l, v_l, bias_l, first, end, factor, top, total, acc,
    K: tl.constexpr, BK: tl.constexpr, BN: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    """Take in the keys first to first + BN; with TAIL those before `end` alone. Scores are in units of log(2)."""
    j = tl.arange(0, BN)
    d = tl.arange(0, BK)
    # Far steps are scalars in 64 bits; those inside a tile are in 32, which saves registers.
    k += tl.cast(first, tl.int64) * k_l + (j[None, :] * k_l + d[:, None])
    v += tl.cast(first, tl.int64) * v_l + (j[:, None] * v_l + d[None, :])
    left = end - first
    if TAIL:
        keys = tl.load(k, mask=(j < left)[None, :] & (d < K)[:, None], other=0.0)
        values = tl.load(v, mask=(j < left)[:, None] & (d < K)[None, :], other=0.0)
    elif K < BK:
        keys = tl.load(k, mask=(d < K)[:, None], other=0.0)
        values = tl.load(v, mask=(d < K)[None, :], other=0.0)
    else:
        keys = tl.load(k)
        values = tl.load(v)
    scores = tl.dot(q, keys)
    if key_bias is not None:
        key_bias += tl.cast(first, tl.int64) * bias_l + j * bias_l
        bias = tl.load(key_bias, mask=j < left, other=-float("inf")) if TAIL else tl.load(key_bias)
        scores = scores * factor + (bias.to(tl.float32) * 1.4426950408889634)[None, :]
        new_top = tl.maximum(top, tl.max(scores, 1))
        # Where all keys so far are hidden the maximum is -inf, and -inf - -inf would be NaN.
        shown = tl.where(new_top == -float("inf"), 0.0, new_top)
        weights = tl.exp2(scores - shown[:, None])
        decay = tl.exp2(top - shown)
    else:
        if TAIL:
            scores = tl.where((j < left)[None, :], scores, -float("inf"))
        new_top = tl.maximum(top, tl.max(scores, 1) * factor)
        weights = tl.exp2(scores * factor - new_top[:, None])
        decay = tl.exp2(top - new_top)
    total = total * decay + tl.sum(weights, 1)
    acc = tl.dot(weights.to(values.dtype), values, acc * decay[:, None])
    return new_top, total, acc


@triton.jit
def _sample_of(offsets, tile, S, BM: tl.constexpr):
    """Return the sample that the tile belongs to (S: none), the tile's number in it, and the sample's ends."""
    sample = tile * 0
    first = tl.load(offsets)
    end = tl.load(offsets + 1)
    while (sample < S) & (tile >= tl.cdiv(end - first, BM)):
        tile -= tl.cdiv(end - first, BM)
        sample += 1
        first = end
        end = tl.load(offsets + sample + 1, mask=sample < S, other=0)
    return sample, tile, first, end


@triton.jit
def spacetime_attention_kernel(
    q, k, v, key_bias, q_offsets, k_offsets, out, lse,
    q_b, q_l, q_n, k_b, k_l, k_n, v_b, v_l, v_n, bias_b, bias_l,
    S, Lq, Lk, N, tiles, factor,
    K: tl.constexpr, BK: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """One program: BM queries of one head. Tiles of one head follow each other, so that its keys stay in the cache."""
    tile = tl.program_id(0) % tiles
    n = tl.program_id(0) // tiles % N
    b = (tl.program_id(0) // tiles // N).to(tl.int64)
    q_first = 0
    q_end = Lq
    k_first = 0
    k_end = Lk
    if q_offsets is not None:
        sample, tile, q_first, q_end = _sample_of(q_offsets, tile, S, BM)
        if sample >= S:
            return
        # Offsets on a GPU are not checked before the launch: whatever they say, nothing outside the tensors is read.
        q_first = tl.maximum(q_first, 0)
        q_end = tl.minimum(q_end, Lq)
        k_first = tl.maximum(tl.load(k_offsets + sample), 0)
        k_end = tl.minimum(tl.load(k_offsets + sample + 1), Lk)
    i = (q_first + tile * BM + tl.arange(0, BM)).to(tl.int64)
    d = tl.arange(0, BK)
    here = (i < q_end)[:, None] & (d < K)[None, :]
    queries = tl.load(q + b * q_b + n.to(tl.int64) * q_n + i[:, None] * q_l + d[None, :], mask=here, other=0.0)
    k += b * k_b + n.to(tl.int64) * k_n
    v += b * v_b + n.to(tl.int64) * v_n
    if key_bias is not None:
        key_bias += b * bias_b
    top = tl.full([BM], -float("inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, BK], tl.float32)
    whole = k_first + (k_end - k_first) // BN * BN
    for first in range(k_first, whole, BN):
        top, total, acc = _keys(
            queries, k, v, key_bias, k_l, v_l, bias_l, first, k_end, factor, top, total, acc, K, BK, BN, False
        )
    if whole < k_end:
        top, total, acc = _keys(
            queries, k, v, key_bias, k_l, v_l, bias_l, whole, k_end, factor, top, total, acc, K, BK, BN, True
        )
    inverse = tl.where(total == 0.0, 0.0, 1.0 / total)
    out += ((b * Lq + i[:, None]) * N + n) * K + d[None, :]
    tl.store(out, (acc * inverse[:, None]).to(out.dtype.element_ty), mask=here)
    if lse is not None:
        tl.store(lse + (b * N + n) * Lq + i, (top + tl.log2(total)) * 0.6931471805599453, mask=i < q_end)


def spacetime_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    key_bias: Tensor | None,
    q_offsets: Tensor | None,
    k_offsets: Tensor | None,
    out: Tensor,
    lse: Tensor | None,
) -> None:
    """Fill `out` `[B, Lq, N, K]` and `lse` `[B, N, Lq]`; q, k and v have K side by side, scale is above 0."""
    B, Lq, N, K = q.shape
    BK = max(16, triton.next_power_of_2(K))
    # Each warp has 16 queries. Tall tiles, since each reads all keys from the cache; few queries of small heads take
    # one of which less is idle. Where products are mma.sync, queries are in registers too, and wide heads leave room
    # for the scores of 32 keys; wgmma and tcgen05 read them from shared memory. Masked columns cost registers as well.
    BM = 64 if Lq <= 64 and BK <= 64 else 128
    by_group = torch.cuda.get_device_capability(q.device)[0] in (9, 10)
    BN = 64 if K == BK and (BK <= 64 or by_group) else 32
    S = 0 if q_offsets is None else q_offsets.shape[0] - 1
    tiles = triton.cdiv(Lq, BM) + (S - 1 if S else 0)  # of all samples together, at most
    spacetime_attention_kernel[(tiles * B * N,)](
        q, k, v, key_bias, q_offsets, k_offsets, out, lse,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *((0, 0) if key_bias is None else key_bias.stride()),
        S, Lq, k.shape[1], N, tiles, scale * math.log2(math.e),
        K=K, BK=BK, BM=BM, BN=BN,
        num_warps=BM // 16, num_stages=2, enable_fp_fusion=True,
    )  # fmt: skip
