"""Arithmetic: fp32, fp64, fp16, bf16 and integers. Approximate instructions are computed exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ptx.dtypes import NUMPY, SIZE, UNSIGNED, Array, from_half, halves, is_float, to_half
from ptx.parser import Instruction
from ptx.wave import Wave

Step = Callable[[Array, bool], None]
Function = Callable[..., Any]

MODIFIERS = {"rn", "rz", "rm", "rp", "ftz", "approx", "full", "sat", "NaN", "relu", "lo", "hi", "wide", "cc"}
BINARY = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}
UNARY: dict[str, Function] = {
    "neg": np.negative,
    "abs": np.abs,
    "ex2": np.exp2,
    "lg2": np.log2,
    "rcp": lambda a: 1 / a,
    "sqrt": np.sqrt,
    "rsqrt": lambda a: 1 / np.sqrt(a),
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
}
VIA_DOUBLE = {"ex2", "lg2", "rcp", "rsqrt", "sin", "cos", "tanh", "fma", "mad"}  # rounded once to fp32
BINARY_OPS = ("add", "sub", "mul", "div", "rem", "min", "max", "copysign", "sad", "mul24", "addc", "subc")
OPS = {*BINARY_OPS, "fma", "mad", "mad24", *UNARY}


def decode(wave: Wave, x: Instruction) -> Step:
    """Return the function that runs an arithmetic instruction."""
    if unknown := [p for p in x.parts[1:-1] if p not in MODIFIERS]:
        raise wave.unsupported(x, f"modifier {unknown[0]}")
    kind = x.type
    if kind in ("f16", "bf16", "f16x2", "bf16x2"):
        return _half(wave, x, kind)
    return _float(wave, x, kind) if is_float(kind) else _integer(wave, x, kind)


def _float_function(wave: Wave, x: Instruction, op: str) -> Function:
    """Return the function of an op on floating-point values, without its rounding mode."""
    if op in ("min", "max"):
        loud = "NaN" in x.parts
        pair = (np.minimum, np.fmin) if op == "min" else (np.maximum, np.fmax)
        return lambda *values: _fold(pair[0] if loud else pair[1], values)
    if op == "copysign":
        return lambda a, b: np.copysign(b, a)
    if op in ("fma", "mad"):
        return lambda a, b, c: a * b + c
    found = BINARY.get(op) or UNARY.get(op)
    if found is None:
        raise wave.unsupported(x)
    return found


def _fold(function: Function, values: tuple[Array, ...]) -> Array:
    result = values[0]
    for value in values[1:]:
        result = function(result, value)
    return result


def _float(wave: Wave, x: Instruction, kind: str) -> Step:
    op = x.parts[0]
    if {"rz", "rm", "rp"} & set(x.parts):
        raise wave.unsupported(x, "rounding mode")
    function = _float_function(wave, x, op)
    values = [wave.read(operand, kind, x) for operand in x.operands[1:]]
    write, saturate = wave.write(x.operands[0], kind, x), "sat" in x.parts
    double = kind == "f32" and op in VIA_DOUBLE

    def step(mask: Array, full: bool) -> None:
        result = function(*(v.astype(np.float64) for v in values)).astype(np.float32) if double else function(*values)
        if saturate:
            result = np.where(np.isnan(result), 0, np.clip(result, 0, 1)).astype(result.dtype)
        write(result, mask, full)

    return step


def _half(wave: Wave, x: Instruction, kind: str) -> Step:
    """16-bit floats, alone or in pairs: computed wider, rounded once."""
    op, base, packed = x.parts[0], kind.removesuffix("x2"), kind.endswith("x2")
    function = _float_function(wave, x, op)
    values = [wave.read(operand, f"b{8 * SIZE[kind]}", x) for operand in x.operands[1:]]
    write = wave.write(x.operands[0], f"b{8 * SIZE[kind]}", x)
    relu, saturate = "relu" in x.parts, "sat" in x.parts

    def step(mask: Array, full: bool) -> None:
        wide = [(halves(v, base) if packed else from_half(v, base)).astype(np.float64) for v in values]
        result = function(*wide)
        if relu:
            result = np.where(np.isnan(result), result, np.maximum(result, 0))
        if saturate:
            result = np.where(np.isnan(result), 0, np.clip(result, 0, 1))
        bits = np.ascontiguousarray(to_half(result, base))
        write(bits.view(np.uint32).reshape(-1) if packed else bits, mask, full)

    return step


def _integer(wave: Wave, x: Instruction, kind: str) -> Step:
    op, parts = x.parts[0], x.parts
    if op in ("addc", "subc") or "cc" in parts:
        return _carry(wave, x, kind)
    if op in ("mul", "mad", "mul24", "mad24"):
        return _product(wave, x, kind)
    if op in ("div", "rem"):
        return _division(wave, x, kind)
    functions: dict[str, Function] = {
        "add": np.add,
        "sub": np.subtract,
        "neg": np.negative,
        "abs": np.abs,
        "min": lambda *v: _fold(np.minimum, v),
        "max": lambda *v: _fold(np.maximum, v),
        "sad": lambda a, b, c: np.maximum(a, b) - np.minimum(a, b) + c,
    }
    function = functions.get(op)
    if function is None or ("sat" in parts or "relu" in parts):
        raise wave.unsupported(x)
    values = [wave.read(operand, kind, x) for operand in x.operands[1:]]
    write = wave.write(x.operands[0], kind, x)
    return lambda mask, full: write(function(*values), mask, full)


def _high(a: Array, b: Array, kind: str) -> Array:
    """Return the high half of integer products."""
    if SIZE[kind] < 8:
        wide = a.astype(np.int64) * b.astype(np.int64) if kind[0] == "s" else a.astype(np.uint64) * b.astype(np.uint64)
        high: Array = (wide >> wide.dtype.type(8 * SIZE[kind])).astype(a.dtype)
        return high
    low32, shift = np.uint64(2**32 - 1), np.uint64(32)
    p, q = a.view(np.uint64), b.view(np.uint64)
    pl, ph, ql, qh = p & low32, p >> shift, q & low32, q >> shift
    middle = ph * ql + (pl * ql >> shift)
    other = pl * qh + (middle & low32)
    result = ph * qh + (middle >> shift) + (other >> shift)
    if kind[0] == "s":
        result = result - np.where(a < 0, q, np.uint64(0)) - np.where(b < 0, p, np.uint64(0))
    signed: Array = result.view(a.dtype)
    return signed


def _product(wave: Wave, x: Instruction, kind: str) -> Step:
    parts, size = x.parts, SIZE[kind]
    a, b = (wave.read(operand, kind, x) for operand in x.operands[1:3])
    out = f"{kind[0]}{16 * size}" if "wide" in parts else kind
    addend = wave.read(x.operands[3], out, x) if parts[0].startswith("mad") else None
    write = wave.write(x.operands[0], out, x)
    if parts[0].endswith("24"):
        raise wave.unsupported(x)

    def step(mask: Array, full: bool) -> None:
        if "wide" in parts:
            product = a.astype(NUMPY[out]) * b.astype(NUMPY[out])
        else:
            product = _high(np.ascontiguousarray(a), np.ascontiguousarray(b), kind) if "hi" in parts else a * b
        write(product if addend is None else product + addend, mask, full)

    return step


def _division(wave: Wave, x: Instruction, kind: str) -> Step:
    """Division toward zero."""
    op = x.parts[0]
    a, b = (wave.read(operand, kind, x) for operand in x.operands[1:])
    write = wave.write(x.operands[0], kind, x)

    def step(mask: Array, full: bool) -> None:
        zero = (b == 0) & mask
        if zero.any():
            raise wave.error("arithmetic", "integer division by zero", x, int(np.argmax(zero)))
        divisor = np.where(b == 0, b.dtype.type(1), b)
        rest = np.fmod(a, divisor)
        write(rest if op == "rem" else (a - rest) // divisor, mask, full)

    return step


def _carry(wave: Wave, x: Instruction, kind: str) -> Step:
    """add.cc, addc, sub.cc, subc, mad.cc are rare: sums of numbers wider than a register."""
    op, size = x.parts[0], SIZE[kind]
    if op not in ("add", "addc", "sub", "subc") or size > 4:
        raise wave.unsupported(x)
    a, b = (wave.read(operand, f"u{8 * size}", x) for operand in x.operands[1:3])
    write = wave.write(x.operands[0], f"u{8 * size}", x)

    def step(mask: Array, full: bool) -> None:
        carry = wave.carry.astype(np.int64) if op.endswith("c") else np.int64(0)
        sign = 1 if op.startswith("add") else -1
        wide = a.astype(np.int64) + sign * (b.astype(np.int64) + carry)
        if "cc" in x.parts:
            np.copyto(wave.carry, (wide < 0) | (wide >> (8 * size) != 0), where=mask)
        write((wide & (2 ** (8 * size) - 1)).astype(UNSIGNED[size]), mask, full)

    return step
