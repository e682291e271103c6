"""What benchmarks need on a CUDA device: its own clock, and loops at its limit through cuBLAS and torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pysora.bench.ceiling import Loop

SIDE = 8192
"""Of the matrices whose product is the limit of arithmetic: long enough for the largest cards to be busy."""
TRIAD_VALUES = 1 << 28  # 1 GiB an array: far more than the caches


def device_of(name: str) -> torch.device:
    """The device of that name. Raises ValueError where it is neither cpu nor a CUDA device of this machine."""
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be cpu, cuda or cuda:N, got {name}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device must be a CUDA device of this machine, which has {torch.cuda.device_count()}, got {name}"
        )
    return device


class Clock:
    """Seconds on the device between two events around a call, which finds none of its data in the L2 cache."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        size: int = torch.cuda.get_device_properties(device).L2_cache_size
        self._cache = torch.empty(2 * size, dtype=torch.int8, device=device)
        self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def __call__(self, call: Callable[[], Any]) -> float:
        """Seconds that a call took on the device."""
        self._cache.zero_()
        self._start.record()
        call()
        self._end.record()
        self._end.synchronize()
        return float(self._start.elapsed_time(self._end)) / 1e3

    def wait(self) -> None:
        """Until the device has done all that it was given."""
        torch.cuda.synchronize(self.device)


class Ceilings:
    """The loops at the device's limit: products of large matrices, and the triad a = b + 3c, its arrays counted once.

    fp32 means fp32: torch multiplies without TF32 unless a user asks for it.
    side: of the matrices. values: of each of the triad's arrays.
    """

    def __init__(self, device: torch.device, side: int = SIDE, values: int = TRIAD_VALUES) -> None:
        self.device, self.side, self.values = device, side, values
        self._loops: dict[str, Loop] = {}

    def loop(self, kind: str) -> Loop:
        """The loop of one of "fp32", "bf16" and "memory"."""
        if kind not in self._loops:
            self._loops[kind] = self._triad() if kind == "memory" else self._product(kind)
        return self._loops[kind]

    def _triad(self) -> Loop:
        a, b, c = (torch.ones(self.values, device=self.device) for _ in range(3))
        return Loop(lambda: torch.add(b, c, alpha=3.0, out=a), 12.0 * self.values)

    def _product(self, kind: str) -> Loop:
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[kind]
        a, b = (torch.ones(self.side, self.side, dtype=dtype, device=self.device) for _ in range(2))
        return Loop(lambda: a @ b, 2.0 * self.side**3)
