"""Latents and captions of the drawn world, encoded once and drawn from many times."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from pysora import worlds
from pysora.models.text import TextEncoder
from pysora.training.clips import Sample, Size, draw, to_model


def occupancy(boxes: np.ndarray, grid: tuple[int, int, int], stride: int) -> Tensor:
    """How much of each token's cell the subject's box covers.

    boxes: `[F, 4]` over width and height (0..1). grid: T h w of the tokens. stride: frames per latent frame.
    returns: float32 `[T*h*w]` in 0..1.
    """
    T, h, w = grid
    last = np.clip(np.arange(T) * stride, 0, len(boxes) - 1)

    def covered(low: np.ndarray, high: np.ndarray, cells: int) -> np.ndarray:
        edges = np.arange(cells) / cells
        overlap = np.minimum(high[:, None], edges + 1 / cells) - np.maximum(low[:, None], edges)
        return np.asarray(np.clip(overlap * cells, 0, 1))

    x0, y0, x1, y1 = boxes[last].T
    return torch.from_numpy(covered(y0, y1, h)[:, :, None] * covered(x0, x1, w)[:, None, :]).float().flatten()


class LatentPool:
    """Latents, as `encode` makes them, of clips of one size; grows to `limit`, then the oldest are replaced."""

    def __init__(self, encode: Callable[[Tensor], Tensor], size: Size, limit: int, rng: np.random.Generator) -> None:
        self.encode, self.size, self.limit, self.rng, self.next = encode, size, limit, rng, 0
        self.latents: Tensor | None = None
        self.attributes: list[worlds.Attributes] = []
        self.boxes: list[np.ndarray] = []

    def __len__(self) -> int:
        return len(self.attributes)

    @property
    def shape(self) -> torch.Size:
        """Of the latents, `[N, z, T, H, W]`; a pool without clips has none."""
        return torch.Size() if self.latents is None else self.latents.shape

    @torch.no_grad()
    def add(self, count: int) -> None:
        """Render and encode `count` new clips."""
        # One at a time: small things that stay would break up the large blocks that many clips need for a moment.
        for _ in range(count):
            sample = draw(self.rng, self.size)
            self._put(sample, self.encode(to_model([sample.frames]))[0])

    def _put(self, sample: Sample, latent: Tensor) -> None:
        if self.latents is None:
            self.latents = torch.empty(self.limit, *latent.shape, dtype=torch.float16)
        self.latents[self.next] = latent
        if len(self) < self.limit:
            self.attributes.append(sample.attributes)
            self.boxes.append(sample.boxes)
        else:
            self.attributes[self.next], self.boxes[self.next] = sample.attributes, sample.boxes
        self.next = (self.next + 1) % self.limit

    def batch(self, count: int) -> tuple[Tensor, list[worlds.Attributes], list[np.ndarray]]:
        """Latents float32 `[B, z, T, H, W]`, what they show, and the boxes of the subject, `[F, 4]` each.

        The first latent frames are the latents of the shorter clip: they are causal.
        """
        assert self.latents is not None
        chosen = self.rng.integers(len(self), size=count)
        z = self.latents[torch.from_numpy(chosen)].float()
        return z, [self.attributes[i] for i in chosen], [self.boxes[i] for i in chosen]


class CaptionBank:
    """Several captions of every combination that is not held out, embedded once by the frozen encoder; every other one
    names all four attributes."""

    def __init__(self, text: TextEncoder, per_combination: int, rng: np.random.Generator) -> None:
        self.rng = rng
        combinations = [a for a in worlds.all_attributes() if not a.held_out]
        texts = [
            (worlds.full_caption(a, None, rng) if i % 2 else worlds.captions(a, rng)).text
            for a in combinations
            for i in range(per_combination)
        ]
        rows: list[Tensor] = []
        for start in range(0, len(texts), 128):
            embeds, lengths = text.encode(texts[start : start + 128])
            rows += [e[:n].half() for e, n in zip(embeds, lengths.tolist(), strict=True)]
        self.captions = {a: rows[i * per_combination :][:per_combination] for i, a in enumerate(combinations)}
        self.nothing = text.encode([""])[0][0].half()

    def batch(self, attributes: list[worlds.Attributes], dropped: np.ndarray) -> tuple[Tensor, list[int]]:
        """A random caption for each; the empty text where `dropped`. Returns `[B, M, text_dim]` float32, lengths."""
        rows = []
        for a, drop in zip(attributes, dropped, strict=True):
            own = self.captions[a]
            rows.append(self.nothing if drop else own[int(self.rng.integers(len(own)))])
        return torch.nn.utils.rnn.pad_sequence([r.float() for r in rows], batch_first=True), [len(r) for r in rows]
