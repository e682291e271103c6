"""Where a subject is at each moment: motions as functions of time in seconds, with gravity in metres.

Lengths are in units of the frame's shorter side, which shows METRES of the world. A new motion is one decorated
function here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from pysora.worlds.shapes import Array

#: Metres of the world that the frame's shorter side shows.
METRES = 4.0
#: Speed at which the world is shown: slow motion. At full speed what falls moves by its own length between two of the
#: eight frames a second.
PACE = 0.5
#: Gravity, shorter sides per second squared.
GRAVITY = 9.81 / METRES * PACE**2
#: How high a subject bounces, and from how high it falls, shorter sides. What leaves the ground keeps to one timetable
#: in all clips, and what does not run is near the middle with its face to the right: heights, moments and places of its
#: own in each clip are learnt far later.
BOUNCE, FALL = 0.2, 0.34
#: Seconds after which a falling subject lets go.
RELEASE = 0.4
#: The part of a bounce that is over when a clip begins.
RISEN = 0.12
#: Distance kept between the subject and the frame's edge.
MARGIN = 0.035
#: One breath of a resting subject, seconds.
BREATH = 1.6
#: Strides and wing beats a second: at 8 frames a second faster ones fall between the frames.
STRIDES = 1.0
#: One round of a circling subject, seconds, and its radius, shorter sides.
ROUND, RADIUS = 3.2, 0.15
#: How far from the middle a subject that does not run may be, shorter sides.
ASIDE = 0.05


@dataclass(frozen=True)
class Stage:
    """The frame as the motions see it: its size, the height where feet stand, and the subject's size."""

    width: float
    height: float
    ground: float
    size: float

    @property
    def left(self) -> float:
        """Leftmost place of the subject's centre."""
        return MARGIN + self.size / 2

    @property
    def right(self) -> float:
        """Rightmost place of the subject's centre."""
        return self.width - MARGIN - self.size / 2

    @property
    def head_room(self) -> float:
        """How far a subject on the ground can rise."""
        return self.ground - self.size - MARGIN


@dataclass(frozen=True)
class Track:
    """A subject's movement; arrays [F] float64.

    x: centre. lift: height of the feet over the ground. stretch: height of the body over its normal one.
    stride: radians of the walking cycle. effort: 0..1, how far limbs swing. roll: radians rolled clockwise.
    sway: -1..1, idle movement. facing: 1 right, -1 left. seated: whether an animal sits.
    """

    x: Array
    lift: Array
    stretch: Array
    stride: Array
    effort: Array
    roll: Array
    sway: Array
    facing: int
    seated: bool = False


Mover: TypeAlias = Callable[[Stage, Array, np.random.Generator], Track]
MOVERS: dict[str, Mover] = {}


def motion(name: str) -> Callable[[Mover], Mover]:
    """Register the function below as the motion `name`."""

    def register(mover: Mover) -> Mover:
        MOVERS[name] = mover
        return mover

    return register


@motion("still")
def still(stage: Stage, time: Array, rng: np.random.Generator) -> Track:
    """Stays where it is, near the middle, breathing and swaying."""
    x = _near_the_middle(stage, 0.0, rng)
    breath = np.sin(2 * math.pi * time / BREATH + rng.uniform(-0.6, 0.6))
    return _track(time, x=x, stretch=1 + 0.05 * breath, sway=breath, seated=True)


def _runs(stage: Stage, time: Array, rng: np.random.Generator, facing: int) -> Track:
    """Crosses the frame at an even speed: a shorter side in about three seconds, less where a long clip needs it."""
    room = stage.right - stage.left
    duration = max(float(time[-1]), 2.0)
    way = min(room, rng.uniform(0.9, 1.0) * max(0.46, 0.55 * room) / 2.0 * duration)
    start = rng.uniform(0, 1) * (room - way)
    gone = way / duration * time
    x = stage.left + start + gone if facing > 0 else stage.right - start - gone
    stride = 2 * math.pi * STRIDES * time + rng.uniform(0, 2 * math.pi)
    roll = facing * gone / (stage.size * 0.465)
    lift = 0.012 * (1 - np.cos(2 * stride))
    return _track(time, x=x, lift=lift, stride=stride, effort=1.0, roll=roll, sway=np.sin(stride), facing=facing)


