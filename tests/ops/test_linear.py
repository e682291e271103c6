"""`linear` against einsum, with each epilogue written out."""

from __future__ import annotations

import math

import pytest
import torch
from close import check, strided, to
from torch import Tensor

from pysora import ops

OP = "linear"
SHAPES = {  # B, L, D, E
    "usual": (2, 6, 32, 24),
    "odd": (3, 5, 7, 9),
    "one": (1, 1, 1, 1),
    "deep": (1, 9, 2001, 20),
    "deeper than `linear.LONGEST`": (1, 9, 3001, 20),
    "deeper than `linear.DEEP`": (1, 9, 4104, 20),
}


def plain(x: Tensor, weight: Tensor, bias: Tensor | None = None, epilogue: str = "none", *gated: Tensor) -> Tensor:
    y = torch.einsum("bld,ed->ble", x, weight)
    y = y if bias is None else y + bias
    if epilogue == "gelu":
        return 0.5 * y * (1 + (math.sqrt(2 / math.pi) * (y + 0.044715 * y.pow(3))).tanh())
    if epilogue == "gate_residual":
        residual, gate = gated
        return (residual + y * gate).to(residual.dtype)
    return y


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_accuracy(runner, shape, dtype):
    B, L, D, E = shape
    x, weight, bias, residual = (torch.randn(s).to(dtype) for s in ((B, L, D), (E, D), E, (B, L, E)))
    for args in (
        (x, weight),
        (strided(x), weight, bias),
        (x, weight, bias, "gelu"),
        (x, weight, bias, "gate_residual", residual, torch.randn(1, E)),
    ):
        check(runner(ops.linear, *args), plain, args)


@pytest.mark.parametrize("shape", [(1, 130, 67, 90), (2, 70, 300, 200), (3, 5, 7, 9), (1, 140, 1024, 33)])
def test_weights_that_bf16_holds(runner, shape):
    """With a matrix unit fp32 is multiplied in bf16 parts then: no digit is lost, and infinities stay what they are."""
    B, L, D, E = shape
    x, weight, bias, residual = (torch.randn(s) for s in ((B, L, D), (E, D), E, (B, L, E)))
    weight = weight.bfloat16().float()

    def compare(*args):
        actual, near, exact = runner(ops.linear, *args), plain(*args), plain(*to(torch.float64, args))
        finite = exact.isfinite()
        torch.testing.assert_close(actual[~finite], exact[~finite].float(), equal_nan=True)
        assert (actual - exact)[finite].norm() <= 2 * (near - exact)[finite].norm()

    compare(x, weight)
    compare(strided(x), weight, bias)
    compare(x, weight, bias, "gelu")
    compare(x, weight, bias, "gate_residual", residual, torch.randn(1, E))
    x[0, 0, 0], x[-1, 1, 1] = math.inf, -math.inf
    compare(x, weight, bias)
    x[0, 0, 0], x[-1, 1, 1] = math.nan, 0
    compare(x, weight, bias)
    weight[0, 0] = math.inf
    compare(x.nan_to_num(), weight, bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", [(0, 2, 4, 3), (1, 0, 4, 3), (1, 2, 0, 3), (1, 2, 4, 0), (1, 40, 0, 40)])
def test_nothing_to_multiply(runner, shape, dtype):
    B, L, D, E = shape
    bias = torch.randn(E).to(dtype)
    out = runner(ops.linear, torch.zeros(B, L, D, dtype=dtype), torch.zeros(E, D, dtype=dtype), bias)
    assert torch.equal(out, bias.expand(B, L, E))


def test_rejects(runner):
    x, weight = torch.zeros(1, 2, 4), torch.zeros(3, 4)
    with pytest.raises(ValueError, match=r"epilogue: need one of .*, got 'relu'"):
        runner(ops.linear, x, weight, epilogue="relu")
    with pytest.raises(ValueError, match="residual: need a tensor with the epilogue gate_residual"):
        runner(ops.linear, x, weight, epilogue="gate_residual")
