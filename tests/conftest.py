"""Fixtures: every backend and instruction set of an op, and outputs that start as NaN."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_map

from pysora import ops
from pysora.ops import _cpu

GPU_BACKENDS = ("cuda", "triton")
READ_ON_HOST = ("coefficients",)


def _move(value: Any, device: str) -> Any:
    """Copy tensors with the memory that they are views of: a kernel meets the same strides and the same poison."""

    def move(t: Any) -> Any:
        if not isinstance(t, torch.Tensor):
            return t
        memory = torch.empty(0, dtype=t.dtype, device=t.device).set_(t.untyped_storage()).to(device)
        return memory.as_strided(t.shape, t.stride(), t.storage_offset())

    return tree_map(move, value)


@dataclass(frozen=True)
class Runner:
    """Runs an op on one backend: the CPU's kernels of one instruction set, or a GPU's, with the tensors moved there."""

    backend: str
    isa: str | None = None

    def __call__(self, op: ops.Op[Any], *args: Any, **kwargs: Any) -> Any:
        if self.backend not in GPU_BACKENDS:
            return op(*args, backend=self.backend, **kwargs)
        values = dict(zip(op.names, op.bind(args, kwargs), strict=True))
        there = {n: v if n in READ_ON_HOST else _move(v, "cuda") for n, v in values.items()}
        if "device" in there:
            there["device"] = "cuda"
        return _move(op(**there, backend=self.backend), "cpu")

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
        found = runners(ops.OPS[metafunc.module.OP])
        marks = [pytest.mark.gpu if r.backend in GPU_BACKENDS else () for r in found]
        params = [pytest.param(r, id=str(r), marks=m) for r, m in zip(found, marks, strict=True)]
        metafunc.parametrize("runner", params, indirect=True)


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
