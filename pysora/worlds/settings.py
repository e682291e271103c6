"""The places: calm pictures of a few large shapes, drawn once per clip.

A setting paints a Canvas, whose coordinates are x (0 at the centre) and y (0 at the top), both in units of the
frame's shorter side, so that shapes keep their form at every aspect. A new setting is one decorated function here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from pysora.worlds.shapes import Array, box, circle, coverage, ellipse, polygon, union

RGB: TypeAlias = tuple[float, float, float]


@dataclass
class Canvas:
    """A picture being painted: pixels [H,W,3] float32 0..255; width and height in shorter sides."""

    width: float
    height: float
    pixel: float
    x: Array
    y: Array
    tint: RGB = (0.0, 0.0, 0.0)
    pixels: Array = field(init=False)

    @classmethod
    def blank(cls, size: tuple[int, int], tint: RGB) -> Canvas:
        """An unpainted canvas of (width, height) pixels; `tint` is added to every colour."""
        short = min(size)
        x = ((np.arange(size[0], dtype=np.float32) + 0.5 - size[0] / 2) / short)[None, :]
        y = ((np.arange(size[1], dtype=np.float32) + 0.5) / short)[:, None]
        return cls(size[0] / short, size[1] / short, 1 / short, x, y, tint)

    def sky(self, stops: list[tuple[float, RGB]]) -> None:
        """Fill with a vertical gradient through (share of the height 0..1, colour) stops."""
        share = self.y[:, 0] / self.height
        at = [stop for stop, _ in stops]
        columns = [np.interp(share, at, [c[i] + self.tint[i] for _, c in stops]) for i in range(3)]
        rows = np.stack(columns, -1).astype(np.float32)[:, None]
        self.pixels = np.ascontiguousarray(np.broadcast_to(rows, (self.y.size, self.x.size, 3)))

    def paint(self, distance: Array, colour: RGB, opacity: float = 1.0, softness: float = 1.5) -> None:
        """Paint the inside of a shape given by its signed distance (in shorter sides), in place."""
        share = (coverage(distance, self.pixel, softness) * np.float32(opacity))[..., None]
        target = np.asarray(colour, np.float32) + np.asarray(self.tint, np.float32)
        self.pixels += share * (target - self.pixels)


@dataclass(frozen=True)
class Place:
    """A painted setting: pixels [H,W,3] float32; ground: where feet stand, in shorter sides from the top;
    shadow: darkness 0..1 of the subject's shadow on that ground."""

    pixels: Array
    ground: float
    shadow: float


Painter: TypeAlias = Callable[[Canvas, np.random.Generator], Place]
PLACES: dict[str, Painter] = {}


def setting(name: str) -> Callable[[Painter], Painter]:
    """Register the function below as the setting `name`."""

    def register(painter: Painter) -> Painter:
        PLACES[name] = painter
        return painter

    return register


@setting("grass")
def grass(c: Canvas, rng: np.random.Generator) -> Place:
    """A meadow with two hills, a cloud and a pale sun."""
    horizon = c.height - rng.uniform(0.37, 0.41)
    side = rng.choice([-1.0, 1.0])
    c.sky([(0, (150, 208, 244)), (0.65, (214, 238, 250))])
    c.paint(circle(c.x, c.y, (side * (c.width / 2 - 0.17), 0.17), 0.1), (255, 244, 190))
    cloud = -side * (c.width / 2 - rng.uniform(0.22, 0.28))
    c.paint(_cloud(c, cloud, 0.2), (250, 252, 255))
    c.paint(ellipse(c.x, c.y, (side * 0.35 * c.width, horizon + 0.32), (0.75, 0.44)), (168, 212, 128))
    c.paint(ellipse(c.x, c.y, (-side * 0.4 * c.width, horizon + 0.42), (1.5 * c.width, 0.44)), (150, 202, 104))
    c.paint(c.height - 0.13 - c.y + 0 * c.x, (136, 190, 92), softness=0.16 / c.pixel)
    return Place(c.pixels, c.height - 0.09, 0.26)


