"""The linear components of a clip's blocks: what the autoencoder's latents are held near to.

Latents near them keep the spectrum of pictures: a few large numbers that say what is where, many small ones that say
how it looks. A transformer learns the large ones first; latents whose channels all have unit size, as a KL term alone
leaves them, ask for everything at once. In one common scale, on the other hand, the smallest would drown in the noise
that the decoder learns to live with: each component keeps the square root of its size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

SPACE, TIME = 16, 4
"""Pixels on each side, and frames, of a block: what one latent position stands for."""


def blocks(video: Tensor) -> Tensor:
    """`[B, 3, F, H, W]` -> `[B, T, h, w, 3 * TIME * SPACE**2]`; the first frame, alone in its block, fills it."""
    video = torch.cat([video[:, :, :1].expand(-1, -1, TIME - 1, -1, -1), video], 2)
    B, C, F, H, W = video.shape
    cut = video.reshape(B, C, F // TIME, TIME, H // SPACE, SPACE, W // SPACE, SPACE)
    return cut.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)


@dataclass(frozen=True)
class Components:
    """mean: `[N]` of the blocks. basis: `[z, N]`, orthogonal rows, the largest variance first.

    A projection's variance is its component's deviation, up to a factor; over all of them the mean square is 1.
    """

    mean: Tensor
    basis: Tensor

    @classmethod
    def measure(cls, batch: Callable[[], Tensor], batches: int, count: int) -> Components:
        """The `count` principal components of the blocks of `batches` calls of `batch`, `[B, 3, F, H, W]` each."""
        total, mean, second = 0, torch.zeros(()), torch.zeros(())
        for _ in range(batches):
            rows = blocks(batch()).flatten(0, 3)
            total, mean, second = total + len(rows), mean + rows.sum(0), second + rows.T @ rows
        mean = mean / total
        variance, vectors = torch.linalg.eigh(second / total - mean.outer(mean))
        deviation = variance[-count:].flip(0).sqrt()
        scale = (deviation * deviation.mean()).rsqrt()
        return cls(mean, vectors[:, -count:].flip(1).T * scale[:, None])

    def project(self, video: Tensor) -> Tensor:
        """`[B, 3, F, H, W]` -> `[B, z, T, h, w]` float32."""
        return ((blocks(video) - self.mean) @ self.basis.T).movedim(-1, 1)

    def save(self, path: Path) -> None:
        """Write both tensors to a safetensors file."""
        save_file({"mean": self.mean, "basis": self.basis}, path)

    @classmethod
    def load(cls, path: Path) -> Components:
        """Read what `save` wrote."""
        return cls(**load_file(path))
