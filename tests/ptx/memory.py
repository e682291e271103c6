"""Global memory: one arena of buffers with forbidden bytes between them, so that nothing reads past an end unseen."""

from __future__ import annotations

from typing import Any

import numpy as np

from ptx.dtypes import Array

# Where the generic addresses of a space begin; the windows of the small spaces are as long as SHARED_BASE.
GLOBAL_BASE, SHARED_BASE, LOCAL_BASE, PARAM_BASE = 0x700000000000, 1 << 40, 2 << 40, 3 << 40
WINDOWS = {"shared": SHARED_BASE, "local": LOCAL_BASE, "param": PARAM_BASE}
GAP = 256


def as_array(value: Any) -> Array | None:
    """Return a NumPy view of an array or of a torch tensor's memory (bf16 as its bits), None for other values."""
    if isinstance(value, np.ndarray):
        if not value.flags.c_contiguous:
            raise ValueError("a buffer must be contiguous: pass its memory and the strides")
        return value
    if not hasattr(value, "untyped_storage"):
        return None
    import torch

    if not value.is_contiguous():
        raise ValueError("a buffer must be contiguous: pass its memory and the strides")
    seen: Array = value.detach().reshape(-1).view(torch.uint8).numpy()
    return seen


class GlobalMemory:
    """Bytes at addresses from `base`; `allowed` says which of them belong to a buffer."""

    def __init__(self, base: int = GLOBAL_BASE) -> None:
        self.base, self.safe, self.top = base, GAP, GAP
        self.placed: list[tuple[int, Array, str]] = []  # byte index, the caller's array, its name in errors
        self.bytes = self.allowed = np.zeros(0, np.uint8)

    @classmethod
    def over(cls, arena: Array, allowed: Array, base: int = GLOBAL_BASE) -> GlobalMemory:
        """Return memory that lies over somebody else's arena."""
        memory = cls(base)
        memory.bytes, memory.allowed = arena, allowed
        return memory

    def place(self, array: Array, name: str) -> int:
        """Reserve room for an array and return its address; the same array gets the same address."""
        for at, other, _ in self.placed:
            if other is array or (
                other.ctypes.data == array.ctypes.data and other.nbytes == array.nbytes and array.nbytes
            ):
                return self.base + at
        at = self.top
        self.placed.append((at, array, name))
        self.top = -(-(at + array.nbytes) // 256) * 256 + GAP
        return self.base + at

    def copy_in(self) -> None:
        """Fill the arena with what the arrays hold."""
        self.bytes = np.zeros(self.top + GAP, np.uint8)
        self.allowed = np.zeros(len(self.bytes), bool)
        for at, array, _ in self.placed:
            self.bytes[at : at + array.nbytes] = array.reshape(-1).view(np.uint8)
            self.allowed[at : at + array.nbytes] = True

    def copy_out(self) -> None:
        """Write the arena back to the arrays that may be written."""
        for at, array, _ in self.placed:
            if array.flags.writeable:
                array.reshape(-1).view(np.uint8)[:] = self.bytes[at : at + array.nbytes]

    def nearest(self, address: int) -> str:
        """Say in words where an address lies beside the buffers."""
        found = []  # distance, and words
        for start, end, name in self._buffers():
            if address < self.base + start:
                found.append((self.base + start - address, f"{self.base + start - address} bytes before {name}"))
            else:
                inside = address - self.base - start
                found.append((max(0, inside - (end - start)), f"{inside} bytes into {name}"))
        return min(found)[1] if found else "there are none"

    def _buffers(self) -> list[tuple[int, int, str]]:
        """Return where buffers begin and end, and their names; in an arena, runs of allowed bytes."""
        if self.placed:
            return [(at, at + a.nbytes, f"{name} of {a.nbytes} bytes") for at, a, name in self.placed]
        edges = np.flatnonzero(np.diff(np.concatenate([[False], self.allowed.view(bool), [False]]).astype(np.int8)))
        return [(int(a), int(b), f"a buffer of {b - a} bytes") for a, b in edges.reshape(-1, 2)]
