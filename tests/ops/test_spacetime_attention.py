"""`spacetime_attention` against softmax written out, sample by sample."""

from __future__ import annotations

import math

import pytest
import torch
from close import check, strided, transposed
from torch import Tensor

from pysora import ops

OP = "spacetime_attention"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SHAPES = {  # B, Lq, Lk, N, K
    "head 32": (2, 80, 80, 2, 32),
    "head 64": (1, 100, 130, 2, 64),
    "head 128": (1, 97, 64, 1, 128),
    "odd": (2, 13, 71, 3, 20),
    "odd head": (1, 5, 9, 2, 67),
    "few keys": (1, 40, 3, 2, 32),
    "blocks of both": (1, 330, 225, 8, 40),
    "blocks of both, head 64": (1, 150, 417, 2, 64),
    "one": (1, 1, 1, 1, 1),
}


def plain(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, key_bias: Tensor | None = None) -> Tensor:
    scores = torch.einsum("blnk,bmnk->bnlm", q, k) * (q.shape[3] ** -0.5 if scale is None else scale)
    scores = scores if key_bias is None else scores + key_bias[:, None, None].to(scores.dtype)
    return torch.einsum("bnlm,bmnk->blnk", scores.softmax(-1), v)


def plain_lse(q: Tensor, k: Tensor, key_bias: Tensor | None = None) -> Tensor:
    wide = (q, k) if q.dtype == torch.float64 else (q.float(), k.float())
    scores = torch.einsum("blnk,bmnk->bnlm", *wide) * q.shape[3] ** -0.5
    return (scores if key_bias is None else scores + key_bias[:, None, None]).logsumexp(-1)


