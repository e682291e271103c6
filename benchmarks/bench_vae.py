"""The autoencoder: decoding with the public shape, against diffusers'."""

from __future__ import annotations

import pytest

OP = "vae"
pytestmark = pytest.mark.benchmark(group=OP)


def bench_vae(measured, case, who):
    measured(case, who)
