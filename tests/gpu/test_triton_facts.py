"""Triton kernels judged without a GPU: facts of what they compile to, and the work they do at aligned shapes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from close import check
from triton_targets import Card, Facts, Launch, facts

from pysora import ops

pytest.importorskip("triton", reason="Triton is not installed")
BF16 = torch.bfloat16
ATTENTION_OF_THE_SAMPLE = 37_600  # warp instructions of a good Triton attention on the same problem


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
        lambda: (b(1, 96, 1, 8, 16).contiguous(memory_format=torch.channels_last_3d), r(96)),
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
    "noise": Case("noise", lambda: ((8, 2, 16, 32), 20), 8 * 2 * 16 * 32 * 4),
}
EVERY_CASE = pytest.mark.parametrize("name", CASES)
KERNELS = [
    n for n in CASES if n not in ("norm_silu-pixels", "attention-64", "attention-128")
]  # other arguments of the same
BUILT = [*((n, arch) for n in CASES for arch in (80, 90)), *((n, arch) for n in KERNELS for arch in (100, 120))]


@cache
def launched(name: str, arch: int) -> Launch:
    """Launch the case once: executed where the PTX runner can, that is below sm_100."""
    card = Card(arch, execute=arch < 100, assemble=True)
    op, args = ops.OPS[CASES[name].op], CASES[name].args()
    result = card(op, *args)
    if card.execute and name != "noise":  # whose bits another test compares
        check(result, op.reference, args)
    (launch,) = card.launches
    return launch


@cache
def facts_of(name: str, arch: int) -> Facts:
    cubin = launched(name, arch).cubin
    assert cubin is not None
    return facts(cubin)


@pytest.mark.parametrize(("name", "arch"), BUILT)
def test_compiles_well(name, arch):
    """No stack, no spills, no slow path, and shared memory that every card of the architecture has."""
    case, found, launch = CASES[name], facts_of(name, arch), launched(name, arch)
    assert found.stack == 0 and found.count("LDL|STL") == 0
    if name != "noise" and not (arch == 100 and case.mma):  # IEEE square roots; checks of tensor memory
        assert found.count("CALL") == 0
    assert launch.shared <= {80: 163, 90: 227, 100: 227, 120: 99}[arch] * 1024
    assert found.registers * 32 * launch.warps * case.blocks <= 65536
    tensor_cores = {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA", 120: "HMMA"}[arch]
    assert (found.count(tensor_cores) > 0) == (case.mma > 0)


@pytest.mark.parametrize("arch", [80, 90])
@EVERY_CASE
def test_work(name, arch):
    """No bank conflicts, no wasted sectors, wide accesses, and the bytes and products that it takes on paper."""
    case, launch = CASES[name], launched(name, arch)
    assert launch.counters.conflict_ratio() <= 1.05 and launch.counters.coalescing_ratio() <= 1.05
    if case.wide_bytes is None:
        assert launch.bytes(16) >= case.wide * launch.bytes()
    else:
        assert launch.bytes(16) == case.wide_bytes
    assert case.bytes in (None, launch.bytes())
    assert launch.counters.tensor_core_instructions() == (case.mma if arch == 80 else case.wgmma)


@pytest.mark.parametrize("arch", [80, 90])
def test_attention_works_less_than_the_sample(arch):
    assert launched("attention-64", arch).counters.warp_instructions() <= ATTENTION_OF_THE_SAMPLE


@pytest.mark.parametrize("arch", [80, 90, 100, 120])
@pytest.mark.parametrize("name", ["noise", "sampler_step", "gate_residual"])
def test_nothing_is_contracted(name, arch):
    """Products and sums that are rounded one by one; a square root takes two or three FFMA of its own."""
    found = facts_of(name, arch)
    assert not re.search(r"\bfma\.", launched(name, arch).ptx)
    assert found.count("FFMA") <= 3 * found.count("MUFU.RSQ")


@pytest.mark.parametrize("name", ["patch_embed", "attention-64", "attention-128", "attention-128-packed"])
def test_products_become_wgmma_on_hopper(name):
    assert "wgmma.mma_async" in launched(name, 90).ptx and "mma.sync" not in launched(name, 90).ptx
