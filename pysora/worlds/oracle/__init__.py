"""A judge of clips of the drawn world by image analysis alone: it sees frames, never prompts, seeds or latents.

The setting is the nearest of drawn empty examples, the subject what differs from it, its colour a vote of its inner
pixels, its class the most similar drawn silhouette, its motion a reading of its path. Where a blurred subject ends is
not known beforehand: of several outlines the one that is most like a drawn silhouette counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pysora.worlds.oracle.appearance import class_of, colour_of
from pysora.worlds.oracle.background import recognise, segment
from pysora.worlds.oracle.trajectory import motion_of

#: Frames are made smaller by a whole factor while their shorter side stays at least this.
_WORKING_SIDE = 96
#: Share of the frames that must show the subject.
_PRESENT = 0.7


@dataclass(frozen=True)
class Judgement:
    """What a clip shows; None where it shows none of the vocabulary (or, for a subject's attributes, no subject)."""

    cls: str | None
    colour: str | None
    setting: str | None
    motion: str | None


NOTHING = Judgement(None, None, None, None)


def judge(frames: npt.NDArray[np.uint8]) -> Judgement:
    """Judge a clip, uint8 [F,H,W,3]. Raises ValueError for another dtype or shape."""
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size:
        raise ValueError(f"need uint8 frames [F,H,W,3], not {frames.dtype} {list(frames.shape)}")
    pictures = _working(frames)
    place = recognise(pictures)
    if place is None:
        return NOTHING
    setting, background, ground = place
    likeliest, likeness = Judgement(None, None, setting, None), 0.0
    for subject in segment(pictures, background, ground):
        if subject.found.mean() < _PRESENT:
            continue
        seen, masks, boxes = pictures[subject.found], subject.masks[subject.found], subject.boxes[subject.found]
        found = class_of(seen, masks, boxes)
        if found and found[1] > likeness:
            cls, likeness = found
            likeliest = Judgement(cls, colour_of(seen, masks), setting, motion_of(seen, masks, boxes))
    return likeliest


def _working(frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Frames as float32, averaged over blocks of a whole factor where they are large."""
    factor = max(1, min(frames.shape[1:3]) // _WORKING_SIDE)
    pictures = frames.astype(np.float32)
    if factor == 1:
        return pictures
    height, width = frames.shape[1] // factor, frames.shape[2] // factor
    cut = pictures[:, : height * factor, : width * factor]
    return np.asarray(cut.reshape(len(cut), height, factor, width, factor, 3).mean((2, 4)), np.float32)
