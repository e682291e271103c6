"""The CUDA kernel of `spacetime_attention`, executed on the CPU."""

from __future__ import annotations

import ctypes
import itertools
import math
from typing import Any

import pytest
import torch
from close import check, transposed
from gpu.launcher import DTYPES, Counts, Launcher, Memory, array
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

BOTH = {"bf16": torch.bfloat16, "fp16": torch.float16}


class SpacetimeAttentionParams(ctypes.Structure):
    """csrc/include/pysora/spacetime_attention.h"""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in "qkv"),
        *((f"{name}_strides", ctypes.c_int64 * 4) for name in "qkv"),
        ("key_bias", ctypes.c_void_p),
        ("bias_strides", ctypes.c_int64 * 2),
        *((name, ctypes.c_void_p) for name in ("q_offsets", "k_offsets", "out", "lse")),
        *((name, ctypes.c_int64) for name in ("B", "S", "Lq", "Lk", "N", "K", "longest_q", "longest_k")),
        ("scale", ctypes.c_float),
        ("dtype", ctypes.c_int),
        ("workspace", ctypes.c_void_p),
        ("workspace_floats", ctypes.c_int64),
        ("threads", ctypes.c_int),
        ("int8", ctypes.c_bool),
    )


def run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    key_bias: Tensor | None = None,
    offsets: tuple[list[int], list[int]] | None = None,
    **how: Any,
) -> tuple[Tensor, Tensor, Counts, Launcher]:
    """Run the kernel; return its result, the logarithms, and its counts. `how` goes to the launcher."""
    memory, (B, Lq, N, K), Lk = Memory(), q.shape, k.shape[1]
    out, lse = torch.full((B, Lq, N, K), torch.nan, dtype=q.dtype), torch.full((B, N, Lq), torch.nan)
    ends = [torch.tensor(e, dtype=torch.int32) for e in offsets] if offsets else [None, None]
    params = SpacetimeAttentionParams(
        *map(memory.address, (q, k, v)),
        *(array(t.stride()) for t in (q, k, v)),
        memory.address(key_bias),
        array(key_bias.stride() if key_bias is not None else (0, 0)),
        *map(memory.address, (*ends, out, lse)),
        *(B, len(offsets[0]) - 1 if offsets else B, Lq, Lk, N, K, Lq, Lk),
        *(K**-0.5 if scale is None else scale, DTYPES[q.dtype], None, 0, 1),
    )
    launcher = Launcher("spacetime_attention", SpacetimeAttentionParams, **how)
    return out, lse, launcher(params, memory), launcher


def plain(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, key_bias: Tensor | None = None) -> Tensor:
    mask = None if key_bias is None else key_bias[:, None, None].to(q.dtype)
    heads = (t.transpose(1, 2) for t in (q, k, v))
    return scaled_dot_product_attention(*heads, mask, scale=scale).transpose(1, 2)


def logarithms(q: Tensor, k: Tensor, scale: float | None = None, key_bias: Tensor | None = None) -> Tensor:
    wide = (q, k) if q.dtype == torch.float64 else (q.float(), k.float())
    scores = torch.einsum("blnk,bmnk->bnlm", *wide) * (q.shape[3] ** -0.5 if scale is None else scale)
    return (scores if key_bias is None else scores + key_bias[:, None, None]).logsumexp(-1)


