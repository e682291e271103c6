"""spacetime_attention. 4*L*L*N*K operations."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pysora import ops

OP = "spacetime_attention"
pytestmark = pytest.mark.benchmark(group=OP)
SHAPES = {"80 tokens, 8x32": (80, 8, 32), "1024 tokens, 2x64": (1024, 2, 64), "1024 tokens, 2x128": (1024, 2, 128)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def bench_spacetime_attention(timed, row, shape, dtype):
    L, N, K = shape
    q, k, v = (torch.randn(1, L, N, K).to(dtype) for _ in range(3))

    def plain() -> torch.Tensor:
        return F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v))).transpose(1, 2)

    call = plain if row == "torch" else lambda: ops.spacetime_attention(q, k, v, backend=row)
    result = timed(call, dtype=dtype, work=4 * L * L * N * K)
    scores = torch.einsum("blnk,bmnk->bnlm", q.double(), k.double()) * K**-0.5
    expected = torch.einsum("bnlm,bmnk->blnk", scores.softmax(-1), v.double())
    assert (result - expected).abs().max() < 0.02 * expected.abs().max()
