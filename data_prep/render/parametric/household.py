"""Parametric cup, teapot and toilet. Lengths are in centimetres (the toilet: metres) before normalisation."""

from __future__ import annotations

import numpy as np

from ..mesh import Mesh, join
from ..primitives import box, cylinder, ellipsoid, lathe, loft, rounded_box, tube
from .palette import WHITE, Color, chance, darker, gray, paint, pale, uniform


def _handle(x: float, low: float, high: float, reach: float, thickness: float, color: Color) -> Mesh:
    """Return a D-shaped handle from (x, 0, low) out along +x to (x, 0, high)."""
    angles = np.linspace(-np.pi / 2, np.pi / 2, 12)
    middle, half = (low + high) / 2, (high - low) / 2
    path = np.column_stack([x + reach * np.cos(angles), np.zeros(12), middle + half * np.sin(angles)])
    return tube(path, thickness, color, sides=10, gloss=0.3)


def cup(rng: np.random.Generator) -> Mesh:
    """Return a mug or tea cup with its handle towards +x, filled, with or without bands and saucer."""
    mug = chance(rng, 0.6)
    height = uniform(rng, 8.5, 11) if mug else uniform(rng, 5.5, 7)
    rim = uniform(rng, 3.8, 4.6) if mug else uniform(rng, 4.4, 5.2)
    foot = rim * (uniform(rng, 0.8, 1.0) if mug else uniform(rng, 0.45, 0.6))
    bulge = 0.0 if mug else rim * 0.12
    china, inside = paint(rng), pale(rng)
    wall = 0.35
    levels = np.linspace(0, 1, 7)
    radii = foot + (rim - foot) * levels + bulge * np.sin(np.pi * levels)
    outside = [(0.0, 0.0), *((float(r), float(h * height)) for r, h in zip(radii, levels, strict=True))]
    parts = [
        lathe([*outside, (rim - wall, height), (rim - wall, height * 0.8), (0.0, height * 0.8)], china, gloss=0.35),
        # the lining and the drink, just proud of the cup's inner wall
        lathe(
            [
                (rim - wall, height - 0.02),
                (rim - wall - 0.06, height - 0.02),
                (rim - wall - 0.06, height * 0.81),
                (rim - wall, height * 0.81),
            ],
            inside,
        ),
        lathe(
            [
                (0.0, height * 0.8),
                (rim - wall - 0.1, height * 0.8),
                (rim - wall - 0.1, height * 0.84),
                (0.0, height * 0.84),
            ],
            _drink(rng),
            gloss=0.5,
        ),
        _handle(
            float(np.interp(0.5, levels, radii)) - 0.2,
            height * uniform(rng, 0.15, 0.25),
            height * uniform(rng, 0.75, 0.88),
            uniform(rng, 2.6, 3.4),
            uniform(rng, 0.4, 0.6),
            china if chance(rng, 0.6) else paint(rng),
        ),
    ]
    if chance(rng, 0.5):
        level = uniform(rng, 0.3, 0.7)
        radius = float(np.interp(level, levels, radii)) + 0.06
        thickness = uniform(rng, 0.5, 1.4)
        parts.append(
            lathe(
                [
                    (0.0, level * height),
                    (radius, level * height),
                    (radius, level * height + thickness),
                    (0.0, level * height + thickness),
                ],
                paint(rng),
                gloss=0.3,
            )
        )
    if not mug and chance(rng, 0.5):
        parts.append(
            lathe(
                [(0.0, -0.4), (rim * 0.9, -0.3), (rim * 1.55, 0.6), (rim * 1.5, 0.8), (rim * 0.8, 0.05), (0.0, 0.0)],
                china,
                gloss=0.35,
            )
        )
    return join(parts)


def _drink(rng: np.random.Generator) -> Color:
    drinks = [(0.22, 0.12, 0.06), (0.55, 0.38, 0.24), (0.62, 0.3, 0.08), (0.93, 0.9, 0.84)]
    return drinks[int(rng.integers(len(drinks)))]


