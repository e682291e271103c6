"""How to walk a clip through the autoencoder within a memory budget.

A plan says which layers see the whole frame, how the frame is tiled for the others, and which loop is the outer one.
The need of every plan is computed from the layers and the shapes before anything runs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pysora.memory import readable
from pysora.models.vae_blocks import Downsample, Layer, MidBlock, ResidualDownBlock, UpBlock
from pysora.models.vae_cost import Tally
from pysora.models.vae_tiles import Tile, Window, windows

# Parts along one side of the frame. More and smaller tiles would be halo for the most part.
PARTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
SMALLEST = 4
# What the first use of the libraries brings: their code, threads, buffers to pack operands in.
ALLOWANCE = 48 << 20


@dataclass(frozen=True)
class TilePlan:
    """One way to walk.

    cut: layers before it and from it on run in two parts, of which one sees whole frames and the other tiles.
    tiles: of the tiled part, which yields frames of `rows` x `cols`. tiles_outside: see `through_tiles`.
    need: bytes above the model without the finished result. flops: of one chunk, to compare plans by.
    """

    cut: int
    tiles: tuple[Tile, ...]
    tiles_outside: bool
    rows: int
    cols: int
    need: int
    flops: int


@dataclass(frozen=True)
class Job:
    """A clip that is to go through layers, chunk by chunk.

    tiles_first: the layers before the cut run on tiles and the rest on whole frames (encoding), or the other way.
    shape: (batch, channels, rows, cols). frames: of the first chunk and of each later one, and how many later ones.
    what: in words, for errors.
    """

    layers: Sequence[Layer]
    tiles_first: bool
    shape: tuple[int, int, int, int]
    frames: tuple[int, int, int]
    itemsize: int
    what: str

    def whole(self) -> TilePlan:
        """The plan without tiles."""
        return self.plan(self.cuts()[0], (1, 1), False)

    def within(self, memory: int, kept: int = 0, buffered: int | None = None) -> TilePlan:
        """The plan with the least arithmetic that needs at most `memory` bytes; of equal ones that which streams.

        kept: bytes of the result that the caller keeps. buffered: the same where tiles are outside, if it differs.
        Raises ValueError that says what is needed at least.
        """
        found = self.fitting(memory, kept, buffered)
        if found is None:
            least = readable(self.least(kept, buffered))
            raise ValueError(f"memory: {self.what} needs at least {least} above the model, got {readable(memory)}")
        return found

    def fitting(self, memory: int, kept: int = 0, buffered: int | None = None) -> TilePlan | None:
        """The same, or None where no plan fits."""
        whole = self.whole()
        if whole.need + kept <= memory:
            return whole
        for _, seam, rows, cols in sorted(self._grids(), key=lambda grid: (grid[0], len(grid[2]) * len(grid[3]))):
            for plan in self._both(seam, rows, cols):
                if plan.need + _kept(plan, kept, buffered) <= memory:
                    return plan
        return None

    def least(self, kept: int = 0, buffered: int | None = None) -> int:
        """Bytes that the most frugal plan needs."""
        return min(p.need + _kept(p, kept, buffered) for p in self.plans())

    def plans(self) -> Iterator[TilePlan]:
        """Every plan that may be taken."""
        for _, seam, rows, cols in self._grids():
            yield from self._both(seam, rows, cols)

    def plan(self, cut: int, parts: tuple[int, int], tiles_outside: bool) -> TilePlan:
        """The plan with a given cut and number of tiles along H and W."""
        seam = self._seam(cut)
        return self._both(seam, seam.rows(parts[0]), seam.cols(parts[1]))[tiles_outside]

    def cuts(self) -> list[int]:
        """Between which layers the plans may cut: at the borders of the levels, on one side of the middle block."""
        if not self.tiles_first:
            return [i for i, layer in enumerate(self.layers) if isinstance(layer, UpBlock)]
        middle = next(i for i, layer in enumerate(self.layers) if isinstance(layer, MidBlock))
        return [i for i in range(1, middle) if isinstance(self.layers[i - 1], Downsample | ResidualDownBlock)] + [
            middle
        ]

    def _seam(self, cut: int) -> _Seam:
        first, later, count = self.frames
        kinds = [(first, True), (later, False)] if count else [(first, True)]
        batch, channels, rows, cols = self.shape
        given = [Tally(batch, channels, n, rows, cols, self.itemsize, start) for n, start in kinds]
        before, after = self.layers[:cut], self.layers[cut:]
        between = [t.fresh().run(before) for t in given]
        made = [t.fresh().run(after) for t in between]
        if self.tiles_first:
            return _Seam(cut, before, given, between, between, made)
        return _Seam(cut, after, between, made, between, between)

    def _grids(self) -> Iterator[tuple[int, _Seam, list[Window], list[Window]]]:
        """Cuts and tiles to choose from, with the arithmetic of one chunk."""
        for cut in self.cuts():
            seam = self._seam(cut)
            cells = seam.between[0].rows, seam.between[0].cols
            rows, cols = ([n for n in PARTS if n == 1 or n * SMALLEST <= side] for side in cells)
            for pair in itertools.product(map(seam.rows, rows), map(seam.cols, cols)):
                yield seam.flops(*pair), seam, *pair

    def _both(self, seam: _Seam, rows: list[Window], cols: list[Window]) -> tuple[TilePlan, TilePlan]:
        """The plans with the tiles inside and outside."""
        high, wide = (max(w.read.stop - w.read.start for w in side) for side in (rows, cols))
        area = _read(rows) * _read(cols)
        tiles = tuple(Tile(*pair) for pair in itertools.product(rows, cols))
        costs = [t.fresh(high, wide).run(seam.tiled) for t in seam.entry]

        features = [t.size() for t in seam.between]
        # Decoded pieces are few channels, twice while they are clamped; encoded ones go into the features at once.
        live = max(t.live + (0 if self.tiles_first else 2 * t.size()) for t in costs)
        cached = max(t.cached for t in costs)
        whole = max(t.live for t in seam.whole)
        lasting = max(t.cached for t in seam.whole)
        if self.tiles_first:
            # The whole frames come from the last tile, whose result is still there.
            whole += max(t.size() for t in costs)
        inside = lasting + cached * area // (high * wide)
        inside += max(whole + self.tiles_first * max(features), max(features) + live)
        outside = features[0] + self.frames[2] * features[-1]
        if self.tiles_first:
            outside += lasting + cached + max(whole, live)
        else:
            outside += max(lasting + whole, cached + live)
        flops = seam.flops(rows, cols)
        beside = self._latents(seam) + ALLOWANCE
        frame = seam.exit[0].rows, seam.exit[0].cols
        return (
            TilePlan(seam.cut, tiles, False, *frame, inside + beside, flops),
            TilePlan(seam.cut, tiles, True, *frame, outside + beside, flops),
        )

    def _latents(self, seam: _Seam) -> int:
        """Bytes of the latents before and after the pointwise convolution beside the coder, and its own copies."""
        first, later, count = self.frames
        if self.tiles_first:
            return 4 * (seam.whole[0].size() + count * seam.whole[-1].size())
        return 4 * math.prod(self.shape) * (first + count * later) * self.itemsize


@dataclass(frozen=True)
class _Seam:
    """A job cut in two: shapes and costs of the first chunk and, where there are more, of a later one.

    tiled: the layers that run on tiles. entry, exit: frames of whole size before and after them. between: what one
    part hands to the other. whole: the other part, run.
    """

    cut: int
    tiled: Sequence[Layer]
    entry: list[Tally]
    exit: list[Tally]
    between: list[Tally]
    whole: list[Tally]

    def rows(self, parts: int) -> list[Window]:
        """The frame's height in so many tiles."""
        return windows(self.tiled, self.entry[0].rows, self.exit[0].rows, parts)

    def cols(self, parts: int) -> list[Window]:
        """The frame's width in so many tiles."""
        return windows(self.tiled, self.entry[0].cols, self.exit[0].cols, parts)

    def flops(self, rows: list[Window], cols: list[Window]) -> int:
        """Arithmetic of one chunk with these tiles."""
        frame = self.entry[-1].rows * self.entry[-1].cols
        return self.whole[-1].flops + self.exit[-1].flops * _read(rows) * _read(cols) // frame


def _read(side: list[Window]) -> int:
    """Rows or columns that the tiles read in all, halos included."""
    return sum(w.read.stop - w.read.start for w in side)


def _kept(plan: TilePlan, kept: int, buffered: int | None) -> int:
    return buffered if plan.tiles_outside and buffered is not None else kept
