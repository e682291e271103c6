"""causal_conv3d with norm and SiLU: 54*C*C*T*H*W operations, against the layers one after the other."""

from __future__ import annotations

import pytest

OP = "causal_conv3d"
pytestmark = pytest.mark.benchmark(group=OP)


def bench_causal_conv3d(measured, case, who):
    measured(case, who)
