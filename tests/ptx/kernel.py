"""A kernel of a PTX module, launched on the CPU."""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from ptx.arguments import buffers, encode
from ptx.counters import Counters
from ptx.dtypes import SIZE, Array
from ptx.errors import PTXError
from ptx.memory import GLOBAL_BASE as GBASE
from ptx.memory import GlobalMemory
from ptx.parser import Program, elements, immediate, parse
from ptx.run import Run
from ptx.wave import Wave

__all__ = ["GBASE", "Kernel", "PTXError"]

Dim = Sequence[int]


class Kernel:
    """Kernel(ptx text, part of the kernel's name).

    `prof`: None, or {} before a launch to have work counted; then `mix` holds warp instructions by opcode,
    `profile()` one row for each instruction that touches memory, and `counters` the totals.
    """

    def __init__(self, ptx: str, name: str | None = None) -> None:
        self.program: Program = parse(ptx, name)
        self.name = self.program.name
        self.params = self.program.parameters
        self.prof: dict[str, Any] | None = None
        self.counters = Counters()
        self.steps = 0
        self.unit = _smallest_shared_access(self.program)

    @property
    def mix(self) -> Counter[str]:
        """Warp instructions by opcode, of launches since `prof` was set."""
        return self.counters.instructions

    def launch(
        self,
        grid: Dim,
        block: Dim,
        args: Sequence[Any],
        smem: int = 0,
        *,
        race: bool = True,
        chunk_threads: int = 4096,
        max_steps: int = 1_000_000,
    ) -> int:
        """Run the kernel and return the number of steps; buffers are updated in place.

        args: arrays or tensors (contiguous buffers), numbers, `Struct`s, bytes; trailing ones that are missing are 0.
        smem: bytes of dynamic shared memory. race: look for races in shared memory.
        """
        memory = GlobalMemory()
        symbols = {name: memory.place(data, name) for name, data in self.program.data.items()}
        if len(args) > len(self.params):
            raise ValueError(f"{self.name} takes {len(self.params)} arguments, not {len(args)}")
        for i, array in buffers(list(args)):
            memory.place(array, f"the buffer of argument {i}")
        given = [args[i] if i < len(args) else None for i in range(len(self.params))]
        values = [encode(p, v, lambda a: memory.place(a, "")) for p, v in zip(self.params, given, strict=True)]
        memory.copy_in()
        try:
            return self._launch(grid, block, smem, memory, symbols, values, race, chunk_threads, max_steps)
        finally:
            memory.copy_out()

    def launch_host(
        self,
        grid: Dim,
        block: Dim,
        argptrs: Sequence[Any],
        smem: int,
        arena: Array,
        ok: Array,
        race: bool = True,
        max_steps: int = 1_000_000,
    ) -> int:
        """Run on an arena of bytes at GBASE, `ok` where they may be touched; argptrs: addresses of the arguments."""
        if self.program.data:
            raise PTXError("unsupported", "module-level arrays on an arena", self.name)
        values = [ctypes.string_at(at, p.size) for p, at in zip(self.params, argptrs, strict=True)]
        memory = GlobalMemory.over(arena, ok.view(bool))
        return self._launch(grid, block, smem, memory, {}, values, race, 4096, max_steps)

    def _launch(
        self,
        grid: Dim,
        block: Dim,
        smem: int,
        memory: GlobalMemory,
        symbols: dict[str, int],
        values: list[bytes],
        race: bool,
        chunk_threads: int,
        max_steps: int,
    ) -> int:
        grid3, block3 = _three(grid), _three(block)
        self._check_limits(grid3, block3, smem)
        threads, blocks = int(np.prod(block3)), int(np.prod(grid3))
        chunks = -(-blocks // max(1, chunk_threads // threads))
        if self.prof is None:
            counters = None
        else:
            if not self.prof:
                self.counters = Counters()
                self.prof["counters"] = self.counters
            counters = self.counters
        parameters = np.zeros(self.program.parameter_bytes, np.uint8)
        for parameter, value in zip(self.params, values, strict=True):
            at = self.program.parameter_offsets[parameter.name]
            parameters[at : at + parameter.size] = np.frombuffer(value, np.uint8)
        self.steps = 0
        with np.errstate(all="ignore"):
            for part in np.array_split(np.arange(blocks), chunks):
                wave = Wave(
                    self.program, grid3, block3, part, memory, parameters, symbols, smem, self.unit, race, counters
                )
                self.steps += Run(wave, max_steps).go()
        return self.steps

    def _check_limits(self, grid: tuple[int, int, int], block: tuple[int, int, int], smem: int) -> None:
        threads = int(np.prod(block))
        complaint = None
        if threads > self.program.max_threads or threads > 1024 or block[2] > 64:
            complaint = f"a block of {block} threads; at most {self.program.max_threads}"
        elif threads % 32 or not threads:
            complaint = f"a block of {block} threads, which is no multiple of 32"
        elif not 0 < grid[0] < 2**31 or not 0 < grid[1] <= 65535 or not 0 < grid[2] <= 65535:
            complaint = f"a grid of {grid} blocks"
        elif self.program.shared_bytes + smem > 227 * 1024:
            complaint = f"{self.program.shared_bytes + smem} bytes of shared memory"
        if complaint:
            raise PTXError("launch", f"the launch is refused: {complaint}", self.name)

    def profile(self) -> list[dict[str, Any]]:
        """Return one row for each instruction that touched memory: wavefronts or sectors beside the fewest possible."""
        rows = []
        for access in sorted(self.counters.accesses.values(), key=lambda a: a.instruction.index):
            ratio = round(access.actual / access.ideal, 2) if access.ideal else 1.0
            rows.append(
                {
                    "src": access.instruction.text[:70],
                    "line": access.instruction.line,
                    "source": access.instruction.source,
                    "space": access.space,
                    "bytes": access.size,
                    "requests": access.requests,
                    "actual": access.actual,
                    "ideal": access.ideal,
                    "ratio": ratio,
                }
            )
        return rows


def _three(dim: Dim) -> tuple[int, int, int]:
    x, y, z = (*(int(n) for n in dim), 1, 1)[:3]
    return x, y, z


def _smallest_shared_access(program: Program) -> int:
    """Return the bytes of the smallest access that may touch shared memory: the grain of the checks."""
    unit = 16
    for x in program.instructions:
        op, space = x.parts[0], next((p.split("::")[0] for p in x.parts[1:] if p.split("::")[0] in SPACES), "")
        if op in ("ld", "ldu", "st", "atom", "red") and space in ("shared", ""):
            vector = x.operands[1 if op != "ld" else 0]
            unit = min(unit, SIZE[x.type] * (len(elements(vector)) if op in ("ld", "st") else 1))
        elif op == "cp" and "async" in x.parts and len(x.operands) > 2:
            unit = min(unit, immediate(x.operands[2], 4) or 4)
    return unit


SPACES = ("global", "shared", "local", "const", "param")
