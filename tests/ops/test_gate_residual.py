"""`gate_residual` against the sum written out."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from close import check_all, strided, transposed
from torch import Tensor

from pysora import ops

OP = "gate_residual"
SHAPES = {"usual": (2, 6, 32), "odd": (3, 5, 7), "one": (1, 1, 1)}


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


@pytest.mark.parametrize("layout", [strided, transposed])
def test_strides(runner, layout):
    args = (torch.randn(2, 6, 32), torch.randn(2, 6, 32), torch.randn(1, 32))
    views = [layout(t) for t in args]
    assert torch.equal(runner(ops.gate_residual, *views), runner(ops.gate_residual, *args))


def test_rejects_another_width(runner):
    with pytest.raises(ValueError, match="gate: need \\[U, D = 32\\], got \\[1, 31\\]"):
        runner(ops.gate_residual, torch.zeros(2, 6, 32), torch.zeros(2, 6, 32), torch.zeros(1, 31))
