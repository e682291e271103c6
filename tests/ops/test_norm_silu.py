"""`norm_silu` against the norm written out."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from close import channels_last, check, check_all, part, strided, transposed
from torch import Tensor

from pysora import ops

OP = "norm_silu"
SHAPES = {
    "video": (2, 8, 3, 4, 5),
    "odd": (1, 5, 1, 3, 7),
    "image": (2, 3, 4, 5),
    "63 channels": (1, 63, 2, 5, 7),
    "63 pixels": (1, 200, 3, 3, 7),
    "200 pixels": (2, 17, 1, 10, 20),
    "several tasks": (1, 70, 2, 16, 17),
    "one channel": (1, 1, 2, 3, 5),
    "one": (1, 1, 1, 1),
}


LAYOUTS = {
    "channels last": channels_last,
    "channels": lambda x: part(x, 1),
    "frames": lambda x: part(x, 2),
    "rows": lambda x: part(x, 3),
    "columns": lambda x: part(x, 4),
    "channels, channels last": lambda x: part(x.movedim(1, -1), 4).movedim(-1, 1),
    "columns, channels last": lambda x: part(x.movedim(1, -1), 3).movedim(-1, 1),
    "frames inside": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "one repeated": lambda x: x[:1].expand_as(x),
}


def plain(x: Tensor, gamma: Tensor, silu: bool = True) -> Tensor:
    y = x if x.dtype == torch.float64 else x.float()
    length = y.pow(2).sum(1, keepdim=True).sqrt().clamp_min(1e-12)
    y = (y.movedim(1, -1) / length.movedim(1, -1) * x.shape[1] ** 0.5 * gamma).movedim(-1, 1)
    return (y * y.sigmoid() if silu else y).to(x.dtype)


@pytest.mark.parametrize("layout", [torch.clone, channels_last], ids=["contiguous", "channels last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_accuracy(runner, shape, dtype, layout):
    x, C = layout(torch.randn(shape).to(dtype)), shape[1]
    cases = [(x, torch.randn(C)) for _ in range(64 // C + 1)]
    for silu in (True, False):
        check_all(partial(runner, ops.norm_silu, silu=silu), partial(plain, silu=silu), cases)


def test_silu_of_every_size(runner):
    """From where it vanishes to where it is the identity."""
    args = torch.ones(1, 2001, 1, 1, 1), torch.linspace(-120, 120, 2001)
    check(runner(ops.norm_silu, *args), plain, args)


def test_zeros_stay_zeros(runner):
    out = runner(ops.norm_silu, torch.zeros(1, 4, 2, 2, 2), torch.ones(4))
    assert torch.equal(out, torch.zeros_like(out))


def test_nan_stays_in_its_pixel(runner):
    x = torch.ones(1, 4, 1, 2, 20)
    x[0, 2, 0, 1, 17] = torch.nan
    bad = runner(ops.norm_silu, x, torch.ones(4)).isnan()
    assert bad[0, :, 0, 1, 17].all() and int(bad.sum()) == 4


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_strides(runner, layout):
    x, gamma = torch.randn(2, 8, 3, 4, 5), torch.randn(8)
    view = layout(x)
    torch.testing.assert_close(runner(ops.norm_silu, view, gamma), runner(ops.norm_silu, view.contiguous(), gamma))


@pytest.mark.parametrize("layout", [strided, transposed])
def test_scattered_values_go_to_the_reference(layout):
    x, gamma = torch.randn(2, 8, 3, 4, 5), torch.randn(8)
    assert "neither its channels nor its pixels" in ops.explain("norm_silu", layout(x), gamma).reasons["cpu"]
    assert "gamma has a stride" in ops.explain("norm_silu", x, strided(gamma)).reasons["cpu"]
    torch.testing.assert_close(ops.norm_silu(layout(x), gamma), ops.norm_silu(x, gamma))


def test_keeps_the_memory_format(runner):
    x = torch.randn(1, 4, 2, 3, 3).contiguous(memory_format=torch.channels_last_3d)
    assert runner(ops.norm_silu, x, torch.ones(4)).stride() == x.stride()


def test_rejects_another_gamma(runner):
    with pytest.raises(ValueError, match="gamma: need \\[C\\] = \\[4\\], got \\[5\\]"):
        runner(ops.norm_silu, torch.zeros(1, 4, 2, 2), torch.ones(5))
