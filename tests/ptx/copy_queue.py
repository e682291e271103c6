"""Asynchronous copies under way: what cp.async has asked for and no wait has let arrive."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ptx.dtypes import Array

if TYPE_CHECKING:
    from ptx.wave import Wave


@dataclass
class Copy:
    """Bytes on their way: `data` [T, size] to byte `index` [T] of shared memory, by the threads of `mask`."""

    mask: Array
    index: Array
    data: Array


@dataclass
class Group:
    """The copies that were committed together, by the threads of `mask` (those that still wait for it)."""

    mask: Array
    copies: list[Copy]


class Queue:
    """The asynchronous copies of a wave: committed groups, oldest first, and those not committed yet."""

    def __init__(self, wave: Wave) -> None:
        self.wave = wave
        self.groups: list[Group] = []
        self.open: list[Copy] = []

    def commit(self, mask: Array) -> None:
        """Close the open group of these threads."""
        mine = [Copy(c.mask & mask, c.index, c.data) for c in self.open if (c.mask & mask).any()]
        self.groups.append(Group(mask.copy(), mine))
        self.open = [Copy(c.mask & ~mask, c.index, c.data) for c in self.open if (c.mask & ~mask).any()]

    def wait(self, mask: Array, keep: int) -> None:
        """Let all but the newest `keep` groups of these threads arrive."""
        newer = np.zeros(self.wave.T, np.int64)
        for group in reversed(self.groups):
            finished = mask & group.mask & (newer >= keep)
            newer += group.mask
            if finished.any():
                for copy in group.copies:
                    self._arrive(copy, copy.mask & finished)
                group.mask = group.mask & ~finished
        self.groups = [g for g in self.groups if g.mask.any()]

    def _arrive(self, copy: Copy, mask: Array) -> None:
        if not mask.any():
            return
        size = copy.data.shape[1]
        rows = self.wave.shared.reshape(-1, size)
        rows[copy.index[mask] // size] = copy.data[mask]
        self.wave.checks.arrived(copy.index, size, mask)
