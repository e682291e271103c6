"""sampler_step, a UniPC step with guidance: six inputs are read and three results written."""

from __future__ import annotations

import pytest

OP = "sampler_step"
pytestmark = pytest.mark.benchmark(group=OP)


def bench_sampler_step(measured, case, who):
    measured(case, who)
