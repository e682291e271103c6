"""`patch_embed` against the strided convolution that it is."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from close import check, strided, transposed
from torch import Tensor

from pysora import ops

OP = "patch_embed"
CASES = {  # video [B, C, T, H, W], D and patch
    "wan": ((2, 16, 3, 10, 14), 96, (1, 2, 2)),
    "odd": ((1, 3, 5, 9, 15), 37, (1, 3, 3)),
    "deep patch": ((1, 5, 4, 4, 6), 70, (2, 2, 3)),
    "many rows": ((1, 4, 2, 14, 22), 130, (1, 1, 1)),
    "one": ((1, 1, 1, 1, 1), 1, (1, 1, 1)),
}


def plain(video: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.conv3d(video, weight, bias, stride=weight.shape[2:]).flatten(2).transpose(1, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_accuracy(runner, case, dtype):
    shape, D, patch = case
    args = (torch.randn(shape), torch.randn(D, shape[1], *patch), torch.randn(D))
    args = tuple(t.to(dtype) for t in args)
    check(runner(ops.patch_embed, *args), plain, args)
    check(runner(ops.patch_embed, *args[:2]), plain, args[:2])


@pytest.mark.parametrize("layout", [strided, transposed])
def test_strides(runner, layout):
    args = (torch.randn(2, 3, 2, 4, 6), torch.randn(8, 3, 1, 2, 2), torch.randn(8))
    views = [layout(t) for t in args]
    assert torch.equal(runner(ops.patch_embed, *views), runner(ops.patch_embed, *args))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_result_past_the_caches_is_the_same(runner, dtype):
    """Large results are written past the caches, in large pages: each of two videos alone is not."""
    video, weight, bias = torch.randn(2, 1, 1, 128, 128), torch.randn(1056, 1, 1, 1, 1), torch.randn(1056)
    video, weight, bias = video.to(dtype), weight.to(dtype), bias.to(dtype)
    alone = [runner(ops.patch_embed, part, weight, bias) for part in video.split(1)]
    assert torch.equal(runner(ops.patch_embed, video, weight, bias), torch.cat(alone))


def test_no_samples(runner):
    assert runner(ops.patch_embed, torch.zeros(0, 2, 1, 4, 4), torch.zeros(3, 2, 1, 2, 2)).shape == (0, 4, 3)


def test_rejects_a_rest(runner):
    with pytest.raises(ValueError, match="W a multiple of the patch's 2, got 5"):
        runner(ops.patch_embed, torch.zeros(1, 2, 1, 4, 5), torch.zeros(3, 2, 1, 2, 2))
