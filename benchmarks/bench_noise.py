"""noise: 4 bytes a value are written. torch's own generator is a row, though its values depend on their order."""

from __future__ import annotations

import math

import pytest
import torch

from pysora import ops

OP = "noise"
pytestmark = pytest.mark.benchmark(group=OP)
SHAPE = (16, 5, 60, 104)


def bench_noise(timed, row):
    call = (lambda: torch.randn(SHAPE)) if row == "torch" else lambda: ops.noise(SHAPE, 7, backend=row)
    result = timed(call, work=4 * math.prod(SHAPE))
    if row == "torch":
        assert abs(float(result.std()) - 1) < 0.02
    else:
        assert torch.equal(result, ops.noise(SHAPE, 7, backend="reference"))
