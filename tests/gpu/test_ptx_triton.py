"""Calibration of the PTX runner: Triton's compiler is right on hardware, so what it emits must come out right here."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from ptx import Kernel

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
triton = pytest.importorskip("triton", reason="Triton is not installed")
import triton.language as tl  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402


def build(function: Any, types: dict[str, str], constants: dict[str, int], capability: int, **options: int) -> Any:
    """Return the runner's kernel of a Triton function, and its bytes of shared memory."""
    signature = types | dict.fromkeys(constants, "constexpr")
    attributes = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(types.values()) if kind.startswith("*")}
    source = ASTSource(fn=function, signature=signature, constexprs=constants, attrs=attributes)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return Kernel(made.asm["ptx"]), made.metadata.shared, made.metadata.num_warps


@triton.jit
def softmax(x, out, count, SIZE: tl.constexpr):
    row, columns = tl.program_id(0), tl.arange(0, SIZE)
    values = tl.load(x + row * count + columns, mask=columns < count, other=-float("inf"))
    weights = tl.exp(values - tl.max(values, 0))
    tl.store(out + row * count + columns, weights / tl.sum(weights, 0), mask=columns < count)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("count", [1, 63, 200])
def test_reductions(capability: int, count: int) -> None:
    """Masks, exponentials, and sums across warps through shared memory."""
    kernel, shared, warps = build(
        softmax, {"x": "*fp32", "out": "*fp32", "count": "i32"}, {"SIZE": 256}, capability, num_warps=4
    )
    x = torch.randn(3, count)
    out = torch.full_like(x, torch.nan)
    kernel.launch((3,), (32 * warps,), [x, out, count], smem=shared)
    torch.testing.assert_close(out, x.softmax(1), rtol=1e-5, atol=1e-7)


@triton.jit
def product(a, b, out, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    rows, columns = tl.program_id(0) * BM + tl.arange(0, BM), tl.program_id(1) * BN + tl.arange(0, BN)
    sums = tl.zeros([BM, BN], tl.float32)
    for start in range(0, K, BK):
        k = start + tl.arange(0, BK)
        left = tl.load(a + rows[:, None] * K + k, mask=(rows[:, None] < M) & (k < K), other=0.0)
        right = tl.load(b + columns * K + k[:, None], mask=(columns < N) & (k[:, None] < K), other=0.0)
        sums = tl.dot(left, right, sums)
    tl.store(out + rows[:, None] * N + columns, sums, mask=(rows[:, None] < M) & (columns < N))


@pytest.mark.parametrize(
    ("kind", "capability"), [("bf16", 80), ("fp16", 80), ("fp32", 80), ("bf16", 90), ("fp16", 90)], ids=str
)
def test_products(kind: str, capability: int) -> None:
    """ldmatrix, cp.async in stages and mma (sm_80) or swizzled wgmma (sm_90), ragged in every dimension."""
    types = {"a": f"*{kind}", "b": f"*{kind}", "out": "*fp32", "M": "i32", "N": "i32", "K": "i32"}
    kernel, shared, warps = build(product, types, {"BM": 64, "BN": 32, "BK": 64}, capability, num_warps=4, num_stages=3)
    kernel.prof = {}
    M, N, K = 70, 40, 200
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[kind]
    a, b, out = torch.randn(M, K).to(dtype), torch.randn(N, K).to(dtype), torch.full((M, N), torch.nan)
    kernel.launch((2, 2), (32 * warps,), [a, b, out, M, N, K], smem=shared)
    exact = a.double() @ b.double().T
    assert (out.double() - exact).abs().max() < (0.1 if kind == "fp32" else 1e-4)  # tf32: ten bits
    depth = 16 if kind != "fp32" else 8  # of one instruction
    tiles = 1 if capability == 90 else 4 * (32 // 8)  # of a block: wgmma takes 64 x 32, mma 16 x 8
    rounds = 4 * 4  # blocks, and tiles of 64 of K
    assert kernel.counters.tensor_core_instructions() == rounds * tiles * (64 // depth)
