"""Colour and class of a segmented subject."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from pysora.worlds.attributes import CLASSES, COLOURS, MOTIONS, PALETTE
from pysora.worlds.motions import MOVERS, Stage
from pysora.worlds.oracle.regions import Mask, shrunk
from pysora.worlds.render import draw_subject, tones

Pixels = npt.NDArray[np.float32]

#: Side of the square that silhouettes are compared in.
_SIDE = 32
#: Drawn examples of each class: seeds of each motion, and moments of each seed.
_SEEDS, _MOMENTS = 6, 5
#: How much the inside of the silhouette counts beside its outline.
_INSIDE = 0.35
#: A silhouette whose best likeness is below this is none of the classes.
_UNLIKE = 0.72
#: Largest distance of a pixel from a colour that it votes for (8-bit levels).
_COLOUR_REACH = 60.0


def colour_of(frames: Pixels, masks: Mask) -> str | None:
    """The palette's colour that most inner pixels of the subject are nearest to; None where no pixel is near one.

    frames [F,H,W,3] 0..255, masks [F,H,W]. The body's flat and shaded tones vote; dark outlines are too far from both.
    """
    core = shrunk(masks, 2)
    pixels = frames[core]
    if not len(pixels):
        return None
    palette = np.asarray([PALETTE[name] for name in COLOURS], np.float32)
    flat = np.linalg.norm(pixels[:, None] - palette, axis=-1)
    shaded = np.linalg.norm(pixels[:, None] - 0.76 * palette, axis=-1)
    distance = np.minimum(flat, shaded)
    nearest = distance.argmin(1)[distance.min(1) < _COLOUR_REACH]
    if len(nearest) < 0.1 * len(pixels):
        return None
    return COLOURS[int(np.bincount(nearest, minlength=len(COLOURS)).argmax())]


def class_of(frames: Pixels, masks: Mask, boxes: npt.NDArray[np.float64]) -> tuple[str, float] | None:
    """The class whose drawn examples the silhouettes and their insides are most alike over all frames, and how much, or
    None.

    frames [F,H,W,3] 0..255, masks [F,H,W], boxes [F,4]; frames without a subject are left out by the caller.
    """
    shapes, insides = _normalised(frames, masks, boxes)
    examples, example_insides = _examples()
    shared = shapes @ examples.T
    either = shapes.sum(1)[:, None] + examples.sum(1) - shared
    overlap = shared / either
    likeness = overlap + _INSIDE * (insides @ example_insides.T)
    by_class = likeness.reshape(len(shapes), len(CLASSES), -1)
    best = by_class.max(-1).mean(0)
    fit = overlap.reshape(by_class.shape).max(-1).mean(0)
    winner = int(best.argmax())
    return (CLASSES[winner], float(best[winner])) if fit[winner] > _UNLIKE else None


def _normalised(frames: Pixels, masks: Mask, boxes: npt.NDArray[np.float64]) -> tuple[Pixels, Pixels]:
    """Silhouettes and insides [F,S*S]: cut out, scaled to fit a square, centred.

    Insides are lightness within the silhouette with mean 0 and length 1, so that a product is a correlation.
    """
    light = frames.mean(-1)
    shapes, insides = [], []
    for picture, mask, (x0, y0, x1, y1) in zip(light, masks, boxes, strict=True):
        reach = max(x1 - x0, y1 - y0) / 2
        steps = (np.arange(_SIDE) + 0.5) / _SIDE * 2 - 1
        columns = (x1 - x0) / 2 + steps * reach - 0.5
        rows = (y1 - y0) / 2 + steps * reach - 0.5
        window = (slice(int(y0), int(y1)), slice(int(x0), int(x1)))
        cut = mask[window].astype(np.float32)
        shape = _sampled(cut, rows, columns)
        inside = _sampled(picture[window] * cut, rows, columns) / np.maximum(shape, 0.5)
        inside = (inside - (inside * shape).sum() / max(float(shape.sum()), 1.0)) * shape
        shapes.append(shape.ravel())
        insides.append(inside.ravel() / max(float(np.linalg.norm(inside)), 1e-3))
    return np.stack(shapes), np.stack(insides)


def _sampled(picture: Pixels, rows: npt.NDArray[np.float64], columns: npt.NDArray[np.float64]) -> Pixels:
    """Bilinear samples of [H,W] at rows x columns; zero outside."""
    padded = np.pad(picture, 1)

    def split(at: npt.NDArray[np.float64], size: int) -> tuple[npt.NDArray[np.int64], Pixels]:
        at = np.clip(at + 1, 0, size - 1.001)
        whole = at.astype(np.int64)
        return whole, (at - whole).astype(np.float32)

    y, fy = split(rows, padded.shape[0])
    x, fx = split(columns, padded.shape[1])
    upper = padded[y][:, x] * (1 - fx) + padded[y][:, x + 1] * fx
    lower = padded[y + 1][:, x] * (1 - fx) + padded[y + 1][:, x + 1] * fx
    return np.asarray(upper * (1 - fy)[:, None] + lower * fy[:, None], np.float32)


@lru_cache(maxsize=1)
def _examples() -> tuple[Pixels, Pixels]:
    """Silhouettes and insides [classes*examples, S*S] of every class in every motion, class by class."""
    stage = Stage(1.0, 1.0, 0.91, 0.46)
    half, side = 30.0, 72
    shapes, insides = [], []
    for cls in CLASSES:
        for motion in MOTIONS:
            for seed in range(_SEEDS):
                rng = np.random.default_rng([seed, MOTIONS.index(motion)])
                track = MOVERS[motion](stage, np.linspace(0, 1.9, _MOMENTS), rng)
                centre = np.full((_MOMENTS, 2), side / 2.0)
                look = tones(COLOURS[seed % len(COLOURS)], rng)
                colour, alpha = draw_subject(cls, track, centre, half, side, look)
                mask = np.asarray(alpha > 0.5)
                # On a dark setting the outline is lost: compare with what is left of the subject then, too.
                for seen in (mask, shrunk(mask, 2)):
                    shape, inside = _normalised(np.asarray(colour, np.float32), seen, _boxes(seen))
                    shapes.append(shape)
                    insides.append(inside)
    return np.concatenate(shapes), np.concatenate(insides)


def _boxes(masks: Mask) -> npt.NDArray[np.float64]:
    boxes = []
    for mask in masks:
        across, down = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
        boxes.append((across[0], down[0], across[-1] + 1, down[-1] + 1))
    return np.asarray(boxes, np.float64)
