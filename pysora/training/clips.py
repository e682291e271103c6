"""Clips of the drawn world as training data: a pool in memory that is renewed a little at every step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pysora import worlds

Size = tuple[int, int, int]
"""Width, height, frames."""
SHARES = {"cube": 0.4, "ball": 0.5, "boat": 0.5, "car": 0.7, "star": 0.8, "bounces": 0.4, "falls": 0.5, "circles": 0.6}
"""Of the combinations with a class or motion that is learnt early, this share is drawn; of the others all."""


@dataclass(frozen=True)
class Sample:
    """frames: uint8 `[F, H, W, 3]`; attributes: what is shown; boxes: float32 `[F, 4]`, x0 y0 x1 y1 over width and
    height, so in 0..1."""

    frames: np.ndarray
    attributes: worlds.Attributes
    boxes: np.ndarray


def draw(rng: np.random.Generator, size: Size) -> Sample:
    """A new clip of a combination that is not held out, less often of a class or motion that is learnt early."""
    width, height, frames = size
    while True:
        attributes = worlds.sample_attributes(rng, held_out=False)
        if rng.random() < SHARES.get(attributes.cls, 1) * SHARES.get(attributes.motion, 1):
            break
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

    def batch(self, count: int) -> Tensor:
        """Whole clips, `[count, 3, F, H, W]` in [-1, 1]."""
        return to_model([self.samples[i].frames for i in self.rng.integers(len(self.samples), size=count)])

    def weighted(self, count: int, subject: float, window: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        """Windows (width, height, frames), most of them around the subject, and how much each pixel counts.

        Returns `[count, 3, F, H, W]` in [-1, 1] and `[count, 1, F, H, W]`: `subject` in and near its box, elsewhere 1.
        """
        frames, weights = [], []
        for i in self.rng.integers(len(self.samples), size=count):
            sample = self.samples[i]
            where = self._window(sample, window)
            frames.append(sample.frames[where])
            weights.append(torch.from_numpy(_near(sample, subject)[where]))
        return to_model(frames), torch.stack(weights)[:, None]

    def _window(self, sample: Sample, size: tuple[int, int, int]) -> tuple[slice, slice, slice]:
        """Frames, rows and columns of a window: three in four are around the subject, the others anywhere."""
        F, H, W = sample.frames.shape[:3]
        width, height, frames = size
        f = int(self.rng.integers(F - frames + 1))
        y, x = int(self.rng.integers(H - height + 1)), int(self.rng.integers(W - width + 1))
        if self.rng.random() < 0.75:
            # At any moment: what moves fast is near the window's middle at one moment only.
            x0, y0, x1, y1 = sample.boxes[f + int(self.rng.integers(frames))]
            dx, dy = self.rng.normal(0, 0.1, 2)
            x = int(np.clip(((x0 + x1) / 2 + dx) * W - width / 2, 0, W - width))
            y = int(np.clip(((y0 + y1) / 2 + dy) * H - height / 2, 0, H - height))
        return slice(f, f + frames), slice(y, y + height), slice(x, x + width)


def _near(sample: Sample, value: float) -> np.ndarray:
    """float32 `[F, H, W]`: `value` within two pixels of the subject's box, 1 elsewhere."""
    H, W = sample.frames.shape[1:3]
    x0, y0, x1, y1 = (sample.boxes * (W, H, W, H)).T[..., None]
    rows, columns = np.arange(H), np.arange(W)
    inside = ((rows >= y0 - 2) & (rows < y1 + 2))[:, :, None] & ((columns >= x0 - 2) & (columns < x1 + 2))[:, None, :]
    weights: np.ndarray = np.where(inside, np.float32(value), np.float32(1))
    return weights
