"""`unpatchify` against plain loops, and as the inverse of cutting patches."""

from __future__ import annotations

import itertools

import pytest
import torch
from close import strided, transposed

from pysora import ops

OP = "unpatchify"
CASES = {  # B, C, grid, patch
    "wan": (2, 4, (2, 3, 4), (1, 2, 2)),
    "odd": (1, 3, (1, 5, 3), (3, 1, 2)),
    "wide": (1, 63, (2, 1, 67), (1, 1, 3)),
    "several tasks": (1, 200, (1, 9, 20), (1, 1, 1)),
    "one": (1, 1, (1, 1, 1), (1, 1, 1)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_value_has_its_place(runner, case, dtype):
    B, C, grid, patch = case
    L, area = grid[0] * grid[1] * grid[2], patch[0] * patch[1] * patch[2]
    tokens = torch.randn(B, L, area * C).to(dtype)
    video = runner(ops.unpatchify, tokens, grid, patch)
    for t, h, w in itertools.product(*map(range, grid)):
        token = tokens[:, (t * grid[1] + h) * grid[2] + w]
        for n, (i, j, k) in enumerate(itertools.product(*map(range, patch))):
            place = video[:, :, t * patch[0] + i, h * patch[1] + j, w * patch[2] + k]
            assert torch.equal(place, token[:, n * C : (n + 1) * C])


@pytest.mark.parametrize("layout", [strided, transposed])
def test_strides(runner, layout):
    tokens = torch.randn(2, 24, 20)
    expected = runner(ops.unpatchify, tokens, (2, 3, 4), (1, 2, 2))
    assert torch.equal(runner(ops.unpatchify, layout(tokens), (2, 3, 4), (1, 2, 2)), expected)


def test_other_dtypes_go_to_the_reference():
    tokens = torch.randn(1, 8, 12, dtype=torch.float64)
    answer = ops.explain("unpatchify", tokens, (2, 2, 2), (1, 2, 2))
    assert answer.backend == "reference" and answer.reasons["cpu"] == "tokens is torch.float64"


def test_rejects_another_grid(runner):
    with pytest.raises(ValueError, match="grid: need \\(t, h, w\\) of L = 6"):
        runner(ops.unpatchify, torch.zeros(1, 6, 4), (1, 2, 2), (1, 2, 2))
