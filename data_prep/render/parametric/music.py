"""Parametric piano and guitar. Lengths are in metres before normalisation."""

from __future__ import annotations

import numpy as np
from scipy.interpolate import PchipInterpolator

from ..mesh import Mesh, both_sides, join
from ..primitives import box, cylinder, prism
from .palette import BLACK, DARK, WHITE, chance, darker, gray, paint, uniform, wood


def piano(rng: np.random.Generator) -> Mesh:
    """Return an upright piano: keys towards -y, music desk above them, three pedals below."""
    width, depth, height = uniform(rng, 1.4, 1.55), uniform(rng, 0.3, 0.36), uniform(rng, 1.05, 1.3)
    case = BLACK if chance(rng, 0.35) else WHITE if chance(rng, 0.15) else wood(rng)
    keys_z, shelf = uniform(rng, 0.62, 0.7), uniform(rng, 0.26, 0.32)
    front = -depth / 2
    shelf_y = front - shelf / 2
    parts = [
        box((0, 0, height / 2), (width, depth, height), case, gloss=0.35),
        box((0, -0.02, height + 0.015), (width * 1.03, depth * 1.15, 0.04), darker(case, 0.85), gloss=0.35),
        box((0, shelf_y, keys_z - 0.05), (width, shelf, 0.08), case, gloss=0.35),
        both_sides(box((width / 2 - 0.03, shelf_y, keys_z + 0.03), (0.06, shelf, 0.12), case, gloss=0.35)),
        both_sides(
            box(
                (width / 2 - 0.05, front - shelf + 0.05, keys_z / 2 - 0.03),
                (0.07, 0.07, keys_z - 0.06),
                case,
                gloss=0.35,
            )
        ),
        box((0, shelf_y - 0.02, 0.04), (width, shelf + 0.02, 0.07), darker(case, 0.8)),
        box((0, shelf_y - 0.02, keys_z), (width - 0.12, shelf * 0.62, 0.03), WHITE, gloss=0.4),
        box((0, front, keys_z + 0.03), (width - 0.12, 0.06, 0.05), (0.45, 0.05, 0.08)),
        box(
            (0, front - 0.03, keys_z + 0.28),
            (width * uniform(rng, 0.4, 0.7), 0.02, 0.24),
            darker(case, 0.75),
            shift=(0.0, 0.04),
        ),
        box((0, front - 0.006, keys_z * 0.5), (width * 0.8, 0.02, keys_z * 0.6), darker(case, 0.8), gloss=0.35),
        box((0, depth / 2, height / 2), (width * 0.9, 0.02, height * 0.9), (0.55, 0.42, 0.28)),
    ]
    octaves, pitch = 7, (width - 0.12) / 49
    for octave in range(octaves):
        for step in (0, 1, 3, 4, 5):  # the gaps between the seven white keys that hold a black one
            x = -(width - 0.12) / 2 + (octave * 7 + step + 1) * pitch
            parts.append(box((x, shelf_y + 0.02, keys_z + 0.02), (pitch * 0.55, shelf * 0.4, 0.03), BLACK))
    parts += [
        cylinder((x, front, 0.06), (x, front - 0.16, 0.05), 0.015, (0.8, 0.65, 0.25), gloss=0.7)
        for x in (-0.08, 0, 0.08)
    ]
    if chance(rng, 0.6):
        sheet = box((0, 0, 0), (0.3, 0.005, 0.22), WHITE).rotated("x", -0.15)
        parts.append(sheet.translated(0, front - 0.035, keys_z + 0.34))
    return join(parts)


