"""`sampler_step` against its sum written out: the bits must be the same."""

from __future__ import annotations

import math

import pytest
import torch
from close import strided
from torch import Tensor

from pysora import ops

OP = "sampler_step"
SHAPES = {"usual": (2, 4, 3, 10, 14), "many": (5, 1001), "one": (1,)}


def plain(sample, prediction, uncond, history, coefficients, guidance=1.0, noise=None) -> list[Tensor]:
    guided = prediction
    if uncond is not None:
        guided = uncond + (prediction - uncond) * guidance
    terms = [sample, guided.to(sample.dtype), *history] + ([noise] if noise is not None else [])
    return [
        sum((c * t for c, t in zip(row, terms, strict=True)), torch.zeros_like(sample)) for row in coefficients.float()
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_bits(runner, shape, dtype):
    def draw(*_: object) -> Tensor:
        return torch.randn(shape)

    cond, uncond = draw().to(dtype), draw().to(dtype)
    for args in (
        (draw(), cond, None, [], torch.randn(1, 2, dtype=torch.float64)),
        (draw(), cond, uncond, [draw(), draw()], torch.randn(3, 4, dtype=torch.float64), 5.5),
        (draw(), cond, uncond, [draw()], torch.randn(2, 4), 3.3, draw()),
    ):
        results = runner(ops.sampler_step, *args)
        expected = plain(*args)
        assert len(results) == len(expected)
        for actual, e in zip(results, expected, strict=True):
            assert actual.dtype == torch.float32
            assert torch.equal(actual, e)


def test_double_precision_is_kept():
    args = [torch.randn(7, dtype=torch.float64) for _ in range(2)]
    (out,) = ops.sampler_step(*args, None, [], torch.tensor([[1.0, -1 / 3]], dtype=torch.float64))
    assert torch.equal(out, args[0] + torch.tensor(-1 / 3, dtype=torch.float64) * args[1])


def test_nan_is_not_hidden(runner):
    sample = torch.tensor([1.0, math.nan, math.inf])
    (out,) = runner(ops.sampler_step, sample, torch.zeros(3), None, [], torch.tensor([[0.0, 1.0]]))
    assert out[0] == 0 and out[1:].isnan().all()


def test_strides_are_refused_with_a_reason():
    sample = strided(torch.randn(3, 4))
    args = (sample, torch.zeros(3, 4), None, [], torch.tensor([[1.0, 0.5]]))
    assert ops.explain(OP, *args).reasons["cpu"] == "sample is not contiguous"
    with pytest.raises(NotImplementedError, match="sample is not contiguous"):
        ops.sampler_step(*args, backend="cpu")
    assert torch.equal(ops.sampler_step(*args)[0], sample)


def test_rejects_another_number_of_coefficients(runner):
    with pytest.raises(ValueError, match=r"coefficients: need \[R, 3\] for the sample, the prediction, 1 of history"):
        runner(ops.sampler_step, torch.zeros(3), torch.zeros(3), None, [torch.zeros(3)], torch.zeros(1, 2))
