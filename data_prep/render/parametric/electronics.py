"""Parametric laptop, camera and tvmonitor. Lengths are in centimetres before normalisation."""

from __future__ import annotations

import numpy as np

from ..mesh import Mesh, both_sides, join
from ..primitives import box, cylinder, ellipsoid, rounded_box
from .palette import BLACK, DARK, GLASS, Color, chance, darker, gray, paint, uniform


def _screen_picture(rng: np.random.Generator, width: float, height: float) -> Mesh:
    """Return a lit screen in the plane y = 0, facing -y, centred: a ground colour and a few windows on it."""
    ground = (
        (uniform(rng, 0.2, 0.6), uniform(rng, 0.4, 0.8), uniform(rng, 0.7, 1.0)) if chance(rng, 0.7) else paint(rng)
    )
    parts = [box((0, 0, 0), (width, 0.1, height), ground, gloss=0.4)]
    for layer in range(int(rng.integers(1, 4))):
        w, h = width * uniform(rng, 0.2, 0.5), height * uniform(rng, 0.2, 0.5)
        x, z = uniform(rng, -0.5, 0.5) * (width - w), uniform(rng, -0.5, 0.5) * (height - h)
        parts.append(
            box(
                (x, -0.03 * (layer + 1), z),
                (w, 0.1, h),
                gray(rng, 0.75, 1.0) if chance(rng, 0.6) else paint(rng),
                gloss=0.4,
            )
        )
    return join(parts)


def laptop(rng: np.random.Generator) -> Mesh:
    """Open by 95 to 130 degrees; the screen looks towards -y, over keyboard and touch pad."""
    width, depth = uniform(rng, 30, 38), uniform(rng, 20, 26)
    thickness = uniform(rng, 1.2, 2.4)
    shell = gray(rng, 0.1, 0.85) if chance(rng, 0.7) else paint(rng)
    deck = shell if chance(rng, 0.6) else gray(rng, 0.1, 0.8)
    key = gray(rng, 0.05, 0.2) if sum(deck) > 1.0 else gray(rng, 0.7, 0.9)
    rows, pitch = 5, depth * 0.5 / 5
    parts = [
        rounded_box((0, 0, thickness / 2), (width, depth, thickness), shell, radius=0.5, gloss=0.25),
        box((0, 0, thickness), (width * 0.97, depth * 0.96, 0.1), deck, gloss=0.2),
        rounded_box(
            (0, -depth * 0.3, thickness + 0.05), (width * 0.28, depth * 0.24, 0.12), darker(deck, 0.75), radius=0.1
        ),
    ]
    for row in range(rows):
        y = depth * 0.36 - row * pitch
        columns = 12
        for column in range(columns):
            x = (column - (columns - 1) / 2) * width * 0.88 / columns
            parts.append(box((x, y, thickness + 0.1), (width * 0.06, pitch * 0.78, 0.3), key))
    height = depth * 0.97
    lid_thickness = thickness * 0.5
    lid = join(
        [
            rounded_box(
                (0, lid_thickness / 2, height / 2), (width, lid_thickness, height), shell, radius=0.3, gloss=0.25
            ),
            box((0, -0.02, height * 0.51), (width * 0.97, 0.1, height * 0.95), BLACK, gloss=0.3),
            _screen_picture(rng, width * 0.91, height * 0.82).translated(y=-0.06, z=height * 0.53),
            cylinder(
                (0, lid_thickness - 0.1, height * 0.55),
                (0, lid_thickness + 0.06, height * 0.55),
                height * 0.09,
                gray(rng, 0.6, 0.95),
            ),
        ]
    )
    opening = np.radians(uniform(rng, 95, 130))
    parts.append(lid.rotated("x", -(opening - np.pi / 2)).translated(y=depth / 2 - 0.3, z=thickness))
    return join(parts)


