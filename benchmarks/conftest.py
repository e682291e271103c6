"""What every benchmark shares: its cases and contenders, and ceilings measured in the same run.

With --benchmark-disable everything runs once, in tiny shapes. The numbers that a README shows come from `pysora bench`,
which measures the same cases in turn; here they stand beside pytest-benchmark's statistics and comparisons.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from pysora import bench
from pysora.bench.case import PIPELINE, Case, error, map_tensors
from pysora.bench.ceiling import Ceilings
from pysora.ops import _cpu

LIMITS = {"fp32": 1e-4, "bf16": 0.05}
# Videos are rounded to 8 bits; those of a bf16 model need not be near those of the fp32 one, only pictures.
VIDEO_LIMITS = {"fp32": 5e-3, "bf16": 1.0}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--size", choices=("full", "quick"), default="full", help="shapes of public models, or small ones")


def size(config: pytest.Config) -> str:
    return "tiny" if config.getoption("benchmark_disable") else str(config.getoption("--size"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give each benchmark the cases of its module's OP with each contender."""
    if "case" in metafunc.fixturenames:
        torch.manual_seed(0)
        cases = bench.cases([metafunc.module.OP], size=size(metafunc.config))
        pairs = [(case, who) for case in cases for who in (bench.OURS, *case.rivals)]
        ids = [f"{case.label}-{case.dtype}-{who}" for case, who in pairs]
        metafunc.parametrize(("case", "who"), pairs, ids=ids)


@pytest.fixture(scope="session")
def ceilings(pytestconfig: pytest.Config) -> Ceilings:
    """The loops at this machine's limit."""
    return Ceilings(1e-5, 1 << 14) if size(pytestconfig) == "tiny" else Ceilings()


@pytest.fixture
def measured(benchmark: Any, ceilings: Ceilings) -> Callable[[Case, str], None]:
    """Return a function that times one contender of a case, and writes down what it reached and how far it is off."""

    def run(case: Case, who: str) -> None:
        notes, function = benchmark.extra_info, case.ours if who == bench.OURS else case.rivals[who]
        notes["isa"] = _cpu.native().cpu_isa() if _cpu.unavailable() is None else "none"
        notes["threads"] = torch.get_num_threads()
        torch.manual_seed(0)
        with torch.no_grad():
            args = case.sets()[0]
            exact = None if case.exact is None else case.exact(*map_tensors(args, lambda t: t.double()))
            before = reached(ceilings, case.ceiling)
            result = benchmark(function, *args)
        if exact is not None and who not in case.unlike:
            notes["error"] = error(case.part(result), exact)
            limit = (VIDEO_LIMITS if case.against == PIPELINE else LIMITS)[case.dtype]
            assert notes["error"] < (case.allowed if who == bench.OURS and case.allowed else limit)
        if benchmark.stats is not None and case.unit:  # None with --benchmark-disable
            rate = case.amount / benchmark.stats.stats.median / 1e9
            notes[case.unit] = round(rate, 1)
            if before is not None:
                notes["% of ceiling"] = round(200 * rate / (before + (reached(ceilings, case.ceiling) or before)))

    return run


def reached(ceilings: Ceilings, kind: str | None) -> float | None:
    """GFLOP/s or GB/s of the loop of a kind now, the median of three calls; None where there is no loop."""
    loop = ceilings.loop(kind) if kind else None
    if loop is None:
        return None
    times = []
    for _ in range(3):
        start = time.perf_counter()
        loop.call()
        times.append(time.perf_counter() - start)
    return loop.work / statistics.median(times) / 1e9
