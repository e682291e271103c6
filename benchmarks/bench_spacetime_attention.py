"""spacetime_attention: 4*L*L*N*K operations, against torch's fused attention."""

from __future__ import annotations

import pytest

OP = "spacetime_attention"
pytestmark = pytest.mark.benchmark(group=OP)


def bench_spacetime_attention(measured, case, who):
    measured(case, who)
