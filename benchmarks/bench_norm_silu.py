"""norm_silu: each value of x is read and each value of the result written once; torch is the layers of the Wan VAE."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pysora import ops

OP = "norm_silu"
pytestmark = pytest.mark.benchmark(group=OP)
SHAPES = {"32x5x32x32": (1, 32, 5, 32, 32), "96x1x128x128": (1, 96, 1, 128, 128), "384x1x32x32": (1, 384, 1, 32, 32)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d], ids=["planes", "channels last"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def bench_norm_silu(timed, row, shape, layout, dtype):
    x, gamma = torch.randn(shape).to(dtype).contiguous(memory_format=layout), torch.randn(shape[1], 1, 1, 1).to(dtype)

    def plain() -> torch.Tensor:
        return F.silu(F.normalize(x, dim=1) * shape[1] ** 0.5 * gamma)

    call = plain if row == "torch" else lambda: ops.norm_silu(x, gamma.flatten(), backend=row)
    result = timed(call, work=2 * x.nbytes)
    expected = F.silu(F.normalize(x.double(), dim=1) * shape[1] ** 0.5 * gamma.double())
    assert (result - expected).abs().max() < 0.02 * expected.abs().max()
