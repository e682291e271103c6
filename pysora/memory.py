"""Amounts of memory, read from text and written as text; and freed memory that really goes."""

from __future__ import annotations

import ctypes
import functools
import math
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}
M_MMAP_THRESHOLD = -3  # <malloc.h>


def parse_memory(memory: str | int | float) -> int:
    """Bytes from a number or from text such as "4GB" or "1.5 GiB". ValueError or TypeError on anything else."""
    if isinstance(memory, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([A-Za-z]*)\s*", memory)
        if match is None or match[2].upper() not in UNITS:
            raise ValueError(f"memory must be bytes or text such as '4GB' or '512MiB', got {memory!r}")
        memory = float(match[1]) * UNITS[match[2].upper()]
    if isinstance(memory, bool) or not isinstance(memory, int | float):
        raise TypeError(f"memory must be bytes or text such as '4GB', got {memory!r}")
    if not 1 <= memory < math.inf:
        raise ValueError(f"memory must be at least one byte, got {memory!r}")
    return int(memory)


def readable(count: float) -> str:
    """Bytes in words: 1.5 GiB."""
    units = ("bytes", "KiB", "MiB", "GiB", "TiB")
    power = 0
    while count >= 1024 and power < len(units) - 1:
        count, power = count / 1024, power + 1
    return f"{count:.0f} {units[power]}" if power == 0 or count >= 100 else f"{count:.1f} {units[power]}"


@contextmanager
def returned_at_once() -> Iterator[None]:
    """Freed tensors leave the process at once, so that its resident memory is that of the tensors in use.

    glibc alone needs this: it keeps freed blocks of up to 32 MiB for later ones, which rarely fit into the holes.
    Inside the block every tensor from 1 MiB on has pages of its own; afterwards the limit stays at 32 MiB, where
    glibc's own adaptation ends. Source: mallopt(3), M_MMAP_THRESHOLD.
    """
    library = _glibc()
    if library is None:
        yield
        return
    library.malloc_trim(0)
    library.mallopt(M_MMAP_THRESHOLD, 1 << 20)
    try:
        yield
    finally:
        library.mallopt(M_MMAP_THRESHOLD, 32 << 20)


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    if platform.libc_ver()[0] != "glibc":
        return None
    return ctypes.CDLL(None)
