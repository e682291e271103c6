"""`linear` against einsum, with each epilogue written out."""

from __future__ import annotations

import math

import pytest
import torch
from close import check, strided
from torch import Tensor

from pysora import ops

OP = "linear"
SHAPES = {  # B, L, D, E
    "usual": (2, 6, 32, 24),
    "odd": (3, 5, 7, 9),
    "one": (1, 1, 1, 1),
    "deep": (1, 9, 3001, 20),
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


@pytest.mark.parametrize("shape", [(0, 2, 4, 3), (1, 0, 4, 3), (1, 2, 0, 3), (1, 2, 4, 0)])
def test_nothing_to_multiply(runner, shape):
    B, L, D, E = shape
    bias = torch.randn(E)
    out = runner(ops.linear, torch.zeros(B, L, D), torch.zeros(E, D), bias)
    assert torch.equal(out, bias.expand(B, L, E))


def test_rejects(runner):
    x, weight = torch.zeros(1, 2, 4), torch.zeros(3, 4)
    with pytest.raises(ValueError, match=r"epilogue: need one of .*, got 'relu'"):
        runner(ops.linear, x, weight, epilogue="relu")
    with pytest.raises(ValueError, match="residual: need a tensor with the epilogue gate_residual"):
        runner(ops.linear, x, weight, epilogue="gate_residual")
