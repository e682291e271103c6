"""`linear_int8` against its definition, and against the layer that it approximates."""

from __future__ import annotations

import pytest
import torch
from close import strided
from torch import Tensor

from pysora import ops
from pysora.ops.linear_int8 import quantize_rows

OP = "linear_int8"
SHAPES = {
    "usual": (2, 6, 32, 24),
    "odd": (3, 5, 7, 9),
    "one": (1, 1, 1, 1),
    "deep": (1, 9, 3001, 20),
    "many": (1, 200, 64, 200),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_is_what_it_says(runner, shape, dtype):
    """The reference's integers, whose sums are exact: only the epilogue's fp32 arithmetic may differ."""
    B, L, D, E = shape
    x, bias, residual = (torch.randn(s).to(dtype) for s in ((B, L, D), E, (B, L, E)))
    weight, scale = quantize_rows(torch.randn(E, D))
    for args in (
        (x, weight, scale),
        (strided(x), weight, scale, bias),
        (x, weight, scale, bias, "gelu"),
        (x, weight, scale, bias, "gate_residual", residual, torch.randn(1, E)),
    ):
        expected = ops.linear_int8.reference(*args)
        size = float(expected.float().abs().max())
        # Along 3001 values the fp32 multiplications of processors without int8 products round their sums.
        error = 2e-6 * size if dtype == torch.float32 else 2**-7 * size
        actual = runner(ops.linear_int8, *args)
        assert actual.dtype == expected.dtype
        torch.testing.assert_close(actual, expected, rtol=0, atol=error)


def test_is_near_the_layer(runner):
    """1024 normal values: rounding to 8 bits costs 1 % of the result's deviation."""
    x, weight = torch.randn(1, 64, 1024), torch.randn(96, 1024) / 32
    exact = x @ weight.T
    error = runner(ops.linear_int8, x, *quantize_rows(weight)) - exact
    assert 0.002 < float(error.std() / exact.std()) < 0.015


def test_largest_integers(runner):
    """Sums of 4096 products of 127 by 127, of one sign and of both."""
    x, weight = torch.ones(1, 3, 4096), torch.ones(5, 4096)
    x[0, 1], x[0, 2, ::2] = -1, -1
    weight[1], weight[2, 1::2] = -1, -1
    result = runner(ops.linear_int8, x, *quantize_rows(weight))
    torch.testing.assert_close(result, x @ weight.T, rtol=1e-6, atol=1e-2)


def test_tokens_of_zeros_and_of_no_numbers(runner):
    """Zeros stay zeros; NaN and infinity make their own token NaN alone."""
    x, (weight, scale) = torch.randn(1, 5, 40), quantize_rows(torch.randn(7, 40))
    x[0, 0], x[0, 1, 3], x[0, 2, 39] = 0, torch.nan, torch.inf
    result = runner(ops.linear_int8, x, weight, scale)
    assert (result[0, 0] == 0).all() and result[0, 1:3].isnan().all()
    assert torch.equal(result[0, 3:], runner(ops.linear_int8, x[:, 3:], weight, scale)[0])


@pytest.mark.parametrize("shape", [(0, 2, 4, 3), (1, 0, 4, 3), (1, 2, 0, 3), (1, 2, 4, 0)])
def test_nothing_to_multiply(runner, shape):
    B, L, D, E = shape
    bias = torch.randn(E)
    out = runner(ops.linear_int8, torch.zeros(B, L, D), *quantize_rows(torch.zeros(E, D)), bias)
    assert torch.equal(out, bias.expand(B, L, E))


def test_a_weight_of_zeros_and_one_row_of_them():
    weight, scale = quantize_rows(torch.stack([torch.zeros(3), torch.tensor([1.0, -2.0, 0.5])]))
    assert weight.tolist() == [[0, 0, 0], [64, -127, 32]]
    torch.testing.assert_close(scale, torch.tensor([0.0, 2 / 127]))


def test_rejects(runner):
    x, (weight, scale) = torch.zeros(1, 2, 4), quantize_rows(torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"weight: need torch.int8, got torch.float32"):
        ops.linear_int8(x, weight.float(), scale)
    with pytest.raises(ValueError, match=r"scale: need \[E\]"):
        runner(ops.linear_int8, x, weight, scale[:2])
    with pytest.raises(ValueError, match=r"epilogue: need one of .*, got 'relu'"):
        runner(ops.linear_int8, x, weight, scale, epilogue="relu")


def test_rows_that_are_strided(runner):
    """A weight's rows may lie apart, at any address."""
    x, wide = torch.randn(1, 9, 21), torch.randint(-127, 128, (6, 50), dtype=torch.int8)
    weight, scale = wide[:, 3:24], torch.rand(6)
    expected: Tensor = ops.linear_int8.reference(x, weight, scale)
    torch.testing.assert_close(runner(ops.linear_int8, x, weight, scale), expected, rtol=1e-6, atol=1e-4)
