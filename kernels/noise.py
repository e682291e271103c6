"""Normal noise as a function of its place, with the bits of every other backend."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 512


@triton.jit
def _tail_of(w):
    t = tl.sqrt_rn(w) - 3.5
    y = 1.6974034e-05 * t + 4.0342202e-05
    y = y * t + -0.00032885466
    y = y * t + 0.00068646064
    y = y * t + -0.0009651014
    y = y * t + 0.0015124404
    y = y * t + -0.0029152094
    y = y * t + 0.004639435
    y = y * t + 1.4246343
    return y * t + 4.717089


@triton.jit
def _centre_of(w):
    t = w - 3.0
    y = -7.61664e-09 * t + -6.0962204e-09
    y = y * t + 6.3170523e-07
    y = y * t + -2.6668918e-06
    y = y * t + -1.795688e-05
    y = y * t + 0.0002764489
    y = y * t + -0.0011825938
    y = y * t + -0.008115585
    y = y * t + 0.34171703
    return y * t + 2.2960353


@triton.jit
def _normal(word):
    """The inverse of the normal distribution: the numbers and the order of operations of pysora/ops/noise.py."""
    p = ((word & 0x7FFFFFFF).to(tl.int32).to(tl.float32) + 0.5) * 2.3283064365386963e-10
    q = (p * (1.0 - p) * 4.0).to(tl.int32, bitcast=True)
    exponent = (q - 0x3F400000) >> 23
    t = (q - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    y = -0.044909436 * t + 0.104483135
    y = y * t + -0.1316223
    y = y * t + 0.14482063
    y = y * t + -0.16647768
    y = y * t + 0.19990607
    y = y * t + -0.25000054
    y = y * t + 0.33333454
    y = y * t + -0.5
    w = -(exponent.to(tl.float32) * 0.6931472 + (t + t * t * y))
    z = (1.0 - (p + p)) * tl.where(w < 6.0, _centre_of(w), _tail_of(w))
    return tl.where(word > 0x7FFFFFFF, -z, z)


@triton.jit(do_not_specialize=["seed", "sample", "t0", "y0", "x0"])
def noise_kernel(out, seed, sample, t0, y0, x0, C, H, W, places, tiles, BLOCK: tl.constexpr):
    """One program: BLOCK places, which follow each other in memory, of four channels (Philox4x32-10's four words)."""
    p = tl.program_id(0) % tiles * BLOCK + tl.arange(0, BLOCK)
    group = tl.program_id(0) // tiles
    row = p // W
    c0 = (t0 + row // H).to(tl.uint32)
    c1 = (y0 + row % H).to(tl.uint32)
    c2 = (x0 + p % W).to(tl.uint32)
    c3 = (group + tl.zeros_like(p)).to(tl.uint32)
    k0, k1 = seed.to(tl.uint32), sample.to(tl.uint32)
    for _ in tl.static_range(10):
        a, b = c0, c2
        c0 = tl.umulhi(b, 0xCD9E8D57) ^ c1 ^ k0
        c2 = tl.umulhi(a, 0xD2511F53) ^ c3 ^ k1
        c1 = b * 0xCD9E8D57
        c3 = a * 0xD2511F53
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    here = p < places
    c = group * 4 + tl.zeros_like(p)
    out += c.to(tl.int64) * places + p
    tl.store(out, _normal(c0), mask=here & (c < C))
    tl.store(out + places, _normal(c1), mask=here & (c + 1 < C))
    tl.store(out + 2 * places, _normal(c2), mask=here & (c + 2 < C))
    tl.store(out + 3 * places, _normal(c3), mask=here & (c + 3 < C))


def noise(seed: int, sample: int, origin: Sequence[int], out: Tensor) -> None:
    """Fill `out`, fp32 `[C, T, H, W]`, contiguous, with fewer than 2**31 places; the other numbers are below 2**32."""
    C, T, H, W = out.shape
    places = T * H * W
    tiles = triton.cdiv(places, BLOCK)
    words = (n - (n >> 31 << 32) for n in (seed, sample, *origin))  # the same bits as int32: one type for all values
    noise_kernel[(tiles * triton.cdiv(C, 4),)](
        out, *words, C, H, W, places, tiles, BLOCK=BLOCK,
        # 4 places a thread: 128-bit stores. Without contraction every product and sum is rounded.
        num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
