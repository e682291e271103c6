"""Bits: logic, shifts, fields, permutations and counts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ptx.arithmetic import Step
from ptx.dtypes import NUMPY, SIZE, UNSIGNED, Array
from ptx.parser import Instruction, immediate
from ptx.wave import Wave

LOGIC = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}
OPS = {*LOGIC, *("not", "cnot", "shl", "shr", "shf", "bfe", "bfi", "lop3", "prmt", "popc", "clz", "brev", "bfind")}


def decode(wave: Wave, x: Instruction) -> Step:
    """Return the function that runs an instruction on bits."""
    op, kind = x.parts[0], x.type
    if kind == "pred":
        return _predicates(wave, x)
    many = {"bfe": _bfe, "bfi": _bfi, "lop3": _lop3, "prmt": _prmt, "shf": _shf, "shl": _shift, "shr": _shift}
    if op in many:
        return many[op](wave, x)
    values = [wave.read(operand, kind, x) for operand in x.operands[1:]]
    counts = op in ("popc", "clz", "bfind")
    write = wave.write(x.operands[0], "u32" if counts else kind, x)
    functions: dict[str, Callable[..., Array]] = {
        **LOGIC,
        "not": np.invert,
        "cnot": lambda a: (a == 0).astype(a.dtype),
        "popc": lambda a: np.bitwise_count(a).astype(np.uint32),
        "clz": lambda a: (8 * SIZE[kind] - _length(a)).astype(np.uint32),
        "bfind": lambda a: (_length(a).astype(np.int64) - 1).astype(np.uint32),
        "brev": _reversed,
    }
    if op == "bfind" and (kind[0] == "s" or "shiftamt" in x.parts):
        raise wave.unsupported(x)
    return lambda mask, full: write(functions[op](*values), mask, full)


def _predicates(wave: Wave, x: Instruction) -> Step:
    values = [wave.predicate(operand, x) for operand in x.operands[1:]]
    write = wave.write(x.operands[0], "pred", x)
    function = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor, "not": np.logical_not}[x.parts[0]]
    return lambda mask, full: write(function(*(v() for v in values)), mask, full)


def _length(values: Array) -> Array:
    """Return the number of bits up to the highest one that is set."""
    smeared = values.view(UNSIGNED[values.itemsize]).copy()
    for step in (1, 2, 4, 8, 16, 32):
        if step < 8 * values.itemsize:
            smeared |= smeared >> smeared.dtype.type(step)
    return np.bitwise_count(smeared)


def _reversed(values: Array) -> Array:
    rows = np.ascontiguousarray(values).view(np.uint8).reshape(len(values), -1)
    bits = np.unpackbits(rows, axis=1, bitorder="little")
    turned = np.packbits(bits[:, ::-1], axis=1, bitorder="little")
    back: Array = turned.view(values.dtype).reshape(-1)
    return back


def _shift(wave: Wave, x: Instruction) -> Step:
    """Shifts by more than the width give 0, or the sign."""
    kind, width = x.type, 8 * SIZE[x.type]
    value, amount = wave.read(x.operands[1], kind, x), wave.bits(x.operands[2], 4, x)
    write, left = wave.write(x.operands[0], kind, x), x.parts[0] == "shl"

    def step(mask: Array, full: bool) -> None:
        small = np.minimum(amount, width - 1).astype(value.dtype)
        shifted = value << small if left else value >> small
        far = amount >= width
        if far.any():
            shifted = np.where(far & (left or kind[0] != "s"), value.dtype.type(0), shifted)
        write(shifted, mask, full)

    return step


def _shf(wave: Wave, x: Instruction) -> Step:
    """Funnel shift of two registers."""
    low, high, amount = (wave.read(operand, "u32", x) for operand in x.operands[1:])
    write = wave.write(x.operands[0], "u32", x)

    def step(mask: Array, full: bool) -> None:
        by = (amount & np.uint32(31) if "wrap" in x.parts else np.minimum(amount, 32)).astype(np.uint64)
        both = low.astype(np.uint64) | high.astype(np.uint64) << np.uint64(32)
        result = both >> by if x.parts[1] == "r" else (both << by) >> np.uint64(32)
        write(result.astype(np.uint32), mask, full)

    return step


def _field(amount: Array, count: Array) -> tuple[Array, Array]:
    """Return a field's position and the mask of its low bits, as 64 bits."""
    position = (amount & np.uint32(255)).astype(np.uint64)
    length = np.minimum(count & np.uint32(255), 64).astype(np.uint64)
    ones = np.where(length >= 64, np.uint64(2**64 - 1), (np.uint64(1) << (length & np.uint64(63))) - np.uint64(1))
    return position, ones