def guitar(rng: np.random.Generator) -> Mesh:
    """Neck up, strings towards -y. Acoustic with a sound hole, or electric with a cutaway on the -x side."""
    acoustic = chance(rng, 0.55)
    lower, waist, upper = uniform(rng, 0.18, 0.2), uniform(rng, 0.115, 0.135), uniform(rng, 0.135, 0.155)
    length = uniform(rng, 0.46, 0.5)
    depth = uniform(rng, 0.09, 0.12) if acoustic else uniform(rng, 0.04, 0.05)
    top = wood(rng) if acoustic else paint(rng)
    sides = darker(top, 0.55) if acoustic else darker(top, 0.8)
    levels = np.sin(np.linspace(0, np.pi / 2, 23)) ** 2  # denser at either end, where the outline turns
    knots = [0, 0.05, 0.27, 0.6, 0.84, 0.96, 1]
    bouts = np.array([0.25 * lower, 0.68 * lower, lower, waist, upper, 0.72 * upper, 0.3 * upper])
    right = PchipInterpolator(knots, bouts)(levels)
    left = right.copy()
    if not acoustic:
        left[levels > 0.8] *= 0.45  # the cutaway
    outline = [(float(x), float(z * length)) for x, z in zip(right, levels, strict=True)]
    outline += [(float(-x), float(z * length)) for x, z in zip(left[::-1], levels[::-1], strict=True)]
    inset = [(x * 0.97, 0.01 + z * 0.97) for x, z in outline]
    neck_top = length + uniform(rng, 0.34, 0.4)
    face = -depth / 2
    neck = wood(rng)
    parts = [
        prism(outline, "y", -depth / 2, depth / 2, sides, gloss=0.3),
        prism(inset, "y", -depth / 2 - 0.004, 0, top, gloss=0.35),
        box((0, face + 0.006, (length * 0.8 + neck_top) / 2), (0.05, 0.03, neck_top - length * 0.8), neck),
        box((0, face - 0.012, (length * 0.78 + neck_top) / 2), (0.048, 0.012, neck_top - length * 0.78), DARK),
        box((0, face, neck_top + 0.075), (0.075, 0.022, 0.15), darker(neck, 0.7), top=(1.15, 1.0), shift=(0.0, 0.02)),
        box((0, face - 0.01, length * 0.25), (0.15, 0.02, 0.025), DARK),
    ]
    for i in range(12):
        z = length * 0.85 + (neck_top - length * 0.85) * i / 12
        parts.append(box((0, face - 0.018, z), (0.047, 0.003, 0.004), (0.8, 0.78, 0.7), gloss=0.6))
    for i in range(3):
        z = neck_top + 0.035 + 0.04 * i
        parts.append(
            both_sides(
                cylinder(
                    (0.03, face + 0.005, z), (0.062, face + 0.005, z), 0.01, gray(rng, 0.7, 0.9), sides=8, gloss=0.7
                )
            )
        )
    for x in np.linspace(-0.019, 0.019, 6):
        parts.append(
            box(
                (x, face - 0.024, (length * 0.25 + neck_top) / 2),
                (0.002, 0.002, neck_top - length * 0.25),
                (0.85, 0.83, 0.75),
                gloss=0.6,
            )
        )
    parts += _acoustic_face(rng, face, length) if acoustic else _electric_face(rng, face, length)
    return join(parts)


def _acoustic_face(rng: np.random.Generator, face: float, length: float) -> list[Mesh]:
    hole = length * 0.62
    parts = [
        cylinder((0, face, hole), (0, face - 0.006, hole), 0.06, wood(rng), sides=28),
        cylinder((0, face, hole), (0, face - 0.008, hole), 0.05, BLACK, sides=28),
    ]
    if chance(rng, 0.6):
        guard = [(0.05, hole - 0.01), (0.09, hole - 0.03), (0.08, hole - 0.12), (0.02, hole - 0.1), (0.04, hole - 0.05)]
        parts.append(prism(guard, "y", face - 0.007, face, darker(wood(rng), 0.4)))
    return parts


def _electric_face(rng: np.random.Generator, face: float, length: float) -> list[Mesh]:
    guard = WHITE if chance(rng, 0.6) else DARK
    parts = [box((0.05, face - 0.003, length * 0.5), (0.12, 0.008, length * 0.4), guard, top=(0.7, 1.0))]
    parts += [box((0, face - 0.01, length * level), (0.08, 0.012, 0.02), BLACK) for level in (0.4, 0.52, 0.64)]
    parts += [
        cylinder((x, face, z), (x, face - 0.02, z), 0.012, gray(rng, 0.6, 0.9), sides=10, gloss=0.6)
        for x, z in ((0.1, length * 0.2), (0.12, length * 0.28))
    ]
    return parts