def inputs(shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    B, Lq, Lk, N, K = shape
    return [torch.randn(B, L, N, K).to(dtype) for L in (Lq, Lk, Lk)]


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_accuracy(runner, shape, dtype):
    args = inputs(shape, dtype)
    check(runner(ops.spacetime_attention, *args), plain, args)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_scale_bias_and_logarithm(runner, dtype):
    q, k, v = inputs(SHAPES["odd"], dtype)
    bias = torch.randn(2, 71) * 3
    out, lse = runner(ops.spacetime_attention, q, k, v, key_bias=bias, return_lse=True)
    check(out, plain, (q, k, v), key_bias=bias)
    check(lse, plain_lse, (q, k, bias))
    check(runner(ops.spacetime_attention, q, k, v, 0.4), plain, (q, k, v, 0.4))


def test_large_scores_do_not_overflow(runner):
    q, k, v = (t * 40 for t in inputs(SHAPES["head 64"], torch.float32))
    check(runner(ops.spacetime_attention, q, k, v), plain, (q, k, v))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_scores_that_rise_with_the_keys(runner, dtype):
    """Every block of keys leaves those before it without weight."""
    q, k, v = inputs((1, 70, 500, 2, 32), dtype)
    k = torch.where(torch.arange(500)[:, None, None] % 7 == 0, k * torch.arange(500)[:, None, None] / 30, k).to(dtype)
    check(runner(ops.spacetime_attention, q.abs(), k.abs(), v), plain, (q.abs(), k.abs(), v))


def test_the_error_does_not_grow_with_the_keys(runner):
    """A sum of 8192 products in one chain would be off four times as far as one of 512."""

    def error(keys: int) -> float:
        args = inputs((1, 32, keys, 2, 64), torch.float32)
        exact = plain(*(t.double() for t in args))
        return float((runner(ops.spacetime_attention, *args) - exact).norm() / exact.norm())

    assert error(8192) < 2 * error(512)


def test_bias_counts_equal_keys(runner):
    """The text padding trick: n equal keys are one key with the bias log(n)."""
    q, k, v = inputs((1, 9, 5, 2, 32), torch.float32)
    many = [torch.cat([t, t[:, -1:].expand(-1, 20, -1, -1)], 1) for t in (k, v)]
    bias = torch.zeros(1, 5)
    bias[:, -1] = math.log(21)
    torch.testing.assert_close(
        runner(ops.spacetime_attention, q, k, v, key_bias=bias), runner(ops.spacetime_attention, q, *many)
    )


def test_hidden_keys(runner):
    q, k, v = inputs((1, 9, 70, 2, 32), torch.float32)
    bias = torch.zeros(1, 70)
    bias[:, 11:] = -math.inf
    k[:, 11:], v[:, 11:] = 1e4, 1e4
    check(runner(ops.spacetime_attention, q, k, v, key_bias=bias), plain, (q, k[:, :11], v[:, :11]))
    out, lse = runner(ops.spacetime_attention, q, k, v, key_bias=torch.full_like(bias, -math.inf), return_lse=True)
    assert torch.equal(out, torch.zeros_like(q)) and (lse == -math.inf).all()


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_packed_samples(runner, dtype):
    q_ends, k_ends = [0, 5, 5, 105, 110], [0, 70, 73, 73, 80]  # a sample without queries and one without keys
    q, k, v = (torch.randn(1, L, 2, 32).to(dtype) for L in (110, 80, 80))
    offsets = [torch.tensor(e, dtype=torch.int32) for e in (q_ends, k_ends)]
    out, lse = runner(ops.spacetime_attention, q, k, v, None, None, *offsets, return_lse=True)
    for s in (0, 3):
        mine, theirs = slice(q_ends[s], q_ends[s + 1]), slice(k_ends[s], k_ends[s + 1])
        check(out[:, mine], plain, (q[:, mine], k[:, theirs], v[:, theirs]))
        check(lse[:, :, mine], plain_lse, (q[:, mine], k[:, theirs]))
    assert torch.equal(out[:, 5:105], torch.zeros_like(q[:, 5:105])) and (lse[:, :, 5:105] == -math.inf).all()


def int8_scores(q: Tensor, k: Tensor) -> Tensor:
    """Scores of one sample from integers, each product summed by hand."""

    def rounded(x: Tensor) -> tuple[Tensor, Tensor]:
        step = (x.abs().amax(-1, keepdim=True) / 127).clamp(min=1e-30)
        return (x / step).round(), step

    mean = k.mean(1, keepdim=True)
    (a, a_step), (b, b_step) = rounded(q), rounded(k - mean)
    near = torch.einsum("blnk,bmnk->bnlm", a * a_step, b * b_step)
    return (near + torch.einsum("blnk,bmnk->bnlm", q, mean.expand_as(k))) * q.shape[3] ** -0.5


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_int8_scores(runner, shape, dtype):
    """As its definition says: what is left is a value that falls on the other side of a half (and bf16's rounding)."""
    q, k, v = inputs(shape, dtype)
    k = k + 3 * torch.randn(1, 1, *k.shape[2:]).to(dtype)
    bias = torch.randn(k.shape[:2])
    out, lse = runner(ops.spacetime_attention, q, k, v, key_bias=bias, int8=True, return_lse=True)
    wide = [t.double() for t in (q, k, v)]
    scores = int8_scores(wide[0], wide[1]) + bias[:, None, None].double()
    expected = torch.einsum("bnlm,bmnk->blnk", scores.softmax(-1), wide[2])
    allowed = 1e-3 if dtype == torch.float32 else 1e-2
    assert (out - expected).norm() <= allowed * expected.norm()
    assert (lse - scores.logsumexp(-1)).abs().max() <= 3 * allowed


def test_int8_scores_are_near_the_exact_ones(runner):
    """Without the keys' mean: a large one would leave few of the 8 bits for what differs between keys."""
    q, k, v = inputs((1, 100, 130, 2, 64), torch.float32)
    exact = plain(q, k, v)
    for moved in (k, k + 30):
        out = runner(ops.spacetime_attention, q, moved, v, int8=True)
        assert (out - exact).norm() <= 0.02 * exact.norm()


def test_int8_scores_of_hidden_keys_and_packed_samples(runner):
    """A hidden key does not move the mean, nor do another sample's."""
    q, k, v = inputs((1, 9, 70, 2, 32), torch.float32)
    alone = runner(ops.spacetime_attention, q, k[:, :11], v[:, :11], int8=True)
    bias = torch.zeros(1, 70)
    bias[:, 11:] = -math.inf
    k[:, 11:] = 1e4
    torch.testing.assert_close(runner(ops.spacetime_attention, q, k, v, key_bias=bias, int8=True), alone)
    offsets = [torch.tensor(e, dtype=torch.int32) for e in ([0, 9, 9], [0, 11, 70])]
    torch.testing.assert_close(runner(ops.spacetime_attention, q, k, v, None, None, *offsets, int8=True), alone)


def test_int8_scores_of_nothing(runner):
    q, k, v = inputs((1, 3, 5, 1, 8), torch.float32)
    assert torch.allclose(runner(ops.spacetime_attention, 0 * q, k, v, int8=True), v.mean(1, keepdim=True))
    empty = runner(ops.spacetime_attention, q, k[:, :0], v[:, :0], int8=True)
    assert torch.equal(empty, torch.zeros_like(q))
    q[0, 0, 0, 3] = math.nan
    out = runner(ops.spacetime_attention, q, k, v, int8=True)
    assert out[0, 0].isnan().all() and not out[0, 1:].isnan().any()


@pytest.mark.parametrize("layout", [strided, transposed])
def test_strides(runner, layout):
    args = inputs((2, 7, 20, 3, 16), torch.float32)
    views = [layout(t) for t in args]
    for int8 in (False, True):
        expected = runner(ops.spacetime_attention, *args, int8=int8)
        torch.testing.assert_close(runner(ops.spacetime_attention, *views, int8=int8), expected)


def test_infinite_values(runner):
    """A score of -inf is no weight; an infinite value is the result of every query that weighs it."""
    q, k, v = (x.abs() for x in inputs(SHAPES["head 32"], torch.float32))
    k[:, 3, :, 5] = -math.inf
    v[:, 7, 0, 2] = math.inf
    out = runner(ops.spacetime_attention, q, k, v)
    assert (out[:, :, 0, 2] == math.inf).all()
    expected = plain(q.double(), k.double(), v.double()).float()
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)


