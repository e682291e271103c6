"""gate_residual with one timestep: two inputs are read and the result written once."""

from __future__ import annotations

import pytest
import torch

from pysora import ops

OP = "gate_residual"
pytestmark = pytest.mark.benchmark(group=OP)
SHAPES = {"1280x384": (1, 1280, 384), "2080x1536": (1, 2080, 1536)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def bench_gate_residual(timed, row, shape, dtype):
    x, y, gate = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype), torch.randn(1, shape[2])

    def plain() -> torch.Tensor:
        return (x.float() + y.float() * gate).to(dtype)

    call = plain if row == "torch" else lambda: ops.gate_residual(x, y, gate, backend=row)
    assert torch.equal(timed(call, work=3 * x.nbytes), plain())
