"""norm_silu: each value is read and written once; torch is the layers of the Wan VAE."""

from __future__ import annotations

import pytest

OP = "norm_silu"
pytestmark = pytest.mark.benchmark(group=OP)


def bench_norm_silu(measured, case, who):
    measured(case, who)
