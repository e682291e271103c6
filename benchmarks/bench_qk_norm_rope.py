"""qk_norm_rope: x is read and written once, against the norm and the rotation of diffusers' Wan."""

from __future__ import annotations

import pytest

OP = "qk_norm_rope"
pytestmark = pytest.mark.benchmark(group=OP)


def bench_qk_norm_rope(measured, case, who):
    measured(case, who)
