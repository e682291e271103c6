"""Every mistake that the PTX runner must find, each beside the same kernel without the mistake."""

from __future__ import annotations

import re

import numpy as np
import pytest
from ptx import Kernel, PTXError
from ptx.snippet import wrap

SHARED = ".extern .shared .align 16 .b8 room[];"
STORE = "shl.b32 %r1, %tid, 2; mov.u32 %r2, room; add.u32 %r3, %r2, %r1; st.shared.u32 [%r3], %tid;"
LOAD_OTHER = "xor.b32 %r4, %r1, 128; add.u32 %r4, %r2, %r4; ld.shared.u32 %r5, [%r4];"  # of the other warp
LOAD_NEIGHBOUR = "xor.b32 %r4, %r1, 4; add.u32 %r4, %r2, %r4; ld.shared.u32 %r5, [%r4];"  # of the same warp
OUT = "mad.wide.u32 %rd2, %tid, 4, %rd0; st.global.u32 [%rd2], %r5;"
COPY = "mad.wide.u32 %rd1, %tid, 16, %rd0; shl.b32 %r1, %tid, 4; mov.u32 %r2, room; add.u32 %r3, %r2, %r1;"
COPY += "cp.async.cg.shared.global [%r3], [%rd1], 16; cp.async.commit_group;"
MINE = "ld.shared.u32 %r5, [%r3];"


def run(body: str, threads: int = 64, smem: int = 1024, words: int = 256) -> np.ndarray:
    """Run a snippet on one block and return its buffer."""
    buffer = np.arange(words, dtype=np.uint32)
    Kernel(wrap(body, 1, SHARED)).launch((1,), (threads,), [buffer], smem=smem)
    return buffer


GOOD = {
    "barrier": STORE + "bar.sync 0;" + LOAD_OTHER + OUT,
    "warp barrier": STORE + "bar.warp.sync -1;" + LOAD_NEIGHBOUR + OUT,
    "reused memory": STORE + "bar.sync 0;" + LOAD_OTHER + "bar.sync 0;" + STORE + OUT,
    "copy": COPY + "cp.async.wait_group 0;" + MINE + OUT,
    "copy and barrier": COPY + "cp.async.wait_all; bar.sync 0;" + LOAD_OTHER + OUT,
    "atomics": STORE + "bar.sync 0; atom.shared.add.u32 %r5, [room], 1;" + OUT,
    "exited threads do not hold up a barrier": "setp.ge.u32 %p0, %tid, 32; @%p0 ret; bar.sync 0;",
    "named barrier of one warp": "setp.ge.u32 %p0, %tid, 32; @%p0 bra END; bar.sync 1, 32; END:",
}


@pytest.mark.parametrize("name", GOOD)
def test_correct_kernels_pass(name: str) -> None:
    """What is right raises nothing."""
    run(GOOD[name])


