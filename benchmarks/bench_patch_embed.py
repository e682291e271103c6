"""patch_embed: 2*L*C*pt*ph*pw*D operations, against a strided convolution, and unfold with a linear layer."""

from __future__ import annotations

import pytest

OP = "patch_embed"
pytestmark = pytest.mark.benchmark(group=OP)


def bench_patch_embed(measured, case, who):
    measured(case, who)
