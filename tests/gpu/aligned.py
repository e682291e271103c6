"""A call of every op at an aligned shape, and what it costs on paper: where kernels are counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

BF16 = torch.bfloat16


def r(*shape: int) -> torch.Tensor:
    return torch.randn(shape)


def b(*shape: int) -> torch.Tensor:
    return torch.randn(shape).to(BF16)


@dataclass(frozen=True)
class Case:
    """A call at an aligned shape, and what it costs on paper."""

    op: str
    args: Callable[[], Any]
    bytes: int | None = None  # to and from global memory, with what each program reads of tables
    wide: float = 1.0  # at least this part of them by 128-bit accesses
    wide_bytes: int | None = None  # or so many bytes exactly, where what else is read is small and read one by one
    mma: int = 0  # tensor-core instructions on sm_80: m16n8k16
    wgmma: int = 0  # and on sm_90: m64, the tile's width, k16
    blocks: int = 2  # at least so many on a multiprocessor of sm_80, by registers


def _channels_last(t: torch.Tensor) -> torch.Tensor:
    return t.contiguous(memory_format=torch.channels_last_3d)


def attention(K: int) -> Any:
    return [*(b(1, 200, 1, K) for _ in range(3)), None, None, None, None, True]


TOKENS = 32 * 1536 * 2  # bytes of 32 tokens; programs take 8 of them
CASES = {
    "adaln": Case("adaln", lambda: (b(1, 32, 1536), r(1, 2, 1536)), 2 * TOKENS + 4 * 2 * 1536 * 4),
    "gate_residual": Case(
        "gate_residual", lambda: (b(1, 32, 1536), b(1, 32, 1536), r(1, 1536)), 3 * TOKENS + 4 * 1536 * 4
    ),
    # The cosines and sines of two tokens are fewer values than threads: 32-bit accesses.
    "qk_norm_rope": Case(
        "qk_norm_rope",
        lambda: (b(1, 32, 12, 128), r(1536), r(32, 64), r(32, 64)),
        2 * TOKENS + 4 * 1536 * 4 + 2 * 32 * 64 * 4,
        wide=0.93,
    ),
    "norm_silu": Case(
        "norm_silu",
        lambda: (_channels_last(b(1, 96, 1, 8, 16)), r(96)),
        2 * 128 * 96 * 2 + 4 * 96 * 4,
        wide=0.95,
    ),
    "norm_silu-pixels": Case(
        "norm_silu", lambda: (b(1, 96, 1, 8, 16), r(96)), 2 * 128 * 96 * 2 + 4 * 96 * 4, wide=0.95
    ),
    "unpatchify": Case("unpatchify", lambda: (b(1, 128, 64), [2, 4, 16], [1, 2, 2]), 2 * 128 * 64 * 2),
    # 256 tokens, 256 features, depth 64, in tiles of 128 x 128. Each thread loads the bias of its own sums.
    "patch_embed": Case(
        "patch_embed",
        lambda: (b(1, 16, 2, 8, 64), b(256, 16, 1, 2, 2), b(256)),
        wide=0.8,
        mma=256 // 16 * 256 // 8 * 64 // 16,
        wgmma=2 * 2 * 2 * 64 // 16,
        blocks=1,
    ),
    # 200 queries are two tiles of 128, 200 keys four of 64; two products of the same size.
    "attention-64": Case(
        "spacetime_attention",
        lambda: attention(64),
        wide=0.95,
        mma=256 // 16 * 256 // 8 * 64 // 16 * 2,
        wgmma=2 * 2 * 4 * (64 // 16 + 64 // 16),
        blocks=1,
    ),
    # Where queries are in registers, seven tiles of 32 keys.
    "attention-128": Case(
        "spacetime_attention",
        lambda: attention(128),
        wide=0.95,
        mma=256 // 16 * 224 // 8 * 128 // 16 * 2,
        wgmma=2 * 2 * 4 * (128 // 16 + 64 // 16),
        blocks=1,
    ),
    # Two samples of 100: as many tiles as above, of which each takes half of the keys.
    "attention-128-packed": Case(
        "spacetime_attention",
        lambda: [*attention(128)[:3], None, r(1, 200), *[torch.tensor([0, 100, 200], dtype=torch.int32)] * 2, True],
        wide_bytes=4 * 200 * 128 * 2,  # q, k, v and the result once; beside them the bias and the ends of samples
        mma=256 // 16 * 128 // 8 * 128 // 16 * 2,
        wgmma=2 * 2 * 2 * (128 // 16 + 64 // 16),
        blocks=1,
    ),
    "sampler_step": Case("sampler_step", lambda: (r(4096), r(4096), r(4096), [r(4096)], r(2, 3), 5.5), 6 * 4096 * 4),
    # Each pixel's 96 sums of 27 x 96 products.
    "causal_conv3d": Case(
        "causal_conv3d",
        lambda: (
            _channels_last(b(1, 96, 2, 16, 16)),
            _channels_last(b(96, 96, 3, 3, 3) / 51),
            *(None, _channels_last(b(1, 96, 2, 16, 16)), r(96)),
        ),
        mma=2 * 16 * 16 // 16 * 96 // 8 * 27 * 96 // 16,
    ),
    "noise": Case("noise", lambda: ((8, 2, 16, 32), 20), 8 * 2 * 16 * 32 * 4),
}