BAD = {
    "past the end": ("bounds", "mad.wide.u32 %rd2, %tid, 4, %rd0; ld.global.u32 %r5, [%rd2+772];"),
    "before the start": ("bounds", "ld.global.u32 %r5, [%rd0+-4];"),
    "null pointer": ("bounds", "mov.u64 %rd1, 0; ld.global.u32 %r5, [%rd1];"),
    "store past the end": ("bounds", "st.global.u16 [%rd0+1024], 1;"),
    "shared memory": ("bounds", "mov.u32 %r2, room; st.shared.u32 [%r2+1024], %tid;"),
    "copy from outside": ("bounds", COPY.replace("[%rd1]", "[%rd1+16]")),
    "misaligned": ("alignment", "ld.global.u32 %r5, [%rd0+2];"),
    "misaligned vector": ("alignment", "ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%rd0+4];"),
    "misaligned shared": ("alignment", "mov.u32 %r2, room; st.shared.v2.u32 [%r2+4], {%tid, %tid};"),
    "nothing written": ("uninitialised", "ld.shared.u32 %r5, [room];" + OUT),
    "no wait": ("uninitialised", COPY + MINE + OUT),
    "a wait too weak": ("uninitialised", COPY + "cp.async.wait_group 1;" + MINE + OUT),
    "no barrier": ("race", STORE + LOAD_OTHER + OUT),
    "no warp barrier": ("race", STORE + LOAD_NEIGHBOUR + OUT),
    "a warp's barrier between warps": ("race", STORE + "bar.warp.sync -1;" + LOAD_OTHER + OUT),
    "no barrier before reuse": ("race", STORE + "bar.sync 0;" + LOAD_OTHER + STORE + OUT),
    "two writers": ("race", "st.shared.u32 [room], %tid;"),
    "no barrier after a copy": ("race", COPY + "cp.async.wait_all;" + LOAD_OTHER + OUT),
    "shuffle in a branch": (
        "divergence",
        "setp.lt.u32 %p0, %tid, 40; @%p0 shfl.sync.bfly.b32 %r1, %tid, 1, 31, -1;",
    ),
    "barrier in a branch": ("divergence", "setp.lt.u32 %p0, %tid, 40; @%p0 bar.sync 0;"),
    "ldmatrix in a branch": (
        "divergence",
        STORE + "bar.sync 0; setp.lt.u32 %p0, %tid, 40;@%p0 ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r5}, [%r2];",
    ),
    "barrier that one warp misses": ("deadlock", "setp.ge.u32 %p0, %tid, 32; @%p0 bra END; bar.sync 1, 64; END:"),
    "barriers of two numbers": ("deadlock", "setp.ge.u32 %p0, %tid, 32; @%p0 bra B; bar.sync 1; ret; B: bar.sync 2;"),
    "division by zero": ("arithmetic", "mov.u32 %r1, 0; div.u32 %r5, %tid, %r1;"),
    "trap": ("trap", "setp.eq.u32 %p0, %tid, 5; @%p0 trap;"),
}


@pytest.mark.parametrize("name", BAD)
def test_mistakes_are_found(name: str) -> None:
    """Each mistake raises its kind, with the kernel, the line and the instruction."""
    kind, body = BAD[name]
    with pytest.raises(PTXError) as caught:
        run(body)
    assert caught.value.kind == kind, caught.value
    assert re.match(r"snippet: .*line \d+: `", str(caught.value)), caught.value
    if kind in ("bounds", "alignment", "race", "uninitialised"):
        assert caught.value.address is not None
        assert "thread (" in str(caught.value)


def test_an_endless_loop_ends() -> None:
    """Steps are limited."""
    with pytest.raises(PTXError, match="more than 500 steps") as caught:
        Kernel(wrap("AGAIN: bra AGAIN;")).launch((1,), (32,), [np.zeros(1)], max_steps=500)
    assert caught.value.kind == "endless"


def test_an_error_says_where_the_address_lies() -> None:
    """How far past which buffer, and which thread did it."""
    with pytest.raises(PTXError) as caught:
        run("mad.wide.u32 %rd2, %tid, 4, %rd0; ld.global.u32 %r5, [%rd2+1008];", threads=32)
    text = str(caught.value)
    assert "1024 bytes into the buffer of argument 0 of 1024 bytes; 28 threads" in text, text
    assert "at 0x700000000500" in text
    assert "block (0, 0, 0), thread (4, 0, 0)" in text


@pytest.mark.parametrize(
    ("grid", "block", "smem", "match"),
    [
        ((1, 65536), (32,), 0, "a grid of"),
        ((0,), (32,), 0, "a grid of"),
        ((1,), (1056,), 0, "at most 1024"),
        ((1,), (48,), 0, "no multiple of 32"),
        ((1,), (32,), 300000, "300000 bytes of shared memory"),
    ],
)
def test_launches_that_a_gpu_refuses(grid: tuple[int, ...], block: tuple[int, ...], smem: int, match: str) -> None:
    """The limits of grids, blocks and shared memory."""
    with pytest.raises(PTXError, match=match) as caught:
        Kernel(wrap("", 1, SHARED)).launch(grid, block, [np.zeros(1)], smem=smem)
    assert caught.value.kind == "launch"


def test_a_buffer_is_contiguous() -> None:
    """A view with strides would be copied silently."""
    with pytest.raises(ValueError, match="contiguous"):
        Kernel(wrap("")).launch((1,), (32,), [np.zeros((4, 4))[:, ::2]])


def test_an_unknown_kernel_is_named() -> None:
    """The error lists the kernels that there are."""
    with pytest.raises(ValueError, match=r"no kernel is called 'other'; there are: snippet"):
        Kernel(wrap(""), "other")
