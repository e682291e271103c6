"""Every family of instructions in the PTX runner, one instruction at a time, against Python's own arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from ptx import Kernel, PTXError
from ptx.dtypes import from_bf16, to_bf16
from ptx.snippet import evaluate, wrap

N = 64
EDGES = [0, 1, 2, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFFE, 0x00010000, 0x12345678, 0xDEADBEEF]


def words(seed: int, bits: int = 32) -> Any:
    """Return unsigned integers, edge cases first."""
    values = np.random.default_rng(seed).integers(0, 2**bits, N, np.uint64)
    values[: len(EDGES)] = np.roll(np.array(EDGES, np.uint64), seed) & np.uint64(2**bits - 1)
    return values.astype({16: np.uint16, 32: np.uint32, 64: np.uint64}[bits])


def floats(seed: int) -> Any:
    """Return fp32, with zeros, infinities and NaN."""
    values = (np.random.default_rng(seed).standard_normal(N) * 10).astype(np.float32)
    values[:6] = np.roll([0.0, -0.0, np.inf, -np.inf, np.nan, 1.0], seed)
    return values


def signed(value: int, bits: int = 32) -> int:
    """Return an unsigned integer's bits as two's complement."""
    value &= 2**bits - 1
    return value - 2**bits if value >> (bits - 1) else value


def prmt(a: int, b: int, selector: int) -> int:
    """Return the bytes that a selector picks."""
    bytes_of = (a | b << 32).to_bytes(8, "little")
    picked = [(bytes_of[s & 7], s & 8) for s in (selector >> 4 * k & 15 for k in range(4))]
    return int.from_bytes(bytes((255 if byte & 128 else 0) if sign else byte for byte, sign in picked), "little")


def bfe(value: int, position: int, length: int, sign: bool) -> int:
    """Return a field of bits as PTX defines it, bit by bit."""
    top = min(position + length - 1, 31)
    fill = (value >> top & 1) if sign and length else 0
    return sum((value >> position + i & 1 if i < length and position + i < 32 else fill) << i for i in range(32))


def trunc_div(a: int, b: int) -> int:
    """Return a quotient toward zero."""
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


INTEGER: dict[str, Callable[[int, int, int], int]] = {
    "add.s32 %d, %a, %b;": lambda a, b, c: a + b,
    "sub.u32 %d, %a, %b;": lambda a, b, c: a - b,
    "mul.lo.s32 %d, %a, %b;": lambda a, b, c: a * b,
    "mul.hi.u32 %d, %a, %b;": lambda a, b, c: a * b >> 32,
    "mul.hi.s32 %d, %a, %b;": lambda a, b, c: signed(a) * signed(b) >> 32,
    "mad.lo.u32 %d, %a, %b, %c;": lambda a, b, c: a * b + c,
    "mad.hi.u32 %d, %a, %b, %c;": lambda a, b, c: (a * b >> 32) + c,
    "min.s32 %d, %a, %b;": lambda a, b, c: min(signed(a), signed(b)),
    "max.u32 %d, %a, %b;": lambda a, b, c: max(a, b),
    "neg.s32 %d, %a;": lambda a, b, c: -a,
    "abs.s32 %d, %a;": lambda a, b, c: abs(signed(a)),
    "sad.u32 %d, %a, %b, %c;": lambda a, b, c: abs(a - b) + c,
    "and.b32 %d, %a, %b;": lambda a, b, c: a & b,
    "or.b32 %d, %a, %b;": lambda a, b, c: a | b,
    "xor.b32 %d, %a, %b;": lambda a, b, c: a ^ b,
    "not.b32 %d, %a;": lambda a, b, c: ~a,
    "shl.b32 %d, %a, 7;": lambda a, b, c: a << 7,
    "shl.b32 %d, %a, 32;": lambda a, b, c: 0,
    "shr.u32 %d, %a, 7;": lambda a, b, c: a >> 7,
    "shr.s32 %d, %a, 7;": lambda a, b, c: signed(a) >> 7,
    "shr.s32 %d, %a, 99;": lambda a, b, c: signed(a) >> 31,
    "shr.u32 %d, %a, %b;": lambda a, b, c: a >> b if b < 32 else 0,
    "shf.l.wrap.b32 %d, %a, %b, %c;": lambda a, b, c: ((b << 32 | a) << (c & 31)) >> 32,
    "shf.r.clamp.b32 %d, %a, %b, %c;": lambda a, b, c: (b << 32 | a) >> min(c, 32),
    "popc.b32 %d, %a;": lambda a, b, c: a.bit_count(),
    "clz.b32 %d, %a;": lambda a, b, c: 32 - a.bit_length(),
    "brev.b32 %d, %a;": lambda a, b, c: int(f"{a:032b}"[::-1], 2),
    "bfind.u32 %d, %a;": lambda a, b, c: a.bit_length() - 1,
    "prmt.b32 %d, %a, %b, 0x5410;": lambda a, b, c: prmt(a, b, 0x5410),
    "prmt.b32 %d, %a, %b, %c;": prmt,
    "lop3.b32 %d, %a, %b, %c, 0xE8;": lambda a, b, c: (a & b) | (a & c) | (b & c),
    "lop3.b32 %d, %a, %b, %c, 0x96;": lambda a, b, c: a ^ b ^ c,
    "bfe.u32 %d, %a, 5, 9;": lambda a, b, c: bfe(a, 5, 9, False),
    "bfe.s32 %d, %a, 5, 9;": lambda a, b, c: bfe(a, 5, 9, True),
    "bfe.s32 %d, %a, 27, 9;": lambda a, b, c: bfe(a, 27, 9, True),
    "bfi.b32 %d, %a, %b, 8, 12;": lambda a, b, c: (b & ~0xFFF00) | (a & 0xFFF) << 8,
    "mov.b32 {%h0, %h1}, %a; mov.b32 %d, {%h1, %h0};": lambda a, b, c: a >> 16 | a << 16,
    "selp.b32 %d, %a, %b, 1;": lambda a, b, c: a,
    "setp.lt.s32 %p0, %a, %b; selp.u32 %d, 1, 0, %p0;": lambda a, b, c: signed(a) < signed(b),
    "setp.hs.u32 %p0, %a, %b; selp.u32 %d, 1, 0, %p0;": lambda a, b, c: a >= b,
    "setp.eq.and.u32 %p0|%p1, %a, %a, 0; selp.u32 %d, 1, 0, %p1;": lambda a, b, c: 0,
    "setp.ne.b32 %p0, %a, %b; not.pred %p1, %p0; @%p1 mov.u32 %d, 5; @!%p1 mov.u32 %d, 6;": lambda a, b, c: (
        5 if a == b else 6
    ),
    "add.cc.u32 %r0, %a, %b; addc.u32 %d, %c, 0;": lambda a, b, c: c + (a + b >> 32),
    "cvt.u32.u8 %d, %a;": lambda a, b, c: a & 255,
    "cvt.s32.s8 %d, %a;": lambda a, b, c: signed(a, 8),
    "cvt.u16.u32 %h0, %a; cvt.s32.s16 %d, %h0;": lambda a, b, c: signed(a, 16),
    "cvt.sat.u8.s32 %d, %a;": lambda a, b, c: min(max(signed(a), 0), 255),
    "{ .reg .b32 %r0; mov.u32 %r0, 7; add.u32 %d, %a, %r0; }": lambda a, b, c: a + 7,
}


@pytest.mark.parametrize("code", INTEGER)
def test_integers(code: str) -> None:
    """32-bit integers, with wrap-around."""
    a, b, c = words(1), words(2), words(3)
    expected = [INTEGER[code](int(x), int(y), int(z)) & 0xFFFFFFFF for x, y, z in zip(a, b, c, strict=True)]
    assert evaluate(code, a, b, c, out=np.uint32).tolist() == expected


WIDE: dict[str, Callable[[int, int], int]] = {
    "add.s64 %d, %a, %b;": lambda a, b: a + b,
    "mul.lo.s64 %d, %a, %b;": lambda a, b: a * b,
    "mul.hi.u64 %d, %a, %b;": lambda a, b: a * b >> 64,
    "mul.hi.s64 %d, %a, %b;": lambda a, b: signed(a, 64) * signed(b, 64) >> 64,
    "shl.b64 %d, %a, 40;": lambda a, b: a << 40,
    "shr.s64 %d, %a, 40;": lambda a, b: signed(a, 64) >> 40,
    "or.b64 %d, %a, %b;": lambda a, b: a | b,
    "bfe.u64 %d, %a, 30, 20;": lambda a, b: a >> 30 & 0xFFFFF,
    "mov.b64 {%r0, %r1}, %a; mov.b64 %d, {%r1, %r0};": lambda a, b: a >> 32 | a << 32,
    "cvt.u32.u64 %r0, %a; cvt.u32.u64 %r1, %b; mul.wide.u32 %d, %r0, %r1;": lambda a, b: (
        (a & 0xFFFFFFFF) * (b & 0xFFFFFFFF)
    ),
    "cvt.u32.u64 %r0, %a; cvt.u32.u64 %r1, %b; mad.wide.s32 %d, %r0, %r1, %a;": lambda a, b: signed(a) * signed(b) + a,
    "cvt.u32.u64 %r0, %a; cvt.s64.s32 %d, %r0;": lambda a, b: signed(a),
    "or.b64 %rd1, %b, 1; div.s64 %d, %a, %rd1;": lambda a, b: trunc_div(signed(a, 64), signed(b | 1, 64)),
    "or.b64 %rd1, %b, 1; rem.s64 %d, %a, %rd1;": lambda a, b: (
        signed(a, 64) - signed(b | 1, 64) * trunc_div(signed(a, 64), signed(b | 1, 64))
    ),
    "or.b64 %rd1, %b, 1; div.u64 %d, %a, %rd1;": lambda a, b: a // (b | 1),
    "or.b64 %rd1, %b, 1; rem.u64 %d, %a, %rd1;": lambda a, b: a % (b | 1),
}


@pytest.mark.parametrize("code", WIDE)
def test_wide_integers(code: str) -> None:
    """64-bit integers: addresses and strides."""
    a, b = words(4, 64), words(5, 64)
    expected = [WIDE[code](int(x), int(y)) & (2**64 - 1) for x, y in zip(a, b, strict=True)]
    assert evaluate(code, a, b, out=np.uint64).tolist() == expected


FLOAT: dict[str, Callable[[Any, Any, Any], Any]] = {
    "add.f32 %d, %a, %b;": lambda a, b, c: a + b,
    "sub.rn.f32 %d, %a, %b;": lambda a, b, c: a - b,
    "mul.f32 %d, %a, 0f3FC00000;": lambda a, b, c: a * 1.5,
    "fma.rn.f32 %d, %a, %b, %c;": lambda a, b, c: (a.double() * b.double() + c.double()).float(),
    "max.f32 %d, %a, %b;": torch.fmax,
    "max.NaN.f32 %d, %a, %b;": lambda a, b, c: torch.maximum(a, b),
    "min.f32 %d, %a, %b;": torch.fmin,
    "neg.f32 %d, %a;": lambda a, b, c: -a,
    "abs.f32 %d, %a;": lambda a, b, c: a.abs(),
    "rcp.approx.ftz.f32 %d, %a;": lambda a, b, c: (1 / a.double()).float(),
    "rsqrt.approx.f32 %d, %a;": lambda a, b, c: a.double().rsqrt().float(),
    "sqrt.rn.f32 %d, %a;": lambda a, b, c: a.sqrt(),
    "ex2.approx.ftz.f32 %d, %a;": lambda a, b, c: a.double().exp2().float(),
    "lg2.approx.f32 %d, %a;": lambda a, b, c: a.double().log2().float(),
    "sin.approx.f32 %d, %a;": lambda a, b, c: a.double().sin().float(),
    "tanh.approx.f32 %d, %a;": lambda a, b, c: a.double().tanh().float(),
    "div.full.f32 %d, %a, %b;": lambda a, b, c: a / b,
    "copysign.f32 %d, %a, %b;": lambda a, b, c: torch.copysign(b, a),
    "add.sat.f32 %d, %a, %b;": lambda a, b, c: (a + b).clamp(0, 1).nan_to_num(0.0),
    "cvt.rni.f32.f32 %d, %a;": lambda a, b, c: a.round(),
    "cvt.rmi.f32.f32 %d, %a;": lambda a, b, c: a.floor(),
    "cvt.rzi.s32.f32 %r0, %a; cvt.rn.f32.s32 %d, %r0;": lambda a, b, c: (
        a.trunc().double().nan_to_num(0.0).clamp(-(2**31), 2**31 - 1).float()
    ),
    "cvt.rn.bf16.f32 %h0, %a; cvt.f32.bf16 %d, %h0;": lambda a, b, c: a.bfloat16().float(),
    "cvt.rn.f16.f32 %h0, %a; cvt.f32.f16 %d, %h0;": lambda a, b, c: a.half().float(),
    "cvt.rn.bf16x2.f32 %r0, %a, %b; mov.b32 {%h0, %h1}, %r0; mov.b32 %d, {0, %h1};": lambda a, b, c: (
        a.bfloat16().float()
    ),
    "cvt.rn.f16x2.f32 %r0, %a, %b; mov.b32 {%h0, %h1}, %r0; cvt.f32.f16 %d, %h0;": lambda a, b, c: b.half().float(),
    "cvt.f64.f32 %fd0, %a; mul.f64 %fd0, %fd0, %fd0; cvt.rn.f32.f64 %d, %fd0;": lambda a, b, c: (
        a.double().square().float()
    ),
    "cvt.rn.f16.f32 %h0, %a; cvt.rn.f16.f32 %h1, %b; mul.f16 %h0, %h0, %h1; cvt.f32.f16 %d, %h0;": lambda a, b, c: (
        a.half() * b.half()
    ).float(),
    "setp.lt.f32 %p0, %a, %b; selp.f32 %d, %a, %b, %p0;": lambda a, b, c: torch.where(a < b, a, b),
    "setp.geu.f32 %p0, %a, %b; selp.f32 %d, %a, %b, %p0;": lambda a, b, c: torch.where(~(a < b), a, b),
    "setp.neu.f32 %p0, %a, %b; selp.f32 %d, %a, %b, %p0;": lambda a, b, c: torch.where(a != b, a, b),
    "setp.ne.f32 %p0, %a, %a; selp.f32 %d, %a, %b, %p0;": lambda a, b, c: b,
    "setp.nan.f32 %p0, %a, %b; selp.f32 %d, 0f3F800000, 0f00000000, %p0;": lambda a, b, c: (
        a.isnan() | b.isnan()
    ).float(),
    "testp.infinite.f32 %p0, %a; selp.f32 %d, 0f3F800000, 0f00000000, %p0;": lambda a, b, c: a.isinf().float(),
}


@pytest.mark.parametrize("code", FLOAT)
def test_floats(code: str) -> None:
    """fp32 and its conversions, to the last bit where torch has the operation."""
    values = [torch.from_numpy(floats(seed)) for seed in (1, 2, 3)]
    function = FLOAT[code]
    expected = function(*values[:2]) if function in (torch.fmax, torch.fmin) else function(*values)
    seen = torch.from_numpy(evaluate(code, *(v.numpy() for v in values), out=np.float32))
    torch.testing.assert_close(seen, expected, rtol=2e-7, atol=0, equal_nan=True)


def test_packed_bf16() -> None:
    """fma on pairs of bf16 rounds once."""
    rng = np.random.default_rng(0)
    a, b, c = (to_bf16(rng.standard_normal(2 * N).astype(np.float32)) for _ in range(3))
    pairs = [v.view(np.uint32) for v in (a, b, c)]
    seen = evaluate("fma.rn.bf16x2 %d, %a, %b, %c;", *pairs, out=np.uint32).view(np.uint16)
    exact = from_bf16(a).astype(np.float64) * from_bf16(b) + from_bf16(c)
    assert (seen == to_bf16(exact.astype(np.float32))).all()


def test_tf32_rounds_to_ten_bits() -> None:
    """cvt.rna.tf32 leaves ten bits of mantissa."""
    seen = evaluate("cvt.rna.tf32.f32 %d, %a;", np.array([1 + 2.0**-11] * 32, np.float32), out=np.float32)
    assert (seen == 1 + 2.0**-10).all()


LANES: dict[str, Callable[[Any, Any], Any]] = {
    "shfl.sync.bfly.b32 %d, %a, 5, 31, -1;": lambda a, lane: a[lane ^ 5],
    "shfl.sync.down.b32 %d, %a, 4, 31, -1;": lambda a, lane: a[np.where(lane + 4 < 32, lane + 4, lane)],
    "shfl.sync.up.b32 %d, %a, 4, 0, -1;": lambda a, lane: a[np.where(lane >= 4, lane - 4, lane)],
    "shfl.sync.idx.b32 %d, %a, 9, 31, -1;": lambda a, lane: a[np.full(32, 9)],
    "shfl.sync.idx.b32 %d, %a, 1, 0x181f, -1;": lambda a, lane: a[lane // 8 * 8 + 1],
    "shfl.sync.bfly.b32 %d|%p0, %a, 2, 31, -1; @!%p0 mov.u32 %d, 0;": lambda a, lane: a[lane ^ 2],
    "redux.sync.add.u32 %d, %a, -1;": lambda a, lane: np.full(32, a.sum(dtype=np.uint32)),
    "redux.sync.max.s32 %d, %a, -1;": lambda a, lane: np.full(32, a.view(np.int32).max()).view(np.uint32),
    "setp.gt.s32 %p0, %a, 0; vote.sync.ballot.b32 %d, %p0, -1;": lambda a, lane: np.full(
        32, sum(1 << i for i in range(32) if a.view(np.int32)[i] > 0), np.uint32
    ),
    "setp.gt.s32 %p0, %a, 0; vote.sync.any.pred %p1, %p0, -1; selp.u32 %d, 1, 0, %p1;": lambda a, lane: np.ones(32),
    "setp.gt.s32 %p0, %a, 0; vote.sync.all.pred %p1, %p0, -1; selp.u32 %d, 1, 0, %p1;": lambda a, lane: np.zeros(32),
    "elect.sync %d|%p0, -1; selp.u32 %d, 1, 0, %p0;": lambda a, lane: lane == 0,
    "and.b32 %r0, %a, 1; match.any.sync.b32 %d, %r0, -1;": lambda a, lane: np.array(
        [sum(1 << j for j in range(32) if (a[j] ^ a[i]) & 1 == 0) for i in range(32)]
    ),
    "mov.u32 %d, %laneid;": lambda a, lane: lane,
    "mov.u32 %d, %lanemask_lt;": lambda a, lane: (1 << lane) - 1,
}


@pytest.mark.parametrize("code", LANES)
def test_lanes(code: str) -> None:
    """Shuffles, votes and reductions stay inside of a warp."""
    a = words(7)
    lane = np.arange(32)
    expected = np.concatenate([LANES[code](half, lane) for half in (a[:32], a[32:])]).astype(np.uint32)
    assert (evaluate(code, a, out=np.uint32) == expected).all()


def test_loops_and_divergence() -> None:
    """Each thread runs its own number of rounds, and all meet again."""
    code = """mov.u32 %r0, 0; mov.u32 %d, 0;
    LOOP: setp.ge.u32 %p0, %r0, %a; @%p0 bra DONE;
    add.u32 %d, %d, %r0; add.u32 %r0, %r0, 1; bra LOOP;
    DONE: shfl.sync.bfly.b32 %d, %d, 1, 31, -1;"""
    rounds = np.random.default_rng(0).integers(0, 20, N).astype(np.uint32)
    assert (evaluate(code, rounds, out=np.uint32) == (rounds * (rounds - 1) // 2)[np.arange(N) ^ 1]).all()


def test_jump_table() -> None:
    """brx.idx, which nvcc makes of a switch."""
    code = """TABLE: .branchtargets A, B, C;
    brx.idx %a, TABLE;
    A: mov.u32 %d, 10; bra END;
    B: mov.u32 %d, 20; bra END;
    C: mov.u32 %d, 30;
    END: add.u32 %d, %d, 1;"""
    cases = (np.arange(N) % 3).astype(np.uint32)
    assert (evaluate(code, cases, out=np.uint32) == cases * 10 + 11).all()


@pytest.mark.parametrize(("name", "expected"), [("add", 64), ("max", 63), ("or", 63)])
def test_atomics(name: str, expected: int) -> None:
    """red on one word: every thread counts; atom returns what stood there."""
    operand = "1" if name == "add" else "%tid"
    total = np.zeros(1, np.uint32)
    Kernel(wrap(f"red.global.{name}.u32 [%rd0], {operand};")).launch((1,), (64,), [total])
    assert total[0] == expected


def test_atomic_order() -> None:
    """atom.add hands out every number once."""
    body = """atom.global.add.u32 %r0, [%rd0], 1; mad.wide.u32 %rd2, %r0, 4, %rd1;
    st.global.u32 [%rd2], %tid;"""
    counter, seen = np.zeros(1, np.uint32), np.full(64, 99, np.uint32)
    Kernel(wrap(body, 2)).launch((2,), (32,), [counter, seen])
    assert sorted(seen.tolist()) == sorted([*range(32)] * 2)


def test_vector_accesses() -> None:
    """v4 loads and stores, sign extension into wider registers, and negative offsets."""
    body = """mad.lo.u64 %rd2, %tid64, 16, %rd0; add.u64 %rd2, %rd2, 16;
    ld.global.v4.u32 {%r0, %r1, %r2, %r3}, [%rd2+-16];
    ld.global.s8 %r4, [%rd2+-16]; add.s32 %r3, %r3, %r4;
    mad.lo.u64 %rd3, %tid64, 16, %rd1; st.global.v4.b32 [%rd3], {%r3, %r2, %r1, %r0};"""
    a = np.arange(128, dtype=np.int32) - 5
    out = np.zeros(128, np.int32)
    Kernel(wrap(body, 2)).launch((1,), (32,), [a, out])
    rows = a.reshape(32, 4).copy()
    rows[:, 3] += rows[:, 0]
    assert (out.reshape(32, 4) == rows[:, ::-1]).all()


def test_what_is_unknown_fails_only_where_it_is_reached() -> None:
    """A cold path may hold instructions that the runner does not know; the error names them."""
    cold = "bra END; frobnicate.u32 %r0, %r1; END: mov.u32 %r0, 1;"
    Kernel(wrap(cold)).launch((1,), (32,), [np.zeros(1)])
    with pytest.raises(PTXError, match=r"snippet: unsupported instruction, line \d+: `frobnicate") as caught:
        Kernel(wrap("frobnicate.u32 %r0, %r1;")).launch((1,), (32,), [np.zeros(1)])
    assert caught.value.kind == "unsupported"


@pytest.mark.parametrize(
    "code", ["add.rz.f32 %f0, %f1, %f2;", "cvt.rz.f16.f32 %h0, %f0;", "mul24.lo.s32 %r0, %r1, %r2;"]
)
def test_an_unknown_modifier_is_never_ignored(code: str) -> None:
    """What would be computed differently is refused."""
    with pytest.raises(PTXError, match="unsupported"):
        Kernel(wrap(code)).launch((1,), (32,), [np.zeros(1)])
