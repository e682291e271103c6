"""The CUDA kernel of `qk_norm_rope`, executed on the CPU."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
import torch
from close import check
from gpu.launcher import ALL_DTYPES, ARCHS, DTYPES, Counts, Launcher, Memory, Values, array
from torch import Tensor

from pysora import ops


class QkNormRopeParams(ctypes.Structure):
    """csrc/include/pysora/qk_norm_rope.h"""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("x_strides", ctypes.c_int64 * 3),
        ("out", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in "BLNK"),
        ("gain", Values),
        ("over_heads", ctypes.c_bool),
        ("cos", ctypes.c_void_p),
        ("sin", ctypes.c_void_p),
        ("cos_stride", ctypes.c_int64),
        ("sin_stride", ctypes.c_int64),
        ("eps", ctypes.c_float),
        ("dtype", ctypes.c_int),
        ("threads", ctypes.c_int),
    )


def launch(
    x: Tensor,
    gain: Tensor,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    *,
    out: Tensor | None = None,
    shift: int = 0,
    **how: Any,
) -> tuple[Tensor, Counts]:
    """Run the kernel; return its result and its counts. `how` goes to the launcher."""
    memory, (B, L, N, K) = Memory(shift), x.shape
    out = torch.full((B, L, N, K), torch.nan, dtype=x.dtype) if out is None else out
    params = QkNormRopeParams(
        *(memory.address(x), array(x.stride()[:3]), memory.address(out), B, L, N, K),
        *(memory.values(gain), gain.shape[0] == N * K, memory.address(cos), memory.address(sin)),
        *(cos.stride(0) if cos is not None else 0, sin.stride(0) if sin is not None else 0, 1e-6, DTYPES[x.dtype], 1),
    )
    return out, Launcher("qk_norm_rope", QkNormRopeParams, **how)(params, memory)


def angles(L: int, K: int) -> tuple[Tensor, Tensor]:
    """Return the cosines and sines of random angles."""
    angle = torch.rand(L, K // 2) * 7
    return angle.cos(), angle.sin()


SHAPES = {
    "a model's": (1, 5, 12, 128),
    "several samples": (2, 63, 2, 64),
    "odd": (1, 7, 3, 10),
    "less than 16 bytes": (3, 5, 1, 2),
    "16 values": (1, 9, 2, 8),
    "200 values": (1, 3, 5, 40),
    "the widest row": (1, 2, 128, 128),
    "one": (1, 1, 1, 2),
}


def plain(x: Tensor, gain: Tensor, cos: Tensor | None = None, sin: Tensor | None = None) -> Tensor:
    """The definition, which is also plain torch."""
    return ops.qk_norm_rope.reference(x, gain, cos, sin)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", ALL_DTYPES.values(), ids=ALL_DTYPES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_accuracy(shape, dtype, arch):
    _, L, N, K = shape
    x = torch.randn(shape).to(dtype)
    for gain, rope in ((torch.randn(N * K), True), (torch.randn(K).to(dtype), True), (torch.randn(K), False)):
        args = x, gain, *(angles(L, K) if rope else ())
        check(launch(*args, arch=arch)[0], plain, args)


def fused(x: Tensor) -> Tensor:
    """Return the same values as the middle third of a fused query, key and value; the rest is NaN."""
    other = torch.full_like(x, torch.nan)
    return torch.cat([other, x, other], 2)[:, :, x.shape[2] : 2 * x.shape[2]]


LAYOUTS = {
    "heads of a fused projection": fused,
    "heads before tokens": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "one sample repeated": lambda x: x[:1].expand_as(x),
    "an odd stride": lambda x: torch.cat([x, torch.full_like(x[..., :1], torch.nan)], 3)[..., :-1],
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("over_heads", [True, False], ids=["over heads", "each head"])
def test_strides(layout, over_heads):
    """Also where they forbid 128-bit accesses."""
    x, gain = layout(torch.randn(2, 5, 4, 16)), torch.randn(64 if over_heads else 16)
    cos, sin = (torch.cat([t, torch.full((5, 4), torch.nan)], 1)[:, :8] for t in angles(5, 16))
    expected = launch(x.contiguous(), gain, cos.contiguous(), sin.contiguous())[0]
    torch.testing.assert_close(launch(x, gain, cos, sin)[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ALL_DTYPES.values(), ids=ALL_DTYPES)
def test_alignment(dtype):
    """Single accesses where tensors start between multiples of 16 bytes."""
    args = torch.randn(1, 5, 3, 64).to(dtype), torch.randn(192), *angles(5, 64)
    moved, counts = launch(*args, shift=dtype.itemsize if dtype.itemsize == 4 else 4)
    assert counts.wide_share() == 0
    torch.testing.assert_close(moved, launch(*args)[0], rtol=1e-2 if dtype.itemsize == 2 else 1e-6, atol=1e-6)


def test_in_place():
    x, gain, rope = torch.randn(2, 5, 3, 64), torch.randn(192), angles(5, 64)
    expected = launch(x, gain, *rope)[0]
    assert torch.equal(launch(x, gain, *rope, out=x)[0], expected)


def test_blocks_go_on_to_further_rows():
    """Where there are more rows than the grid has room for: here two blocks."""
    for shape in ((1, 7, 2, 512), (2, 11, 5, 16)):
        x, gain, rope = torch.randn(shape), torch.randn(shape[3]), angles(shape[1], shape[3])
        assert torch.equal(launch(x, gain, *rope, blocks=2)[0], launch(x, gain, *rope)[0])


def test_special_values():
    """NaN and infinity stay in their row; a row of zeros stays zero."""
    x = torch.ones(1, 4, 2, 64)
    x[0, 0, 1, 7], x[0, 1, 0, 3], x[0, 2] = torch.nan, torch.inf, 0
    out = launch(x, torch.ones(128))[0]
    assert out[0, 0].isnan().all() and out[0, 3].isfinite().all() and not out[0, 2].any()
    assert out[0, 1, 0, 3].isnan() and not out[0, 1, 1].any()


def test_one_pass_over_memory():
    """Aligned, as in a model: the bytes of x, out, gain and angles that three warps a token need, all 128 bits wide."""
    B, L, N, K = 1, 6, 12, 128
    bf16, fp32 = torch.bfloat16, torch.float32
    for dtype, of_gain in ((bf16, bf16), (bf16, fp32), (fp32, fp32)):
        x, gain = torch.randn(B, L, N, K).to(dtype), torch.randn(N * K).to(of_gain)
        _, counts = launch(x, gain, *angles(L, K))
        values, whole_tables = N * K * dtype.itemsize, 2 * (K // 2) * 4
        assert counts.bytes("st") == L * values
        assert counts.bytes("ld") == L * (values + N * K * of_gain.itemsize + 3 * whole_tables)
        assert counts.wide_share() == 1 and counts.coalescing() == 1 and counts.conflicts() == 1
