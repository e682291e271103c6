"""patch_embed. 2*L*C*pt*ph*pw*D operations; torch is its fastest form, unfold and a linear layer."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pysora import ops

OP = "patch_embed"
pytestmark = pytest.mark.benchmark(group=OP)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def bench_patch_embed(timed, row, dtype):
    video = torch.randn(1, 16, 5, 32, 32).to(dtype)
    weight, bias = torch.randn(384, 16, 1, 2, 2).to(dtype), torch.randn(384).to(dtype)

    def plain() -> torch.Tensor:
        patches = video.unflatten(4, (-1, 2)).unflatten(3, (-1, 2)).permute(0, 2, 3, 5, 1, 4, 6)
        return F.linear(patches.flatten(4).flatten(1, 3), weight.flatten(1), bias)

    call = plain if row == "torch" else lambda: ops.patch_embed(video, weight, bias, backend=row)
    result = timed(call, dtype=dtype, work=2 * 5 * 16 * 16 * 64 * 384)
    expected = F.conv3d(video.double(), weight.double(), bias.double(), stride=(1, 2, 2)).flatten(2).transpose(1, 2)
    assert (result - expected).abs().max() < 0.02 * expected.abs().max()