def _bfe(wave: Wave, x: Instruction) -> Step:
    kind = x.type
    value = wave.read(x.operands[1], kind, x)
    position, length = (wave.bits(operand, 4, x) for operand in x.operands[2:])
    write = wave.write(x.operands[0], kind, x)

    def step(mask: Array, full: bool) -> None:
        at, ones = _field(position, length)
        wide = value.astype(np.int64) if kind[0] == "s" else value.astype(np.uint64)
        field = (wide >> np.minimum(at, 63).astype(wide.dtype)).astype(np.uint64) & ones
        if kind[0] == "s":
            top = field & (ones ^ (ones >> np.uint64(1)))
            field = np.where(top != 0, field | ~ones, field)
        write(field.astype(UNSIGNED[SIZE[kind]]).view(NUMPY[kind]), mask, full)

    return step


def _bfi(wave: Wave, x: Instruction) -> Step:
    kind = x.type
    field, base = (wave.read(operand, kind, x) for operand in x.operands[1:3])
    position, length = (wave.bits(operand, 4, x) for operand in x.operands[3:])
    write = wave.write(x.operands[0], kind, x)

    def step(mask: Array, full: bool) -> None:
        at, ones = _field(position, length)
        hole = ones << np.minimum(at, 63)
        result = (base.astype(np.uint64) & ~hole) | ((field.astype(np.uint64) << np.minimum(at, 63)) & hole)
        write(result.astype(UNSIGNED[SIZE[kind]]), mask, full)

    return step


def _lop3(wave: Wave, x: Instruction) -> Step:
    a, b, c = (wave.read(operand, "b32", x) for operand in x.operands[1:4])
    table, write = immediate(x.operands[4], 4), wave.write(x.operands[0], "b32", x)
    if table is None:
        raise wave.unsupported(x)

    def step(mask: Array, full: bool) -> None:
        result = np.zeros(wave.T, np.uint32)
        for k in range(8):
            if table >> k & 1:
                result |= (a if k & 4 else ~a) & (b if k & 2 else ~b) & (c if k & 1 else ~c)
        write(result, mask, full)

    return step


def _prmt(wave: Wave, x: Instruction) -> Step:
    """Picks four of the eight bytes of two registers; bit 3 of a selector spreads the byte's sign."""
    if len(x.parts) > 2:
        raise wave.unsupported(x, "mode")
    a, b, selector = (wave.read(operand, "b32", x) for operand in x.operands[1:4])
    write = wave.write(x.operands[0], "b32", x)

    def step(mask: Array, full: bool) -> None:
        source = np.stack([a, b], 1).view(np.uint8)
        picks = (selector[:, None] >> np.array([0, 4, 8, 12], np.uint32)) & np.uint32(15)
        chosen = np.take_along_axis(source, (picks & np.uint32(7)).astype(np.int64), 1)
        signs = np.where(chosen & 128, np.uint8(255), np.uint8(0))
        chosen = np.where(picks & np.uint32(8), signs, chosen)
        write(np.ascontiguousarray(chosen).view(np.uint32).reshape(-1), mask, full)

    return step
