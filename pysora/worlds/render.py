"""From attributes and a seed to frames and the truth about them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pysora.worlds import animals as _animals  # noqa: F401  registers the living classes
from pysora.worlds.attributes import PALETTE, Attributes
from pysora.worlds.motions import MOVERS, Stage, Track
from pysora.worlds.settings import PLACES, Canvas, Place
from pysora.worlds.shapes import Array, coverage, ellipse
from pysora.worlds.subjects import OUTLINE, SUBJECTS, Drawing, Pose

#: Smallest side that still shows a subject.
SMALLEST = 16
#: Width of a subject's edges, pixels: about what a lens would leave of them.
_EDGE = 2.2
#: Half height of a subject's shadow, in shorter sides.
_SHADOW_HEIGHT = 0.035


@dataclass(frozen=True)
class Truth:
    """What a clip shows. boxes [F,4] float64: left, top, right, bottom of the subject's visible pixels, in pixels
    (right and bottom exclusive); ground: the row on which feet stand."""

    attributes: Attributes
    boxes: npt.NDArray[np.float64]
    ground: float


@dataclass(frozen=True)
class Clip:
    """frames uint8 [F,H,W,3] and the truth about them."""

    frames: npt.NDArray[np.uint8]
    truth: Truth


@dataclass(frozen=True)
class Scene:
    """Everything that decides a clip's pixels: the painted place, the subject's class, tones, size and movement."""

    place: Place
    cls: str
    tones: dict[str, Array]
    stage: Stage
    track: Track


def render(
    attributes: Attributes, seed: int, size: tuple[int, int] = (128, 128), frames: int = 17, fps: float = 8.0
) -> Clip:
    """Draw a clip of (width, height) pixels; equal arguments give equal bits.

    The same seed composes the same picture at every size of an aspect, and moves at the same speed at every fps.
    Raises ValueError for a side under 16 pixels, no frames, an fps that is not positive or a negative seed.
    """
    if min(size) < SMALLEST:
        raise ValueError(f"size must be at least {SMALLEST} pixels on each side, not {size[0]}x{size[1]}")
    if frames < 1 or not fps > 0 or seed < 0:
        raise ValueError(f"need frames >= 1, fps > 0 and seed >= 0, not {frames}, {fps} and {seed}")
    scene = compose(attributes, seed, size, np.arange(frames) / fps)
    pixels, boxes = paint(scene)
    return Clip(pixels, Truth(attributes, boxes, scene.stage.ground * min(size)))


def empty(setting: str, seed: int, size: tuple[int, int] = (128, 128), frames: int = 17) -> npt.NDArray[np.uint8]:
    """A clip [F,H,W,3] uint8 of a setting that nobody is in."""
    return np.repeat(_rounded(empty_place(setting, seed, size).pixels)[None], frames, 0)


def empty_place(setting: str, seed: int, size: tuple[int, int]) -> Place:
    """The place that `render` draws with this seed at (width, height) pixels."""
    rng = np.random.default_rng([seed, 1])
    tint = rng.uniform(-5, 5, 3)
    return PLACES[setting](Canvas.blank(size, (float(tint[0]), float(tint[1]), float(tint[2]))), rng)


def compose(attributes: Attributes, seed: int, size: tuple[int, int], time: Array) -> Scene:
    """Place, subject and movement for frames at `time` [F] seconds; each draws from a stream of its own."""
    place = empty_place(attributes.setting, seed, size)
    look = np.random.default_rng([seed, 2])
    share = look.uniform(0.42, 0.5)
    short = min(size)
    stage = Stage(size[0] / short, size[1] / short, place.ground, share)
    track = MOVERS[attributes.motion](stage, time, np.random.default_rng([seed, 3]))
    return Scene(place, attributes.cls, tones(attributes.colour, look), stage, track)


def paint(scene: Scene) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float64]]:
    """Draw a scene: frames uint8 [F,H,W,3] and the subject's boxes [F,4]."""
    height, width = scene.place.pixels.shape[:2]
    short = min(width, height)
    half = scene.stage.size / 2 * short
    track = scene.track
    centre = np.stack([track.x * short, (scene.stage.ground - track.lift) * short - half], 1)
    reach = math.ceil(half * 1.12) + 2
    origin = np.floor(centre).astype(np.int64) - reach
    colour, alpha = draw_subject(scene.cls, track, centre - origin, half, 2 * reach, scene.tones)
    boxes = np.empty((len(centre), 4))
    frames = np.repeat(_rounded(scene.place.pixels)[None], len(centre), 0)
    floor = min(math.ceil((scene.stage.ground + _SHADOW_HEIGHT) * short) + 1, height)
    for index, (left, top) in enumerate(origin):
        x0, x1, y0 = max(left, 0), min(left + 2 * reach, width), max(top, 0)
        y1 = min(max(top + 2 * reach, floor), height)
        patch = scene.place.pixels[y0:y1, x0:x1].copy()
        _cast_shadow(patch, scene, index, (x0, y0), short)
        rows = min(top + 2 * reach, height)
        inside = (slice(y0 - top, rows - top), slice(x0 - left, x1 - left))
        share = alpha[index][inside][..., None]
        patch[: rows - y0] += share * (colour[index][inside] - patch[: rows - y0])
        frames[index, y0:y1, x0:x1] = _rounded(patch)
        across, down = np.flatnonzero((share > 0.5).any((0, 2))), np.flatnonzero((share > 0.5).any((1, 2)))
        boxes[index] = (x0 + across[0], y0 + down[0], x0 + across[-1] + 1, y0 + down[-1] + 1)
    return frames, boxes