def camera(rng: np.random.Generator) -> Mesh:
    """Return a still camera: lens towards -y, grip on the photographer's right (-x), screen behind."""
    width, height, depth = uniform(rng, 11, 14), uniform(rng, 6.5, 9), uniform(rng, 3, 5)
    body = gray(rng, 0.06, 0.25) if chance(rng, 0.5) else paint(rng)
    trim = gray(rng, 0.55, 0.85) if chance(rng, 0.4) else darker(body, 0.7)
    lens_radius = height * uniform(rng, 0.32, 0.42)
    lens_length = depth * uniform(rng, 0.7, 1.6)
    lens_z = -height * 0.04
    front = -depth / 2
    barrel = gray(rng, 0.08, 0.2)
    parts = [
        rounded_box((0, 0, 0), (width, depth, height), body, radius=0.8),
        rounded_box((0, 0, height * 0.45), (width * 0.98, depth * 0.96, height * 0.16), trim, radius=0.4, gloss=0.4),
        rounded_box(
            (-width * 0.43, front - 0.3, -height * 0.04),
            (width * 0.16, 1.8, height * 0.86),
            darker(body, 0.8),
            radius=0.6,
        ),
        cylinder((0, front + 0.2, lens_z), (0, front - lens_length, lens_z), lens_radius, barrel, gloss=0.4, sides=28),
        cylinder(
            (0, front - lens_length * 0.3, lens_z),
            (0, front - lens_length * 0.5, lens_z),
            lens_radius * 1.05,
            gray(rng, 0.3, 0.8),
            sides=28,
        ),
        cylinder(
            (0, front - lens_length * 0.98, lens_z),
            (0, front - lens_length - 0.1, lens_z),
            lens_radius * 0.86,
            darker(barrel, 0.5),
            sides=28,
        ),
        ellipsoid(
            (0, front - lens_length, lens_z), (lens_radius * 0.7, 0.7, lens_radius * 0.7), (0.25, 0.2, 0.45), gloss=0.9
        ),
        box((0, depth / 2, -height * 0.05), (width * 0.62, 0.3, height * 0.62), GLASS, gloss=0.2),
        cylinder((width * 0.4, depth / 2, 0), (width * 0.4, depth / 2 + 0.3, 0), height * 0.12, trim, sides=16),
        cylinder(
            (-width * 0.36, 0, height / 2),
            (-width * 0.36, 0, height / 2 + 0.7),
            0.75,
            (0.8, 0.15, 0.1) if chance(rng, 0.3) else trim,
            gloss=0.5,
        ),
        cylinder((width * 0.33, 0, height / 2), (width * 0.33, 0, height / 2 + 0.8), 1.2, trim, gloss=0.4),
    ]
    if chance(rng, 0.6):
        parts.append(
            box((0, -depth * 0.05, height * 0.62), (width * 0.32, depth * 0.95, height * 0.28), body, top=(0.6, 0.75))
        )
        parts.append(
            box((0, front * 1.02, height * 0.6), (width * 0.18, 0.3, height * 0.12), (0.95, 0.95, 0.85), gloss=0.5)
        )
    else:
        parts.append(
            box((width * 0.3, front, height * 0.3), (width * 0.17, 0.3, height * 0.14), (0.95, 0.95, 0.85), gloss=0.5)
        )
    return join(parts)


def tvmonitor(rng: np.random.Generator) -> Mesh:
    """Return a flat screen on a foot, or an old deep set; lit screen in front, vents behind."""
    width = uniform(rng, 45, 75)
    height = width * uniform(rng, 0.55, 0.78)
    case: Color = gray(rng, 0.05, 0.3) if chance(rng, 0.6) else gray(rng, 0.6, 0.85)
    deep = chance(rng, 0.35)
    thickness = 8.0 if deep else uniform(rng, 3, 5)
    bezel = 0.84 if deep else uniform(rng, 0.88, 0.95)
    parts = [
        rounded_box((0, 0, 0), (width, thickness, height), case, radius=1.2, gloss=0.3),
        box((0, -thickness / 2, height * 0.02), (width * bezel + 0.8, 0.3, height * bezel + 0.8), BLACK),
        _screen_picture(rng, width * bezel, height * bezel).translated(y=-thickness / 2 - 0.12, z=height * 0.02),
        box((width * 0.42, -thickness / 2, -height * 0.47), (width * 0.05, 0.3, height * 0.02), (0.2, 0.9, 0.3)),
    ]
    if deep:
        tube_depth = width * uniform(rng, 0.45, 0.65)
        shell = box((0, 0, 0), (width * 0.92, height * 0.92, tube_depth), darker(case, 0.9), top=(0.55, 0.6))
        parts.append(shell.rotated("x", -np.pi / 2).translated(y=thickness / 2 + tube_depth / 2))
    else:
        parts.append(
            rounded_box(
                (0, thickness / 2 + 1.5, -height * 0.08), (width * 0.55, 5, height * 0.5), darker(case, 0.8), radius=1.0
            )
        )
    for row in range(4):
        y = thickness / 2 + (width * 0.02 if deep else 4.0)
        parts.append(box((0, y, height * (0.05 - 0.06 * row)), (width * 0.3, 0.5, height * 0.02), DARK))
    foot = -height / 2 - height * uniform(rng, 0.1, 0.18)
    if chance(rng, 0.3) and not deep:
        parts.append(
            both_sides(
                box(
                    (width * 0.3, 0, (foot - height / 2) / 2),
                    (2.5, width * 0.25, -height / 2 - foot + 2),
                    case,
                    top=(1.0, 0.3),
                )
            )
        )
    else:
        parts.append(box((0, 1, foot / 2 - height / 4), (width * 0.14, 4, -height / 2 - foot + 3), case))
        parts.append(
            rounded_box((0, 0, foot), (width * uniform(rng, 0.4, 0.6), width * 0.26, 2), case, radius=0.9, gloss=0.3)
        )
    return join(parts)
