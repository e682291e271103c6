"""`norm_silu` against the norm written out."""

from __future__ import annotations

import pytest
import torch
from close import check, strided, transposed
from torch import Tensor

from pysora import ops

OP = "norm_silu"
SHAPES = {"video": (2, 8, 3, 4, 5), "odd": (1, 5, 1, 3, 7), "image": (2, 3, 4, 5), "one": (1, 1, 1, 1)}


def plain(x: Tensor, gamma: Tensor, silu: bool = True) -> Tensor:
    y = x if x.dtype == torch.float64 else x.float()
    length = y.pow(2).sum(1, keepdim=True).sqrt().clamp_min(1e-12)
    y = (y.movedim(1, -1) / length.movedim(1, -1) * x.shape[1] ** 0.5 * gamma).movedim(-1, 1)
    return (y * y.sigmoid() if silu else y).to(x.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_accuracy(runner, shape, dtype):
    args = torch.randn(shape).to(dtype), torch.randn(shape[1])
    check(runner(ops.norm_silu, *args), plain, args)
    check(runner(ops.norm_silu, *args, silu=False), plain, args, silu=False)


def test_zeros_stay_zeros(runner):
    out = runner(ops.norm_silu, torch.zeros(1, 4, 2, 2, 2), torch.ones(4))
    assert torch.equal(out, torch.zeros_like(out))


@pytest.mark.parametrize("layout", [strided, transposed])
def test_strides(runner, layout):
    x, gamma = torch.randn(2, 8, 3, 4, 5), torch.randn(8)
    torch.testing.assert_close(runner(ops.norm_silu, layout(x), gamma), runner(ops.norm_silu, x, gamma))


def test_keeps_the_memory_format(runner):
    x = torch.randn(1, 4, 2, 3, 3).contiguous(memory_format=torch.channels_last_3d)
    assert runner(ops.norm_silu, x, torch.ones(4)).stride() == x.stride()


def test_rejects_another_gamma(runner):
    with pytest.raises(ValueError, match="gamma: need \\[C\\] = \\[4\\], got \\[5\\]"):
        runner(ops.norm_silu, torch.zeros(1, 4, 2, 2), torch.ones(5))
