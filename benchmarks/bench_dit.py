"""The transformer: layers of Wan 1.3B's shape in the steady state, against diffusers'."""

from __future__ import annotations

import pytest

OP = "dit"
pytestmark = pytest.mark.benchmark(group=OP)


def bench_dit(measured, case, who):
    measured(case, who)
