"""Parametric hammer and power drill. Lengths are in centimetres before normalisation."""

from __future__ import annotations

import numpy as np

from ..mesh import Mesh, both_sides, join
from ..primitives import box, cylinder, loft, rounded_box
from .palette import BLACK, DARK, Color, chance, darker, gray, paint, uniform, wood


def hammer(rng: np.random.Generator) -> Mesh:
    """Return a claw hammer, handle down: striking face towards +x, claws towards -x."""
    length = uniform(rng, 24, 32)
    head = uniform(rng, 2.2, 2.9)
    steel = gray(rng, 0.25, 0.7)
    grip = wood(rng) if chance(rng, 0.4) else paint(rng)
    shaft = grip if chance(rng, 0.4) else gray(rng, 0.3, 0.75)
    grip_share = uniform(rng, 0.4, 0.55)
    face = uniform(rng, 4.5, 6.0)
    parts = [
        cylinder((0, 0, length * grip_share * 0.9), (0, 0, length), 0.9, shaft, end_radius=0.8, sides=14),
        _grip(length * grip_share, grip),
        box((0, 0, length), (head * 1.3, head, head * 1.25), steel, gloss=0.5),
        cylinder((0, 0, length), (face * 0.65, 0, length), head * 0.42, steel, sides=16, gloss=0.5),
        cylinder((face * 0.6, 0, length), (face, 0, length), head * 0.62, darker(steel, 0.9), sides=20, gloss=0.5),
        cylinder((face, 0, length), (face + 0.15, 0, length), head * 0.55, (0.85, 0.85, 0.87), sides=20, gloss=0.7),
        _both_ways(_claw(rng, length, head, darker(steel, 0.85))),
    ]
    return join(parts)


def _grip(length: float, color: Color) -> Mesh:
    angles = np.arange(14) * 2 * np.pi / 14
    rings = []
    for share, scale in ((0.0, 1.0), (0.05, 1.25), (0.2, 1.1), (0.5, 1.2), (0.85, 1.0), (1.0, 0.85)):
        rings.append(
            np.column_stack([1.5 * scale * np.cos(angles), 1.15 * scale * np.sin(angles), np.full(14, share * length)])
        )
    return loft(rings, color)


def _claw(rng: np.random.Generator, z: float, head: float, color: Color) -> Mesh:
    """One of the two prongs, bent down towards its tip."""
    reach, drop = uniform(rng, 5.5, 7.5), uniform(rng, 1.5, 3.0)
    rings = []
    for share in np.linspace(0, 1, 6):
        x, middle = -reach * share, z + head * 0.1 - drop * share**2
        half = head * (0.5 - 0.42 * share)
        y_in, y_out = head * 0.28 * share**0.5 * 0.6, head * 0.5 + head * 0.1 * share
        rings.append(
            [(x, y_in, middle - half), (x, y_out, middle - half), (x, y_out, middle + half), (x, y_in, middle + half)]
        )
    return loft(np.array(rings), color, gloss=0.5)


def _both_ways(part: Mesh) -> Mesh:
    """Return a part and its mirror image in the plane y = 0."""
    return join([part, part.transformed(np.diag([1.0, -1.0, 1.0]))])


def power_drill(rng: np.random.Generator) -> Mesh:
    """Return a cordless drill: bit towards -y, grip and battery below, motor behind."""
    radius, length = uniform(rng, 2.8, 3.4), uniform(rng, 14, 18)
    body, dark = paint(rng), gray(rng, 0.08, 0.2)
    grip_length = uniform(rng, 9, 12)
    tilt = uniform(rng, 0.0, 0.25)
    front, rear = -length * 0.55, length * 0.45
    grip_y = uniform(rng, 0.5, 3.5)
    bit = uniform(rng, 5, 9)
    battery_z = -radius - grip_length
    battery_y = grip_y + tilt * grip_length
    parts = [
        cylinder((0, front + 3, 0), (0, rear, 0), radius, body, sides=24, gloss=0.25),
        cylinder((0, rear - 0.1, 0), (0, rear + 1.4, 0), radius * 0.98, dark, end_radius=radius * 0.8, sides=24),
        cylinder((0, front, 0), (0, front + 3.1, 0), radius * 0.75, dark, end_radius=radius, sides=24),
        cylinder(
            (0, front - 3.2, 0), (0, front, 0), radius * 0.35, DARK, end_radius=radius * 0.62, sides=18, gloss=0.4
        ),
        cylinder((0, front - 3.2 - bit, 0), (0, front - 3, 0), 0.28, gray(rng, 0.6, 0.85), sides=10, gloss=0.8),
        rounded_box(
            (0, 0, 0), (radius * 1.25, 4.4, grip_length + radius), dark if chance(rng, 0.5) else body, radius=1.2
        )
        .rotated("x", tilt)
        .translated(y=(grip_y + battery_y) / 2, z=(-radius + battery_z) / 2 + radius * 0.3),
        rounded_box(
            (0, battery_y - 0.8, battery_z), (radius * 2.1, uniform(rng, 9, 12), uniform(rng, 3, 4.5)), dark, radius=0.8
        ),
        box((0, battery_y - 0.8, battery_z + 1.9), (radius * 1.9, 8, 1.0), body),
        box((0, grip_y - 2.6, -radius - 1.2), (1.4, 1.6, 2.4), (0.8, 0.1, 0.1) if chance(rng, 0.5) else BLACK),
        both_sides(
            box((radius * 0.99, (front + rear) / 2 + 1.5, 0.4), (0.3, length * 0.4, radius * 0.6), darker(body, 0.5))
        ),
        both_sides(box((radius * 0.9, rear - 2.0, 0), (0.8, 0.5, radius * 0.9), dark)),
    ]
    return join(parts)