@motion("runs left")
def runs_left(stage: Stage, time: Array, rng: np.random.Generator) -> Track:
    """Crosses the frame to the left."""
    return _runs(stage, time, rng, -1)


@motion("runs right")
def runs_right(stage: Stage, time: Array, rng: np.random.Generator) -> Track:
    """Crosses the frame to the right."""
    return _runs(stage, time, rng, 1)


@motion("bounces")
def bounces(stage: Stage, time: Array, rng: np.random.Generator) -> Track:
    """Bounces in place without losing height, flat for a moment where it meets the ground."""
    top = min(stage.head_room, BOUNCE)
    speed = math.sqrt(2 * GRAVITY * top)
    period = 2 * speed / GRAVITY
    since = np.mod(time + RISEN * period, period)
    lift = np.maximum(speed * since - GRAVITY / 2 * since**2, 0)
    x = _near_the_middle(stage, 0.0, rng)
    contact = np.minimum(since, period - since)
    stretch = 1 + 0.06 * np.minimum(lift / top, 1) - 0.2 * np.exp(-((contact / 0.08) ** 2))
    effort = 0.35 * np.minimum(lift / top, 1)
    stride = 2 * math.pi * time / period
    sway = np.sin(stride)
    return _track(time, x=x, lift=lift, stretch=stretch, stride=stride, effort=effort, sway=sway)


@motion("falls")
def falls(stage: Stage, time: Array, rng: np.random.Generator) -> Track:
    """Hangs at the top, falls, and lands with one small rebound."""
    top = min(stage.head_room, FALL)
    landing = math.sqrt(2 * top / GRAVITY)
    rebound = 0.3 * GRAVITY * landing
    since = np.maximum(time - RELEASE, 0)
    after = since - landing
    lift = np.where(after < 0, top - GRAVITY / 2 * since**2, np.maximum(rebound * after - GRAVITY / 2 * after**2, 0))
    squash = np.where(after >= 0, 0.2 * np.exp(-((after / 0.12) ** 2)), 0)
    moving = np.clip(lift / top, 0, 1)
    x = _near_the_middle(stage, 0.0, rng)
    sway = np.sin(2 * math.pi * time)
    return _track(time, x=x, lift=lift, stretch=1 - squash, stride=6 * time, effort=0.6 * moving, sway=sway)


@motion("circles")
def circles(stage: Stage, time: Array, rng: np.random.Generator) -> Track:
    """Flies clockwise around a place near the middle, starting at the top."""
    radius = min(stage.head_room / 2, (stage.right - stage.left) / 2, RADIUS)
    angle = 2 * math.pi / ROUND * time
    x = _near_the_middle(stage, radius, rng) + radius * np.sin(angle)
    lift = stage.head_room - radius * (1 - np.cos(angle))
    stride = 2 * math.pi * STRIDES * time
    return _track(time, x=x, lift=lift, stride=stride, effort=0.7, roll=angle, sway=np.sin(stride))


def _near_the_middle(stage: Stage, radius: float, rng: np.random.Generator) -> float:
    """Where a subject that needs `radius` to either side and does not run is."""
    slack = min((stage.right - stage.left) / 2 - radius, ASIDE)
    return stage.width / 2 + rng.uniform(-1, 1) * slack


def _track(
    time: Array,
    *,
    x: object,
    lift: object = 0.0,
    stretch: object = 1.0,
    stride: object = 0.0,
    effort: object = 0.0,
    roll: object = 0.0,
    sway: object = 0.0,
    facing: int = 1,
    seated: bool = False,
) -> Track:
    """A Track whose fields are spread over the moments of `time`."""

    def spread(value: object) -> Array:
        return np.broadcast_to(np.asarray(value, np.float64), time.shape)

    return Track(
        spread(x),
        spread(lift),
        spread(stretch),
        spread(stride),
        spread(effort),
        spread(roll),
        spread(sway),
        facing,
        seated,
    )
