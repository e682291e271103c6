"""Runs an op's CUDA launcher without a GPU: its host code as it is, its kernels' PTX in the runner."""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ptx import GBASE, Kernel, compile
from ptx.compiler import CACHE, FLAGS, ROOT, nvcc
from torch import Tensor

STREAM = 0x5EED  # what the launcher must pass on
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
ALL_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ARCHS = ("compute_80", "compute_90")
RED_ZONE = 512


class Values(ctypes.Structure):
    """Values of any dtype side by side, as in csrc/include/pysora/dtype.h."""

    _fields_ = (("data", ctypes.c_void_p), ("dtype", ctypes.c_int))


class TimestepRows(ctypes.Structure):
    """A table with a row for each timestep, as in csrc/include/pysora/timestep_rows.h."""

    _fields_ = (
        ("first", Values),
        ("stride", ctypes.c_int64),
        ("U", ctypes.c_int64),
        ("index", ctypes.c_void_p),
        ("index_strides", ctypes.c_int64 * 2),
        ("per_sample", ctypes.c_int64),
    )


def array(values: Any, kind: Any = ctypes.c_int64) -> Any:
    """Return a C array."""
    return (kind * len(values))(*values)


@dataclass
class Memory:
    """Device memory: storages of tensors between red zones, where any access is an error."""

    shift: int = 0  # bytes by which every tensor is moved away from a multiple of 256
    top: int = RED_ZONE
    placed: dict[int, tuple[int, torch.UntypedStorage]] = field(default_factory=dict)

    def address(self, tensor: Tensor | None) -> int | None:
        """Return where a tensor lies, and put its whole storage there first if it is not yet anywhere."""
        if tensor is None:
            return None
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.placed:
            self.placed[storage.data_ptr()] = self.top + self.shift, storage
            self.top += -(-(storage.nbytes() + self.shift + RED_ZONE) // 256) * 256
        return GBASE + self.placed[storage.data_ptr()][0] + tensor.storage_offset() * tensor.element_size()

    def values(self, tensor: Tensor | None) -> Values:
        """Return a tensor as `Values`."""
        return Values() if tensor is None else Values(self.address(tensor), DTYPES[tensor.dtype])

    def timestep_rows(self, table: Tensor, index: Tensor | None) -> TimestepRows:
        """Return a table [U, ...] and the row of it that each token takes, int32 [L] or [B, L], or None."""
        strides = (0, 0) if index is None else (0, *index.stride())[-2:]
        per_sample = int(table.shape[0] > 1)
        return TimestepRows(
            *(self.values(table), table.stride(0), table.shape[0], self.address(index), array(strides), per_sample)
        )

    def run(self, launch: Callable[[Any, Any], None]) -> None:
        """Call launch(bytes, which of them may be accessed) on the tensors' content, and bring it back."""
        arena, allowed = np.full(self.top + RED_ZONE, 0xCD, np.uint8), np.zeros(self.top + RED_ZONE, bool)
        views = []
        for start, storage in self.placed.values():
            whole = torch.tensor([], dtype=torch.uint8).set_(storage).numpy()
            part = slice(start, start + len(whole))
            arena[part], allowed[part] = whole, True
            views.append((part, whole))
        launch(arena, allowed)
        for part, whole in views:
            whole[...] = arena[part]


@dataclass
class Counts:
    """What the kernels of one call did to global memory."""

    rows: list[dict[str, Any]]

    def _sum(self, key: str, *, width: int | None = None, space: str = "global", op: str = "") -> float:
        return sum(
            r[key] for r in self.rows if r["space"] == space and width in (None, r["bytes"]) and r["src"].startswith(op)
        )

    def bytes(self, op: str = "") -> float:
        """Return the bytes that loads ("ld"), stores ("st") or both asked for; lanes with one address count once."""
        return 32 * self._sum("ideal", op=op)

    def wide_share(self) -> float:
        """Return the share of these bytes that moved in 128-bit accesses."""
        return self._sum("ideal", width=16) / self._sum("ideal")

    def coalescing(self) -> float:
        """Return the 32-byte sectors touched over the fewest possible."""
        return self._sum("actual") / self._sum("ideal")

    def conflicts(self) -> float:
        """Return the wavefronts of shared memory over those without bank conflicts."""
        ideal = self._sum("ideal", space="shared")
        return self._sum("actual", space="shared") / ideal if ideal else 1.0


@cache
def _host(op: str) -> ctypes.CDLL:
    """Compile an op's launcher against the stub of CUDA's runtime."""
    sources = [ROOT / f"csrc/cuda/{op}.cu", Path(__file__).with_name("launch_stub.cpp")]
    headers = [p for folder in ("csrc/cuda", "csrc/include") for p in sorted((ROOT / folder).rglob("*.h"))]
    key = hashlib.sha256(b"\0".join(p.read_bytes() for p in [*sources, *headers])).hexdigest()[:20]
    made = CACHE / f"{op}-host-{key}.so"
    if not made.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        mine = made.with_suffix(f".{os.getpid()}.so")
        command = [
            str(nvcc()),
            *FLAGS[:1],
            "-O1",
            "-arch=compute_80",
            "-cudart=none",
            "-shared",
            "-Xcompiler=-fPIC",
            "-Xlinker=-Bsymbolic",
        ]
        folders = [f"-I{ROOT / 'csrc/include'}", f"-I{ROOT / 'csrc/cuda'}"]
        subprocess.run([*command, *folders, *map(str, sources), "-o", str(mine)], check=True)
        mine.rename(made)
    return ctypes.CDLL(str(made))


def _fragment(mangled: str) -> str:
    """Return a kernel's name without its anonymous namespace, which has another name in every compilation."""
    return re.sub(r"^_ZN6pysora4cuda\d+_GLOBAL__N__\w+?_cu_[0-9a-f]{8}", "", mangled)


@cache
def _kernel(op: str, arch: str, fragment: str, text: str | None) -> Kernel:
    return Kernel(compile(f"csrc/cuda/{op}.cu", arch=arch, text=text), fragment)


@dataclass
class Launcher:
    """`pysora::cuda::<op>`.

    arch: of the PTX; text: replaces the kernels' source (a mutant); blocks: of a grid at most.
    """

    op: str
    params: type[ctypes.Structure]
    arch: str = "compute_80"
    text: str | None = None
    blocks: int | None = None
    launches: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    instructions: Counter[str] = field(default_factory=Counter)  # of warps, by opcode, in the last call

    def __call__(self, params: ctypes.Structure, memory: Memory) -> Counts:
        """Run the op on tensors in `memory`; return what its kernels did."""
        library, rows, errors = _host(self.op), [], []
        self.launches.clear()
        self.instructions.clear()

        def run(arena: Any, allowed: Any) -> None:
            def launch(name: bytes, sizes: Any, shared: int, stream: int, args: Any) -> None:
                try:
                    assert stream == STREAM, "the launcher took another stream"
                    kernel = _kernel(self.op, self.arch, _fragment(name.decode()), self.text)
                    kernel.prof = {}
                    grid, block = tuple(sizes[:3]), tuple(sizes[3:6])
                    if self.blocks is not None:
                        grid = (min(grid[0], self.blocks), *grid[1:])
                    self.launches.append((kernel.name, grid, block))
                    pointers = [args[i] for i in range(len(kernel.params))]
                    kernel.launch_host(grid, block, pointers, shared, arena, allowed)
                    rows.extend(kernel.profile())
                    self.instructions.update(kernel.mix)
                except Exception as error:  # C++ would drop it
                    errors.append(error)

            kind = ctypes.CFUNCTYPE(
                None,
                ctypes.c_char_p,
                ctypes.POINTER(ctypes.c_uint),
                ctypes.c_size_t,
                ctypes.c_size_t,
                ctypes.POINTER(ctypes.c_void_p),
            )
            handler = kind(launch)
            library.set_handler(handler)
            struct = self.params.__name__
            name = f"_ZN6pysora4cuda{len(self.op)}{self.op}ERKNS_{len(struct)}{struct}EP11CUstream_st"
            getattr(library, name)(ctypes.byref(params), ctypes.c_void_p(STREAM))
            if errors:
                raise errors[0]

        memory.run(run)
        return Counts(rows)
