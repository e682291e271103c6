"""Moves, conversions and comparisons."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ptx.arithmetic import Step
from ptx.dtypes import NUMPY, SIZE, UNSIGNED, Array, from_half, is_float, to_half
from ptx.memory import WINDOWS
from ptx.parser import Instruction, elements
from ptx.wave import Wave

TO_WHOLE: dict[str, Callable[[Array], Array]] = {
    "rni": np.rint,
    "rzi": np.trunc,
    "rmi": np.floor,
    "rpi": np.ceil,
    "rn": np.rint,
    "rz": np.trunc,
    "rm": np.floor,
    "rp": np.ceil,
}
COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
}
NEGATED = {"equ": "ne", "neu": "eq", "ltu": "ge", "leu": "gt", "gtu": "le", "geu": "lt"}  # true where one is NaN
COMBINE = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}
OPS = {"mov", "cvt", "cvta", "setp", "selp", "testp"}


def decode(wave: Wave, x: Instruction) -> Step:
    """Return the function that runs a move, a conversion or a comparison."""
    return {"mov": _mov, "cvt": _cvt, "cvta": _cvta, "setp": _setp, "selp": _selp, "testp": _testp}.get(
        x.parts[0], _unknown
    )(wave, x)


def _unknown(wave: Wave, x: Instruction) -> Step:
    raise wave.unsupported(x)


def _mov(wave: Wave, x: Instruction) -> Step:
    into, source = x.operands
    size = SIZE[x.type]
    if into.startswith("{"):
        parts = elements(into)
        each = size // len(parts)
        held = wave.bits(source, size, x)
        writes = [wave.write(p, f"b{8 * each}", x) for p in parts]

        def unpack(mask: Array, full: bool) -> None:
            for k, write in enumerate(writes):
                write((held >> held.dtype.type(8 * each * k)).astype(UNSIGNED[each]), mask, full)

        return unpack
    if source.startswith("{"):
        parts = elements(source)
        each = size // len(parts)
        pieces = [wave.bits(p, each, x) for p in parts]
        write = wave.write(into, f"b{8 * size}", x)

        def pack(mask: Array, full: bool) -> None:
            whole = np.empty((wave.T, len(pieces)), UNSIGNED[each])
            for k, piece in enumerate(pieces):
                whole[:, k] = piece
            write(whole.view(UNSIGNED[size]).reshape(-1), mask, full)

        return pack
    if x.type == "pred":
        value, assign = wave.predicate(source, x), wave.write(into, "pred", x)
        return lambda mask, full: assign(value(), mask, full)
    kind = f"b{8 * size}"
    bits, put = wave.bits(source, size, x), wave.write(into, kind, x)
    return lambda mask, full: put(bits, mask, full)


def _cvta(wave: Wave, x: Instruction) -> Step:
    space = next(p.split("::")[0] for p in x.parts[1:] if p != "to")
    base = np.uint64(WINDOWS.get(space, 0))
    held = wave.bits(x.operands[1], SIZE[x.type], x)
    write = wave.write(x.operands[0], x.type, x)
    if "to" in x.parts:
        return lambda mask, full: write(held - base, mask, full)
    return lambda mask, full: write(held + base, mask, full)


def _cvt(wave: Wave, x: Instruction) -> Step:
    allowed = {"rn", "rz", "rm", "rp", "rni", "rzi", "rmi", "rpi", "rna", "ftz", "sat", "satfinite", "relu"}
    into, kind = x.parts[-2], x.parts[-1]
    modes = set(x.parts[1:-2])
    if modes - allowed or "satfinite" in modes or into not in SIZE or kind not in SIZE:
        raise wave.unsupported(x)
    if into in ("bf16x2", "f16x2"):
        return _cvt_pair(wave, x, into.removesuffix("x2"))
    if into == "tf32":
        return _cvt_tf32(wave, x)
    held = wave.read(x.operands[1], kind, x)
    write = wave.write(x.operands[0], into if into not in ("f16", "bf16") else "b16", x)
    whole = next((TO_WHOLE[m] for m in x.parts[1:-2] if m in TO_WHOLE), None)

    def step(mask: Array, full: bool) -> None:
        value = from_half(held, "bf16") if kind == "bf16" else held
        if is_float(into):
            if is_float(kind) and whole is not None and (modes & {"rni", "rzi", "rmi", "rpi"}):
                value = whole(value)
            if "sat" in modes:
                value = np.where(np.isnan(value), 0, np.clip(value, 0, 1)).astype(value.dtype)
            if "relu" in modes:
                value = np.maximum(value, value.dtype.type(0))
            if into in ("f16", "bf16"):
                if "rz" in modes:
                    raise wave.unsupported(x, "rounding mode")
                value = to_half(value, into)
            else:
                value = value.astype(NUMPY[into])
        elif is_float(kind):
            value = _to_integer((whole or np.rint)(value.astype(np.float64)), into)
        else:
            if "sat" in modes:
                limits = np.iinfo(NUMPY[into])
                value = np.clip(value, max(limits.min, np.iinfo(value.dtype).min), min(limits.max, _most(value)))
            value = value.astype(NUMPY[into])
        write(value, mask, full)

    return step


def _most(value: Array) -> int:
    return int(np.iinfo(value.dtype).max)


def _to_integer(value: Array, kind: str) -> Array:
    """Return whole numbers as integers that saturate; NaN is 0."""
    limits = np.iinfo(NUMPY[kind])
    value = np.where(np.isnan(value), 0, value)
    inside = np.clip(value, float(limits.min), float(limits.max))
    result = np.where(inside >= float(limits.max), 0, inside).astype(NUMPY[kind])
    return np.where(inside >= float(limits.max), NUMPY[kind](limits.max), result)


def _cvt_pair(wave: Wave, x: Instruction, half: str) -> Step:
    """cvt.rn.bf16x2.f32 d, high, low."""
    if x.type != "f32" or "rz" in x.parts or len(x.operands) != 3:
        raise wave.unsupported(x)
    high, low = (wave.read(operand, "f32", x) for operand in x.operands[1:])
    write, relu = wave.write(x.operands[0], "b32", x), "relu" in x.parts

    def step(mask: Array, full: bool) -> None:
        pair = np.stack([low, high], 1)
        if relu:
            pair = np.maximum(pair, np.float32(0))
        write(np.ascontiguousarray(to_half(pair, half)).view(np.uint32).reshape(-1), mask, full)

    return step


def _cvt_tf32(wave: Wave, x: Instruction) -> Step:
    """To ten bits of mantissa, to nearest, ties away from zero (rna) or to even (rn)."""
    held, write = wave.read(x.operands[1], "b32", x), wave.write(x.operands[0], "b32", x)

    def step(mask: Array, full: bool) -> None:
        odd = (held >> np.uint32(13)) & np.uint32(1)
        half = np.uint32(0x1000) if "rna" in x.parts else np.uint32(0xFFF) + odd
        write((held + half) & np.uint32(0xFFFFE000), mask, full)

    return step


def _comparison(wave: Wave, x: Instruction, how: str, kind: str, first: str, second: str) -> Callable[[], Array]:
    a, b = wave.read(first, kind, x), wave.read(second, kind, x)
    if kind in ("f16x2", "bf16x2"):
        raise wave.unsupported(x)

    def compare() -> Array:
        p, q = (from_half(a, kind), from_half(b, kind)) if kind == "bf16" else (a, b)
        if how in ("num", "nan"):
            unordered: Array = np.isnan(p) | np.isnan(q)
            return ~unordered if how == "num" else unordered
        if how in NEGATED:
            ordered = ~(np.isnan(p) | np.isnan(q))
            return ~(COMPARE[NEGATED[how]](p, q) & ordered)
        result: Array = COMPARE[how](p, q)
        if how == "ne" and is_float(kind):
            result = result & ~(np.isnan(p) | np.isnan(q))
        return result

    return compare


def _setp(wave: Wave, x: Instruction) -> Step:
    how, combine = x.parts[1], next((COMBINE[p] for p in x.parts[2:-1] if p in COMBINE), None)
    compare = _comparison(wave, x, how, x.type, x.operands[1], x.operands[2])
    targets = x.operands[0].split("|")
    write = wave.write(targets[0], "pred", x)
    other = wave.write(targets[1], "pred", x) if len(targets) > 1 else None
    joined = wave.predicate(x.operands[3], x) if combine else None

    def step(mask: Array, full: bool) -> None:
        result = compare()
        opposite = ~result
        if combine is not None and joined is not None:
            with_it = joined().copy()
            result, opposite = combine(result, with_it), combine(opposite, with_it)
        write(result, mask, full)
        if other is not None:
            other(opposite, mask, full)

    return step


def _selp(wave: Wave, x: Instruction) -> Step:
    kind = f"b{8 * SIZE[x.type]}"
    a, b = (wave.read(operand, kind, x) for operand in x.operands[1:3])
    chosen, write = wave.predicate(x.operands[3], x), wave.write(x.operands[0], kind, x)
    return lambda mask, full: write(np.where(chosen(), a, b), mask, full)


def _testp(wave: Wave, x: Instruction) -> Step:
    tests = {"finite": np.isfinite, "infinite": np.isinf, "notanumber": np.isnan, "number": lambda v: ~np.isnan(v)}
    if x.parts[1] not in tests:
        raise wave.unsupported(x)
    held, write = wave.read(x.operands[1], x.type, x), wave.write(x.operands[0], "pred", x)
    return lambda mask, full: write(tests[x.parts[1]](held), mask, full)
