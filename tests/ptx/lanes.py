"""Instructions between the lanes of a warp: shuffles, votes, reductions, matches."""

from __future__ import annotations

import numpy as np

from ptx.arithmetic import Step
from ptx.dtypes import Array
from ptx.parser import Instruction
from ptx.wave import Wave

LANE = np.arange(32)
BIT = np.uint64(1) << LANE.astype(np.uint64)
REDUCE = {"add": np.add, "min": np.minimum, "max": np.maximum}
REDUCE |= {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}
OPS = {"shfl", "vote", "redux", "match", "activemask", "elect"}


def decode(wave: Wave, x: Instruction) -> Step:
    """Return the function that runs an instruction between lanes."""
    op = x.parts[0]
    if op == "activemask":
        write = wave.write(x.operands[0], "b32", x)
        return lambda mask, full: write(np.repeat(_ballot(mask.reshape(-1, 32)), 32), mask, full)
    if "sync" not in x.parts:
        raise wave.unsupported(x)
    return {"shfl": _shfl, "vote": _vote, "redux": _redux, "match": _match, "elect": _elect}[op](wave, x)


def _ballot(rows: Array) -> Array:
    bits: Array = (rows * BIT).sum(1).astype(np.uint32)
    return bits


def _members(wave: Wave, members: Array, mask: Array, x: Instruction) -> None:
    """Refuse a collective that a lane of its member mask does not reach, or that a lane outside of the mask runs."""
    if mask.all() and (members == np.uint32(2**32 - 1)).all():
        return
    rows = mask.reshape(-1, 32)
    here = np.repeat(_ballot(rows), 32)
    missing = mask & ((members & ~here) != 0)
    if missing.any():
        t = int(np.argmax(missing))
        raise wave.error("divergence", f"lanes of the member mask {int(members[t]):#x} are not here", x, t)
    outside = mask & ((members >> np.tile(LANE, wave.warps).astype(np.uint32)) & np.uint32(1) == 0)
    if outside.any():
        raise wave.error("divergence", "a lane runs that the member mask does not name", x, int(np.argmax(outside)))


def _shfl(wave: Wave, x: Instruction) -> Step:
    mode = x.parts[2]
    targets = x.operands[0].split("|")
    value = wave.bits(x.operands[1], 4, x)
    amount, clamp, members = (wave.bits(operand, 4, x) for operand in x.operands[2:])
    write = wave.write(targets[0], "b32", x)
    valid = wave.write(targets[1], "pred", x) if len(targets) > 1 else None

    def step(mask: Array, full: bool) -> None:
        _members(wave, members, mask, x)
        by, limits = ((v & np.uint32(0x1FFF)).reshape(-1, 32).astype(np.int64) for v in (amount, clamp))
        by, segment, bound = by & 31, limits >> 8 & 31, limits & 31
        last, first = (LANE & segment) | (bound & ~segment), LANE & segment
        source = {"bfly": LANE ^ by, "down": LANE + by, "up": LANE - by}.get(mode, first | (by & ~segment))
        inside = source >= last if mode == "up" else source <= last
        source = np.where(inside, source, LANE)
        if not full and not np.take_along_axis(mask.reshape(-1, 32), source, 1)[mask.reshape(-1, 32)].all():
            raise wave.error("divergence", "a lane reads from one that is not here", x, int(np.argmax(mask)))
        moved = np.take_along_axis(value.reshape(-1, 32), source, 1).reshape(-1)
        write(moved, mask, full)
        if valid is not None:
            valid(inside.reshape(-1), mask, full)

    return step


def _vote(wave: Wave, x: Instruction) -> Step:
    mode = x.parts[2]
    value, members = wave.predicate(x.operands[1], x), wave.bits(x.operands[2], 4, x)
    write = wave.write(x.operands[0], "b32" if mode == "ballot" else "pred", x)

    def step(mask: Array, full: bool) -> None:
        _members(wave, members, mask, x)
        rows, votes = mask.reshape(-1, 32), value().reshape(-1, 32)
        result = {
            "ballot": lambda: _ballot(votes & rows),
            "any": lambda: (votes & rows).any(1),
            "all": lambda: (votes | ~rows).all(1),
            "uni": lambda: (votes | ~rows).all(1) | ~(votes & rows).any(1),
        }[mode]()
        write(np.repeat(result, 32), mask, full)

    return step


def _redux(wave: Wave, x: Instruction) -> Step:
    if x.type not in ("s32", "u32", "b32"):
        raise wave.unsupported(x)
    function = REDUCE[x.parts[2]]
    value, members = wave.read(x.operands[1], x.type, x), wave.bits(x.operands[2], 4, x)
    write = wave.write(x.operands[0], x.type, x)

    def step(mask: Array, full: bool) -> None:
        _members(wave, members, mask, x)
        wave.whole_warps(mask, x)
        result = function.reduce(value.reshape(-1, 32), axis=1).astype(value.dtype)
        write(np.repeat(result, 32), mask, full)

    return step


def _match(wave: Wave, x: Instruction) -> Step:
    if x.parts[1] != "any" or x.type != "b32":
        raise wave.unsupported(x)
    value, members = wave.bits(x.operands[1], 4, x), wave.bits(x.operands[2], 4, x)
    write = wave.write(x.operands[0], "b32", x)

    def step(mask: Array, full: bool) -> None:
        _members(wave, members, mask, x)
        rows, active = value.reshape(-1, 32), mask.reshape(-1, 32)
        same = (rows[:, :, None] == rows[:, None, :]) & active[:, None, :]
        write((same * BIT).sum(2).astype(np.uint32).reshape(-1), mask, full)

    return step


def _elect(wave: Wave, x: Instruction) -> Step:
    leader, chosen = x.operands[0].split("|")
    members = wave.bits(x.operands[1], 4, x)
    write, predicate = wave.write(leader, "b32", x), wave.write(chosen, "pred", x)

    def step(mask: Array, full: bool) -> None:
        _members(wave, members, mask, x)
        first = np.argmax(mask.reshape(-1, 32), 1)
        write(np.repeat(first.astype(np.uint32), 32), mask, full)
        predicate((first[:, None] == LANE).reshape(-1), mask, full)

    return step
