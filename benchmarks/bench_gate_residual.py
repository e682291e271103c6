"""gate_residual with one timestep: two inputs are read and one result written."""

from __future__ import annotations

import pytest

OP = "gate_residual"
pytestmark = pytest.mark.benchmark(group=OP)


def bench_gate_residual(measured, case, who):
    measured(case, who)
