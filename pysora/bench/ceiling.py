"""What this machine can do at most: loops of the extension, timed between the contenders of every case."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pysora.ops import _cpu

KINDS = ("fp32", "bf16", "memory")
SECONDS = 0.01
TRIAD_VALUES = 1 << 24  # 64 MiB an array: three of them exceed the caches


@dataclass(frozen=True)
class Loop:
    """A loop at the machine's limit: `work` floating-point operations, or bytes, a call."""

    call: Callable[[], object]
    work: float


class Limits(Protocol):
    """A device's loops."""

    def loop(self, kind: str) -> Loop | None:
        """The loop of one of `KINDS`, or None where there is none."""


class Ceilings:
    """The loops for the threads that torch has now, made when they are asked for.

    fp32, bf16: fused multiply-adds that stay in the registers, with the widest vectors of the instruction set in use;
    for bf16 `vdpbf16ps` where the processor has it, else as fp32. memory: the triad a = b + 3c past the caches, its
    three arrays counted once (McCalpin 1995, STREAM).

    seconds: length of a call of the arithmetic, about. values: of each of the triad's arrays, a multiple of 16.
    """

    def __init__(self, seconds: float = SECONDS, values: int = TRIAD_VALUES) -> None:
        self.seconds, self.values = seconds, values
        self._arrays: list[Tensor] = []
        self._loops: dict[str, Loop] = {}

    def loop(self, kind: str) -> Loop | None:
        """The loop of one of `KINDS`, or None where the extension is not built."""
        if _cpu.unavailable() is not None:
            return None
        if kind not in self._loops:
            call = self._triad() if kind == "memory" else self._arithmetic(kind == "bf16")
            self._loops[kind] = Loop(call, call())
        return self._loops[kind]

    def _triad(self) -> Callable[[], float]:
        native, threads = _cpu.native(), _cpu.threads()
        self._arrays = self._arrays or [torch.ones(self.values) for _ in range(3)]
        a, b, c = (_cpu.borrow(array) for array in self._arrays)
        return lambda: float(native.ceiling_triad(a, b, c, threads))

    def _arithmetic(self, bf16: bool) -> Callable[[], float]:
        native, threads = _cpu.native(), _cpu.threads()
        rounds = 1000
        native.ceiling_flops(bf16, rounds, threads)
        start = time.perf_counter()
        native.ceiling_flops(bf16, rounds, threads)
        rounds = max(1, round(rounds * self.seconds / (time.perf_counter() - start)))
        return lambda: float(native.ceiling_flops(bf16, rounds, threads))
