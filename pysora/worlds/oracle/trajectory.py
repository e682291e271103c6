"""How a subject moves, from its boxes and the change of its pixels."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from pysora.worlds.oracle.regions import Mask, grown

Pixels = npt.NDArray[np.float32]

#: A path wider (higher) than this, in shorter sides, is no mere sway.
_FAR = 0.13
#: Share of a full turn that a circle must go round.
_TURN = 0.55
#: How much more than the background a living subject's pixels change.
_LIVELY = 2.0


def motion_of(frames: Pixels, masks: Mask, boxes: npt.NDArray[np.float64]) -> str | None:
    """The motion of a subject over the frames that show it, or None: frozen, or like none of the motions.

    frames [F,H,W,3] 0..255; masks [F,H,W]; boxes [F,4] pixels.
    """
    if len(boxes) < 5:
        return None
    short = min(frames.shape[1:3])
    x, y = _steady((boxes[:, 0] + boxes[:, 2]) / 2) / short, _steady((boxes[:, 1] + boxes[:, 3]) / 2) / short
    # A body that stretches moves its middle less far than its ends; of these one may have been cut off with the ground.
    end = max((_steady(boxes[:, 1]) / short, _steady(boxes[:, 3]) / short), key=np.ptp)
    wide, high = float(np.ptp(x)), float(max(np.ptp(y), np.ptp(end)))
    if wide < _FAR and high < _FAR:
        return "still" if _lives(frames, masks) else None
    if abs(_turns(x, y)) > _TURN and min(wide, high) > _FAR:
        return "circles"
    if wide > 1.2 * high:
        return _crossing(x)
    return _vertical(end)


def _crossing(x: npt.NDArray[np.float64]) -> str | None:
    """Runs left or right where the centre [F] goes one way nearly all the time."""
    way = x[-1] - x[0]
    if abs(way) < 0.8 * np.ptp(x):
        return None
    return "runs right" if way > 0 else "runs left"


def _vertical(end: npt.NDArray[np.float64]) -> str | None:
    """Falls where an end [F] (downwards) comes down once for good, bounces where it rises high again."""
    height = (end.max() - end) / max(float(np.ptp(end)), 1e-6)
    after = height[int(np.argmin(height > 0.3)) :]
    if float(after.max()) > 0.5:
        return "bounces"
    if height[0] > 0.7 and float(after[-3:].max()) < 0.35:
        return "falls"
    return None


def _turns(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> float:
    """How often the path goes round the middle of its own extent."""
    angle = np.unwrap(np.arctan2(y - (y.max() + y.min()) / 2, x - (x.max() + x.min()) / 2))
    return float(angle[-1] - angle[0]) / (2 * math.pi)


def _lives(frames: Pixels, masks: Mask) -> bool:
    """Whether the subject's surroundings change over time clearly more than the rest of the picture does."""
    block = max(1, min(frames.shape[1:3]) // 42)
    height, width = frames.shape[1] // block * block, frames.shape[2] // block * block

    def coarse(pictures: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        cut = pictures[:, :height, :width]
        shape = (len(cut), height // block, block, width // block, block)
        return np.asarray(cut.reshape(*shape, *cut.shape[3:]).mean((2, 4)), np.float32)

    change = coarse(frames).std(0).mean(-1)
    visited = grown(np.asarray(masks.any(0))[None], 2)
    near = np.asarray(coarse(visited.astype(np.float32))[0] > 0.5)
    if near.all():
        return False
    calm = float(np.median(change[~near]))
    return float(np.percentile(change[near], 80)) > _LIVELY * calm + 2.0


def _steady(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Median over three neighbouring frames, which removes single slips of the segmentation."""
    padded = np.concatenate([values[:1], values, values[-1:]])
    steady: npt.NDArray[np.float64] = np.median(np.stack([padded[:-2], padded[1:-1], padded[2:]]), 0)
    steady[0], steady[-1] = values[0], values[-1]
    return steady
