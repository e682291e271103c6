"""The living classes: cat, dog and bird (see subjects.py for the conventions)."""

from __future__ import annotations

import numpy as np

from pysora.worlds.shapes import Array, box, capsule, circle, ellipse, meet, polygon, union
from pysora.worlds.subjects import Drawing, Pose, limb, subject


@subject("cat")
def cat(p: Pose) -> Drawing:
    """Pointed ears, a round face that looks at us and a long tail."""
    return _cat_seated(p) if p.seated else _cat_standing(p)


def _cat_face(u: Array, v: Array) -> tuple[Array, tuple[tuple[Array, str], ...]]:
    """Head around the origin, half width 0.46: its silhouette and what is painted on it."""
    head = ellipse(u, v, (0, 0), (0.46, 0.39))
    ears, inner = [], []
    for side in (-1.0, 1.0):
        ears.append(polygon(u, v, [(side * 0.43, -0.06), (side * 0.4, -0.56), (side * 0.05, -0.3)], 0.03))
        inner.append(polygon(u, v, [(side * 0.34, -0.26), (side * 0.33, -0.45), (side * 0.2, -0.33)], 0.02))
    eyes = union(*(ellipse(u, v, (side * 0.19, -0.04), (0.075, 0.12)) for side in (-1.0, 1.0)))
    muzzle = ellipse(u, v, (0, 0.19), (0.2, 0.13))
    nose = ellipse(u, v, (0, 0.12), (0.07, 0.05))
    layers = ((union(*inner), "blush"), (muzzle, "light"), (eyes, "eye"), (nose, "eye"))
    return union(head, *ears), layers


def _cat_standing(p: Pose) -> Drawing:
    u, v = p.u, p.v
    head, face = _cat_face(u - 0.45, v + 0.32)
    body = ellipse(u, v, (-0.17, 0.27), (0.56, 0.31))
    near = union(limb(p, (-0.52, 0.4), 0.0, 0.14), limb(p, (0.2, 0.4), 3.14, 0.14))
    far = union(limb(p, (-0.34, 0.4), 3.14, 0.13), limb(p, (0.06, 0.4), 0.0, 0.13))
    bend = (-0.82, -0.12 + 0.04 * p.sway)
    tail = union(capsule(u, v, (-0.6, 0.22), bend, 0.12), capsule(u, v, bend, (-0.74 + 0.1 * p.sway, -0.62), 0.12))
    belly = meet(ellipse(u, v, (-0.17, 0.5), (0.44, 0.16)), body)
    hidden = meet(far, -body)
    layers = ((hidden, "shade"), (belly, "shade"), (near, "base"), (meet(head - 0.05, -head), "outline"), *face)
    return Drawing(union(head, body, near, far, tail), layers)


def _cat_seated(p: Pose) -> Drawing:
    u, v = p.u, p.v
    head, face = _cat_face(u, v + 0.34)
    body = union(ellipse(u, v, (0, 0.42), (0.4, 0.5)), ellipse(u, v, (0, 0.68), (0.52, 0.25)))
    paws = union(*(ellipse(u, v, (side * 0.16, 0.84), (0.15, 0.09)) for side in (-1.0, 1.0)))
    bend = (0.78, 0.6)
    tail = union(capsule(u, v, (0.4, 0.76), bend, 0.12), capsule(u, v, bend, (0.78 + 0.09 * p.sway, 0.1), 0.12))
    chest = ellipse(u, v, (0, 0.4), (0.2, 0.26))
    layers = ((chest, "light"), (meet(paws - 0.04, -paws), "outline"), (meet(head - 0.05, -head), "outline"), *face)
    return Drawing(union(head, body, paws, tail), layers)


@subject("dog")
def dog(p: Pose) -> Drawing:
    """A long snout in profile, a hanging ear and a short tail."""
    return _dog_seated(p) if p.seated else _dog_standing(p)


