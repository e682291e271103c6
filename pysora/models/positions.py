"""Where and when: rotary positions of the tokens and sinusoids of the timesteps."""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor


def sinusoid(timesteps: Tensor, width: int) -> Tensor:
    """Timesteps [U] -> fp32 [U, width]: cosines, then sines, of geometric frequencies from 1 down to 1/10000.

    In fp32 throughout, as the checkpoints were trained (angles reach 1000: fp64 would differ by 6e-5).
    Source: "Denoising Diffusion Probabilistic Models" (arXiv 2006.11239), section B.
    """
    half = width // 2
    exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    angles = timesteps[:, None].float() * torch.exp(exponent)
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, width % 2))


def rope_tables(grid: tuple[int, int, int], head: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(cos, sin) fp32 [L, K/2] of 3D rotary positions; of the K channels, h and w get 2*(K//6) each and t the rest.

    Angles in float64, theta 1e4. Source: "RoFormer" (arXiv 2104.09864), one axis after the other.
    """
    if torch.compiler.is_compiling():
        return _tables(grid, head, device)
    return _kept_tables(grid, head, device)


@functools.lru_cache(maxsize=4)
def _kept_tables(grid: tuple[int, int, int], head: int, device: torch.device) -> tuple[Tensor, Tensor]:
    # A table made under inference_mode could not be saved for a backward pass later.
    with torch.inference_mode(False), torch.no_grad():
        return _tables(grid, head, device)


def _tables(grid: tuple[int, int, int], head: int, device: torch.device) -> tuple[Tensor, Tensor]:
    spatial = 2 * (head // 6)
    angles = []
    for axis, (size, width) in enumerate(zip(grid, (head - 2 * spatial, spatial, spatial), strict=True)):
        frequency = 1.0 / 10000.0 ** (torch.arange(0, width, 2, dtype=torch.float64) / width)
        angle = torch.outer(torch.arange(size, dtype=torch.float64), frequency)
        shape = [size if a == axis else 1 for a in range(3)]
        angles.append(angle.view(*shape, -1).expand(*grid, -1))
    table = torch.cat(angles, dim=-1).flatten(0, 2)
    return table.cos().float().to(device), table.sin().float().to(device)
