"""adaln with one timestep: x is read and written once, against the layers as diffusers runs them."""

from __future__ import annotations

import pytest

OP = "adaln"
pytestmark = pytest.mark.benchmark(group=OP)


def bench_adaln(measured, case, who):
    measured(case, who)
