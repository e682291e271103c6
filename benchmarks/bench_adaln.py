"""adaln with one timestep: each value of x is read and each value of the result written once."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pysora import ops

OP = "adaln"
pytestmark = pytest.mark.benchmark(group=OP)
SHAPES = {"1280x384": (1, 1280, 384), "2080x1536": (1, 2080, 1536)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def bench_adaln(timed, row, shape, dtype):
    D = shape[2]
    x, table = torch.randn(shape).to(dtype), torch.randn(1, 2, D)

    def plain() -> torch.Tensor:
        y = F.layer_norm(x.float(), (D,), eps=1e-6)
        return (y * (1 + table[:, 1:]) + table[:, :1]).to(dtype)

    call = plain if row == "torch" else lambda: ops.adaln(x, table, backend=row)
    result = timed(call, work=2 * x.nbytes)
    y = x.double()
    y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, keepdim=True, correction=0) + 1e-6).sqrt()
    expected = y * (1 + table[:, 1:]) + table[:, :1]
    assert (result - expected).abs().max() < 0.01 * expected.abs().max()
