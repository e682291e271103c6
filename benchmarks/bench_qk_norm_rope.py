"""qk_norm_rope over all heads together, with positions: each value is read and written once."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pysora import ops

OP = "qk_norm_rope"
pytestmark = pytest.mark.benchmark(group=OP)
SHAPES = {"1280 tokens, 6x64": (1280, 6, 64), "2080 tokens, 12x128": (2080, 12, 128)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def bench_qk_norm_rope(timed, row, shape, dtype):
    L, N, K = shape
    x, gain, angle = torch.randn(1, *shape).to(dtype), torch.randn(N * K).to(dtype), torch.randn(L, K // 2)
    cos, sin = angle.cos(), angle.sin()

    def turned(y: torch.Tensor) -> torch.Tensor:
        a, b = y.unflatten(-1, (-1, 2)).unbind(-1)
        c, s = cos[:, None], sin[:, None]
        return torch.stack([a * c - b * s, a * s + b * c], -1).flatten(-2)

    def plain() -> torch.Tensor:
        return turned(F.rms_norm(x.flatten(2), (N * K,), gain, 1e-6).view_as(x).float()).to(dtype)

    call = plain if row == "torch" else lambda: ops.qk_norm_rope(x, gain, cos, sin, backend=row)
    result = timed(call, work=2 * x.nbytes)
    y = x.double()
    expected = turned(y / (y.square().mean((2, 3), keepdim=True) + 1e-6).sqrt() * gain.double().view(N, K))
    assert (result - expected).abs().max() < 0.02 * expected.abs().max()
