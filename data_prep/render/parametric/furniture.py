"""Parametric chair, sofa and bed. Lengths are in metres before normalisation."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..mesh import Mesh, both_sides, join
from ..primitives import box, cylinder, prism, rounded_box, tube
from .palette import Color, chance, darker, gray, legs, paint, pale, uniform, wood


def chair(rng: np.random.Generator) -> Mesh:
    """Four legs or a swivel foot; a back of slats, bars or a panel; with or without arms and cushion."""
    width, depth = uniform(rng, 0.42, 0.52), uniform(rng, 0.4, 0.5)
    seat = uniform(rng, 0.42, 0.5)
    back = uniform(rng, 0.38, 0.62)
    frame = wood(rng) if chance(rng, 0.6) else paint(rng)
    cloth = paint(rng)
    recline = uniform(rng, 0.02, 0.1)
    swivel = chance(rng, 0.3)
    parts = [rounded_box((0, 0, seat), (width, depth, 0.05), frame, radius=0.015)]
    if swivel:
        parts.append(_swivel_foot(seat, gray(rng, 0.1, 0.6)))
    else:
        parts.append(
            legs(
                width / 2 - 0.03, depth / 2 - 0.03, seat, uniform(rng, 0.016, 0.028), frame, splay=uniform(rng, 0, 0.05)
            )
        )
    if swivel or chance(rng, 0.5):
        parts.append(rounded_box((0, -0.01, seat + 0.05), (width * 0.94, depth * 0.92, 0.07), cloth, radius=0.03))
    parts.append(_chair_back(rng, width, depth, seat, back, recline, frame, cloth, padded=swivel))
    if chance(rng, 0.35):
        parts.append(both_sides(_chair_arm(width, depth, seat, frame)))
    return join(parts)


def _swivel_foot(seat: float, color: Color) -> Mesh:
    parts = [cylinder((0, 0, 0.06), (0, 0, seat), 0.03, color, gloss=0.4)]
    for k in range(5):
        angle = 2 * np.pi * k / 5 - np.pi / 2
        foot = (0.28 * np.cos(angle), 0.28 * np.sin(angle), 0.05)
        parts.append(cylinder((0, 0, 0.1), foot, 0.025, color, end_radius=0.015, sides=8, gloss=0.4))
        parts.append(cylinder((foot[0], foot[1], 0.0), (foot[0], foot[1], 0.06), 0.025, (0.05, 0.05, 0.05), sides=8))
    return join(parts)


def _chair_back(
    rng: np.random.Generator,
    width: float,
    depth: float,
    seat: float,
    back: float,
    recline: float,
    frame: Color,
    cloth: Color,
    *,
    padded: bool,
) -> Mesh:
    y = depth / 2 - 0.02
    lean: dict[str, Any] = {"shift": (0.0, recline)}
    parts = []
    if padded or chance(rng, 0.3):
        parts.append(
            box((0, y + 0.02, seat + back / 2 + 0.06), (width * 0.9, 0.05, back), cloth, top=(0.85, 1.0), **lean)
        )
        parts.append(
            box(
                (0, y + 0.05, seat + back / 2 + 0.06),
                (width * 0.8, 0.03, back * 0.95),
                darker(frame, 0.8),
                top=(0.85, 1.0),
                **lean,
            )
        )
        return join(parts)
    post = cylinder((width / 2 - 0.03, y, seat), (width / 2 - 0.03, y + recline, seat + back), 0.02, frame, sides=10)
    parts.append(both_sides(post))
    if chance(rng, 0.5):
        bars = int(rng.integers(2, 5))
        for i in range(bars):
            share = 1 - i * uniform(rng, 0.22, 0.26)
            parts.append(box((0, y + recline * share, seat + back * share), (width - 0.04, 0.02, back * 0.13), frame))
    else:
        slats = int(rng.integers(3, 6))
        parts.append(box((0, y + recline, seat + back), (width, 0.035, 0.07), frame))
        for x in np.linspace(-0.36, 0.36, slats) * width:
            parts.append(box((x, y + recline / 2, seat + back / 2), (0.03, 0.02, back), frame, **lean))
    return join(parts)


def _chair_arm(width: float, depth: float, seat: float, color: Color) -> Mesh:
    x, height = width / 2, seat + 0.22
    rail = box((x, 0, height), (0.045, depth * 0.95, 0.03), color)
    post = cylinder((x, -depth * 0.35, seat), (x, -depth * 0.35, height), 0.016, color, sides=8)
    return join([rail, post])


def sofa(rng: np.random.Generator) -> Mesh:
    """One to three seats with arms, cushions of the same or another cloth, and loose pillows."""
    seats = int(rng.integers(1, 4))
    seat_width = uniform(rng, 0.6, 0.75)
    inner = seats * seat_width
    arm = uniform(rng, 0.13, 0.25)
    depth, seat, back = uniform(rng, 0.85, 1.0), uniform(rng, 0.38, 0.46), uniform(rng, 0.75, 0.95)
    arm_height = uniform(rng, 0.55, 0.68)
    cloth = paint(rng)
    cushion = cloth if chance(rng, 0.5) else paint(rng)
    back_depth = uniform(rng, 0.18, 0.26)
    radius = uniform(rng, 0.03, 0.1)
    parts = [
        box((0, 0, 0.2), (inner + arm, depth, 0.22), darker(cloth, 0.85)),
        rounded_box(
            (0, depth / 2 - back_depth / 2, 0.1 + back / 2),
            (inner + arm * 1.6, back_depth, back - 0.05),
            cloth,
            radius=radius,
        ),
        both_sides(
            rounded_box(
                ((inner + arm) / 2, 0, 0.1 + arm_height / 2), (arm, depth, arm_height - 0.05), cloth, radius=radius
            )
        ),
        legs((inner + arm) / 2 - 0.05, depth / 2 - 0.08, 0.12, 0.03, wood(rng)),
    ]
    for i in range(seats):
        x = (i - (seats - 1) / 2) * seat_width
        parts.append(
            rounded_box(
                (x, -back_depth / 2, seat - 0.05), (seat_width * 0.98, depth - back_depth, 0.18), cushion, radius=0.06
            )
        )
        upright = rounded_box((0, 0, 0), (seat_width * 0.95, 0.16, back - seat + 0.05), cushion, radius=0.07)
        parts.append(upright.rotated("x", -0.15).translated(x, depth / 2 - back_depth - 0.04, (back + seat) / 2 + 0.08))
    for side in (-1, 1):
        if chance(rng, 0.4):
            pillow = rounded_box((0, 0, 0), (0.36, 0.12, 0.34), paint(rng), radius=0.06).rotated("x", -0.3)
            parts.append(pillow.translated(side * (inner / 2 - 0.2), depth / 2 - back_depth - 0.2, seat + 0.22))
    return join(parts)


def bed(rng: np.random.Generator) -> Mesh:
    """Frame with headboard, white mattress, pillows at the head and a coloured blanket over the foot."""
    width, length = uniform(rng, 0.9, 1.8), uniform(rng, 1.95, 2.15)
    base, mattress = uniform(rng, 0.22, 0.34), uniform(rng, 0.16, 0.28)
    frame = wood(rng) if chance(rng, 0.7) else paint(rng)
    head_height = uniform(rng, 0.8, 1.2)
    foot, head = -length / 2, length / 2
    top = base + mattress
    blanket, linen = paint(rng), pale(rng)
    fold = uniform(rng, 0.55, 0.72) * length
    parts = [
        box((0, 0, base - 0.06), (width, length, 0.16), frame),
        legs(width / 2 - 0.06, length / 2 - 0.06, base, 0.045, darker(frame, 0.8)),
        rounded_box((0, 0, base + mattress / 2), (width * 0.97, length * 0.98, mattress), linen, radius=0.06),
        rounded_box((0, foot + fold / 2, top - 0.06), (width * 1.02, fold, 0.2), blanket, radius=0.05),
        rounded_box((0, foot + fold, top + 0.03), (width * 1.03, 0.24, 0.06), pale(rng), radius=0.03),
        _headboard(rng, width, head, head_height, frame),
    ]
    if chance(rng, 0.6):
        parts.append(box((0, foot - 0.03, (top + 0.1) / 2), (width * 1.02, 0.05, top + 0.1), frame))
    pillows = 1 if width < 1.2 else 2
    for i in range(pillows):
        x = (i - (pillows - 1) / 2) * width * 0.48
        pillow = rounded_box((0, 0, 0), (width * 0.85 / pillows, 0.4, 0.14), linen, radius=0.07).rotated("x", 0.25)
        parts.append(pillow.translated(x, head - 0.3, top + 0.12))
    return join(parts)


def _headboard(rng: np.random.Generator, width: float, head: float, height: float, color: Color) -> Mesh:
    style = rng.choice(["panel", "arched", "bars"])
    y = head + 0.03
    if style == "panel":
        return box((0, y, height / 2), (width * 1.04, 0.07, height), color)
    if style == "arched":
        x = np.linspace(-0.52, 0.52, 13) * width
        arch = [(float(v), float(height - 0.35 * (2 * v / width) ** 2 * height / 1.2)) for v in x]
        return prism([*arch, (float(x[-1]), 0.0), (float(x[0]), 0.0)], "y", y - 0.035, y + 0.035, color)
    rail = tube(
        np.array([(-width / 2, y, 0), (-width / 2, y, height), (width / 2, y, height), (width / 2, y, 0)]), 0.03, color
    )
    bars = [cylinder((x, y, 0.2), (x, y, height), 0.015, color, sides=8) for x in np.linspace(-0.42, 0.42, 7) * width]
    return join([rail, *bars])
