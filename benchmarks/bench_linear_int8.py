"""linear_int8 with GELU beside layers in the inputs' dtype: 2*L*D*E operations."""

from __future__ import annotations

import pytest

OP = "linear_int8"
pytestmark = pytest.mark.benchmark(group=OP)


def bench_linear_int8(measured, case, who):
    measured(case, who)