@setting("snow")
def snow(c: Canvas, rng: np.random.Generator) -> Place:
    """A snowfield under a pale sky, a mountain and two firs."""
    horizon = c.height - rng.uniform(0.34, 0.38)
    side = rng.choice([-1.0, 1.0])
    c.sky([(0, (168, 194, 226)), (0.7, (216, 226, 242))])
    peak = side * rng.uniform(0.16, 0.24) * c.width
    c.paint(
        polygon(c.x, c.y, [(peak - 0.5, horizon + 0.05), (peak, horizon - 0.36), (peak + 0.5, horizon + 0.05)]),
        (176, 190, 218),
    )
    c.paint(
        polygon(c.x, c.y, [(peak - 0.15, horizon - 0.25), (peak, horizon - 0.36), (peak + 0.15, horizon - 0.25)]),
        (240, 244, 252),
    )
    for x, scale in ((-side * (c.width / 2 - 0.14), 1.0), (-side * (c.width / 2 - 0.34), 0.7)):
        c.paint(_fir(c, x, horizon + 0.06, scale), (102, 138, 144))
    c.paint(ellipse(c.x, c.y, (side * 0.3 * c.width, horizon + 0.5), (1.6 * c.width, 0.5)), (236, 241, 250))
    c.paint(c.height - 0.12 - c.y + 0 * c.x, (222, 230, 244), softness=0.16 / c.pixel)
    return Place(c.pixels, c.height - 0.09, 0.2)


@setting("beach")
def beach(c: Canvas, rng: np.random.Generator) -> Place:
    """Sand, a band of sea, a sun and an island."""
    horizon = c.height - rng.uniform(0.5, 0.54)
    side = rng.choice([-1.0, 1.0])
    c.sky([(0, (112, 198, 232)), (0.5, (206, 240, 246))])
    c.paint(circle(c.x, c.y, (side * (c.width / 2 - 0.19), 0.18), 0.115), (255, 236, 150))
    c.paint(ellipse(c.x, c.y, (-side * 0.3 * c.width, horizon + 0.02), (0.26, 0.1)), (116, 172, 150))
    c.paint(horizon - c.y + 0 * c.x, (52, 158, 190))
    shore = c.height - rng.uniform(0.29, 0.32) + 0.02 * np.sin(3.5 * c.x * side + 0.5)
    c.paint(shore - 0.035 - c.y, (222, 244, 244))
    c.paint(shore - c.y, (240, 216, 162))
    c.paint(c.height - 0.1 - c.y + 0 * c.x, (228, 200, 142), softness=0.14 / c.pixel)
    return Place(c.pixels, c.height - 0.09, 0.24)


@setting("city")
def city(c: Canvas, rng: np.random.Generator) -> Place:
    """A street at night: a moon, dark towers with a few lit windows, a pavement."""
    street = c.height - rng.uniform(0.27, 0.3)
    side = rng.choice([-1.0, 1.0])
    c.sky([(0, (22, 26, 66)), (0.75, (70, 62, 122))])
    c.paint(circle(c.x, c.y, (side * (c.width / 2 - 0.2), 0.17), 0.09), (246, 240, 206))
    edge = c.width / 2
    towers = ((edge - 0.15, 0.17, 0.62), (0.12 - edge, 0.16, 0.38), (edge - 0.5, 0.13, 0.4))
    for place, half, height in towers:
        x = -side * place
        tall = height + rng.uniform(-0.02, 0.02)
        c.paint(box(c.x, c.y, (x, street), (half, tall)), (44, 42, 88))
        rows = np.arange(street - tall + 0.12, street - 0.12, 0.23)
        windows = [box(c.x, c.y, (x + dx * half * 0.46, float(y)), (0.045, 0.06)) for y in rows for dx in (-1, 1)]
        c.paint(union(*windows), (240, 196, 108), 0.85)
    c.paint(street - c.y + 0 * c.x, (84, 82, 116))
    c.paint(np.abs(c.y - street - 0.02) - 0.018 + 0 * c.x, (116, 112, 146))
    return Place(c.pixels, c.height - 0.09, 0.34)


