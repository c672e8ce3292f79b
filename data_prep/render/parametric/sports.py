"""Parametric skate and treadmill. Lengths are in centimetres before normalisation."""

from __future__ import annotations

import numpy as np

from ..mesh import Mesh, both_sides, join
from ..primitives import box, cylinder, loft, prism, rounded_box, tube
from .palette import BLACK, DARK, Color, chance, darker, gray, paint, uniform, wheel


def skate(rng: np.random.Generator) -> Mesh:
    """Return an inline skate: toe towards -y, brake behind the last wheel."""
    length, width = uniform(rng, 27, 31), uniform(rng, 9, 11)
    radius = uniform(rng, 3.4, 4.2)
    sole = radius * 2 + uniform(rng, 1.5, 3)
    cuff = sole + uniform(rng, 20, 27)
    shell, cloth, trim = paint(rng), gray(rng, 0.1, 0.35) if chance(rng, 0.5) else paint(rng), paint(rng)
    toe, heel = -length * 0.5, length * 0.5
    parts = [_boot(length, width, sole, cuff, shell), _cuff(length, width, sole, cuff, cloth)]
    frame = [(toe * 0.85, sole), (toe * 0.9, radius * 1.1), (heel * 0.85, radius * 1.1), (heel * 0.95, sole)]
    parts.append(prism(frame, "x", -1.6, 1.6, gray(rng, 0.3, 0.8), gloss=0.5))
    tyre = paint(rng)
    for y in np.linspace(toe * 0.85, heel * 0.8, 4):
        parts.append(cylinder((-1.2, y, radius), (1.2, y, radius), radius, tyre))
        parts.append(cylinder((-1.9, y, radius), (1.9, y, radius), radius * 0.35, DARK, sides=10))
    parts.append(box((0, heel * 1.12, radius * 1.4), (3, 4.5, radius * 1.1), BLACK, top=(1.0, 1.2)))
    for share in (0.3, 0.62, 0.9):
        z = sole + (cuff - sole) * share
        y = float(np.interp(share, [0.2, 1.0], [-length * 0.18, -length * 0.07]))
        parts.append(rounded_box((0, y, z), (width * 1.02, 3.0, 2.4), trim, radius=0.8, gloss=0.4))
    return join(parts)


def _boot(length: float, width: float, sole: float, cuff: float, color: Color) -> Mesh:
    """Return the shell: cross-sections from toe to heel."""
    stations = np.array([-0.5, -0.46, -0.36, -0.2, -0.05, 0.2, 0.42, 0.5]) * length
    widths = np.array([0.35, 0.7, 0.95, 1.0, 0.9, 0.85, 0.8, 0.5]) * width / 2
    heights = np.array([0.1, 0.2, 0.28, 0.36, 0.5, 0.55, 0.5, 0.4]) * (cuff - sole)
    angles = np.linspace(0, np.pi, 9)
    rings = []
    for y, w, h in zip(stations, widths, heights, strict=True):
        rings.append(
            np.column_stack(
                [
                    w * np.sign(np.cos(angles)) * np.abs(np.cos(angles)) ** 0.6,
                    np.full(9, y),
                    sole + h * np.sin(angles) ** 0.6,
                ]
            )
        )
    return loft(rings, color, gloss=0.35)


def _cuff(length: float, width: float, sole: float, cuff: float, color: Color) -> Mesh:
    """Return the shaft round the ankle, leaning forward a little."""
    angles = np.arange(18) * 2 * np.pi / 18
    rings = []
    for share, scale, y in ((0.2, 0.95, 0.17), (0.5, 0.85, 0.2), (0.8, 0.92, 0.17), (1.0, 1.0, 0.15)):
        x = np.cos(angles) * width * 0.52 * scale
        rings.append(
            np.column_stack(
                [x, y * length + np.sin(angles) * length * 0.26 * scale, np.full(18, sole + share * (cuff - sole))]
            )
        )
    return loft(rings, color)


def treadmill(rng: np.random.Generator) -> Mesh:
    """Return a running belt with uprights, handrails and a lit console at its front end (-y)."""
    length, width = uniform(rng, 150, 180), uniform(rng, 65, 80)
    deck, height = uniform(rng, 14, 22), uniform(rng, 120, 145)
    frame, accent = gray(rng, 0.1, 0.8), paint(rng)
    front = -length / 2
    post_y = front + length * uniform(rng, 0.1, 0.18)
    lean = uniform(rng, -12, 12)
    x = width / 2 - 4
    hood_length = length * 0.2
    parts = [
        box((0, 0, deck - 3), (width * 0.8, length * 0.98, 5), DARK),
        box((0, length * 0.06, deck), (width * 0.62, length * 0.86, 1.5), (0.08, 0.08, 0.09)),
        both_sides(box((width * 0.38, 0, deck - 1), (width * 0.13, length, 6), frame)),
        rounded_box(
            (0, front + hood_length / 2, deck + 3), (width * 0.9, hood_length, 16), accent, radius=5, gloss=0.3
        ),
        both_sides(cylinder((x, post_y, deck - 5), (x, post_y + lean, height), uniform(rng, 3, 4.5), frame, sides=12)),
        both_sides(
            tube(
                np.array(
                    [
                        (x, post_y + lean, height - 14),
                        (x, post_y + lean + length * 0.16, height - 16),
                        (x, post_y + lean + length * 0.3, height - 24),
                    ]
                ),
                2.6,
                darker(accent, 0.7),
            )
        ),
        both_sides(wheel(width / 2 - 8, front, 4, 5, frame)),
    ]
    console = join(
        [
            rounded_box((0, 0, 0), (width * 0.98, 7, 30), frame, radius=3),
            box((0, 3.5, 3), (width * 0.5, 1, 17), (0.35, 0.75, 0.95), gloss=0.5),
            both_sides(box((width * 0.35, 3.5, 2), (width * 0.12, 1, 12), accent)),
            box((0, 3.5, -10), (width * 0.6, 1, 4), (0.85, 0.2, 0.15)),
        ]
    )
    parts.append(console.rotated("x", uniform(rng, 0.35, 0.7)).translated(y=post_y + lean, z=height + 6))
    return join(parts)
