"""unpatchify: each value is read and written once."""

from __future__ import annotations

import pytest
import torch

from pysora import ops

OP = "unpatchify"
pytestmark = pytest.mark.benchmark(group=OP)
GRID, PATCH, C = (5, 30, 52), (1, 2, 2), 16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def bench_unpatchify(timed, row, dtype):
    tokens = torch.randn(1, 5 * 30 * 52, 2 * 2 * C).to(dtype)

    def plain() -> torch.Tensor:
        values = tokens.view(1, *GRID, *PATCH, C).permute(0, 7, 1, 4, 2, 5, 3, 6)
        return values.reshape(1, C, *(g * p for g, p in zip(GRID, PATCH, strict=True)))

    call = plain if row == "torch" else lambda: ops.unpatchify(tokens, GRID, PATCH, backend=row)
    assert torch.equal(timed(call, work=2 * tokens.nbytes), plain())