def inputs(shape: tuple[int, ...], dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    B, Lq, Lk, N, K = shape
    return [torch.randn(B, L, N, K).to(dtype) for L in (Lq, Lk, Lk)]


def check_both(args: list[Tensor], **more: Any) -> None:
    """Compare the result and the logarithms of one call with plain torch."""
    how = {name: more.pop(name) for name in ("arch", "text") if name in more}
    out, lse, _, _ = run(*args, **more, **how)
    check(out, plain, args, **more)
    check(lse, logarithms, args[:2], **more)


SHAPES = {  # B, Lq, Lk, N, K
    "one": (1, 1, 1, 1, 64),
    "63": (1, 63, 63, 1, 128),
    "200": (1, 200, 200, 1, 64),
    "several heads": (2, 17, 120, 3, 64),
    "head 128": (2, 65, 97, 1, 128),
    "few keys": (1, 130, 3, 1, 64),
    "whole tiles": (1, 128, 64, 1, 128),
}


@pytest.mark.parametrize("dtype", BOTH.values(), ids=BOTH)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_accuracy(shape, dtype):
    check_both(inputs(shape, dtype))


@pytest.mark.parametrize("dtype", BOTH.values(), ids=BOTH)
@pytest.mark.parametrize("shape", [(1, 130, 70, 1, 64), (1, 33, 70, 2, 128)], ids=["head 64", "head 128"])
def test_ptx_for_sm_90(shape, dtype):
    check_both(inputs(shape, dtype), arch="compute_90")
    check_both(inputs(shape, dtype), key_bias=torch.randn(1, shape[2]), arch="compute_90")


@pytest.mark.parametrize("K", [64, 128])
def test_views_of_one_fused_tensor(K):
    """Neighbours of the heads that are meant are NaN."""
    fused = torch.full((2, 71, 3, 4, K), torch.nan, dtype=torch.bfloat16)
    fused[:, :, :, 1:3] = torch.randn(2, 71, 3, 2, K).bfloat16()
    check_both([fused[:, :50, 0, 1:3], fused[:, :, 1, 1:3], fused[:, :, 2, 1:3]])


def test_heads_before_tokens():
    q, k, v = ((t.transpose(1, 2).contiguous().transpose(1, 2)) for t in inputs((2, 40, 70, 3, 64)))
    check_both([q, k, v])
    check_both([q, k[:, ::2], v[:, :35].expand(2, 35, 3, 64)])


@pytest.mark.parametrize("dtype", BOTH.values(), ids=BOTH)
@pytest.mark.parametrize("K", [64, 128])
def test_key_bias(K, dtype):
    args, bias = inputs((2, 40, 140, 1, K), dtype), torch.randn(2, 140).to(dtype).float() * 3
    bias[0, 3:90], bias[1, 100:] = -math.inf, -math.inf
    check_both(args, key_bias=bias)
    check_both(args, key_bias=transposed(bias), scale=0.4)


def test_bias_counts_equal_keys():
    """The text padding trick: n equal keys are one key with the bias log(n)."""
    q, k, v = inputs((1, 9, 5, 1, 64))
    many = [torch.cat([t, t[:, -1:].expand(-1, 100, -1, -1)], 1) for t in (k, v)]
    bias = torch.tensor([[0.0, 0, 0, 0, math.log(101)]])
    assert torch.allclose(run(q, k, v, key_bias=bias)[1], run(q, *many)[1], atol=2e-6)


@pytest.mark.parametrize("scale", [2.5, -0.3, 0.0])
@pytest.mark.parametrize("K", [64, 128])
def test_scale(K, scale):
    check_both(inputs((1, 20, 75, 1, K)), scale=scale)
    check_both(inputs((1, 20, 75, 1, K), torch.float16), scale=scale, key_bias=torch.randn(1, 75).half().float())


@pytest.mark.parametrize("K", [64, 128])
@pytest.mark.parametrize("factor", [1.0, -1.0], ids=["rising", "falling"])
def test_scores_of_very_different_size(factor, K):
    """Tile after tile the largest score passes the reference, or none does."""
    q, k, v = inputs((1, 20, 200, 1, K), torch.float16)
    k = (torch.arange(200)[None, :, None, None] * 0.2 * factor + k).half()
    check_both([q.abs(), k, v])
    check_both([q.abs() / 40, k, v])


def test_weights_stay_within_fp16():
    """The second tile's scores do not raise the reference; without raising it, 2^18 would be the third's weights."""
    q, k, v = torch.ones(1, 16, 1, 64).half(), torch.zeros(1, 192, 1, 64).half(), torch.randn(1, 192, 1, 64).half()
    k[:, 64:128, :, 0], k[:, 128:, :, 0] = 5.5, 12.5
    check_both([q, k, v], scale=1.0)


@pytest.mark.parametrize("K", [64, 128])
def test_keys_that_are_hidden(K):
    q, k, v = inputs((1, 20, 140, 1, K))
    bias = torch.zeros(1, 140)
    bias[:, 11:], k[:, 11:], v[:, 11:] = -math.inf, 1e4, 1e4
    out, lse, _, _ = run(q, k, v, key_bias=bias)
    check(out, plain, (q, k[:, :11], v[:, :11]))
    check(lse, logarithms, (q, k[:, :11]))
    out, lse, _, _ = run(q, k, v, 0.0, bias)
    check(out, plain, (q, k[:, :11], v[:, :11], 0.0))
    out, lse, _, _ = run(q, k, v, key_bias=torch.full_like(bias, -math.inf))
    assert torch.equal(out, torch.zeros_like(q)) and (lse == -math.inf).all()


@pytest.mark.parametrize("K", [64, 128])
def test_no_keys_and_no_queries(K):
    q, k, v = inputs((2, 130, 0, 1, K))
    for bias in (None, torch.zeros(2, 0)):
        out, lse, _, _ = run(q, k, v, key_bias=bias)
        assert torch.equal(out, torch.zeros_like(q)) and (lse == -math.inf).all()
    assert not run(q[:, :0], *inputs((2, 0, 5, 1, K))[1:])[3].launches


SAMPLES = {  # q_offsets, k_offsets
    "ragged": ([0, 5, 5, 135, 140, 141], [0, 70, 73, 73, 80, 210]),
    "one": ([0, 65], [0, 65]),
    "whole tiles": ([0, 128, 256], [0, 64, 128]),
    "empty at the ends": ([0, 0, 130, 130], [0, 64, 129, 129]),
}


@pytest.mark.parametrize("K", [64, 128])
@pytest.mark.parametrize("samples", SAMPLES.values(), ids=SAMPLES)
def test_packed_samples(samples, K):
    """Keys of samples without queries are NaN: nobody may see them. Every second time there is a bias too."""
    q, k, v = inputs((1, samples[0][-1], samples[1][-1], 2, K))
    bias = torch.randn(1, k.shape[1]).bfloat16().float() if K == 64 else None
    parts = list(zip(*([slice(*pair) for pair in itertools.pairwise(ends)] for ends in samples), strict=True))
    for mine, theirs in parts:
        if mine.start == mine.stop:
            k[:, theirs], v[:, theirs] = torch.nan, torch.nan
    out, lse, _, _ = run(q, k, v, key_bias=bias, offsets=samples)
    for mine, theirs in parts:
        if theirs.start == theirs.stop:
            assert (out[:, mine] == 0).all() and (lse[:, :, mine] == -math.inf).all()
        elif mine.start < mine.stop:
            more = {} if bias is None else {"key_bias": bias[:, theirs]}
            check(out[:, mine], plain, (q[:, mine], k[:, theirs], v[:, theirs]), **more)
            check(lse[:, :, mine], logarithms, (q[:, mine], k[:, theirs]), **more)


def test_offsets_beyond_the_end_touch_nothing():
    """On a GPU nobody looks at the offsets before the kernel does."""
    q, k, v = inputs((1, 40, 40, 1, 64))
    out, _, _, _ = run(q, k, v, offsets=([0, 1000], [0, 1000]))
    check(out, plain, (q, k, v))


def test_nan_is_not_hidden():
    q, k, v = inputs((1, 4, 140, 1, 64))
    k[:, 66] = torch.nan
    assert run(q, k, v)[0].isnan().all()


def test_logarithms_can_be_left_out():
    memory, (q, k, v) = Memory(), inputs((1, 4, 9, 1, 64))
    out = torch.full_like(q, torch.nan)
    params = SpacetimeAttentionParams(
        *map(memory.address, (q, k, v)), *(array(t.stride()) for t in (q, k, v)), out=memory.address(out)
    )
    params.B, params.S, params.Lq, params.Lk, params.N, params.K, params.scale, params.dtype = (
        1,
        1,
        4,
        9,
        1,
        64,
        0.125,
        1,
    )
    Launcher("spacetime_attention", SpacetimeAttentionParams)(params, memory)
    check(out, plain, (q, k, v))


TILES = {64: (128, 64), 128: (64, 32)}  # queries of a block, keys of a tile


@pytest.mark.parametrize("biased", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("shape", [(1, 256, 128, 2, 64), (1, 128, 64, 2, 128)], ids=["head 64", "head 128"])
def test_work(shape, biased):
    """At aligned shapes: no bank conflicts, whole sectors, 128-bit accesses, and no more products than it takes."""
    B, Lq, Lk, N, K = shape
    args, bias = inputs(shape), torch.randn(1, Lk) if biased else None
    _, _, counts, launcher = run(*args, key_bias=bias)
    products = sum(n for op, n in launcher.instructions.items() if op.startswith("mma."))
    assert products == B * N * (Lq * Lk * K) * 2 // (16 * 8 * 16)
    assert counts.conflicts() <= 1.05 and counts.coalescing() <= 1.05 and counts.wide_share() >= 0.95
    reads_of_keys = Lq // TILES[K][0] * Lk * (4 * K + 4 * biased)
    assert counts.bytes("st.global") == B * N * Lq * (2 * K + 4)
    assert counts.bytes("cp.async") == B * N * (Lq * 2 * K + reads_of_keys)
    assert counts.bytes() == counts.bytes("st.global") + counts.bytes("cp.async")


@pytest.mark.parametrize(("shape", "triton"), [((1, 200, 200, 1, 64), 37_600), ((1, 256, 256, 1, 128), 64_384)])
def test_instructions_beside_triton(shape, triton):
    """A good attention in Triton (64 queries, 64 keys, 4 warps) needs so many warp instructions for the problem."""
    launcher = run(*inputs(shape))[3]
    assert sum(launcher.instructions.values()) <= 0.8 * triton
