"""mma.sync on the tensor cores, and the loads and stores of its fragments: ldmatrix, stmatrix."""

from __future__ import annotations

import functools
import re

import numpy as np

from ptx.arithmetic import Step
from ptx.dtypes import Array, from_half
from ptx.parser import Instruction, elements
from ptx.wave import Wave

OPS = {"mma", "ldmatrix", "stmatrix"}


def decode(wave: Wave, x: Instruction) -> Step:
    """Return the function that runs an instruction of the tensor cores."""
    return {"mma": _mma, "ldmatrix": _ldmatrix, "stmatrix": _stmatrix}[x.parts[0]](wave, x)


def _stacked(values: list[Array]) -> Array:
    """Return registers as [warps, 32, registers]."""
    return np.stack([v.reshape(-1, 32) for v in values], axis=2)


@functools.cache
def _positions(depth: int, width: int) -> tuple[Array, Array]:
    """Return where the elements of the fragments of A [16, depth] and B [depth, 8] lie, as indices into a warp's
    elements [lane, register, element]; `width` elements stand in one register."""
    lane = np.arange(32)[:, None, None]
    element = np.arange(width)[None, None, :]
    group, member = lane // 4, lane % 4

    def inverse(row: Array, column: Array, registers: int, columns: int) -> Array:
        at = np.zeros(32 * registers * width, np.int64)
        flat = np.broadcast_to(row * columns + column, (32, registers, width)).reshape(-1)
        at[flat] = np.arange(flat.size)
        return at

    half = 4 * width
    registers_a, registers_b = depth * 16 // 32 // width, depth * 8 // 32 // width
    ra = np.arange(registers_a)[None, :, None]
    rb = np.arange(registers_b)[None, :, None]
    a = inverse(group + 8 * (ra & 1), width * member + element + half * (ra >> 1), registers_a, depth)
    b = inverse(width * member + element + half * rb, group, registers_b, 8)
    return a, b


def _mma(wave: Wave, x: Instruction) -> Step:
    shape = next(p for p in x.parts if re.fullmatch(r"m\d+n\d+k\d+", p))
    into, kind, other, added = x.parts[-4:]
    depth = int(shape.rpartition("k")[2])
    known = {("m16n8k16", "bf16"), ("m16n8k16", "f16"), ("m16n8k8", "bf16"), ("m16n8k8", "f16")}
    known |= {("m16n8k8", "tf32"), ("m16n8k4", "tf32")}
    if (shape, kind) not in known or other != kind or into != "f32" or added != "f32" or "row.col" not in x.op:
        raise wave.unsupported(x)
    tf32 = kind == "tf32"
    d, a, b, c = (elements(operand) for operand in x.operands[:4])
    pa, pb = _positions(depth, 1 if tf32 else 2)
    lane = np.arange(32)[:, None]
    place = (lane // 4 + 8 * (np.arange(4) >> 1)) * 8 + 2 * (lane % 4) + (np.arange(4) & 1)  # [lane, register] of C
    back = np.zeros(128, np.int64)
    back[place.reshape(-1)] = np.arange(128)
    va, vb = ([wave.bits(r, 4, x) for r in registers] for registers in (a, b))
    vc = [wave.read(r, "f32", x) for r in c]
    writes = [wave.write(r, "f32", x) for r in d]

    def fragment(values: list[Array], at: Array, columns: int) -> Array:
        bits = _stacked(values)
        whole = (bits & np.uint32(4294959104)).view(np.float32) if tf32 else from_half(bits.view(np.uint16), kind)
        return whole.reshape(len(bits), -1)[:, at].reshape(len(bits), -1, columns)

    def step(mask: Array, full: bool) -> None:
        wave.whole_warps(mask, x)
        sums = _stacked(vc).reshape(-1, 128)[:, back].reshape(-1, 16, 8)
        result = np.matmul(fragment(va, pa, depth), fragment(vb, pb, 8)) + sums
        lanes = result.reshape(-1, 128)[:, place]  # [warps, lane, register]
        for k, write in enumerate(writes):
            write(lanes[:, :, k].reshape(-1), mask, full)

    return step


def _matrices(wave: Wave, x: Instruction) -> tuple[int, bool]:
    """Return how many 8 x 8 matrices of 16-bit values an instruction moves, and whether transposed."""
    count = next((int(p[1]) for p in x.parts if p in ("x1", "x2", "x4")), 0)
    if "m8n8" not in x.parts or x.type != "b16" or not count:
        raise wave.unsupported(x)
    return count, "trans" in x.parts


def _ldmatrix(wave: Wave, x: Instruction) -> Step:
    count, transposed = _matrices(wave, x)
    address = wave.address(x.operands[1], x)
    writes = [wave.write(r, "b32", x) for r in elements(x.operands[0])]
    gives = wave.thread % 32 < 8 * count  # the lanes whose addresses are used

    def step(mask: Array, full: bool) -> None:
        wave.whole_warps(mask, x)
        need = mask & gives
        words = wave.load("shared", address(), 4, 4, need, bool(need.all()), x)
        rows = np.stack(words, axis=1).view(np.uint16).reshape(-1, 4, 8, 8)  # [warp, matrix, row, column]
        if transposed:
            rows = rows.transpose(0, 1, 3, 2)
        pairs = np.ascontiguousarray(rows).reshape(-1, 4, 64).view(np.uint32)
        for k, write in enumerate(writes):
            write(pairs[:, k].reshape(-1), mask, full)

    return step


def _stmatrix(wave: Wave, x: Instruction) -> Step:
    count, transposed = _matrices(wave, x)
    address = wave.address(x.operands[0], x)
    values = [wave.bits(r, 4, x) for r in elements(x.operands[1])]
    gives = wave.thread % 32 < 8 * count

    def step(mask: Array, full: bool) -> None:
        wave.whole_warps(mask, x)
        rows = np.zeros((wave.warps, 4, 8, 8), np.uint16)
        for k, value in enumerate(values):
            matrix = np.ascontiguousarray(value).view(np.uint16).reshape(-1, 8, 8)
            rows[:, k] = matrix.transpose(0, 2, 1) if transposed else matrix
        words = rows.reshape(-1, 8).view(np.uint32)
        need = mask & gives
        wave.store("shared", address(), 4, [words[:, k] for k in range(4)], need, bool(need.all()), x)

    return step