def test_the_largest_values(runner):
    """bf16 rounds them to infinity: they are in no part of a value that is multiplied in bf16 parts."""
    q, k, v = inputs(SHAPES["head 64"], torch.float32)
    v[0, 3, 0, 5] = torch.finfo(torch.float32).max
    check(runner(ops.spacetime_attention, q, k, v), plain, (q, k, v))


def test_few_keys_over_many_draws(runner):
    """In the mean over many draws an error is as small as plain torch's: no part of a product is lost one way."""
    errors = torch.zeros(2)
    for _ in range(60):
        args = inputs(SHAPES["few keys"], torch.float32)
        exact = plain(*(x.double() for x in args))
        for i, near in enumerate((runner(ops.spacetime_attention, *args), plain(*args))):
            errors[i] += (near.double() - exact).square().mean()
    assert errors[0].sqrt() <= 1.25 * errors[1].sqrt(), errors


def test_nan_is_not_hidden(runner):
    q, k, v = inputs((1, 4, 70, 1, 16), torch.float32)
    k[:, 66] = math.nan
    assert runner(ops.spacetime_attention, q, k, v).isnan().all()


def test_rejects_offsets_that_do_not_end_at_the_end(runner):
    q = torch.zeros(1, 6, 1, 8)
    short = torch.tensor([0, 4], dtype=torch.int32)
    with pytest.raises(ValueError, match="offsets from 0 to 6"):
        runner(ops.spacetime_attention, q, q, q, q_offsets=short, k_offsets=short)


def test_rejects_other_dtypes(runner):
    q, k, v = inputs(SHAPES["odd"], torch.float32)
    with pytest.raises((ValueError, NotImplementedError), match=r"k is torch\.bfloat16|one dtype"):
        runner(ops.spacetime_attention, q, k.bfloat16(), v)
