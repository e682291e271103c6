"""Clips of the drawn world as training data: a pool in memory that is renewed a little at every step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pysora import worlds

Size = tuple[int, int, int]
"""Width, height, frames."""


@dataclass(frozen=True)
class Sample:
    """frames: uint8 `[F, H, W, 3]`; attributes: what is shown; boxes: float32 `[F, 4]`, x0 y0 x1 y1 over width and
    height, so in 0..1."""

    frames: np.ndarray
    attributes: worlds.Attributes
    boxes: np.ndarray


def draw(rng: np.random.Generator, size: Size) -> Sample:
    """A new clip of a combination that is not held out."""
    width, height, frames = size
    attributes = worlds.sample_attributes(rng, held_out=False)
    clip = worlds.render(attributes, seed=int(rng.integers(2**31)), size=(width, height), frames=frames)
    scale = np.array([width, height, width, height], np.float32)
    return Sample(clip.frames, attributes, np.asarray(clip.truth.boxes, np.float32) / scale)


def to_model(frames: list[np.ndarray]) -> Tensor:
    """uint8 `[F, H, W, 3]` each -> float32 `[B, 3, F, H, W]` in [-1, 1]."""
    return torch.from_numpy(np.stack(frames)).permute(0, 4, 1, 2, 3).float().div(127.5).sub(1)


class ClipPool:
    """`count` clips of one size; `renew` replaces the oldest."""

    def __init__(self, size: Size, count: int, rng: np.random.Generator) -> None:
        self.size, self.rng, self.next = size, rng, 0
        self.samples = [draw(rng, size) for _ in range(count)]

    def renew(self, count: int) -> None:
        """Replace the `count` oldest clips by new ones."""
        for _ in range(count):
            self.samples[self.next] = draw(self.rng, self.size)
            self.next = (self.next + 1) % len(self.samples)

    def batch(self, count: int, crop: tuple[int, int, int] | None = None) -> Tensor:
        """`[count, 3, F, H, W]` in [-1, 1]; `crop` (width, height, frames) takes a window at a random place."""
        chosen = [self.samples[i].frames for i in self.rng.integers(len(self.samples), size=count)]
        if crop is None:
            return to_model(chosen)
        windows = []
        for frames in chosen:
            f, y, x = (
                int(self.rng.integers(have - want + 1))
                for have, want in zip(frames.shape[:3], reversed(crop), strict=True)
            )
            windows.append(frames[f : f + crop[2], y : y + crop[1], x : x + crop[0]])
        return to_model(windows)
