"""`adaln` against the norms written out, and the rows of its table."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from close import check_all, strided, transposed
from torch import Tensor

from pysora import ops

OP = "adaln"
SHAPES = {
    "usual": (2, 6, 32),
    "odd": (3, 5, 7),
    "63 wide": (2, 3, 63),
    "200 wide": (1, 4, 200),
    "several tasks": (2, 90, 200),
    "one wide": (2, 3, 1),
    "one": (1, 1, 2),
}


def plain(
    x: Tensor,
    table: Tensor | None = None,
    index: Tensor | None = None,
    gain: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-6,
    norm: str = "layer",
) -> Tensor:
    y = x if x.dtype == torch.float64 else x.float()
    centred = y - y.mean(-1, keepdim=True) if norm == "layer" else y
    y = centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    y = y if gain is None else y * gain
    y = y if bias is None else y + bias
    if table is not None:
        rows = torch.zeros(x.shape[:2], dtype=torch.long) if index is None else index.long().expand(x.shape[:2])
        if index is None and table.shape[0] > 1:
            rows = torch.arange(x.shape[0])[:, None].expand(x.shape[:2])
        y = y * (1 + table[rows][:, :, 1]) + table[rows][:, :, 0]
    return y.to(x.dtype)


@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_accuracy(runner, shape, dtype, norm):
    B, L, D = shape
    x, gain, bias = (torch.randn(shape) * 3 + 1).to(dtype), torch.randn(D), torch.randn(D)
    index = torch.randint(3, (L,), dtype=torch.int32)
    cases = [
        (x,),
        (x, torch.randn(1, 2, D)),
        (x, torch.randn(B, 2, D), None, gain, bias),
        (x, torch.randn(3, 2, D), index),
        (x, torch.randn(3, 2, D), index.expand(B, L), None, bias),
    ]
    check_all(partial(runner, ops.adaln, norm=norm), partial(plain, norm=norm), cases)


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_a_large_mean_does_not_cancel(runner, norm):
    args = (torch.randn(2, 3, 200) + 300,)
    check_all(partial(runner, ops.adaln, norm=norm), partial(plain, norm=norm), [args])


def test_operands_in_bf16(runner):
    x, table, gain, bias = torch.randn(2, 6, 35), *(torch.randn(s).bfloat16() for s in ((2, 2, 35), (35,), (35,)))
    wide = runner(ops.adaln, x, table.float(), None, gain.float(), bias.float())
    assert torch.equal(runner(ops.adaln, x, table, None, gain, bias), wide)
    assert torch.equal(runner(ops.adaln, x, table, None, gain.float(), bias), wide)


def test_strides(runner):
    """One part of a fused projection, two rows of the six of a block, and an index that skips."""
    x, table, index = torch.randn(2, 6, 35), torch.randn(3, 2, 35), torch.randint(3, (2, 6), dtype=torch.int32)
    view = torch.stack([torch.full_like(x, torch.nan), x], 2)[:, :, 1]
    rows = torch.cat([torch.full_like(table, torch.nan), table], 1)[:, 2:]
    skipping = torch.stack([index, torch.full_like(index, 99)], -1)[..., 0]
    expected = runner(ops.adaln, x, table, index)
    assert torch.equal(runner(ops.adaln, view, rows, skipping), expected)


@pytest.mark.parametrize("layout", [strided, transposed])
def test_scattered_values_go_to_the_reference(layout):
    x, table = torch.randn(2, 6, 32), torch.randn(2, 2, 32)
    assert "x has a stride of" in ops.explain("adaln", layout(x), table).reasons["cpu"]
    assert "table has a stride of" in ops.explain("adaln", x, layout(table)).reasons["cpu"]
    torch.testing.assert_close(ops.adaln(layout(x), layout(table)), ops.adaln(x, table))


@pytest.mark.parametrize("row", [-4, 3])
def test_rejects_rows_that_the_table_lacks(runner, row):
    index = torch.tensor([0, row, 2], dtype=torch.int32)
    with pytest.raises((IndexError, ValueError), match="index"):
        runner(ops.adaln, torch.zeros(2, 3, 8), torch.zeros(3, 2, 8), index)


def test_rejects(runner):
    x = torch.zeros(2, 6, 32)
    with pytest.raises(ValueError, match="norm: need 'layer' or 'rms', got 'batch'"):
        runner(ops.adaln, x, norm="batch")
    with pytest.raises(ValueError, match=r"index: need \[L\] = \[6\] or \[B, L\] = \[2, 6\], got \[5\]"):
        runner(ops.adaln, x, torch.zeros(3, 2, 32), torch.zeros(5, dtype=torch.int32))
    with pytest.raises(ValueError, match="table: need 1 or B = 2 rows where index is None, got 3"):
        runner(ops.adaln, x, torch.zeros(3, 2, 32))
