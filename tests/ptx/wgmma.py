"""wgmma (sm_90a): D[64, N] += A[64, 16] B[16, N] by a group of four warps, operands by shared-memory descriptors.

Products are computed at issue: a missing wgmma fence or wait is not seen.
Layouts: PTX ISA, "Asynchronous warpgroup-level matrix shared memory layout".
"""

from __future__ import annotations

import re

import numpy as np

from ptx.arithmetic import Step
from ptx.dtypes import Array, from_half
from ptx.parser import Instruction, elements, immediate
from ptx.wave import Wave

SPAN = {0: 16, 1: 128, 2: 64, 3: 32}  # bytes of a row in a swizzle mode
SWIZZLE = {1: 7, 2: 3, 3: 1}
LANE = np.arange(128)
ROW = 16 * (LANE // 32) + LANE % 32 // 4  # of a thread in the accumulator's first half
OPS = {"wgmma"}


def decode(wave: Wave, x: Instruction) -> Step:
    """Return the function that runs a wgmma instruction."""
    if x.parts[1] in ("fence", "commit_group", "wait_group"):
        return lambda mask, full: _whole_groups(wave, mask, x)
    return _mma_async(wave, x)


def _whole_groups(wave: Wave, mask: Array, x: Instruction) -> None:
    if wave.threads % 128:
        raise wave.error("launch", f"wgmma in blocks of {wave.threads} threads, no multiple of 128", x)
    rows = mask.reshape(-1, 128)
    torn = rows.any(1) & ~rows.all(1)
    if torn.any():
        group = int(np.argmax(torn))
        missing = 128 * group + int(np.argmin(rows[group]))
        raise wave.error("divergence", "wgmma is reached by part of a warp group", x, missing)


def _tile_addresses(descriptor: int, rows: int, major_k: bool) -> Array:
    """Return the byte addresses [rows, 16] of a tile of 16-bit values in shared memory."""
    start, leading, stride = ((descriptor >> shift & 0x3FFF) << 4 for shift in (0, 16, 32))
    mode = descriptor >> 62 & 3
    row, k = np.meshgrid(np.arange(rows), np.arange(16), indexing="ij")
    span = SPAN[mode]
    across, along = (2 * k, row) if major_k else (2 * row, k)  # across: bytes inside a row of memory
    address = start + along // 8 * stride + along % 8 * span + across // span * leading + across % span
    if mode:
        address = address ^ ((address >> 7 & SWIZZLE[mode]) << 4)
    found: Array = address
    return found


def _mma_async(wave: Wave, x: Instruction) -> Step:
    shape = next((p for p in x.parts if re.fullmatch(r"m64n\d+k16", p)), None)
    into, kind, other = x.parts[-3:]
    if shape is None or kind not in ("bf16", "f16") or other != kind or into != "f32":
        raise wave.unsupported(x)
    columns = int(shape[4:-3])
    d, scales = elements(x.operands[0]), x.operands[3:]
    from_registers = x.operands[1].startswith("{")
    keep = wave.predicate(scales[0], x)
    sign_a, sign_b = (_immediate(scales, i, 1) for i in (1, 2))
    turned_a = 0 if from_registers else _immediate(scales, 3, 0)
    turned_b = _immediate(scales, 3 if from_registers else 4, 0)
    a = [wave.bits(r, 4 if from_registers else 8, x) for r in elements(x.operands[1])]
    b = wave.bits(x.operands[2], 8, x)
    sums = [wave.read(r, "f32", x) for r in d]
    writes = [wave.write(r, "f32", x) for r in d]
    register = np.arange(len(d))
    row = ROW[:, None] + 8 * (register >> 1 & 1)
    column = 8 * (register >> 2) + 2 * (LANE[:, None] % 4) + (register & 1)

    def tile(descriptors: Array, group: int, rows: int, turned: int) -> Array:
        if (descriptors != descriptors[0]).any():
            raise wave.error("divergence", "a descriptor differs between threads", x, 128 * group)
        address = _tile_addresses(int(descriptors[0]), rows, not turned)
        return from_half(_read_shared(wave, address, group, x), kind)

    def step(mask: Array, full: bool) -> None:
        _whole_groups(wave, mask, x)
        kept = keep()
        result = np.stack([v.reshape(-1, 128) for v in sums], axis=2)  # [group, thread, register]
        for group in np.nonzero(mask.reshape(-1, 128)[:, 0])[0]:
            threads = slice(128 * group, 128 * group + 128)
            if from_registers:
                left = _register_tile([v[threads] for v in a], kind)
            else:
                left = tile(a[0][threads], group, 64, turned_a)
            right = tile(b[threads], group, columns, turned_b)
            product = (sign_a * left) @ (sign_b * right).T
            lanes = product[row, column]
            result[group] = lanes + result[group] if kept[128 * group] else lanes
        for k, write in enumerate(writes):
            write(result[:, :, k].reshape(-1), mask, full)

    return step


def _immediate(operands: tuple[str, ...], at: int, otherwise: int) -> int:
    """Return the value of an optional immediate operand; -1 is a negation."""
    if at >= len(operands):
        return otherwise
    value = immediate(operands[at], 4)
    assert value is not None, operands
    return value - 2**32 if value >= 2**31 else value


def _register_tile(values: list[Array], kind: str) -> Array:
    """Return A [64, 16] from a group's four registers of pairs."""
    tile = np.zeros((64, 16), np.float32)
    for k, value in enumerate(values):
        pair = from_half(np.ascontiguousarray(value).view(np.uint16), kind).reshape(128, 2)
        for e in (0, 1):
            tile[ROW + 8 * (k & 1), 2 * (LANE % 4) + e + 8 * (k >> 1)] = pair[:, e]
    return tile


def _read_shared(wave: Wave, address: Array, group: int, x: Instruction) -> Array:
    """Return 16-bit values at byte addresses of the shared memory of a warp group's block, with the usual checks."""
    first = 128 * group
    if address.min() < 0 or address.max() + 2 > wave.shared_limit:
        message = f"wgmma reads outside of the {wave.shared_limit} bytes of shared memory"
        raise wave.error("bounds", message, x, first, int(address.max()))
    index = address + wave.shared_offset[first]
    wave.checks.read_by(first, index, x)
    values: Array = wave.shared.view(np.uint16)[index // 2]
    return values
