"""Checks of shared memory: races between threads, and reads of what was never written or has not arrived yet."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ptx.dtypes import Array
from ptx.parser import Instruction

if TYPE_CHECKING:
    from ptx.wave import Wave

# A tag says who touched a unit of memory, and when: epoch of the block's barriers (from bit 40), epoch of the warp's
# own barriers (from bit 16), several warps (bit 11), several lanes (bit 10), warp (bits 5-9), lane (bits 0-4).
EPOCH, WARP_EPOCH, SEVERAL_WARPS, SEVERAL_LANES = 40, 16, 0x800, 0x400
WHO, WARP = 0xFFF, 0xBE0
EMPTY, WRITTEN, COMING = 0, 1, 2


class SharedChecks:
    """Remembers for each unit of shared memory its last writer, its readers, and whether it holds data."""

    def __init__(self, wave: Wave, unit: int, races: bool) -> None:
        self.wave, self.unit, self.races = wave, unit, races
        units = wave.count * wave.shared_stride // unit
        self.writer = np.full(units, -1, np.int64)
        self.reader = np.full(units, -1, np.int64)
        self.state = np.full(units, EMPTY, np.uint8)
        self.epoch = np.zeros(wave.count, np.int64)
        self.warp_epoch = np.zeros(wave.warps, np.int64)
        self._tag()

    def _tag(self) -> None:
        wave = self.wave
        epochs = self.epoch[wave.slot] << EPOCH | np.repeat(self.warp_epoch, 32) << WARP_EPOCH
        self.tags = epochs | wave.thread

    def barrier(self, blocks: Array) -> None:
        """A barrier of these blocks [bool, count] has been passed."""
        self.epoch += blocks
        self._tag()

    def warp_barrier(self, warps: Array) -> None:
        """These warps [bool] have synchronised their lanes."""
        self.warp_epoch += warps
        self._tag()

    def _units(self, index: Array, size: int, mask: Array, full: bool) -> tuple[Array, Array]:
        """Return the units [threads, n] of an access, and the tags [threads, 1] of the threads."""
        active, tags = (index, self.tags) if full else (index[mask], self.tags[mask])
        units = (active // self.unit)[:, None]
        if size > self.unit:
            units = units + np.arange(size // self.unit)
        return units, np.broadcast_to(tags[:, None], units.shape)

    @staticmethod
    def _conflict(old: Array, new: Array) -> Array:
        """Return where another thread left `old` with no barrier before `new`."""
        x = old ^ new
        suspects: Array = (x >> EPOCH == 0) & (x & WHO != 0)
        if suspects.any():
            suspects &= (x & WARP != 0) | (x >> WARP_EPOCH == 0)
        return suspects

    def _race(self, what: str, bad: Array, units: Array, old: Array, x: Instruction, mask: Array) -> None:
        row, column = np.unravel_index(int(np.argmax(bad)), bad.shape)
        t = int(np.nonzero(mask)[0][row])
        unit, other = int(units[row, column]), int(old[row, column])
        address = unit * self.unit - int(self.wave.shared_offset[t])
        who = "several threads" if other & (SEVERAL_WARPS | SEVERAL_LANES) else f"thread {other & 0x3FF} of the block"
        raise self.wave.error("race", f"shared-memory race, {what} by {who}", x, t, address)

    def read(self, index: Array, size: int, mask: Array, full: bool, x: Instruction) -> None:
        """Check a read by the threads of `mask`, and remember it."""
        units, tags = self._units(index, size, mask, full)
        self._holds_data(units, mask, x)
        if not self.races:
            return
        old = self.writer[units]
        bad = self._conflict(old, tags)
        if bad.any():
            self._race("write then read, the write", bad, units, old, x, mask)
        self._remember_readers(units, tags)

    def read_by(self, thread: int, index: Array, x: Instruction) -> None:
        """Check a read of bytes `index` by the warp group that `thread` leads, and remember it."""
        units = np.unique(index // self.unit)[None, :]
        alone = np.zeros(self.wave.T, bool)
        alone[thread] = True
        self._holds_data(units, alone, x)
        if not self.races:
            return
        tags = np.broadcast_to(self.tags[thread : thread + 1, None], units.shape)
        old = self.writer[units]
        bad = self._conflict(old, tags) & (old & WARP != tags & WARP)
        if bad.any():
            self._race("write then read, the write", bad, units, old, x, alone)
        self.reader[units] = tags | SEVERAL_WARPS

    def _holds_data(self, units: Array, mask: Array, x: Instruction) -> None:
        state = self.state[units]
        if (state == WRITTEN).all():
            return
        row, column = np.unravel_index(int(np.argmax(state != WRITTEN)), state.shape)
        t = int(np.nonzero(mask)[0][row])
        address = int(units[row, column]) * self.unit - int(self.wave.shared_offset[t])
        coming = state[row, column] == COMING
        message = "shared memory is read while an asynchronous copy to it is under way" if coming else ""
        raise self.wave.error("uninitialised", message or "uninitialised shared memory is read", x, t, address)

    def _remember_readers(self, units: Array, tags: Array) -> None:
        old = self.reader[units]
        x = old ^ tags
        new = tags
        if (x >> EPOCH == 0).any():  # joined by earlier readers since the last barrier
            same = x >> EPOCH == 0
            other_warp = same & (x & WARP != 0)
            other_lane = same & ~other_warp & (x >> WARP_EPOCH == 0) & (x & WHO != 0)
            new = tags | np.where(other_warp, SEVERAL_WARPS, 0) | np.where(other_lane, SEVERAL_LANES, 0)
        self.reader[units] = new
        x = self.reader[units] ^ new  # lanes that read the same unit at once
        if x.any():
            lanes = (x & WHO != 0) & (x & WARP == 0)
            self.reader[units[lanes]] = new[lanes] | SEVERAL_LANES
            warps = x & WARP != 0
            self.reader[units[warps]] = new[warps] | SEVERAL_WARPS

    def write(self, index: Array, size: int, mask: Array, full: bool, x: Instruction, state: int = WRITTEN) -> None:
        """Check a write by the threads of `mask`, and remember it; `state`: COMING for an asynchronous copy."""
        units, tags = self._units(index, size, mask, full)
        self.state[units] = state
        if not self.races:
            return
        old = self.writer[units]
        bad = self._conflict(old, tags)
        if bad.any():
            self._race("write then write, the first", bad, units, old, x, mask)
        old = self.reader[units]
        bad = self._conflict(old, tags)
        if bad.any():
            self._race("read then write, the read", bad, units, old, x, mask)
        self.writer[units] = tags
        seen = self.writer[units]  # two warps that write the same unit at once
        bad = (seen ^ tags) & WARP != 0
        if bad.any():
            self._race("write and write at once, the other", bad, units, seen, x, mask)

    def arrived(self, index: Array, size: int, mask: Array) -> None:
        """Asynchronous copies by the threads of `mask` have arrived; they count as written by them now."""
        units, tags = self._units(index, size, mask, False)
        self.state[units] = WRITTEN
        self.writer[units] = tags

    def atomic(self, index: Array, size: int, mask: Array, x: Instruction) -> None:
        """Check an atomic operation: it needs data there; atomics do not race with each other."""
        units, _ = self._units(index, size, mask, False)
        self._holds_data(units, mask, x)
