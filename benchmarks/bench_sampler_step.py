"""sampler_step, a UniPC step: five inputs are read and three results written, 4 bytes each."""

from __future__ import annotations

import pytest
import torch

from pysora import ops

OP = "sampler_step"
pytestmark = pytest.mark.benchmark(group=OP)


def bench_sampler_step(timed, row):
    sample, cond, uncond, *history = (torch.randn(16, 21, 60, 104) for _ in range(5))
    coefficients = torch.randn(3, 4)

    def plain() -> list[torch.Tensor]:
        guided = uncond + 5.0 * (cond - uncond)
        terms = (sample, guided, *history)
        return [sum(c * t for c, t in zip(line, terms, strict=True)) for line in coefficients]

    def native() -> list[torch.Tensor]:
        return ops.sampler_step(sample, cond, uncond, history, coefficients, 5.0, backend=row)

    results = timed(plain if row == "torch" else native, work=8 * sample.nbytes)
    for actual, expected in zip(results, plain(), strict=True):
        torch.testing.assert_close(actual, expected)
