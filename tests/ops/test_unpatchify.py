"""`unpatchify` against plain loops, and as the inverse of cutting patches."""

from __future__ import annotations

import itertools

import pytest
import torch
from close import strided

from pysora import ops

OP = "unpatchify"
CASES = {  # B, C, grid, patch
    "wan": (2, 4, (2, 3, 4), (1, 2, 2)),
    "odd": (1, 3, (1, 5, 3), (3, 1, 2)),
    "one": (1, 1, (1, 1, 1), (1, 1, 1)),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_value_has_its_place(runner, case):
    B, C, grid, patch = case
    L, area = grid[0] * grid[1] * grid[2], patch[0] * patch[1] * patch[2]
    tokens = torch.arange(B * L * area * C, dtype=torch.float32).view(B, L, area * C)
    video = runner(ops.unpatchify, strided(tokens), grid, patch)
    for t, h, w in itertools.product(*map(range, grid)):
        token = tokens[:, (t * grid[1] + h) * grid[2] + w]
        for n, (i, j, k) in enumerate(itertools.product(*map(range, patch))):
            place = video[:, :, t * patch[0] + i, h * patch[1] + j, w * patch[2] + k]
            assert torch.equal(place, token[:, n * C : (n + 1) * C])


def test_rejects_another_grid(runner):
    with pytest.raises(ValueError, match="grid: need \\(t, h, w\\) of L = 6"):
        runner(ops.unpatchify, torch.zeros(1, 6, 4), (1, 2, 2), (1, 2, 2))
