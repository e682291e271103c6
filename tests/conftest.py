"""Fixtures: every backend and instruction set of an op, and outputs that start as NaN."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from pysora import ops
from pysora.ops import _cpu


@dataclass(frozen=True)
class Runner:
    """Runs an op on one backend; the CPU's kernels of one instruction set."""

    backend: str
    isa: str | None = None

    def __call__(self, op: ops.Op[Any], *args: Any, **kwargs: Any) -> Any:
        return op(*args, backend=self.backend, **kwargs)

    def __str__(self) -> str:
        return f"{self.backend}-{self.isa}" if self.isa else self.backend


def runners(op: ops.Op[Any]) -> list[Runner]:
    """Return a runner for each backend in the registry that this machine has, and for each instruction set."""
    found = []
    for impl in op.impls:
        if impl.backend == "cpu":
            built = _cpu.unavailable() is None
            found += [Runner("cpu", isa) for isa in (_cpu.native().cpu_isas() if built else ["unbuilt"])]
        elif impl.unavailable() is None:
            found.append(Runner(impl.backend))
    return [*found, Runner("reference")]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give each test that takes `runner` all implementations of its module's OP."""
    if "runner" in metafunc.fixturenames:
        metafunc.parametrize("runner", runners(ops.OPS[metafunc.module.OP]), ids=str, indirect=True)


@pytest.fixture
def runner(request: pytest.FixtureRequest) -> Iterator[Runner]:
    """Select the runner's instruction set, and poison what torch leaves uninitialised: outputs and workspaces."""
    chosen: Runner = request.param
    native = None
    if chosen.isa is not None:
        assert _cpu.unavailable() is None, _cpu.unavailable()
        native = _cpu.native()
        before = native.cpu_isa()
        native.use_cpu_isa(chosen.isa)
    torch.use_deterministic_algorithms(True)  # empty memory is then filled with NaN
    assert torch.empty(3).isnan().all()
    yield chosen
    torch.use_deterministic_algorithms(False)
    if native is not None:
        native.use_cpu_isa(before)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Give every test the same random numbers, alone or in a crowd."""
    torch.manual_seed(0)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For models so small that handing work to a second thread costs more than the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