@setting("windowsill")
def windowsill(c: Canvas, rng: np.random.Generator) -> Place:
    """A window at sunset, seen from inside: the sun over dark hills, a wooden frame and a broad sill."""
    sill = c.height - rng.uniform(0.185, 0.205)
    side = rng.choice([-1.0, 1.0])
    c.sky([(0, (104, 84, 150)), (0.35, (226, 124, 128)), (0.62, (252, 178, 112)), (0.8, (255, 214, 140))])
    sun = (side * rng.uniform(0.2, 0.28) * c.width, sill - rng.uniform(0.24, 0.3))
    c.paint(circle(c.x, c.y, sun, 0.24), (255, 222, 150), 0.45, softness=0.1 / c.pixel)
    c.paint(circle(c.x, c.y, sun, 0.14), (255, 244, 196))
    c.paint(ellipse(c.x, c.y, (-side * 0.3 * c.width, sill + 0.06), (0.6 * c.width, 0.24)), (130, 76, 112))
    c.paint(ellipse(c.x, c.y, (side * 0.4 * c.width, sill + 0.1), (0.6 * c.width, 0.22)), (104, 60, 100))
    wood, dark = (150, 98, 70), (118, 74, 56)
    c.paint(c.width / 2 - 0.05 - np.abs(c.x) + 0 * c.y, wood)
    c.paint(c.y - 0.05 + 0 * c.x, wood)
    c.paint(sill - c.y + 0 * c.x, (190, 132, 92))
    c.paint(c.height - 0.055 - c.y + 0 * c.x, dark)
    return Place(c.pixels, c.height - 0.1, 0.3)


@setting("room")
def room(c: Canvas, rng: np.random.Generator) -> Place:
    """A living room: a plain wall with a picture, a lamp, a wooden floor and a rug."""
    floor = c.height - rng.uniform(0.27, 0.3)
    side = rng.choice([-1.0, 1.0])
    c.sky([(0, (158, 186, 182)), (1, (182, 204, 196))])
    frame = (-side * (c.width / 2 - rng.uniform(0.22, 0.26)), 0.24)
    c.paint(box(c.x, c.y, frame, (0.16, 0.13), 0.01), (112, 84, 72))
    c.paint(box(c.x, c.y, frame, (0.125, 0.095)), (236, 230, 212))
    c.paint(ellipse(c.x, c.y, (frame[0], 0.3), (0.09, 0.04)), (150, 170, 140))
    lamp = side * (c.width / 2 - 0.15)
    c.paint(box(c.x, c.y, (lamp, floor - 0.25), (0.014, 0.3)), (96, 80, 78))
    shade = [
        (lamp - 0.12, floor - 0.36),
        (lamp - 0.07, floor - 0.55),
        (lamp + 0.07, floor - 0.55),
        (lamp + 0.12, floor - 0.36),
    ]
    c.paint(polygon(c.x, c.y, shade), (250, 232, 186))
    c.paint(floor - 0.03 - c.y + 0 * c.x, (232, 228, 216))
    c.paint(floor - c.y + 0 * c.x, (176, 130, 98))
    c.paint(ellipse(c.x, c.y, (0, c.height - 0.1), (0.42 * c.width, 0.09)), (206, 178, 160))
    return Place(c.pixels, c.height - 0.09, 0.26)


def _cloud(c: Canvas, x: float, y: float) -> Array:
    return union(ellipse(c.x, c.y, (x, y), (0.15, 0.055)), circle(c.x, c.y, (x - 0.02, y - 0.04), 0.07))


def _fir(c: Canvas, x: float, foot: float, scale: float) -> Array:
    """Two triangles, one over the other."""
    lower = [(x - 0.15 * scale, foot), (x, foot - 0.32 * scale), (x + 0.15 * scale, foot)]
    upper = [(x - 0.11 * scale, foot - 0.18 * scale), (x, foot - 0.44 * scale), (x + 0.11 * scale, foot - 0.18 * scale)]
    return union(polygon(c.x, c.y, lower, 0.01), polygon(c.x, c.y, upper, 0.01))
