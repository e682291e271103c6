"""The state of the blocks that run in lock step: registers, memory, barriers; operands are live views of registers."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from ptx.copy_queue import Queue
from ptx.counters import Counters
from ptx.dtypes import NUMPY, SIZE, UNSIGNED, Array
from ptx.errors import PTXError
from ptx.memory import SHARED_BASE, WINDOWS, GlobalMemory
from ptx.parser import Instruction, Program, immediate
from ptx.shared_checks import SharedChecks

Write = Callable[[Array, Array, bool], None]


class Wave:
    """`blocks` of a grid, all threads side by side in arrays of length T; warps are rows of 32.

    Instructions get `mask` [T], the threads that run them, and `full`, whether that is all of them.
    """

    def __init__(
        self,
        program: Program,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        blocks: Array,
        memory: GlobalMemory,
        parameters: Array,
        symbols: dict[str, int],
        dynamic_shared: int,
        unit: int,
        races: bool,
        counters: Counters | None,
    ) -> None:
        self.program, self.grid, self.block = program, grid, block
        self.memory, self.parameters, self.symbols, self.counters = memory, parameters, symbols, counters
        self.threads = block[0] * block[1] * block[2]
        self.count = len(blocks)
        self.T = self.count * self.threads
        self.warps = self.T // 32
        self.thread = np.tile(np.arange(self.threads), self.count)
        self.slot = np.repeat(np.arange(self.count), self.threads)  # which of the wave's blocks a thread belongs to
        self.dynamic_offset = -(-program.shared_bytes // 128) * 128
        self.shared_limit = self.dynamic_offset + dynamic_shared  # bytes that a block may touch
        self.shared_stride = -(-self.shared_limit // 128) * 128 + 128
        self.shared = np.full(self.count * self.shared_stride, 0xFF, np.uint8)
        self.shared_offset = self.slot * self.shared_stride
        self.local_stride = max(16, program.local_bytes)
        self.local = np.zeros(self.T * self.local_stride, np.uint8)
        self.checks = SharedChecks(self, unit, races)
        self.registers = self._registers()
        self.special = self._special(np.repeat(blocks, self.threads))
        self.copies = Queue(self)
        self.constants: dict[tuple[int, int], Array] = {}
        self.carry = np.zeros(self.T, bool)

    def _registers(self) -> dict[str, Array]:
        """Return an array [T] for each register; all of one size lie in one piece of memory."""
        declared = self.program.registers
        types = {name: bool if kind == "pred" else UNSIGNED[SIZE[kind]] for name, kind in declared.items()}
        found = {}
        for kind in set(types.values()):
            names = [name for name, other in types.items() if other is kind]
            found.update(zip(names, np.zeros((len(names), self.T), kind), strict=True))
        return found

    def _special(self, blocks: Array) -> dict[str, Array]:
        grid, block, thread = self.grid, self.block, self.thread
        found = {"%laneid": thread % 32, "%warpid": thread // 32, "%nwarpid": np.full(self.T, self.threads // 32)}
        for i, axis in enumerate("xyz"):
            found[f"%ntid.{axis}"] = np.full(self.T, block[i])
            found[f"%nctaid.{axis}"] = np.full(self.T, grid[i])
            found[f"%tid.{axis}"] = thread // int(np.prod(block[:i])) % block[i]
            found[f"%ctaid.{axis}"] = blocks // int(np.prod(grid[:i])) % grid[i]
            found[f"%cluster_ctaid.{axis}"] = np.zeros(self.T)
            found[f"%cluster_nctaid.{axis}"] = np.ones(self.T)
        found["%cluster_ctarank"] = np.zeros(self.T)
        bit = np.uint64(1) << found["%laneid"].astype(np.uint64)
        every = np.uint64(2**32 - 1)
        masks = {"eq": bit, "lt": bit - np.uint64(1), "le": 2 * bit - np.uint64(1)}
        masks |= {"gt": every - masks["le"], "ge": every - masks["lt"]}
        found |= {f"%lanemask_{name}": mask for name, mask in masks.items()}
        return {name: np.ascontiguousarray(values.astype(np.uint32)) for name, values in found.items()}

    def error(
        self, kind: str, message: str, x: Instruction | None, thread: int | None = None, address: int | None = None
    ) -> PTXError:
        """Return an error at an instruction, with a thread's coordinates and an address where they are known."""
        where = ""
        if thread is not None:
            at = {n: tuple(int(self.special[f"%{n}.{axis}"][thread]) for axis in "xyz") for n in ("ctaid", "tid")}
            where = f"block {at['ctaid']}, thread {at['tid']}"
        return PTXError(kind, message, self.program.name, x, address, where)

    def unsupported(self, x: Instruction, what: str = "") -> PTXError:
        """Return the error for an instruction that this runner does not know."""
        return self.error("unsupported", f"unsupported {what or 'instruction'}", x)

    # Operands

    def symbol(self, name: str) -> int | None:
        """Return the address of a variable: in its own space, for shared and local ones."""
        program = self.program
        for table in (program.shared, program.local, program.parameter_offsets, self.symbols):
            if name in table:
                return table[name]
        return self.dynamic_offset if name == program.dynamic_shared else None

    def constant(self, value: int, size: int) -> Array:
        """Return bits that are the same for all threads."""
        value &= (1 << 8 * size) - 1
        held = self.constants.get((value, size))
        if held is None:
            held = self.constants[value, size] = np.broadcast_to(UNSIGNED[size](value), (self.T,))
        return held

    def bits(self, operand: str, size: int, x: Instruction) -> Array:
        """Return a live view of an operand's low `size` bytes, as unsigned integers [T]."""
        held = self.registers.get(operand)
        if held is None:
            held = self.special.get(operand)
        if held is None:
            value = immediate(operand, size)
            if value is None:
                value = self.symbol(operand)
            if value is None:
                raise self.unsupported(x, f"operand {operand}")
            return self.constant(value, size)
        if held.dtype == bool:
            held = held.view(np.uint8)
        if held.itemsize < size:
            if operand in self.special:
                return held.astype(UNSIGNED[size])
            raise self.unsupported(x, f"operand {operand}: it holds fewer than {size} bytes")
        step = held.itemsize // size
        view: Array = held.view(UNSIGNED[size])[::step]
        return view

    def read(self, operand: str, kind: str, x: Instruction) -> Array:
        """Return a live view of an operand as values of a PTX type [T]; bf16 and packed types as bits."""
        view: Array = self.bits(operand, SIZE[kind], x).view(NUMPY[kind])
        return view

    def predicate(self, operand: str, x: Instruction) -> Callable[[], Array]:
        """Return a function that reads a predicate, negated or not, or a constant one."""
        name = operand.removeprefix("!")
        held = self.registers.get(name)
        if held is None:
            held = np.broadcast_to(np.bool_(immediate(name, 4) != 0), (self.T,))
        if held.dtype != bool:
            raise self.unsupported(x, f"predicate {operand}")
        values = held
        return (lambda: ~values) if operand.startswith("!") else (lambda: values)

    def write(self, operand: str, kind: str, x: Instruction) -> Write:
        """Return a function that writes values of a PTX type to a register; wider registers are extended."""
        if operand == "_":
            return lambda values, mask, full: None
        held = self.registers.get(operand)
        if held is None:
            raise self.unsupported(x, f"destination {operand}")
        extend = None
        if held.dtype != bool:
            size = SIZE[kind]
            if held.itemsize == size:
                held = held.view(NUMPY[kind])
            elif held.itemsize < size:
                raise self.unsupported(x, f"destination {operand}: it holds fewer than {size} bytes")
            else:  # the register is wider than the value: sign or zero extension
                extend = NUMPY[kind] if kind[0] == "s" else UNSIGNED[size]
                held = held.view(NUMPY[f"s{8 * held.itemsize}"]) if kind[0] == "s" else held
        target = held

        def assign(values: Array, mask: Array, full: bool) -> None:
            if extend is not None:
                values = values.view(extend)
            if full:
                target[...] = values
            else:
                np.copyto(target, values, where=mask, casting="unsafe")

        return assign

    def address(self, operand: str, x: Instruction) -> Callable[[], Array]:
        """Return a function that computes the addresses `[register + offset]` as int64 [T]."""
        text = operand.strip()[1:-1].replace(" ", "")
        m = re.match(r"(-?[%\w$.#]+?)(?:\+(-?\w+))?$", text)
        if m is None:
            raise self.unsupported(x, f"address {operand}")
        base, offset = m[1], int(m[2] or "0", 0)
        size = self.registers[base].itemsize if base in self.registers else 8
        view = self.bits(base, size, x)
        if base not in self.registers:
            fixed: Array = np.broadcast_to(np.int64(int(view[0]) + offset), (self.T,))
            return lambda: fixed
        wide = view.view(np.int64) if size == 8 else view
        if offset:
            return lambda: wide + np.int64(offset)
        return (lambda: wide) if size == 8 else (lambda: wide.astype(np.int64))

    # Threads

    def whole_warps(self, mask: Array, x: Instruction) -> None:
        """Refuse an instruction of the whole warp that only some of its lanes reach."""
        if mask.all():
            return
        rows = mask.reshape(-1, 32)
        torn = rows.any(1) & ~rows.all(1)
        if torn.any():
            warp = int(np.argmax(torn))
            missing = 32 * warp + int(np.argmin(rows[warp]))
            raise self.error("divergence", "a warp-wide instruction is reached by part of a warp", x, missing)

    def resolve(
        self, space: str, address: Array, size: int, mask: Array, full: bool, x: Instruction
    ) -> tuple[str, Array, Array]:
        """Return the space, its bytes, and each thread's byte index there; alignment and bounds are checked.

        Threads outside of `mask` get an index that is safe to read.
        """
        if space == "generic":
            active = address if full else address[mask]
            space = "global"
            if len(active):
                low, high = int(active.min()), int(active.max())
                for name, base in WINDOWS.items():
                    if base <= low and high < base + SHARED_BASE:
                        space, address = name, address - base
        if size > 1:
            crooked = (address & (size - 1)) != 0
            if not full:
                crooked &= mask
            if crooked.any():
                t = int(np.argmax(crooked))
                raise self.error("alignment", f"misaligned {size}-byte access", x, t, int(address[t]))
        if space == "global" or space == "const":
            index = address - self.memory.base
            if not full:
                index = np.where(mask, index, self.memory.safe)
            self._global_bounds(index, size, mask, x)
            return "global", self.memory.bytes, index
        limits = {"shared": self.shared_limit, "local": self.program.local_bytes, "param": len(self.parameters)}
        limit = limits[space]
        index = address if full else np.where(mask, address, 0)
        if index.min() < 0 or index.max() + size > limit:
            outside = ((index < 0) | (index + size > limit)) & mask
            if outside.any():
                t = int(np.argmax(outside))
                message = f"{size}-byte access outside of the {limit} bytes of {space} memory"
                raise self.error("bounds", message, x, t, int(address[t]))
        if space == "shared":
            return space, self.shared, index + self.shared_offset
        if space == "param":
            return space, self.parameters, index
        return space, self.local, index + np.arange(self.T) * self.local_stride

    def _global_bounds(self, index: Array, size: int, mask: Array, x: Instruction) -> None:
        memory = self.memory
        far = (index < 0) | (index > len(memory.bytes) - size)
        near = np.where(far, memory.safe, index) if far.any() else index
        outside = far | ~memory.allowed[near]
        if size > 1:
            outside |= ~memory.allowed[near + (size - 1)]
        outside &= mask
        if outside.any():
            t = int(np.argmax(outside))
            address = int(index[t]) + memory.base
            message = f"{size}-byte access outside of every buffer ({memory.nearest(address)}; {outside.sum()} threads)"
            raise self.error("bounds", message, x, t, address)

    def load(
        self, space: str, address: Array, size: int, count: int, mask: Array, full: bool, x: Instruction
    ) -> Sequence[Array]:
        """Return `count` unsigned values of `size` bytes for each thread, side by side in memory."""
        space, memory, index = self.resolve(space, address, size * count, mask, full, x)
        if self.counters is not None:
            self.counters.access(x, space, index, size * count, mask, False)
        if space == "shared":
            self.checks.read(index, size * count, mask, full, x)
        values = memory.view(UNSIGNED[size])
        if count == 1:
            return [values[index // size if size > 1 else index]]
        rows = values.reshape(-1, count)[index // (size * count)]
        return [rows[:, k] for k in range(count)]

    def store(
        self, space: str, address: Array, size: int, values: Sequence[Array], mask: Array, full: bool, x: Instruction
    ) -> None:
        """Store each thread's `values`, unsigned and of `size` bytes, side by side in memory."""
        width = size * len(values)
        space, memory, index = self.resolve(space, address, width, mask, full, x)
        if self.counters is not None:
            self.counters.access(x, space, index, width, mask, True)
        if space == "shared":
            self.checks.write(index, width, mask, full, x)
        held = memory.view(UNSIGNED[size])
        at = (index if full else index[mask]) // width
        if len(values) == 1:
            held[at] = values[0] if full else values[0][mask]
            return
        rows = held.reshape(-1, len(values))
        for k, value in enumerate(values):
            rows[at, k] = value if full else value[mask]
