"""`gate_residual` against the sum written out."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch
from close import check_all, strided, transposed
from torch import Tensor

from pysora import ops

OP = "gate_residual"
SHAPES = {
    "usual": (2, 6, 32),
    "odd": (3, 5, 7),
    "63 wide": (2, 3, 63),
    "200 wide": (1, 4, 200),
    "several tasks": (2, 90, 200),
    "one": (1, 1, 1),
}


def plain(x: Tensor, y: Tensor, gate: Tensor, index: Tensor | None = None) -> Tensor:
    rows = gate[:, None] if index is None else torch.stack([gate[int(i)] for i in index])
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    return (x.to(wide) + y.to(wide) * rows).to(x.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_accuracy(runner, shape, dtype):
    x, y = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    index = torch.randint(4, shape[1:2], dtype=torch.int32)
    cases = [
        (x, y, torch.randn(1, shape[2])),
        (x, y, torch.randn(shape[0], shape[2])),
        (x, y, torch.randn(4, shape[2]), index),
    ]
    check_all(partial(runner, ops.gate_residual), plain, cases)


def same_bits(actual: Tensor, expected: Tensor) -> bool:
    """Equal, where a NaN equals any NaN and zeros have signs."""
    number = ~expected.isnan()
    return torch.equal(actual.isnan(), ~number) and torch.equal(
        *(t[number].view(torch.int16 if t.dtype == torch.bfloat16 else torch.int32) for t in (actual, expected))
    )


@pytest.mark.parametrize("dtypes", list(itertools.product([torch.float32, torch.bfloat16], repeat=3)), ids=str)
def test_bits_of_the_reference(runner, dtypes):
    x, y, gate = (torch.randn(s).to(d) for s, d in zip(((2, 6, 200), (2, 6, 200), (2, 200)), dtypes, strict=True))
    assert same_bits(runner(ops.gate_residual, x, y, gate), ops.gate_residual(x, y, gate, backend="reference"))


def test_rounding_to_bf16(runner):
    """Ties, subnormals, overflow, infinities and NaN: random bits, and the middles between neighbours."""
    gate = torch.randint(-(2**31), 2**31, (1 << 15,), dtype=torch.int64).int()
    gate[::2] = gate[::2] >> 16 << 16 | 1 << 15
    gate = gate.view(torch.float32).unsqueeze(0)
    x, y = torch.zeros(1, 1, 1 << 15).bfloat16(), torch.ones(1, 1, 1 << 15).bfloat16()
    assert same_bits(runner(ops.gate_residual, x, y, gate), gate.bfloat16().unsqueeze(0))


def test_strides(runner):
    """Parts of fused projections, one row of the six of a block, and an index that skips."""
    x, y, gate = torch.randn(2, 6, 35), torch.randn(2, 6, 35), torch.randn(3, 35)
    index = torch.randint(3, (2, 6), dtype=torch.int32)
    views = [torch.stack([torch.full_like(t, torch.nan), t], t.ndim - 1).select(-2, 1) for t in (x, y, gate)]
    skipping = torch.stack([index, torch.full_like(index, 99)], -1)[..., 0]
    expected = runner(ops.gate_residual, x, y, gate, index)
    assert torch.equal(runner(ops.gate_residual, *views, skipping), expected)


@pytest.mark.parametrize("layout", [strided, transposed])
def test_scattered_values_go_to_the_reference(layout):
    args = {"x": torch.randn(2, 6, 32), "y": torch.randn(2, 6, 32), "gate": torch.randn(2, 32)}
    expected = ops.gate_residual(**args)
    for name, tensor in args.items():
        views = {**args, name: layout(tensor)}
        assert f"{name} has a stride of" in ops.explain("gate_residual", **views).reasons["cpu"]
        assert torch.equal(ops.gate_residual(**views), expected)


@pytest.mark.parametrize("row", [-5, 4])
def test_rejects_rows_that_the_gate_lacks(runner, row):
    index = torch.tensor([[0, row, 2]], dtype=torch.int32)
    with pytest.raises((IndexError, ValueError), match="index"):
        runner(ops.gate_residual, torch.zeros(1, 3, 8), torch.zeros(1, 3, 8), torch.zeros(4, 8), index)


def test_rejects_another_width(runner):
    with pytest.raises(ValueError, match="gate: need \\[U, D = 32\\], got \\[1, 31\\]"):
        runner(ops.gate_residual, torch.zeros(2, 6, 32), torch.zeros(2, 6, 32), torch.zeros(1, 31))
