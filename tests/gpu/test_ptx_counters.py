"""The counts of the PTX runner: bank conflicts, sectors, bytes by width, instructions."""

from __future__ import annotations

import numpy as np
import pytest
from ptx import Kernel
from ptx.counters import Counters
from ptx.snippet import wrap

SHARED = ".extern .shared .align 16 .b8 room[];"


def counted(body: str, threads: int = 32, grid: int = 1) -> Counters:
    """Run a snippet on a buffer of 64 KiB and return its counters."""
    kernel = Kernel(wrap(body, 1, SHARED))
    kernel.prof = {}
    kernel.launch((grid,), (threads,), [np.zeros(16384, np.uint32)], smem=32768)
    return kernel.counters


@pytest.mark.parametrize(
    ("stride", "size", "wavefronts", "fewest"),
    [
        *[(4, 4, 1, 1), (8, 4, 2, 1), (128, 4, 32, 1), (132, 4, 1, 1), (0, 4, 1, 1), (2, 2, 1, 1)],
        *[(16, 16, 4, 4), (128, 16, 32, 4), (144, 16, 4, 4), (8, 8, 2, 2), (16, 8, 4, 2), (32, 16, 8, 4)],
    ],
)
def test_bank_conflicts(stride: int, size: int, wavefronts: int, fewest: int) -> None:
    """Threads at a stride: 32 banks of 4 bytes; 8 and 16 bytes go by half and quarter warps; equal words are one."""
    values = {2: "u16 [%r1], %h0", 4: "u32 [%r1], %r2", 8: "v2.u32 [%r1], {%r2, %r2}"}
    values[16] = "v4.u32 [%r1], {%r2, %r2, %r2, %r2}"
    counters = counted(f"mov.u32 %r0, room; mad.lo.u32 %r1, %tid, {stride}, %r0; st.shared.{values[size]};")
    (access,) = counters.accesses.values()
    assert (access.actual, access.ideal) == (wavefronts, fewest)
    assert counters.conflict_ratio() == wavefronts / fewest


@pytest.mark.parametrize(
    ("stride", "kind", "sectors", "fewest"),
    [
        *[(4, "u32", 4, 4), (8, "u32", 8, 4), (32, "u32", 32, 4), (0, "u32", 1, 1), (2, "u16", 2, 2)],
        *[(4, "u16", 4, 2), (16, "v4.u32", 16, 16), (64, "v4.u32", 32, 16), (8, "v2.u32", 8, 8)],
    ],
)
def test_coalescing(stride: int, kind: str, sectors: int, fewest: int) -> None:
    """Threads at a stride: sectors of 32 bytes against the fewest that hold the bytes asked for."""
    into = {"u16": "%h0", "u32": "%r0", "v2.u32": "{%r0, %r1}", "v4.u32": "{%r0, %r1, %r2, %r3}"}[kind]
    counters = counted(f"mad.wide.u32 %rd1, %tid, {stride}, %rd0; ld.global.{kind} {into}, [%rd1];")
    (access,) = counters.accesses.values()
    assert (access.actual, access.ideal) == (sectors, fewest)
    assert counters.coalescing_ratio() == sectors / fewest


def test_a_row_that_starts_inside_a_sector() -> None:
    """Misplaced rows cost a sector more."""
    assert counted("mad.wide.u32 %rd1, %tid, 4, %rd0; ld.global.u32 %r0, [%rd1+16];").coalescing_ratio() == 5 / 4


def test_bytes_by_width() -> None:
    """Bytes of loads and stores, of the threads that ran, and the share of 128-bit accesses."""
    body = """mad.wide.u32 %rd1, %tid, 16, %rd0; ld.global.v4.u32 {%r0, %r1, %r2, %r3}, [%rd1];
    setp.lt.u32 %p0, %tid, 8; @%p0 st.global.u32 [%rd1], %r0;"""
    counters = counted(body, threads=64, grid=3)
    assert counters.global_bytes(store=False) == 3 * 64 * 16
    assert counters.global_bytes(store=True) == 3 * 8 * 4
    assert counters.global_bytes() == 3 * (1024 + 32)
    assert counters.wide_share() == 1024 / 1056


def test_copies_count_in_both_memories() -> None:
    """cp.async reads global memory, zero-filled threads do not, and all write shared memory."""
    body = """setp.lt.u32 %p0, %tid, 16; selp.u32 %r5, 16, 0, %p0;
    mad.wide.u32 %rd1, %tid, 16, %rd0; mov.u32 %r0, room; mad.lo.u32 %r1, %tid, 16, %r0;
    cp.async.cg.shared.global [%r1], [%rd1], 16, %r5; cp.async.commit_group; cp.async.wait_group 0;"""
    counters = counted(body)
    assert counters.global_bytes(store=False) == 16 * 16
    assert [a.bytes for a in counters.accesses.values() if a.space == "shared"] == [32 * 16]


def test_ldmatrix_conflicts() -> None:
    """Rows of 64 bf16 without padding meet in the same banks; with padding they do not."""
    for row, expected in ((128, 8.0), (144, 1.0)):
        body = f"""mov.u32 %r0, room; mad.lo.u32 %r1, %tid, {row}, %r0; mov.u32 %r2, 0;
        st.shared.v4.u32 [%r1], {{%r2, %r2, %r2, %r2}}; bar.sync 0;
        ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{%r3, %r4, %r5, %r6}}, [%r1];"""
        counters = counted(body)
        access = next(a for a in counters.accesses.values() if a.instruction.op.startswith("ldmatrix"))
        assert access.actual / access.ideal == expected


def test_warp_instructions() -> None:
    """An instruction counts once for each warp that reaches it, also where its predicate is false for all."""
    body = "setp.ge.u32 %p0, %tid, 32; @%p0 bra END; mov.u32 %r0, 1; mov.u32 %r0, 2; END: mov.u32 %r0, 3;"
    kernel = Kernel(wrap(body))
    kernel.prof = {}
    kernel.launch((4,), (64,), [np.zeros(1)])
    assert kernel.mix["bra"] == 8
    assert kernel.mix["mov.u32"] == 4 * (2 * 1 + 1 * 2 + 2)  # %tid; the branch of one warp; after it
    assert kernel.counters.warp_instructions() == sum(kernel.mix.values())


def test_counts_add_up_over_launches() -> None:
    """A new {} begins anew; without one nothing is counted."""
    kernel = Kernel(wrap("mov.u32 %r0, 1;"))
    kernel.launch((1,), (32,), [np.zeros(1)])
    assert not kernel.mix
    kernel.prof = {}
    kernel.launch((1,), (32,), [np.zeros(1)])
    once = sum(kernel.mix.values())
    kernel.launch((2,), (32,), [np.zeros(1)])
    assert sum(kernel.mix.values()) == 3 * once
    kernel.prof = {}
    kernel.launch((1,), (32,), [np.zeros(1)])
    assert sum(kernel.mix.values()) == once


def test_profile_rows() -> None:
    """One row for each instruction that touched memory."""
    kernel = Kernel(wrap("mad.wide.u32 %rd1, %tid, 8, %rd0; ld.global.u32 %r0, [%rd1];"))
    kernel.prof = {}
    kernel.launch((1,), (32,), [np.zeros(64, np.uint32)])
    (row,) = kernel.profile()
    assert (row["space"], row["bytes"], row["requests"], row["actual"], row["ideal"]) == ("global", 4, 1, 8, 4.0)
    assert row["ratio"] == 2.0
    assert row["src"].startswith("ld.global.u32")