def tones(colour: str, rng: np.random.Generator) -> dict[str, Array]:
    """The colours a drawing names, RGB [3] float32, from the subject's colour with a little variation."""
    base = np.clip(np.asarray(PALETTE[colour]) + rng.uniform(-6, 6, 3), 0, 255)
    rim = 0.56 * base + np.array([2, 0, 8])
    fixed = {
        "eye": (26, 22, 34), "lamp": (255, 190, 70), "glass": (186, 222, 240), "metal": (206, 208, 214),
        "tyre": (70, 68, 78), "wood": (112, 76, 56), "blush": (238, 160, 164),
    }  # fmt: skip
    own = {"base": base, "shade": 0.76 * base, "light": base + 0.52 * (255 - base), "outline": rim}
    return {name: np.asarray(tone, np.float32) for name, tone in (own | fixed).items()}


def draw_subject(
    cls: str, track: Track, centre: Array, half: float, side: int, tones: dict[str, Array]
) -> tuple[Array, Array]:
    """A subject alone in a window of `side` pixels a frame: colours [F,side,side,3] and coverage [F,side,side] 0..1.

    centre: [F,2] where the window has the subject's centre, in pixels; half: half the subject's size, in pixels.
    """
    return _colour(SUBJECTS[cls](_pose(track, centre, half, side)), tones, 1 / half)


def _pose(track: Track, centre: Array, half: float, side: int) -> Pose:
    """Coordinates of a window of `side` pixels in each frame, where the subject's centre is at `centre` [F,2]."""

    def per_frame(values: Array) -> Array:
        return values.astype(np.float32)[:, None, None]

    pixels = np.arange(side, dtype=np.float32) + np.float32(0.5)
    stretch = per_frame(track.stretch)
    u = (pixels[None, None, :] - per_frame(centre[:, 0])) * np.float32(track.facing / half) * np.sqrt(stretch)
    v = 1 - (1 - (pixels[None, :, None] - per_frame(centre[:, 1])) / np.float32(half)) / stretch
    stride, effort, sway = per_frame(track.stride), per_frame(track.effort), per_frame(track.sway)
    return Pose(u, v, stride, effort, per_frame(track.roll * track.facing), sway, track.seated)


def _colour(drawing: Drawing, tones: dict[str, Array], pixel: float) -> tuple[Array, Array]:
    """Colours [F,h,w,3] and coverage [F,h,w] of a drawing, outline included."""
    alpha = coverage(drawing.silhouette - np.float32(OUTLINE / 2), pixel, _EDGE)
    colour = np.empty((*alpha.shape, 3), np.float32)
    colour[:] = tones["base"]
    for distance, tone in drawing.layers:
        share = coverage(distance, pixel, _EDGE)[..., None]
        colour += share * (tones[tone] - colour)
    rim = coverage(-(drawing.silhouette + np.float32(OUTLINE / 2)), pixel, _EDGE)[..., None]
    colour += rim * (tones["outline"] - colour)
    return colour, alpha


def _cast_shadow(patch: Array, scene: Scene, index: int, origin: tuple[int, int], short: int) -> None:
    """Darken `patch` [h,w,3], whose first pixel is `origin` (x, y), under the subject: the higher, the fainter."""
    nearness = 1 / (1 + 3 * float(scene.track.lift[index]))
    first = max(math.floor((scene.stage.ground - _SHADOW_HEIGHT) * short) - origin[1], 0)
    rows = (np.arange(first, len(patch), dtype=np.float32) + np.float32(origin[1] + 0.5)) / short
    columns = (np.arange(patch.shape[1], dtype=np.float32) + np.float32(origin[0] + 0.5)) / short
    centre = (float(scene.track.x[index]), scene.stage.ground)
    radii = (0.42 * scene.stage.size * nearness, _SHADOW_HEIGHT * 0.9)
    shadow = coverage(ellipse(columns[None, :], rows[:, None], centre, radii), 1 / short, 3.0)
    patch[first:] *= (1 - shadow * np.float32(scene.place.shadow * nearness))[..., None]


def _rounded(pixels: Array) -> npt.NDArray[np.uint8]:
    rounded: npt.NDArray[np.uint8] = (np.clip(pixels, 0, 255) + np.float32(0.5)).astype(np.uint8)
    return rounded
