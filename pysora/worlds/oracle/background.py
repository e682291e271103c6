"""Which setting a clip shows, what it looks like without the subject, and where the subject is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from pysora.worlds.attributes import SETTINGS
from pysora.worlds.oracle.regions import Mask, filled, grown, largest, shrunk, smoothed
from pysora.worlds.render import empty_place

Pixels = npt.NDArray[np.float32]

#: Examples of each setting that a clip is compared with.
_EXAMPLES = 48
#: Differences between a clip and a setting count at most this much, so that a subject does not decide (8-bit levels).
_CEILING = 60.0
#: A clip further from every setting than this (mean difference) shows none of them.
_FARTHEST = 22.0
#: Pixels this near an example show the empty setting.
_AGREEMENT = 30.0
#: A pixel further than this from the empty setting belongs to the subject.
_CONTRAST = 16.0
#: The same as shares of what the subject's inner pixels differ by: a blurred outline lies where half of it is left.
_SHARES = (0.5, 0.7)
#: Smallest subject, as a share of the shorter side's square.
_SMALLEST = 0.02
#: Lines of the setting's example are looked for this many pixels to each side.
_REACH = 3
#: Edges of the setting may lie this many pixels from where its aligned example has them.
_SLACK = 1
#: Gaps in a subject's outline are at most twice this many pixels wide.
_GAP = 2
#: A part of the setting with the subject's colour that cuts it is at most twice this many pixels wide.
_CUT = 4
#: Colours this near are one (8-bit levels).
_SAME = 20.0
#: What is no thicker than twice this many pixels is no part of a subject.
_THIN = 1


@dataclass(frozen=True)
class Subject:
    """masks bool [F,H,W]; found bool [F]: frames that show a subject; boxes float64 [F,4] x0,y0,x1,y1 (of those)."""

    masks: Mask
    found: Mask
    boxes: npt.NDArray[np.float64]


def recognise(frames: Pixels) -> tuple[str, Pixels, float] | None:
    """The setting of [F,H,W,3] frames 0..255, its empty picture [H,W,3] fitted to them, and its ground row; or None."""
    height, width = frames.shape[1:3]
    pictures, coarse, grounds = _examples(width, height)
    scene = _coarse(np.median(frames, 0))
    difference = scene - coarse
    tint = np.clip(np.median(difference, (1, 2), keepdims=True), -14, 14)
    distance = np.minimum(np.abs(difference - tint), _CEILING).mean((1, 2, 3))
    best = int(np.argmin(distance))
    if distance[best] > _FARTHEST:
        return None
    picture = _aligned(np.median(frames, 0), pictures[best] + tint[best])
    return SETTINGS[best // _EXAMPLES], _fitted(frames, picture), grounds[best]


def segment(frames: Pixels, background: Pixels, ground: float) -> list[Subject]:
    """The subject of frames [F,H,W,3], cut out at several contrasts: the largest region that differs from the setting.

    The first has the faintest differences: a subject with pale parts is whole there alone. A blurred one has its
    outline at half of its contrast, and a halo around it.
    """
    low, high = _range(background)
    smooth = smoothed(frames)
    difference = np.maximum(low - smooth, smooth - high).max(-1)
    ignored = _shadows(smooth, background, ground, min(frames.shape[1:3]))
    ignored[:, min(round(ground), ignored.shape[1]) :] = True
    faint = _regions(smooth, difference > _CONTRAST, ignored)
    inner = difference[shrunk(faint, 2)]
    limits = [share * float(np.median(inner)) for share in _SHARES] if inner.size else []
    stronger = [_regions(smooth, difference > limit, ignored) for limit in limits if limit > _CONTRAST]
    return [_measured(masks) for masks in (faint, *stronger)]


def _regions(frames: Pixels, different: Mask, ignored: Mask) -> Mask:
    """The largest whole region of each frame where it is `different` [F,H,W], but not `ignored` [F,H,W]."""
    masks = _bridged(frames, different & ~ignored) & ~ignored
    # A white subject on snow is an outline with gaps: what it would enclose with them closed belongs to it.
    closed = shrunk(grown(masks, _GAP), _GAP)
    enclosed = np.stack([filled(mask) for mask in closed]) & ~closed
    masks = np.stack([filled(largest(mask)) for mask in shrunk(grown(masks, 1), 1) | grown(enclosed, _GAP)])
    return np.stack([largest(mask) for mask in grown(shrunk(masks, _THIN), _THIN) & masks])


def _measured(masks: Mask) -> Subject:
    """The subject with these masks [F,H,W]: where it is large enough to be one, and its boxes there."""
    short = min(masks.shape[1:])
    found = masks.sum((1, 2)) > _SMALLEST * short * short
    boxes = np.full((len(masks), 4), np.nan)
    for index in np.flatnonzero(found):
        across, down = np.flatnonzero(masks[index].any(0)), np.flatnonzero(masks[index].any(1))
        boxes[index] = (across[0], down[0], across[-1] + 1, down[-1] + 1)
    return Subject(masks, found, boxes)


def _bridged(frames: Pixels, masks: Mask) -> Mask:
    """The masks [F,H,W] with what lies in their gaps and has the colour of their pixels around it.

    A white subject before a white skirting board is two parts otherwise. Neighbours of another colour stay apart.
    """
    near, weight = frames * masks[..., None], masks.astype(np.float32)[..., None]
    for _ in range(_CUT):
        near, weight = smoothed(near), smoothed(weight)
    alike: Mask = np.abs(frames - near / np.maximum(weight, 1e-6)).max(-1) < _SAME
    return masks | (shrunk(grown(masks, _CUT), _CUT) & alike)


def _shadows(frames: Pixels, background: Pixels, ground: float, short: int) -> Mask:
    """Pixels near the ground that are the background, evenly darkened."""
    ratio = frames / np.maximum(background, 1)
    level = ratio.mean(-1)
    even = (np.abs(ratio - level[..., None]) * background).max(-1) < 14
    near = np.abs(np.arange(frames.shape[1]) + 0.5 - ground) < 0.045 * short
    dark: Mask = even & (level > 0.55) & (level < 1.02) & near[None, :, None]
    # The soft edge of a subject's outline looks like shade too, but it is thin.
    return grown(shrunk(dark, 1), 1) & dark


def _aligned(scene: Pixels, picture: Pixels) -> Pixels:
    """`picture` with each row, then each column, from as far as `_REACH` pixels away where it is most like the scene's.

    The ground's line and the edges of things lie elsewhere than in the example, each by its own distance.
    """
    for axis in (0, 1):
        size = picture.shape[axis]
        shifted = np.stack(
            [picture.take(np.clip(np.arange(size) + d, 0, size - 1), axis) for d in range(-_REACH, _REACH + 1)]
        )
        distance = np.minimum(np.abs(shifted - scene), _CEILING).mean((2 - axis, 3))
        # Where nothing is gained a line stays in its place.
        distance[_REACH] -= 0.5
        best = np.argmin(distance, 0)
        lines = np.moveaxis(shifted, axis + 1, 1)[best, np.arange(size)]
        picture = np.moveaxis(lines, 0, axis)
    return picture


def _fitted(frames: Pixels, picture: Pixels) -> Pixels:
    """`picture` corrected by what the frames [F,H,W,3] show wherever they nearly agree with it for a while."""
    agree = (np.abs(frames - picture).max(-1) < _AGREEMENT)[..., None]
    count = agree.sum(0)
    mean = (frames * agree).sum(0) / np.maximum(count, 1)
    return np.asarray(np.where(count >= max(1, len(frames) // 4), mean, picture), np.float32)


def _range(picture: Pixels) -> tuple[Pixels, Pixels]:
    """The smallest and largest value around every pixel of [H,W,3], within the slack of edges."""
    low = high = picture
    for axis in (0, 1):
        edges = [(0, 0)] * 3
        edges[axis] = (_SLACK, _SLACK)
        size = picture.shape[axis]
        shifts = [np.pad(low, edges, mode="edge").take(range(s, s + size), axis) for s in range(2 * _SLACK + 1)]
        low = np.minimum.reduce(shifts)
        shifts = [np.pad(high, edges, mode="edge").take(range(s, s + size), axis) for s in range(2 * _SLACK + 1)]
        high = np.maximum.reduce(shifts)
    return low, high


@lru_cache(maxsize=4)
def _examples(width: int, height: int) -> tuple[list[Pixels], Pixels, list[float]]:
    """Empty pictures of every setting in turn, the same made coarse [N,h,w,3], and their ground rows."""
    places = [empty_place(setting, seed, (width, height)) for setting in SETTINGS for seed in range(_EXAMPLES)]
    pictures = [place.pixels.astype(np.float32) for place in places]
    grounds = [place.ground * min(width, height) for place in places]
    return pictures, np.stack([_coarse(picture) for picture in pictures]), grounds


def _coarse(picture: npt.NDArray[np.floating]) -> Pixels:
    """Means over blocks of [H,W,3], about 32 blocks to the shorter side."""
    block = max(1, min(picture.shape[:2]) // 32)
    height, width = picture.shape[0] // block, picture.shape[1] // block
    cut = picture[: height * block, : width * block].reshape(height, block, width, block, 3)
    return np.asarray(cut.mean((1, 3)), np.float32)
