"""Measuring a case: accuracy first, then all contenders and the ceiling's loop in turn."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pysora import ops
from pysora.bench import peers
from pysora.bench.case import CPU, DTYPES, PIPELINE, Case, error, map_tensors
from pysora.bench.ceiling import Limits
from pysora.bench.timing import Clock, HostClock, Spread, interleave

OURS = "pysora"
LOOP = "ceiling"


@dataclass(frozen=True)
class Row:
    """One contender at one case; spreads are medians with their quartiles over the rounds.

    backend: the one that the op took; a model takes several.
    milliseconds: of a call. first: of the first call, in which others compile. rate: in `unit`.
    percent: of the ceiling, each round's rate over that round's; `ceiling` is the ceiling's rate.
    ratio: this contender's time over pysora's in the same round; None in pysora's row.
    error: largest difference from `against`, relative to the largest value.
    """

    op: str
    case: str
    dtype: str
    contender: str
    backend: str | None
    threads: int
    length: int | None
    rounds: int
    milliseconds: Spread
    first: float
    intensity: float | None
    unit: str | None
    rate: float | None
    ceiling: float | None
    percent: Spread | None
    ratio: Spread | None
    error: float | None
    against: str | None


@dataclass(frozen=True)
class _First:
    """The first call of a contender: its result's error, its milliseconds."""

    error: float | None
    milliseconds: float


@torch.no_grad()
def measure(
    case: Case,
    ceilings: Limits,
    seconds: float,
    compilers: Sequence[str] = (),
    least_rounds: int = 5,
    device: torch.device = CPU,
    clock: Clock | None = None,
) -> list[Row]:
    """Rows of pysora, of the case's own rivals, and of the peers named in `compilers`.

    ceilings: the device's. seconds: for each contender, about. A case that takes longer gets `least_rounds`.
    clock: the device's; None is the host's.
    Raises ArithmeticError where pysora is wrong: it is then not worth a time.
    """
    clock = clock or HostClock()
    sets = case.sets(device)
    functions = {OURS: case.ours, **case.rivals, **(case.on_cuda if device.type == "cuda" else {})}
    calls: dict[str, Callable[[int], Any]] = {
        name: functools.partial(_call, function, sets) for name, function in functions.items()
    }
    baseline = next(iter(case.rivals.values()), None)
    if baseline is not None and case.compiles:
        for name in compilers:
            calls[name] = _Compiled(name, baseline, sets, case.dtype)
    firsts = _first_calls(case, calls, sets[0], clock)
    _check(case, firsts)
    loop = ceilings.loop(case.ceiling) if case.ceiling else None
    timed = calls if loop is None else {**calls, LOOP: lambda _: loop.call()}
    times = interleave(timed, seconds * len(calls), least_rounds, clock)
    loop_rates = [loop.work / t / 1e9 for t in times[LOOP]] if loop is not None else None
    backend = ops.explain(case.op, *case.arguments(*sets[0])).backend if case.op in ops.OPS else None
    return [
        _row(case, name, backend if name == OURS else None, times[name], times[OURS], firsts[name], loop_rates)
        for name in calls
    ]


def _call(function: Callable[..., Any], sets: list[tuple[Any, ...]], i: int) -> Any:
    return function(*sets[i % len(sets)])


class _Compiled:
    """The baseline as a peer compiles it, when it is called first: compiling is part of its first call."""

    def __init__(self, name: str, baseline: Callable[..., Any], sets: list[tuple[Any, ...]], dtype: str) -> None:
        self.compile = functools.partial(peers.PEERS[name], baseline, sets, dtype)
        self.made: peers.Call | None = None

    def __call__(self, i: int) -> Any:
        if self.made is None:
            self.made = self.compile()
        return self.made(i)


def _first_calls(
    case: Case, calls: dict[str, Callable[[int], Any]], args: tuple[Any, ...], clock: Clock
) -> dict[str, _First]:
    exact = None
    if case.exact is not None:
        exact = case.exact(*map_tensors(args, lambda t: t.double()))
    firsts = {}
    for name, call in calls.items():
        start = time.perf_counter()
        result = call(0)
        clock.wait()
        milliseconds = 1e3 * (time.perf_counter() - start)
        comparable = exact is not None and name not in case.unlike
        firsts[name] = _First(error(case.part(result), exact) if comparable else None, milliseconds)
    return firsts


def _check(case: Case, firsts: dict[str, _First]) -> None:
    """At most what the case allows, or twice the baseline's error; one unit of the dtype's last place is allowed where
    that is 0 by luck."""
    ours = firsts[OURS].error
    if ours is None or case.against == PIPELINE:
        return
    theirs = next((first.error for name, first in firsts.items() if name != OURS and first.error is not None), 0.0)
    allowed = case.allowed or max(2 * theirs, torch.finfo(DTYPES[case.dtype]).eps)
    if not ours <= allowed:
        what = f"{case.op} ({case.label}, {case.dtype})"
        raise ArithmeticError(f"{what}: error {ours:.1e}, allowed {allowed:.1e}: it gets no time")


def _row(
    case: Case,
    name: str,
    backend: str | None,
    times: list[float],
    ours: list[float],
    first: _First,
    loop_rates: list[float] | None,
) -> Row:
    rates = [case.amount / t / 1e9 for t in times] if case.unit else None
    percent = None
    if rates is not None and loop_rates is not None:
        percent = Spread.of([100 * rate / limit for rate, limit in zip(rates, loop_rates, strict=True)])
    return Row(
        op=case.op,
        case=case.label,
        dtype=case.dtype,
        contender=name,
        backend=backend,
        threads=torch.get_num_threads(),
        length=case.length,
        rounds=len(times),
        milliseconds=Spread.of([1e3 * t for t in times]),
        first=first.milliseconds,
        intensity=case.intensity,
        unit=case.unit,
        rate=None if rates is None else Spread.of(rates).median,
        ceiling=None if loop_rates is None else Spread.of(loop_rates).median,
        percent=percent,
        ratio=None if name == OURS else Spread.of([t / mine for t, mine in zip(times, ours, strict=True)]),
        error=first.error,
        against=None if first.error is None else case.against,
    )
