"""Loads, stores and atomic operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ptx.arithmetic import Step
from ptx.dtypes import NUMPY, SIZE, UNSIGNED, Array, from_half, to_half
from ptx.parser import Instruction, elements
from ptx.wave import Wave

SPACES = ("global", "shared", "local", "const", "param")
NO_EFFECT = {"membar", "fence", "prefetch", "prefetchu", "nanosleep", "discard", "applypriority", "griddepcontrol"}
OPS = {"ld", "ldu", "st", "atom", "red", "createpolicy", *NO_EFFECT}
ATOMIC: dict[str, Callable[[Any, Any], Any]] = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "exch": lambda old, new: new,
}


def decode(wave: Wave, x: Instruction) -> Step:
    """Return the function that runs a load, a store or an atomic operation."""
    op = x.parts[0]
    if op in NO_EFFECT:
        return lambda mask, full: None
    if op == "createpolicy":
        write = wave.write(x.operands[0], "b64", x)
        return lambda mask, full: write(np.zeros(wave.T, np.uint64), mask, full)
    if op in ("ld", "ldu"):
        return _param(wave, x) if space_of(x) == "param" else _load(wave, x)
    return _store(wave, x) if op == "st" else _atomic(wave, x)


def space_of(x: Instruction) -> str:
    """Return the state space that an instruction names, or `generic`."""
    return next((p.split("::")[0] for p in x.parts[1:] if p.split("::")[0] in SPACES), "generic")


def _param(wave: Wave, x: Instruction) -> Step:
    """Parameters, scalars and structs alike, are bytes that all threads see; by name they are known beforehand."""
    name, _, offset = x.operands[1][1:-1].replace(" ", "").partition("+")
    start = wave.program.parameter_offsets.get(name)
    if start is None:
        return _load(wave, x)
    size, targets = SIZE[x.type], elements(x.operands[0])
    at, width = int(offset or "0", 0), SIZE[x.type] * len(targets)
    held = next(p.size for p in wave.program.parameters if p.name == name)
    if at < 0 or at + width > held:
        raise wave.error("bounds", f"{width}-byte access outside of the {held} bytes of parameter {name}", x, 0, at)
    if at % width:
        raise wave.error("alignment", f"misaligned {width}-byte access to parameter {name}", x, 0, at)
    kind = x.type if x.type[0] == "s" else f"b{8 * size}"
    writes = [wave.write(target, kind, x) for target in targets]
    values = wave.parameters[start + at : start + at + width].view(UNSIGNED[size])
    constants = [wave.constant(int(value), size) for value in values]

    def step(mask: Array, full: bool) -> None:
        for write, constant in zip(writes, constants, strict=True):
            write(constant, mask, full)

    return step


def _load(wave: Wave, x: Instruction) -> Step:
    space, size = space_of(x), SIZE[x.type]
    kind = x.type if x.type[0] == "s" else f"b{8 * size}"
    address = wave.address(x.operands[1], x)
    if size == 16:
        raise wave.unsupported(x, "128-bit register")
    targets = elements(x.operands[0])
    writes = [wave.write(target, kind, x) for target in targets]

    def step(mask: Array, full: bool) -> None:
        values = wave.load(space, address(), size, len(writes), mask, full, x)
        for write, value in zip(writes, values, strict=True):
            write(value, mask, full)

    return step


def _store(wave: Wave, x: Instruction) -> Step:
    space, size = space_of(x), SIZE[x.type]
    address = wave.address(x.operands[0], x)
    if size == 16:
        raise wave.unsupported(x, "128-bit register")
    values = [wave.bits(source, size, x) for source in elements(x.operands[1])]
    return lambda mask, full: wave.store(space, address(), size, values, mask, full, x)


def _atomic(wave: Wave, x: Instruction) -> Step:
    """One thread after the other; floating-point sums in the order of the threads."""
    kind, size, reduction = x.type, SIZE[x.type], x.parts[0] == "red"
    name = next((p for p in x.parts[1:] if p in (*ATOMIC, "cas", "inc", "dec")), "")
    if name in ("inc", "dec", "") or any(p in ("v2", "v4", "v8") for p in x.parts) or kind.endswith("x2"):
        raise wave.unsupported(x)
    operands = x.operands if reduction else x.operands[1:]
    space, address = space_of(x), wave.address(operands[0], x)
    value = wave.read(operands[1], kind, x)
    new = wave.read(operands[2], kind, x) if name == "cas" else value
    write = None if reduction else wave.write(x.operands[0], f"b{8 * size}", x)

    def step(mask: Array, full: bool) -> None:
        where, memory, index = wave.resolve(space, address(), size, mask, full, x)
        if wave.counters is not None:
            wave.counters.access(x, where, index, size, mask, True)
        if where == "shared":
            wave.checks.atomic(index, size, mask, x)
        held = memory.view(NUMPY[kind])
        old = np.zeros(wave.T, held.dtype)
        for t in np.nonzero(mask)[0]:
            at = int(index[t]) // size
            old[t] = held[at]
            if name == "cas":
                held[at] = new[t] if held[at] == value[t] else held[at]
            elif kind in ("f16", "bf16"):
                pair = from_half(np.array([held[at], value[t]]).view(np.uint16), kind)
                held[at] = to_half(ATOMIC[name](pair[:1], pair[1:]), kind).view(held.dtype)[0]
            else:
                held[at] = ATOMIC[name](held[at], value[t])
        if write is not None:
            write(old.view(UNSIGNED[size]), mask, full)

    return step
