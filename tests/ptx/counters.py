"""What a kernel asks of a GPU, counted: warp instructions, tensor-core instructions, bank conflicts, sectors, bytes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from ptx.dtypes import Array
from ptx.parser import Instruction

SECTOR, BANKS = 32, 32
FAR = np.int64(2**62)


@dataclass
class Access:
    """One instruction's accesses: `actual` wavefronts (shared) or 32-byte sectors (global), `ideal` the fewest."""

    instruction: Instruction
    space: str
    size: int  # bytes of one thread
    store: bool
    requests: int = 0
    actual: int = 0
    ideal: float = 0.0
    bytes: int = 0


class Counters:
    """Counts over all blocks of a launch."""

    def __init__(self) -> None:
        self.instructions: Counter[str] = Counter()  # warp instructions by opcode
        self.accesses: dict[tuple[int, str], Access] = {}

    def executed(self, op: str, warps: int) -> None:
        """Count an instruction that so many warps have executed."""
        self.instructions[op] += warps

    def access(self, x: Instruction, space: str, index: Array, size: int, mask: Array, store: bool) -> None:
        """Count an access to shared or global memory by the threads of `mask`."""
        if space == "local":
            return
        entry = self.accesses.setdefault((x.index, space), Access(x, space, size, store))
        rows, active = index.reshape(-1, 32), mask.reshape(-1, 32)
        here = active.any(1)
        rows, active = rows[here], active[here]
        entry.requests += len(rows)
        entry.bytes += int(active.sum()) * size
        if space == "global":
            entry.actual += int(_distinct(rows // SECTOR, active).sum())
            entry.ideal += float(np.maximum(1, _distinct(rows, active) * size / SECTOR).sum())
        else:
            actual, ideal = _wavefronts(rows, active, size)
            entry.actual += actual
            entry.ideal += ideal

    def warp_instructions(self) -> int:
        """Return how many warp instructions ran."""
        return sum(self.instructions.values())

    def tensor_core_instructions(self) -> int:
        """Return how many mma and wgmma instructions ran (a wgmma counts once for its four warps)."""
        mma = sum(n for op, n in self.instructions.items() if op.startswith("mma."))
        return mma + sum(n for op, n in self.instructions.items() if op.startswith("wgmma.mma_async")) // 4

    def _ratio(self, space: str) -> float:
        chosen = [a for a in self.accesses.values() if a.space == space]
        ideal = sum(a.ideal for a in chosen)
        return sum(a.actual for a in chosen) / ideal if ideal else 1.0

    def conflict_ratio(self) -> float:
        """Return the wavefronts of shared memory over those without bank conflicts."""
        return self._ratio("shared")

    def coalescing_ratio(self) -> float:
        """Return the sectors of global memory over the fewest that hold the bytes asked for."""
        return self._ratio("global")

    def global_bytes(self, store: bool | None = None) -> int:
        """Return the bytes that threads asked of global memory: loaded, stored, or (None) both."""
        return sum(a.bytes for a in self.accesses.values() if a.space == "global" and store in (None, a.store))

    def wide_share(self) -> float:
        """Return the share of the global bytes that moved by 128-bit accesses; lanes with one address count once."""
        moved = [(a.ideal, a.size == 16) for a in self.accesses.values() if a.space == "global"]
        total = sum(sectors for sectors, _ in moved)
        return sum(sectors for sectors, wide in moved if wide) / total if total else 1.0


def _distinct(values: Array, active: Array) -> Array:
    """Return how many different values stand in the active lanes of each row."""
    ordered = np.sort(np.where(active, values, FAR), axis=1)
    fresh = np.ones(ordered.shape, bool)
    fresh[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    counts: Array = (fresh & (ordered != FAR)).sum(1)
    return counts


def _wavefronts(rows: Array, active: Array, size: int) -> tuple[int, int]:
    """Return the wavefronts of shared accesses and the fewest possible: 8 and 16 bytes go by half and quarter warps."""
    words = max(1, size // 4)
    lanes = 32 // words
    phases, on = rows.reshape(-1, lanes), active.reshape(-1, lanes)
    here = on.any(1)
    phases, on = phases[here], on[here]
    touched = (phases[:, :, None] // 4 + np.arange(words)).reshape(len(phases), -1)
    touched = np.where(np.repeat(on, words, axis=1), touched, FAR)
    touched.sort(axis=1)
    fresh = touched != FAR
    fresh[:, 1:] &= touched[:, 1:] != touched[:, :-1]
    bank = np.arange(len(touched))[:, None] * BANKS + touched % BANKS
    loads = np.bincount(bank[fresh], minlength=len(touched) * BANKS).reshape(-1, BANKS)
    return int(loads.max(1).sum()) if len(loads) else 0, len(loads)
