"""`causal_conv3d` against a padded convolution, whole and a few frames at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from close import channels_last, check, part, strided, transposed
from torch import Tensor

from pysora import ops

OP = "causal_conv3d"
LAYOUTS = {
    "rows": lambda x: part(x, 3),
    "columns": lambda x: part(x, 4),
    "frames": lambda x: part(x, 2),
    "channels": lambda x: part(x, 1),
}
CASES = {  # x, C', kernel
    "3x3x3": ((2, 4, 3, 5, 6), 6, (3, 3, 3)),
    "temporal": ((1, 3, 5, 3, 1), 3, (3, 1, 1)),
    "pointwise": ((1, 5, 2, 3, 3), 2, (1, 1, 1)),
    "one": ((1, 1, 1, 1, 1), 1, (3, 3, 3)),
}


def plain(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    kt, kh, kw = weight.shape[2:]
    return F.conv3d(F.pad(x, (kw // 2, kw // 2, kh // 2, kh // 2, kt - 1, 0)), weight, bias)


def laid(runner: Any, x: Tensor) -> Tensor:
    """x as the runner takes it: the CPU's backend wants channels side by side."""
    return channels_last(x) if runner.backend == "cpu" else x


def fused(x: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor, residual: Tensor) -> Tensor:
    y = F.silu(F.normalize(x, dim=1) * x.shape[1] ** 0.5 * gamma.to(x.dtype)[:, None, None, None])
    frames = [F.interpolate(f, scale_factor=2, mode="nearest-exact") for f in y.unbind(2)]
    return plain(torch.stack(frames, 2), weight, bias) + residual


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_accuracy(runner, case, dtype):
    shape, out, kernel = case
    args = [t.to(dtype) for t in (torch.randn(shape), torch.randn(out, shape[1], *kernel), torch.randn(out))]
    y, cache = runner(ops.causal_conv3d, laid(runner, args[0]), *args[1:])
    check(y, plain, args)
    past = torch.cat((torch.zeros_like(args[0]).repeat(1, 1, 2, 1, 1), args[0]), 2)
    assert torch.equal(cache, past[:, :, past.shape[2] - (kernel[0] - 1) :])


def test_frames_may_come_in_pieces(runner):
    x, weight = laid(runner, torch.randn(1, 4, 7, 5, 4)), torch.randn(3, 4, 3, 3, 3)
    whole, last = runner(ops.causal_conv3d, x, weight)
    cache, pieces = None, []
    for piece in x.split([1, 4, 2], 2):
        y, cache = runner(ops.causal_conv3d, piece, weight, None, cache)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, 2), whole)
    assert torch.equal(cache, last)


@pytest.mark.parametrize("kernel", [(3, 3, 3), (1, 3, 3)], ids=["3x3x3", "1x3x3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_norm_upsampling_and_residual(runner, dtype, kernel):
    x, weight, bias, gamma = torch.randn(2, 4, 3, 3, 5), torch.randn(6, 4, *kernel), torch.randn(6), torch.rand(4) + 0.5
    args = [t.to(dtype) for t in (x, weight, bias, gamma, torch.randn(2, 6, 3, 6, 10))]
    x, weight, bias, gamma, residual = args
    y, cache = runner(ops.causal_conv3d, laid(runner, x), weight, bias, None, gamma, residual, True)
    check(y, fused, args)
    assert torch.equal(cache, x[:, :, 3 - (kernel[0] - 1) :])


def test_normed_frames_may_come_in_pieces(runner):
    x, weight, gamma = laid(runner, torch.randn(1, 4, 6, 5, 4)), torch.randn(3, 4, 3, 3, 3), torch.rand(4) + 0.5
    whole, last = runner(ops.causal_conv3d, x, weight, norm_gamma=gamma)
    cache, pieces = None, []
    for piece in x.split([1, 1, 4], 2):
        y, cache = runner(ops.causal_conv3d, piece, weight, None, cache, gamma)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, 2), whole)
    assert torch.equal(cache, last)


def test_results_lie_as_the_input_does(runner):
    x, weight = channels_last(torch.randn(1, 4, 2, 3, 5)), torch.randn(6, 4, 3, 3, 3)
    for result in runner(ops.causal_conv3d, x, weight):
        assert result.is_contiguous(memory_format=torch.channels_last_3d)


def test_the_cache_is_a_copy(runner):
    x = laid(runner, torch.randn(1, 2, 3, 4, 4))
    _, cache = runner(ops.causal_conv3d, x, torch.randn(2, 2, 3, 3, 3))
    kept = cache.clone()
    x.zero_()
    assert torch.equal(cache, kept)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_strides(runner, layout):
    x, weight, gamma = torch.randn(1, 4, 3, 5, 6), torch.randn(3, 4, 3, 3, 3), torch.rand(4) + 0.5
    plainly = runner(ops.causal_conv3d, laid(runner, x), weight, None, laid(runner, x[:, :, :2]), gamma)[0]
    view = layout(laid(runner, x))
    y = runner(ops.causal_conv3d, view, transposed(weight), None, layout(laid(runner, x[:, :, :2])), gamma)[0]
    torch.testing.assert_close(y, plainly)


@pytest.mark.parametrize("layout", [strided, transposed, torch.clone])
def test_scattered_channels_go_to_the_reference(layout):
    x, weight = torch.randn(2, 4, 3, 5, 6), torch.randn(3, 4, 3, 3, 3)
    assert "channels of x do not lie side by side" in ops.explain(OP, layout(x), weight).reasons["cpu"]
    torch.testing.assert_close(ops.causal_conv3d(layout(x), weight)[0], ops.causal_conv3d(x, weight)[0])


def test_rejects_another_cache(runner):
    x, weight = laid(runner, torch.zeros(1, 2, 1, 4, 4)), torch.zeros(2, 2, 3, 3, 3)
    with pytest.raises(ValueError, match="cache: need \\[B, C, kt-1, H, W\\] = \\[1, 2, 2, 4, 4\\]"):
        runner(ops.causal_conv3d, x, weight, cache=torch.zeros(1, 2, 1, 4, 4))
