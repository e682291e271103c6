"""Running layers on tiles of the frame: how far each layer reaches, tiles with exact halos, and the two walking orders.

A tile is read with a halo as wide as the layers reach, runs through them as if it were a whole frame, with a `Stream`
of its own, and loses its rim. Where the halo would pass the frame's edge the tile ends there, so that the zeros around
it are those which the convolutions see in the whole frame: in real arithmetic, tiled and untiled are equal.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from pysora.memory import returned_at_once
from pysora.models.vae_blocks import (
    CausalConv3d,
    ChannelsLast,
    Downsample,
    Layer,
    NormedConv,
    Patchify,
    ResidualBlock,
    ResidualDownBlock,
    Stream,
    Unpatchify,
    UpBlock,
    Upsample,
    laid_like,
)

Span = tuple[int, int]


@functools.singledispatch
def reach(layer: object, span: Span) -> Span:
    """Rows (or columns) of a layer's input that decide the rows `[start, stop)` of its output, edges not considered.

    Raises TypeError for a layer that sees the whole frame.
    """
    raise TypeError(f"{type(layer).__name__} cannot run on tiles")


@reach.register
def _(layer: CausalConv3d, span: Span) -> Span:
    return span[0] - layer.kernel_size[1] // 2, span[1] + layer.kernel_size[1] // 2


@reach.register
def _(layer: NormedConv, span: Span) -> Span:
    return reach(layer.conv, span)


@reach.register
def _(layer: ChannelsLast, span: Span) -> Span:
    return span


@reach.register
def _(layer: Patchify, span: Span) -> Span:
    return span[0] * layer.size, span[1] * layer.size


@reach.register
def _(layer: Unpatchify, span: Span) -> Span:
    return span[0] // layer.size, -(-span[1] // layer.size)


@reach.register
def _(layer: ResidualBlock, span: Span) -> Span:
    return reach_through([layer.conv1, layer.conv2], span)


@reach.register
def _(layer: Downsample, span: Span) -> Span:
    conv = cast(nn.Conv2d, layer.resample[1])
    return span[0] * 2, (span[1] - 1) * 2 + conv.kernel_size[0]


@reach.register
def _(layer: Upsample, span: Span) -> Span:
    margin = cast(nn.Conv2d, layer.resample[1]).kernel_size[0] // 2
    return (span[0] - margin) // 2, -(-(span[1] + margin) // 2)


# The shortcuts of the next two see no more than the layers beside them.
@reach.register
def _(layer: ResidualDownBlock, span: Span) -> Span:
    return reach_through([*layer.resnets, *([] if layer.downsampler is None else [layer.downsampler])], span)


@reach.register
def _(layer: UpBlock, span: Span) -> Span:
    return reach_through(layer.layers(), span)


def reach_through(layers: Sequence[object], span: Span) -> Span:
    """The same through several layers, which run in the order given."""
    return functools.reduce(lambda wanted, layer: reach(layer, wanted), reversed(layers), span)


class Window(NamedTuple):
    """A tile along one side of the frame: `read` of the input gives a result whose part `keep` is `write`."""

    read: slice
    keep: slice
    write: slice


class Tile(NamedTuple):
    """A tile's windows along H and W."""

    rows: Window
    cols: Window


def windows(layers: Sequence[object], size: int, made: int, parts: int) -> list[Window]:
    """Cut one side of the frame into nearly equal parts.

    layers: turn `size` rows (or columns) into `made`; one of the two is a multiple of the other, and the parts begin
    and end on the coarser grid, so that strides meet the tiles as they meet the whole frame.
    """
    cells = min(size, made)
    stride, scale = size // cells, made // cells
    edges = [cells * i // parts for i in range(parts + 1)]
    found = []
    for start, stop in itertools.pairwise(edges):
        lo, hi = reach_through(layers, (start * scale, stop * scale))
        lo, hi = max(lo, 0) // stride * stride, min(-(-hi // stride) * stride, size)
        origin = lo * scale // stride
        keep = slice(start * scale - origin, stop * scale - origin)
        found.append(Window(slice(lo, hi), keep, slice(start * scale, stop * scale)))
    return found


class Piece(NamedTuple):
    """A part of the result: `values` `[B, C, f, h, w]` from frame `start` on; `last` when it completes its frames."""

    start: int
    rows: slice
    cols: slice
    values: Tensor
    last: bool


def through(layers: Sequence[Layer], chunks: Iterable[Tensor]) -> Iterator[Tensor]:
    """Each chunk after the layers, which see the whole frame."""
    stream = Stream()
    for x in chunks:
        yield stream.run(layers, x)


def through_tiles(
    layers: Sequence[Layer], chunks: Iterable[Tensor], tiles: Sequence[Tile], tiles_outside: bool
) -> Iterator[Piece]:
    """Each chunk after the layers, tile by tile.

    tiles_outside: all chunks of the first tile, then all of the second: holds every chunk and the caches of one tile.
    Otherwise all tiles of the first chunk, then all of the second: holds one chunk and the caches of every tile.
    """
    if tiles_outside:
        held = list(chunks)
        for tile in tiles:
            stream, start = Stream(), 0
            for x in held:
                piece = _piece(layers, x, tile, stream, start, tile is tiles[-1])
                start += piece.values.shape[2]
                yield piece
                del piece  # the next one needs the room
        return
    streams, start = [Stream() for _ in tiles], 0
    for x in chunks:
        frames = 0
        for tile, stream in zip(tiles, streams, strict=True):
            piece = _piece(layers, x, tile, stream, start, tile is tiles[-1])
            frames = piece.values.shape[2]
            yield piece
            del piece
        start += frames
        del x


def _piece(layers: Sequence[Layer], x: Tensor, tile: Tile, stream: Stream, start: int, last: bool) -> Piece:
    y = stream.run(layers, x[..., tile.rows.read, tile.cols.read])
    return Piece(start, tile.rows.write, tile.cols.write, y[..., tile.rows.keep, tile.cols.keep], last)


def complete(pieces: Iterable[Piece], rows: int, cols: int) -> Iterator[Tensor]:
    """Whole frames of `rows` x `cols`, as soon as their last piece is there."""
    waiting: dict[int, Tensor] = {}
    for piece in pieces:
        values = piece.values
        if values.shape[3:] == (rows, cols):
            yield values
        else:
            if piece.start not in waiting:
                waiting[piece.start] = laid_like(values, *values.shape[:3], rows, cols)
            waiting[piece.start][..., piece.rows, piece.cols] = values
            if piece.last:
                yield waiting.pop(piece.start)
        del piece, values


@torch.no_grad()
def frugally(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """The same pieces, made without a record for gradients and without memory kept for later."""
    with returned_at_once():
        yield from pieces
