"""A transformer with coarse tokens, and the fine one that goes on from it.

A clip has a fraction of the tokens, and so a minute shows as many more clips. Patches that shrink during training are
an idea of Anagnostidis et al. 2023 (arXiv:2311.03233) and, within one model, of Beyer et al. 2022 (arXiv:2212.08013).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pysora.models.dit import DiT, DiTConfig


class CoarseDiT(DiT):
    """A DiT whose tokens stand as far apart as those of the finer one that goes on from it."""

    cells = (1, 2, 2)
    """Fine tokens, T h w, that a coarse one stands for."""

    def rope(self, grid: tuple[int, int, int], device: torch.device) -> tuple[Tensor, Tensor]:
        """Rotary positions of the first of each token's cells: differences alone matter."""
        t, h, w = (size * n for size, n in zip(grid, self.cells, strict=True))
        dt, dh, dw = self.cells
        cos, sin = (
            table.view(t, h, w, -1)[::dt, ::dh, ::dw].flatten(0, 2) for table in super().rope((t, h, w), device)
        )
        return cos, sin


@torch.no_grad()
def refine(coarse: DiT, config: DiTConfig) -> DiT:
    """A DiT of `config`, whose patches are 1, with the weights of `coarse`.

    Its tokens are what the coarse one would have made of a patch that is the same everywhere, and it answers with what
    the coarse one says of a patch on average.
    """
    state = coarse.state_dict()
    patch = math.prod(coarse.config.patch_size)
    state["patch_embedding.weight"] = state["patch_embedding.weight"].sum((2, 3, 4), keepdim=True)
    for name in ("proj_out.weight", "proj_out.bias"):
        # Of a patch's values the channels run fastest.
        state[name] = state[name].unflatten(0, (patch, -1)).mean(0)
    fine = DiT(config)
    fine.load_state_dict(state)
    return fine
