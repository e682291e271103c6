"""noise: 4 bytes a value are written. torch's own generator is a row, though its values depend on their order."""

from __future__ import annotations

import pytest

OP = "noise"
pytestmark = pytest.mark.benchmark(group=OP)


def bench_noise(measured, case, who):
    measured(case, who)
