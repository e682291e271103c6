"""How each class looks: shapes in a square of side 2 around the origin, facing right, feet at v = 1.

A drawing is a silhouette and layers painted over it in order; the renderer gives the tones their colours. A new class
is one decorated function here (or in a module that the package imports).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from pysora.worlds.shapes import Array, Point, box, capsule, circle, ellipse, meet, polygon, star, turn, union

#: Width of the line around every subject, in a darker tone of its colour, in units of the square.
OUTLINE = 0.07


@dataclass(frozen=True)
class Pose:
    """The coordinates a subject is drawn at and what its body does; arrays are float32.

    u, v: [F,h,w], facing and stretching already undone. stride: [F,1,1] radians of the walking cycle.
    effort: [F,1,1] 0..1, how far the limbs swing. roll: [F,1,1] radians a round thing has rolled clockwise.
    sway: [F,1,1] -1..1, the idle movement of tails, sails and wings. seated: an animal sits instead of standing.
    """

    u: Array
    v: Array
    stride: Array
    effort: Array
    roll: Array
    sway: Array
    seated: bool


@dataclass(frozen=True)
class Drawing:
    """Signed distances [F,h,w]: the whole outline, and (distance, tone) layers painted in order inside it."""

    silhouette: Array
    layers: tuple[tuple[Array, str], ...]


Artist: TypeAlias = Callable[[Pose], Drawing]
SUBJECTS: dict[str, Artist] = {}


def subject(name: str) -> Callable[[Artist], Artist]:
    """Register the function below as the drawing of class `name`."""

    def register(artist: Artist) -> Artist:
        SUBJECTS[name] = artist
        return artist

    return register


@subject("ball")
def ball(p: Pose) -> Drawing:
    """A ball with a light band that shows how it rolls."""
    disc = circle(p.u, p.v, (0, 0), 0.93)
    x, y = turn(p.u, p.v, p.roll)
    band = box(x, y, (0, 0), (2.0, 0.27))
    hub = circle(x, y, (0, 0), 0.34)
    shade = -circle(p.u, p.v, (-0.22, -0.26), 0.98)
    return Drawing(disc, ((shade, "shade"), (band, "light"), (hub, "base")))


@subject("cube")
def cube(p: Pose) -> Drawing:
    """A cube seen from a corner: three faces, three tones."""
    whole = polygon(p.u, p.v, [(0, -0.9), (0.82, -0.48), (0.82, 0.46), (0, 0.9), (-0.82, 0.46), (-0.82, -0.48)], 0.04)
    top = polygon(p.u, p.v, [(0, -1.0), (0.96, -0.51), (0, -0.04), (-0.96, -0.51)])
    right = polygon(p.u, p.v, [(0, -0.06), (1.1, -0.6), (1.1, 0.6), (0, 1.1)])
    edges = union(
        capsule(p.u, p.v, (0, -0.06), (0, 0.9), 0.03),
        capsule(p.u, p.v, (0, -0.06), (0.82, -0.48), 0.03),
        capsule(p.u, p.v, (0, -0.06), (-0.82, -0.48), 0.03),
    )
    return Drawing(whole, ((right, "shade"), (top, "light"), (edges, "outline")))


@subject("car")
def car(p: Pose) -> Drawing:
    """A small car from the side."""
    body = box(p.u, p.v, (0, 0.36), (0.93, 0.32), 0.2)
    cabin = polygon(p.u, p.v, [(-0.62, 0.15), (-0.42, -0.4), (0.26, -0.4), (0.56, 0.15)], 0.08)
    wheels = union(*(circle(p.u, p.v, (x, 0.66), 0.27) for x in (-0.5, 0.5)))
    glass = union(
        polygon(p.u, p.v, [(-0.5, 0.06), (-0.36, -0.32), (-0.14, -0.32), (-0.14, 0.06)]),
        polygon(p.u, p.v, [(0.02, 0.06), (0.02, -0.32), (0.22, -0.32), (0.43, 0.06)]),
    )
    hubs = []
    for x in (-0.5, 0.5):
        a, b = turn(p.u - x, p.v - 0.66, p.roll)
        hubs.append(box(a, b, (0, 0), (0.15, 0.06), 0.05))
    lamp = circle(p.u, p.v, (0.84, 0.28), 0.1)
    sill = box(p.u, p.v, (0, 0.62), (0.95, 0.13))
    layers = ((sill, "shade"), (glass, "glass"), (lamp, "lamp"), (wheels, "tyre"), (union(*hubs), "metal"))
    return Drawing(union(body, cabin, wheels), layers)


@subject("boat")
def boat(p: Pose) -> Drawing:
    """A sailing boat with two sails."""
    u, v = turn(p.u, p.v - 0.6, p.sway * np.float32(0.07))
    v = v + np.float32(0.6)
    hull = polygon(u, v, [(-0.85, 0.44), (0.85, 0.44), (0.55, 0.87), (-0.55, 0.87)], 0.06)
    mast = capsule(u, v, (0, -0.86), (0, 0.5), 0.06)
    main = polygon(u, v, [(0.0, -0.78), (0.0, 0.28), (0.76, 0.28)], 0.04)
    jib = polygon(u, v, [(0.0, -0.6), (0.0, 0.28), (-0.66, 0.28)], 0.04)
    stripe = box(u, v, (0, 0.5), (1.0, 0.07))
    keel = box(u, v, (0, 0.86), (1.0, 0.1))
    layers = ((jib, "light"), (mast, "wood"), (stripe, "light"), (keel, "shade"))
    return Drawing(union(hull, mast, main, jib), layers)


@subject("star")
def star_with_face(p: Pose) -> Drawing:
    """A five-pointed star with a face."""
    whole = star(p.u, p.v - 0.06, 0.9, 0.44, 0.06)
    lower = meet(whole + 0.02, -circle(p.u, p.v, (0, -0.5), 0.98))
    eyes = union(*(ellipse(p.u, p.v, (x, -0.06), (0.08, 0.13)) for x in (-0.17, 0.17)))
    smile = meet(circle(p.u, p.v, (0, 0.16), 0.17), -box(p.u, p.v, (0, 0.0), (0.5, 0.18)))
    return Drawing(whole, ((lower, "shade"), (eyes, "eye"), (smile, "eye")))


def limb(p: Pose, hip: Point, offset: float, thickness: float, foot: float = 0.86) -> Array:
    """A leg from `hip` to the ground; `offset` is its place in the walking cycle, radians."""
    swing = np.sin(p.stride + np.float32(offset)) * p.effort
    lift = np.maximum(np.cos(p.stride + np.float32(offset)), 0) * p.effort
    return capsule(p.u, p.v, hip, (hip[0] + 0.26 * swing, foot - 0.14 * lift), thickness)
