"""A video from a prompt with the embedded model, against diffusers' pipeline on the same folder."""

from __future__ import annotations

import pytest

OP = "generate"
pytestmark = pytest.mark.benchmark(group=OP)


def bench_generate(measured, case, who):
    measured(case, who)
