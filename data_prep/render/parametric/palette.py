"""Draws that the parametric objects share: colours, numbers, wheels and legs."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np

from ..mesh import Mesh, join
from ..primitives import cylinder

Color = tuple[float, float, float]

BLACK: Color = (0.05, 0.05, 0.06)
DARK: Color = (0.13, 0.13, 0.15)
WHITE: Color = (0.93, 0.93, 0.91)
GLASS: Color = (0.16, 0.24, 0.33)
HEADLIGHT: Color = (1.0, 0.96, 0.75)
TAIL_LIGHT: Color = (0.85, 0.05, 0.05)


def uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Return a number in [low, high)."""
    return float(rng.uniform(low, high))


def chance(rng: np.random.Generator, probability: float) -> bool:
    """True with the given probability."""
    return bool(rng.random() < probability)


def paint(rng: np.random.Generator) -> Color:
    """Return a colour of lacquer or cloth: any hue, or now and then near white, grey or near black."""
    if chance(rng, 0.25):
        return gray(rng, 0.15, 0.92)
    return colorsys.hsv_to_rgb(uniform(rng, 0, 1), uniform(rng, 0.35, 0.9), uniform(rng, 0.4, 0.95))


def pale(rng: np.random.Generator) -> Color:
    """Return a light colour."""
    return colorsys.hsv_to_rgb(uniform(rng, 0, 1), uniform(rng, 0.0, 0.3), uniform(rng, 0.8, 0.97))


def gray(rng: np.random.Generator, low: float, high: float) -> Color:
    """Return a grey of the given sRGB range, very slightly tinted."""
    value = uniform(rng, low, high)
    return tuple(float(np.clip(value + uniform(rng, -0.02, 0.02), 0, 1)) for _ in range(3))  # type: ignore[return-value]


def wood(rng: np.random.Generator) -> Color:
    """Return a colour of wood, from maple to wenge."""
    return colorsys.hsv_to_rgb(uniform(rng, 0.05, 0.11), uniform(rng, 0.4, 0.75), uniform(rng, 0.25, 0.8))


def darker(color: Sequence[float], factor: float = 0.6) -> Color:
    """Return the colour, its values multiplied by ``factor``."""
    red, green, blue = (float(np.clip(value * factor, 0, 1)) for value in color)
    return red, green, blue


def wheel(x: float, y: float, radius: float, width: float, hub: Color, z: float | None = None) -> Mesh:
    """Return a wheel whose axle runs along x: a tyre and a hub that shows on both sides. It stands on z = 0 by default."""
    z = radius if z is None else z
    return join(
        [
            cylinder((x - width / 2, y, z), (x + width / 2, y, z), radius, BLACK, sides=24),
            cylinder((x - width * 0.54, y, z), (x + width * 0.54, y, z), radius * 0.6, hub, sides=16, gloss=0.4),
        ]
    )


def legs(
    half_x: float, half_y: float, top: float, radius: float, color: Color, *, splay: float = 0.0, y: float = 0.0
) -> Mesh:
    """Four round legs from height ``top`` down to 0 at (+-half_x, y +- half_y), spread at the foot by ``splay``."""
    return join(
        cylinder(
            (sx * half_x, y + sy * half_y, top),
            (sx * (half_x + splay), y + sy * (half_y + splay), 0),
            radius,
            color,
            end_radius=radius * 0.75,
            sides=10,
        )
        for sx in (-1, 1)
        for sy in (-1, 1)
    )
