"""What every benchmark shares: rows for torch and for each backend, ceilings measured in the same run."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from pysora import ops
from pysora.ops import _cpu


@pytest.fixture(scope="session")
def ceiling() -> dict[str, float]:
    """Return what this machine reaches in this run: GFLOP/s of a large product in each dtype, GB/s of a copy."""

    def best(call: Callable[[], Any]) -> float:
        times = []
        for _ in range(5):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        return min(times)

    found = {}
    n = 1024
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.randn(n, n).to(dtype)
        found[str(dtype)] = 2 * n**3 / best(lambda a=a: a @ a) / 1e9
    source, target = torch.randn(1 << 24), torch.empty(1 << 24)
    found["GB/s"] = 2 * source.nbytes / best(lambda: target.copy_(source)) / 1e9
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give each benchmark that takes `row` plain torch, and every backend that this machine runs of its module's OP."""
    if "row" in metafunc.fixturenames:
        available = [i.backend for i in ops.OPS[metafunc.module.OP].impls if i.unavailable() is None]
        metafunc.parametrize("row", ["torch", *available])


@pytest.fixture
def timed(benchmark: Any, ceiling: dict[str, float]) -> Callable[..., Any]:
    """Return a function that times a call and writes down what it reached, and in percent of the ceiling."""

    def run(call: Callable[[], Any], *, dtype: torch.dtype | None = None, work: float) -> Any:
        """Time `call`; `work` is its floating-point operations, or its bytes where `dtype` is None."""
        benchmark.extra_info["isa"] = _cpu.native().cpu_isa() if _cpu.unavailable() is None else "none"
        benchmark.extra_info["threads"] = torch.get_num_threads()
        result = benchmark(call)
        if benchmark.stats is not None:  # None with --benchmark-disable
            kind, unit = ("GB/s", "GB/s") if dtype is None else (str(dtype), "GFLOP/s")
            reached = work / benchmark.stats.stats.median / 1e9
            benchmark.extra_info[unit] = round(reached, 1)
            benchmark.extra_info["% of ceiling"] = round(100 * reached / ceiling[kind])
        return result

    return run
