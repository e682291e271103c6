"""unpatchify: each value is read and written once."""

from __future__ import annotations

import pytest

OP = "unpatchify"
pytestmark = pytest.mark.benchmark(group=OP)


def bench_unpatchify(measured, case, who):
    measured(case, who)
