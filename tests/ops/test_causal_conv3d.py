"""`causal_conv3d` against a padded convolution, whole and a few frames at a time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from close import check, strided, transposed
from torch import Tensor

from pysora import ops

OP = "causal_conv3d"
CASES = {  # x, C', kernel
    "3x3x3": ((2, 4, 3, 5, 6), 6, (3, 3, 3)),
    "temporal": ((1, 3, 5, 3, 1), 3, (3, 1, 1)),
    "pointwise": ((1, 5, 2, 3, 3), 2, (1, 1, 1)),
    "one": ((1, 1, 1, 1, 1), 1, (3, 3, 3)),
}


def plain(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    kt, kh, kw = weight.shape[2:]
    return F.conv3d(F.pad(x, (kw // 2, kw // 2, kh // 2, kh // 2, kt - 1, 0)), weight, bias)


def fused(x: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor, residual: Tensor) -> Tensor:
    y = F.silu(F.normalize(x, dim=1) * x.shape[1] ** 0.5 * gamma.to(x.dtype)[:, None, None, None])
    frames = [F.interpolate(f, scale_factor=2, mode="nearest-exact") for f in y.unbind(2)]
    return plain(torch.stack(frames, 2), weight, bias) + residual


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_accuracy(runner, case, dtype):
    shape, out, kernel = case
    args = [t.to(dtype) for t in (torch.randn(shape), torch.randn(out, shape[1], *kernel), torch.randn(out))]
    y, cache = runner(ops.causal_conv3d, *args)
    check(y, plain, args)
    past = torch.cat((torch.zeros_like(args[0]).repeat(1, 1, 2, 1, 1), args[0]), 2)
    assert torch.equal(cache, past[:, :, past.shape[2] - (kernel[0] - 1) :])


def test_frames_may_come_in_pieces(runner):
    x, weight = torch.randn(1, 4, 7, 5, 4), torch.randn(3, 4, 3, 3, 3)
    whole, last = runner(ops.causal_conv3d, x, weight)
    cache, pieces = None, []
    for piece in x.split([1, 4, 2], 2):
        y, cache = runner(ops.causal_conv3d, piece, weight, None, cache)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, 2), whole)
    assert torch.equal(cache, last)


def test_norm_upsampling_and_residual(runner):
    x, weight, bias, gamma = torch.randn(1, 4, 3, 3, 5), torch.randn(6, 4, 3, 3, 3), torch.randn(6), torch.rand(4) + 0.5
    residual = torch.randn(1, 6, 3, 6, 10)
    y, cache = runner(ops.causal_conv3d, x, weight, bias, None, gamma, residual, True)
    check(y, fused, (x, weight, bias, gamma, residual))
    assert torch.equal(cache, x[:, :, 1:])


def test_the_cache_is_a_copy(runner):
    x = torch.randn(1, 2, 3, 4, 4)
    _, cache = runner(ops.causal_conv3d, x, torch.randn(2, 2, 3, 3, 3))
    kept = cache.clone()
    x.zero_()
    assert torch.equal(cache, kept)


@pytest.mark.parametrize("layout", [strided, transposed])
def test_strides(runner, layout):
    x, weight = torch.randn(1, 4, 3, 5, 6), torch.randn(3, 4, 3, 3, 3)
    torch.testing.assert_close(
        runner(ops.causal_conv3d, layout(x), layout(weight))[0], runner(ops.causal_conv3d, x, weight)[0]
    )


def test_rejects_another_cache(runner):
    with pytest.raises(ValueError, match="cache: need \\[B, C, kt-1, H, W\\] = \\[1, 2, 2, 4, 4\\]"):
        runner(
            ops.causal_conv3d, torch.zeros(1, 2, 1, 4, 4), torch.zeros(2, 2, 3, 3, 3), cache=torch.zeros(1, 2, 1, 4, 4)
        )
