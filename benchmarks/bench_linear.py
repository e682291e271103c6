"""linear with GELU: 2*L*D*E operations."""

from __future__ import annotations

import pytest

OP = "linear"
pytestmark = pytest.mark.benchmark(group=OP)


def bench_linear(measured, case, who):
    measured(case, who)
