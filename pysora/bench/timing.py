"""Interleaved timing: what disturbs the machine disturbs every contender, and only ratios within a round count."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

MOST_ROUNDS = 1000


@dataclass(frozen=True)
class Spread:
    """The median of repeated measurements and its noise: the quartiles, between which half of them lie."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Raises ValueError on no values."""
        if not values:
            raise ValueError("a spread needs at least one value")
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


class Clock(Protocol):
    """Times calls: seconds of one, and waiting for what was begun."""

    def __call__(self, call: Callable[[], Any]) -> float: ...

    def wait(self) -> None: ...


class HostClock:
    """Of calls that are over when they return."""

    def __call__(self, call: Callable[[], Any]) -> float:
        """Seconds that a call took."""
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    def wait(self) -> None:
        """Nothing is under way."""


def interleave(
    calls: Mapping[str, Callable[[int], Any]], seconds: float, least_rounds: int = 5, clock: Clock | None = None
) -> dict[str, list[float]]:
    """Seconds that each call took in each round: A B C, B C A, C A B, ...

    calls: take the number of the round, by which they choose among their buffers. They have been warmed up.
    clock: None is the host's.
    seconds: rounds begin for so long, at least `least_rounds` and at most 1000 of them.
    """
    clock = clock or HostClock()
    names = list(calls)
    times: dict[str, list[float]] = {name: [] for name in names}
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < least_rounds or (rounds < MOST_ROUNDS and time.perf_counter() < end):
        turn = rounds % len(names)
        for name in names[turn:] + names[:turn]:
            times[name].append(clock(functools.partial(calls[name], rounds)))
        rounds += 1
    return times
