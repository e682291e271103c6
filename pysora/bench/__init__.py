"""Benchmarks that anyone can run: pysora against torch, diffusers and compilers, and against the machine itself.

Each case is measured in one process: its contenders and a loop at the machine's limit take turns, so that what disturbs
one disturbs all, and the numbers that count are ratios within a round. docs/benchmarks.md says more.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch

from pysora.bench import cuda, grids, models, peers, tokens
from pysora.bench.case import DTYPES, SIZES, Case
from pysora.bench.ceiling import Ceilings, Limits
from pysora.bench.report import Report, markdown, read, table
from pysora.bench.rows import OURS, Row, measure

__all__ = [
    "CASES",
    "DTYPES",
    "OURS",
    "Case",
    "Report",
    "Row",
    "cases",
    "markdown",
    "measure",
    "read",
    "run",
    "table",
    "using_threads",
]

CASES = {**grids.CASES, **tokens.CASES, **models.MODELS}
SECONDS = {"full": 2.0, "quick": 0.2, "tiny": 0.0}
LEAST_ROUNDS = {"full": 5, "quick": 3, "tiny": 1}
OnCase = Callable[[int, int, Case], None]


def cases(
    names: Sequence[str] | None = None,
    dtypes: Sequence[str] = ("fp32", "bf16"),
    size: str = "full",
    lengths: Sequence[int] = (),
) -> list[Case]:
    """The cases of ops and models by name (all where None).

    size: "full" (shapes of the public models), "quick" (of the embedded model), "tiny".
    lengths: tokens of the cases that have a row of lengths, instead of the size's own.
    Raises ValueError on a name, dtype or size that is unknown, or a length that does not fit.
    """
    for given, known, what in ((names or (), CASES, "ops"), (dtypes, DTYPES, "dtype"), ((size,), SIZES, "size")):
        if unknown := [value for value in given if value not in known]:
            raise ValueError(f"{what} must be among {', '.join(known)}, got {', '.join(unknown)}")
    if any(length < 1 for length in lengths):
        raise ValueError(f"tokens must be at least 1, got {', '.join(map(str, lengths))}")
    return [case for name in names or CASES for dtype in dtypes for case in CASES[name](dtype, size, lengths)]


def run(
    chosen: Sequence[Case],
    size: str = "full",
    seconds: float | None = None,
    compilers: Sequence[str] | None = None,
    on_case: OnCase | None = None,
    device: str = "cpu",
) -> Iterator[Row]:
    """Measure cases one by one and yield their rows.

    seconds: for each contender of a case, about; None is the size's own.
    compilers: peers of `pysora.bench.peers` that become rivals; None takes those that are installed for the device.
    device: "cpu", "cuda" or "cuda:N". On a GPU the device's own events time each call, with nothing in its L2 cache.
    on_case: called before each case with (number from 0, how many, case).
    Raises ValueError, before the first row, where a peer is not installed, the time is out of range or there is no such
    device.
    """
    where = cuda.device_of(device)
    if seconds is not None and not 0 < seconds <= 600:
        raise ValueError(f"seconds must lie between 0 and 600, got {seconds}")
    names = peers.installed(where.type) if compilers is None else list(compilers)
    peers.check(names, where.type)
    budget = SECONDS[size] if seconds is None else seconds
    return _rows(chosen, size, budget, names, on_case, where)


def _rows(
    chosen: Sequence[Case], size: str, seconds: float, names: Sequence[str], on_case: OnCase | None, where: torch.device
) -> Iterator[Row]:
    tiny, on_gpu = size == "tiny", where.type == "cuda"
    chosen = [case for case in chosen if not (on_gpu and case.cpu_only)]
    ceilings: Limits
    if on_gpu:
        ceilings = cuda.Ceilings(where, 16, 1 << 10) if tiny else cuda.Ceilings(where)
    else:
        ceilings = Ceilings(1e-5, 1 << 14) if tiny else Ceilings()
    clock = cuda.Clock(where) if on_gpu else None
    for i, case in enumerate(chosen):
        if on_case is not None:
            on_case(i, len(chosen), case)
        yield from measure(case, ceilings, seconds, names, LEAST_ROUNDS[size], where, clock)


@contextlib.contextmanager
def using_threads(threads: int | None) -> Iterator[None]:
    """Run torch and the kernels on so many threads; None leaves them. ValueError below 1."""
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
