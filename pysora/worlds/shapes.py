"""Signed distances of plane shapes: negative inside, in the units of the coordinates.

Every function takes coordinate arrays u (right) and v (down) of one shape, float32, and returns an array like them.
Formulas: Inigo Quilez, "2D distance functions" (ellipse: his first-order bound).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

#: float32 in pictures, float64 in movements.
Array: TypeAlias = npt.NDArray[np.floating[Any]]
#: A coordinate, or one a frame, [F,1,1].
Scalar: TypeAlias = Any
Point: TypeAlias = tuple[Scalar, Scalar]


def circle(u: Array, v: Array, centre: Point, radius: float) -> Array:
    """Disc."""
    distance: Array = np.hypot(u - centre[0], v - centre[1]) - np.float32(radius)
    return distance


def ellipse(u: Array, v: Array, centre: Point, radii: tuple[float, float], angle: Scalar = 0.0) -> Array:
    """Ellipse with half axes `radii`, turned clockwise by `angle` radians."""
    x, y = turn(u - centre[0], v - centre[1], angle)
    x, y = x / np.float32(radii[0]), y / np.float32(radii[1])
    k0 = np.sqrt(x * x + y * y)
    x, y = x / np.float32(radii[0]), y / np.float32(radii[1])
    k1 = np.sqrt(x * x + y * y)
    bound = k0 * (k0 - 1) / np.maximum(k1, np.float32(1e-6))
    # Towards the centre the bound tends to zero, where the true distance is the smaller half axis.
    distance: Array = np.where(k0 < 0.5, np.minimum(bound, np.float32(-0.25 * min(radii))), bound)
    return distance


def box(u: Array, v: Array, centre: Point, half: tuple[float, float], corner: float = 0.0) -> Array:
    """Rectangle of half sizes `half` whose corners are rounded with radius `corner`."""
    x = np.abs(u - centre[0]) - np.float32(half[0] - corner)
    y = np.abs(v - centre[1]) - np.float32(half[1] - corner)
    outside = np.hypot(np.maximum(x, 0), np.maximum(y, 0))
    distance: Array = outside + np.minimum(np.maximum(x, y), 0) - np.float32(corner)
    return distance


def capsule(u: Array, v: Array, start: Point, end: Point, radius: float) -> Array:
    """Line from `start` to `end` with round ends."""
    bx, by = end[0] - start[0], end[1] - start[1]
    x, y = u - start[0], v - start[1]
    along = np.clip((x * bx + y * by) / (bx * bx + by * by), 0, 1)
    distance: Array = np.hypot(x - along * bx, y - along * by) - np.float32(radius)
    return distance


def polygon(u: Array, v: Array, corners: Sequence[tuple[float, float]], rounding: float = 0.0) -> Array:
    """Convex polygon, corners in either order, grown by `rounding` (inside and near its edges exact)."""
    area = sum(a[0] * b[1] - a[1] * b[0] for a, b in _edges(corners))
    sign = math.copysign(1.0, area)
    distances = []
    for (ax, ay), (bx, by) in _edges(corners):
        length = math.hypot(bx - ax, by - ay)
        nx, ny = sign * (by - ay) / length, -sign * (bx - ax) / length
        distances.append(u * np.float32(nx) + v * np.float32(ny) - np.float32(nx * ax + ny * ay))
    distance: Array = meet(*distances) - np.float32(rounding)
    return distance


def star(u: Array, v: Array, outer: float, inner: float, rounding: float = 0.0) -> Array:
    """Five-pointed star around the origin, one point up, tips at `outer` and notches at `inner`."""
    angle = np.arctan2(u, -v)
    fold = np.float32(2 * math.pi / 5)
    angle = np.abs(angle - fold * np.round(angle / fold))
    radius = np.hypot(u, v)
    x, y = radius * np.cos(angle), radius * np.sin(angle)
    half = math.pi / 5
    bx, by = inner * math.cos(half) - outer, inner * math.sin(half)
    along = np.clip(((x - outer) * bx + y * by) / (bx * bx + by * by), 0, 1)
    edge = np.hypot(x - outer - along * bx, y - along * by)
    inside = (x - outer) * by - y * bx < 0
    distance: Array = np.where(inside, -edge, edge) - np.float32(rounding)
    return distance


def union(*distances: Array) -> Array:
    """The shape that covers all of the given ones."""
    return reduce(np.minimum, distances)


def meet(*distances: Array) -> Array:
    """What the given shapes have in common."""
    return reduce(np.maximum, distances)


def turn(u: Array, v: Array, angle: Scalar) -> tuple[Array, Array]:
    """Coordinates in a frame that is turned clockwise (on screen) by `angle` radians."""
    if isinstance(angle, float) and angle == 0.0:
        return u, v
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return u * c + v * s, v * c - u * s


def coverage(distance: Array, pixel: float, softness: float = 1.2) -> Array:
    """Share of each pixel inside, 0..1: an edge `softness` pixels wide; `pixel` is a pixel's size in the units."""
    share: Array = np.clip(np.float32(0.5) - distance * np.float32(1 / (pixel * softness)), 0, 1)
    return share


def _edges(corners: Sequence[tuple[float, float]]) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    return list(zip(corners, [*corners[1:], corners[0]], strict=True))