def _dog_face(u: Array, v: Array) -> tuple[Array, tuple[tuple[Array, str], ...]]:
    """Head around the origin in profile: its silhouette and what is painted on it."""
    skull = circle(u, v, (0, 0), 0.36)
    snout = capsule(u, v, (0.2, 0.11), (0.47, 0.13), 0.19)
    ear = ellipse(u, v, (-0.24, 0.1), (0.16, 0.37), 0.2)
    nose = ellipse(u, v, (0.6, 0.02), (0.1, 0.08))
    eye = ellipse(u, v, (0.13, -0.1), (0.075, 0.1))
    muzzle = capsule(u, v, (0.3, 0.18), (0.5, 0.19), 0.1)
    layers = ((muzzle, "light"), (nose, "eye"), (eye, "eye"), (ear - 0.04, "outline"), (ear, "shade"))
    return union(skull, snout, ear), layers


def _dog_standing(p: Pose) -> Drawing:
    u, v = p.u, p.v
    head, face = _dog_face(u - 0.32, v + 0.4)
    body = box(u, v, (-0.2, 0.24), (0.56, 0.27), 0.24)
    neck = capsule(u, v, (0.16, 0.15), (0.28, -0.2), 0.22)
    near = union(limb(p, (-0.56, 0.35), 0.0, 0.15, 0.82), limb(p, (0.18, 0.35), 3.14, 0.15, 0.82))
    far = union(limb(p, (-0.4, 0.35), 3.14, 0.14, 0.82), limb(p, (0.04, 0.35), 0.0, 0.14, 0.82))
    tail = capsule(u, v, (-0.66, 0.12), (-0.82 + 0.06 * p.sway, -0.32), 0.12)
    layers = ((meet(far, -body), "shade"), (meet(ellipse(u, v, (-0.2, 0.52), (0.5, 0.14)), body), "light"), *face)
    return Drawing(union(head, body, neck, near, far, tail), layers)


def _dog_seated(p: Pose) -> Drawing:
    u, v = p.u, p.v
    head, face = _dog_face(u - 0.2, v + 0.46)
    back = capsule(u, v, (-0.2, 0.5), (0.1, -0.1), 0.33)
    haunch = ellipse(u, v, (-0.28, 0.62), (0.38, 0.31))
    legs = capsule(u, v, (0.26, 0.2), (0.3, 0.82), 0.14)
    foot = capsule(u, v, (-0.2, 0.84), (0.02, 0.84), 0.1)
    tail = capsule(u, v, (-0.5, 0.8), (-0.82, 0.6 - 0.16 * p.sway), 0.12)
    chest = capsule(u, v, (0.3, 0.0), (0.24, 0.3), 0.13)
    rim = meet(haunch - 0.04, -haunch, box(u, v, (0.1, 0.5), (0.35, 0.32)))
    layers = ((meet(chest, back), "light"), (rim, "outline"), (haunch, "base"), *face)
    return Drawing(union(head, back, haunch, legs, foot, tail), layers)


@subject("bird")
def bird(p: Pose) -> Drawing:
    """A plump bird whose wing beats while it moves."""
    u, v = p.u, p.v
    body = ellipse(u, v, (-0.08, 0.14), (0.56, 0.46))
    head = circle(u, v, (0.36, -0.32), 0.35)
    beak = polygon(u, v, [(0.6, -0.5), (0.95, -0.28), (0.6, -0.1)], 0.03)
    tail = polygon(u, v, [(-0.42, 0.0), (-0.9, -0.22), (-0.9, 0.22), (-0.4, 0.3)], 0.04)
    legs = union(*(capsule(u, v, (x, 0.5), (x + 0.06, 0.86), 0.08) for x in (-0.2, 0.1)))
    beat = np.sin(p.stride) * p.effort * np.float32(0.85) + np.float32(0.1) * p.sway
    reach = (0.02 - 0.34 * np.cos(beat - 0.25), 0.02 - 0.34 * np.sin(beat - 0.25))
    wing = ellipse(u, v, reach, (0.4, 0.2), beat - np.float32(0.25))
    belly = meet(ellipse(u, v, (0.1, 0.3), (0.3, 0.26)), body)
    eye = circle(u, v, (0.44, -0.38), 0.095)
    layers = (
        (meet(legs, -body), "lamp"),
        (belly, "light"),
        (beak, "lamp"),
        (eye, "eye"),
        (wing - 0.045, "outline"),
        (wing, "shade"),
    )
    return Drawing(union(body, head, beak, tail, legs, wing), layers)
