"""The tensor cores in the PTX runner: fragments, matrix loads and asynchronous copies, beside NumPy's products."""

from __future__ import annotations

import numpy as np
import pytest
from ptx import Kernel, PTXError
from ptx.dtypes import from_half, to_half
from ptx.snippet import wrap

SHARED = ".extern .shared .align 128 .b8 room[];"
GROUP, MEMBER = np.arange(32) // 4, np.arange(32) % 4


def fragment(matrix: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Return a matrix of 16-bit values as the a fragment [lane, register]: 8 x 8 blocks, down, then right."""
    blocks = [matrix[r : r + 8, c : c + 8] for c in range(0, columns, 8) for r in range(0, rows, 8)]
    return np.stack([np.ascontiguousarray(b).view(np.uint32).reshape(32) for b in blocks], axis=1)


@pytest.mark.parametrize("kind", ["bf16", "f16"])
def test_mma(kind: str) -> None:
    """m16n8k16: the fragments of the PTX ISA, the sum in fp32."""
    rng = np.random.default_rng(0)
    a, b = (to_half(rng.standard_normal(shape).astype(np.float32), kind) for shape in ((16, 16), (8, 16)))  # b: [n, k]
    c = rng.standard_normal((16, 8)).astype(np.float32)
    held_c = np.stack([c[GROUP + 8 * (i >> 1), 2 * MEMBER + (i & 1)] for i in range(4)], axis=1)
    registers = [fragment(a, 16, 16), fragment(b, 8, 16), held_c.copy(), np.zeros((32, 4), np.float32)]
    body = f"""mad.lo.u64 %rd4, %tid64, 16, %rd0; ld.global.v4.u32 {{%r0, %r1, %r2, %r3}}, [%rd4];
    mad.lo.u64 %rd5, %tid64, 8, %rd1; ld.global.v2.u32 {{%r4, %r5}}, [%rd5];
    mad.lo.u64 %rd6, %tid64, 16, %rd2; ld.global.v4.f32 {{%f0, %f1, %f2, %f3}}, [%rd6];
    mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32
        {{%f4, %f5, %f6, %f7}}, {{%r0, %r1, %r2, %r3}}, {{%r4, %r5}}, {{%f0, %f1, %f2, %f3}};
    mad.lo.u64 %rd7, %tid64, 16, %rd3; st.global.v4.f32 [%rd7], {{%f4, %f5, %f6, %f7}};"""
    Kernel(wrap(body, 4)).launch((1,), (32,), registers)
    seen = np.zeros((16, 8), np.float32)
    for i in range(4):
        seen[GROUP + 8 * (i >> 1), 2 * MEMBER + (i & 1)] = registers[3][:, i]
    exact = from_half(a, kind).astype(np.float64) @ from_half(b, kind).astype(np.float64).T + c
    np.testing.assert_allclose(seen, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("count", "transposed"), [(4, False), (4, True), (2, False), (1, True)])
def test_ldmatrix(count: int, transposed: bool) -> None:
    """Lane l gives the address of row l % 8 of matrix l / 8, and gets two values of each matrix."""
    source, out = np.arange(256, dtype=np.uint16), np.zeros((32, 4), np.uint32)
    into = ", ".join(f"%r{4 + i}" for i in range(count))
    body = f"""mov.u32 %r0, room; mad.lo.u32 %r1, %tid, 16, %r0; mad.wide.u32 %rd2, %tid, 16, %rd0;
    cp.async.cg.shared.global [%r1], [%rd2], 16; cp.async.commit_group; cp.async.wait_group 0; bar.warp.sync -1;
    ldmatrix.sync.aligned.m8n8.x{count}{".trans" if transposed else ""}.shared.b16 {{{into}}}, [%r1];
    mad.wide.u32 %rd3, %tid, 16, %rd1; st.global.v4.u32 [%rd3], {{%r4, %r5, %r6, %r7}};"""
    Kernel(wrap(body, 2, SHARED)).launch((1,), (32,), [source, out], smem=512)
    matrices = source.reshape(4, 8, 8).transpose(0, 2, 1) if transposed else source.reshape(4, 8, 8)
    for i in range(count):
        assert (out[:, i] == np.ascontiguousarray(matrices[i]).view(np.uint32).reshape(32)).all()


def test_stmatrix_undoes_ldmatrix() -> None:
    """stmatrix writes what ldmatrix reads."""
    source, out = np.random.default_rng(0).integers(0, 2**16, 256).astype(np.uint16), np.zeros(256, np.uint16)
    body = """mov.u32 %r0, room; mad.lo.u32 %r1, %tid, 16, %r0; mad.wide.u32 %rd2, %tid, 16, %rd0;
    ld.global.v4.u32 {%r4, %r5, %r6, %r7}, [%rd2]; st.shared.v4.u32 [%r1], {%r4, %r5, %r6, %r7}; bar.sync 0;
    ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%r4, %r5, %r6, %r7}, [%r1]; bar.sync 0;
    stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%r1], {%r4, %r5, %r6, %r7}; bar.sync 0;
    ld.shared.v4.u32 {%r4, %r5, %r6, %r7}, [%r1];
    mad.wide.u32 %rd3, %tid, 16, %rd1; st.global.v4.u32 [%rd3], {%r4, %r5, %r6, %r7};"""
    Kernel(wrap(body, 2, SHARED)).launch((1,), (32,), [source, out], smem=512)
    assert (out == source).all()


def test_copies_arrive_in_order() -> None:
    """wait_group 1 lets the older of two groups arrive, not the newer."""
    body = """mov.u32 %r0, room; mad.lo.u32 %r1, %tid, 16, %r0; mad.wide.u32 %rd2, %tid, 16, %rd0;
    cp.async.cg.shared.global [%r1], [%rd2], 16; cp.async.commit_group;
    cp.async.cg.shared.global [%r1+512], [%rd2+512], 16; cp.async.commit_group;
    cp.async.wait_group 1; ld.shared.u32 %r2, [%r1+OFFSET]; mad.wide.u32 %rd3, %tid, 4, %rd1;
    st.global.u32 [%rd3], %r2;"""
    source, out = np.arange(256, dtype=np.uint32), np.zeros(32, np.uint32)
    Kernel(wrap(body.replace("OFFSET", "0"), 2, SHARED)).launch((1,), (32,), [source, out], smem=1024)
    assert (out == source[:128:4]).all()
    with pytest.raises(PTXError, match="asynchronous copy") as caught:
        Kernel(wrap(body.replace("OFFSET", "512"), 2, SHARED)).launch((1,), (32,), [source, out], smem=1024)
    assert caught.value.kind == "uninitialised"


def test_a_copy_without_source_writes_zeros() -> None:
    """Source size 0 reads nothing, not even from a bad address."""
    body = """mov.u32 %r0, room; mad.lo.u32 %r1, %tid, 16, %r0; mov.u64 %rd2, 0;
    cp.async.cg.shared.global [%r1], [%rd2], 16, 0; cp.async.wait_all; ld.shared.u32 %r2, [%r1];
    mad.wide.u32 %rd3, %tid, 4, %rd0; st.global.u32 [%rd3], %r2;"""
    out = np.full(32, 9, np.uint32)
    Kernel(wrap(body, 1, SHARED)).launch((1,), (32,), [out], smem=512)
    assert not out.any()


@pytest.mark.parametrize(
    "code",
    [
        "mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%r0, %r1}, {%r2}, {%r3}, {%r0, %r1};",
        "cp.async.bulk.commit_group;",
        "wgmma.mma_async.sync.aligned.m64n8k8.f32.tf32.tf32 {%f0,%f1,%f2,%f3}, %rd0, %rd1, 1, 1, 1;",
    ],
)
def test_what_is_not_covered_is_refused(code: str) -> None:
    """Integer products, bulk copies and tf32 wgmma."""
    with pytest.raises(PTXError, match="unsupported"):
        Kernel(wrap(code)).launch((1,), (128,), [np.zeros(1)])