def teapot(rng: np.random.Generator) -> Mesh:
    """Return a round or tall pot with its spout towards +x, its handle towards -x, and a lid with a knob."""
    radius = uniform(rng, 6, 8)
    height = radius * uniform(rng, 1.3, 2.2)
    china = paint(rng)
    trim = china if chance(rng, 0.4) else paint(rng)
    levels = np.linspace(0, 1, 9)
    waist = uniform(rng, 0.35, 0.6)
    shape = np.interp(levels, [0, waist, 1], [uniform(rng, 0.6, 0.85), 1.0, uniform(rng, 0.5, 0.7)])
    shape = 0.5 * shape + 0.5 * np.sqrt(np.clip(1 - ((levels - waist) / 0.9) ** 2, 0, 1))
    profile = [
        (0.0, 0.0),
        *((float(radius * s), float(height * h)) for s, h in zip(shape, levels, strict=True)),
        (0.0, height),
    ]
    mouth = float(radius * shape[-1])
    dome = uniform(rng, 0.1, 0.25) * height
    spout_base, spout_tip = height * uniform(rng, 0.25, 0.4), height * uniform(rng, 0.85, 1.05)
    reach = radius * uniform(rng, 1.65, 1.9)
    spout = np.array(
        [
            (radius * 0.75, 0, spout_base),
            (radius * 1.15, 0, spout_base + 0.1 * height),
            (radius * 1.4, 0, (spout_base + spout_tip) / 2),
            (reach * 0.95, 0, spout_tip - 0.03 * height),
            (reach, 0, spout_tip),
        ]
    )
    parts = [
        lathe(profile, china, gloss=0.4),
        lathe(
            [
                (0.0, height),
                (mouth * 0.95, height),
                (mouth * 0.8, height + dome * 0.6),
                (mouth * 0.3, height + dome),
                (0.0, height + dome),
            ],
            trim,
            gloss=0.4,
        ),
        ellipsoid(
            (0, 0, height + dome + radius * 0.1),
            (radius * 0.15, radius * 0.15, radius * 0.14),
            darker(trim, 0.7),
            sides=12,
            gloss=0.4,
        ),
        tube(spout, np.array([0.3, 0.24, 0.17, 0.13, 0.12]) * radius, trim, sides=12, gloss=0.4),
        _handle(
            radius * 0.8,
            height * 0.2,
            height * 0.85,
            radius * uniform(rng, 0.75, 1.0),
            radius * uniform(rng, 0.07, 0.11),
            trim,
        ).rotated("z", np.pi),
        lathe([(0.0, -0.3), (radius * 0.65, -0.3), (radius * 0.6, 0.3), (0.0, 0.3)], darker(china, 0.8)),
    ]
    return join(parts)


def _oval_stack(
    half_x: float, half_y: float, levels: list[tuple[float, float, float]], color: Color, *, closed: bool = False
) -> Mesh:
    """Return a solid whose level sections are ovals: ``levels`` are (height, scale, shift along y). ``closed`` makes a ring."""
    angles = np.arange(24) * 2 * np.pi / 24
    oval = np.column_stack([np.cos(angles) * half_x, np.sin(angles) * half_y])
    return loft(
        [np.column_stack([oval * scale + [0, y], np.full(24, z)]) for z, scale, y in levels],
        color,
        gloss=0.4,
        closed=closed,
    )


def toilet(rng: np.random.Generator) -> Mesh:
    """Return a bowl with a seat, its lid up or down, before a cistern."""
    width, bowl_length = uniform(rng, 0.36, 0.42), uniform(rng, 0.48, 0.56)
    rim = uniform(rng, 0.38, 0.44)
    china = WHITE if chance(rng, 0.6) else pale(rng)
    seat = china if chance(rng, 0.4) else paint(rng)
    tank_width, tank_depth, tank_height = uniform(rng, 0.38, 0.48), uniform(rng, 0.16, 0.2), uniform(rng, 0.32, 0.42)
    tank_y = bowl_length / 2 + tank_depth / 2

    def stack(levels: list[tuple[float, float, float]], color: Color, *, closed: bool = False) -> Mesh:
        """Ovals of (height, scale, shift along y), the bowl's own oval at scale 1."""
        return _oval_stack(width / 2, bowl_length / 2, levels, color, closed=closed)

    bowl = stack(
        [(0, 0.62, 0.06), (0.1, 0.55, 0.06), (rim * 0.5, 0.7, 0.04), (rim * 0.8, 0.95, 0.0), (rim, 1.0, 0.0)], china
    )
    ring_levels = [(rim, 1.04, 0.0), (rim + 0.03, 1.04, 0.0), (rim + 0.03, 0.68, 0.0), (rim + 0.005, 0.68, 0.0)]
    parts = [
        bowl,
        stack(ring_levels, seat, closed=True),
        stack([(rim + 0.001, 0.67, 0.0), (rim + 0.008, 0.67, 0.0)], (0.35, 0.45, 0.5)),
        box((0, tank_y - 0.03, rim / 2), (width * 0.6, tank_depth + 0.08, rim), china, gloss=0.4),
        rounded_box(
            (0, tank_y, rim + tank_height / 2), (tank_width, tank_depth, tank_height), china, radius=0.03, gloss=0.4
        ),
        rounded_box(
            (0, tank_y, rim + tank_height + 0.015),
            (tank_width + 0.02, tank_depth + 0.02, 0.035),
            china,
            radius=0.012,
            gloss=0.4,
        ),
        cylinder(
            (0, tank_y, rim + tank_height + 0.02),
            (0, tank_y, rim + tank_height + 0.045),
            0.025,
            gray(rng, 0.5, 0.8),
            gloss=0.7,
        ),
    ]
    lid = stack([(0, 1.03, 0.0), (0.025, 1.03, 0.0)], seat)
    if chance(rng, 0.5):
        hinge = bowl_length / 2
        parts.append(lid.translated(y=-hinge).rotated("x", -1.75).translated(y=hinge - 0.03, z=rim + 0.03))
    else:
        parts.append(lid.translated(z=rim + 0.03))
    return join(parts)
