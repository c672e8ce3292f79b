"""Parametric car, bus and aeroplane. Lengths are in metres before normalisation."""

from __future__ import annotations

import numpy as np

from ..mesh import Mesh, both_sides, join
from ..primitives import box, cylinder, ellipsoid, loft, prism, rounded_box
from .palette import (
    BLACK,
    DARK,
    GLASS,
    HEADLIGHT,
    TAIL_LIGHT,
    WHITE,
    Color,
    chance,
    darker,
    gray,
    paint,
    pale,
    uniform,
    wheel,
)


def car(rng: np.random.Generator) -> Mesh:
    """Saloon, hatchback or off-roader: bonnet, greenhouse, lights white in front and red behind."""
    style = rng.choice(["saloon", "hatchback", "off-roader"])
    length = uniform(rng, 4.3, 4.9) if style == "saloon" else uniform(rng, 3.7, 4.5)
    width = uniform(rng, 1.65, 1.9)
    belt = uniform(rng, 0.8, 0.95) + (0.15 if style == "off-roader" else 0.0)
    roof = belt + uniform(rng, 0.42, 0.6)
    wheel_radius = uniform(rng, 0.29, 0.34) + (0.06 if style == "off-roader" else 0.0)
    clearance = wheel_radius * 0.6
    bonnet = length * uniform(rng, 0.2, 0.28)
    boot = length * uniform(rng, 0.13, 0.2) if style == "saloon" else 0.05 * length
    body, hub = paint(rng), gray(rng, 0.5, 0.85)
    front, rear = -length / 2, length / 2

    nose = belt - uniform(rng, 0.15, 0.3)
    side = [
        (front, clearance),
        (front, nose),
        (front + bonnet, belt),
        (rear - boot, belt),
        (rear, belt - uniform(rng, 0.02, 0.12)),
        (rear, clearance + 0.05),
    ]
    glass_front, glass_rear = front + bonnet * 0.95, rear - boot
    glass_length = glass_rear - glass_front
    rake = glass_length * uniform(rng, 0.2, 0.28)
    rear_rake = glass_length * (uniform(rng, 0.12, 0.2) if style == "saloon" else uniform(rng, 0.03, 0.1))
    middle = (glass_front + glass_rear) / 2
    top_share = 1 - (rake + rear_rake) / glass_length
    lean = (rake - rear_rake) / 2
    greenhouse = {"top": (0.8, top_share), "shift": (0.0, lean)}
    roof_color = darker(body, 0.3) if chance(rng, 0.15) else body
    parts = [
        prism(side, "x", -width / 2, width / 2, body, gloss=0.35),
        box((0, middle, (belt + roof) / 2), (width * 0.94, glass_length, roof - belt), GLASS, gloss=0.2, **greenhouse),
        rounded_box(
            (0, middle + lean, roof),
            (width * 0.77, glass_length * top_share * 1.03, 0.07),
            roof_color,
            radius=0.03,
            gloss=0.3,
        ),
        # the pillar between the doors: the greenhouse's own shape, narrower along y and a little prouder
        box(
            (0, middle + lean * 0.6, (belt + roof) / 2),
            (width * 0.955, 0.1, roof - belt),
            body,
            top=(0.8, 1.0),
            shift=(0.0, lean * 0.4),
        ),
        _car_front(rng, front, width, nose, clearance),
        _car_rear(rear, width, belt, clearance, body),
    ]
    wheel_y = length * uniform(rng, 0.29, 0.32)
    for y in (-wheel_y, wheel_y):
        parts.append(both_sides(wheel(width / 2 - 0.09, y, wheel_radius, 0.22, hub)))
        arch = cylinder(
            (-width / 2 - 0.005, y, wheel_radius), (width / 2 + 0.005, y, wheel_radius), wheel_radius * 1.14, BLACK
        )
        parts.append(arch)
    mirror = ellipsoid((width / 2 + 0.08, glass_front + rake * 0.6, belt + 0.08), (0.1, 0.06, 0.07), body)
    parts.append(both_sides(mirror))
    return join(parts)


def _car_front(rng: np.random.Generator, front: float, width: float, nose: float, clearance: float) -> Mesh:
    lamp_width, lamp_height = uniform(rng, 0.25, 0.4), uniform(rng, 0.12, 0.2)
    lamp_x = width / 2 - lamp_width / 2 - 0.03
    if chance(rng, 0.4):
        lamp = ellipsoid(
            (lamp_x, front, nose - 0.14), (lamp_height * 0.75, 0.06, lamp_height * 0.75), HEADLIGHT, gloss=0.6
        )
    else:
        lamp = box((lamp_x, front, nose - 0.14), (lamp_width, 0.06, lamp_height), HEADLIGHT, gloss=0.6)
    grille_width = width * uniform(rng, 0.35, 0.5)
    return join(
        [
            both_sides(lamp),
            box((0, front, nose - 0.16), (grille_width, 0.05, uniform(rng, 0.14, 0.24)), DARK, gloss=0.3),
            box((0, front - 0.03, clearance + 0.12), (width * 0.98, 0.14, 0.18), DARK),
            box((0, front - 0.1, clearance + 0.13), (0.5, 0.02, 0.11), WHITE),
        ]
    )


def _car_rear(rear: float, width: float, belt: float, clearance: float, body: Color) -> Mesh:
    lamp = box((width / 2 - 0.17, rear, belt - 0.24), (0.3, 0.05, 0.18), TAIL_LIGHT, gloss=0.4)
    return join(
        [
            both_sides(lamp),
            box((0, rear, belt - 0.26), (0.5, 0.04, 0.12), WHITE),
            box((0, rear + 0.03, clearance + 0.15), (width * 0.98, 0.12, 0.2), darker(body)),
        ]
    )


def bus(rng: np.random.Generator) -> Mesh:
    """Return a city bus or coach: rows of windows, a tall windscreen with the destination above it, red lights behind."""
    length, width, height = uniform(rng, 8.5, 12.0), uniform(rng, 2.4, 2.6), uniform(rng, 2.8, 3.3)
    floor = 0.35
    body, trim = paint(rng), paint(rng)
    front, rear = -length / 2, length / 2
    sill, lintel = floor + uniform(rng, 0.85, 1.05), height - uniform(rng, 0.4, 0.6)
    parts = [
        rounded_box((0, 0, (floor + height) / 2), (width, length, height - floor), body, radius=0.18, gloss=0.3),
        box((0, 0, floor + 0.25), (width + 0.02, length * 0.97, 0.3), trim, gloss=0.3),
        rounded_box((0, length * 0.1, height + 0.08), (width * 0.6, length * 0.25, 0.25), pale(rng), radius=0.06),
        # windscreen, destination sign, lights, bumper
        box((0, front, (sill + height - 0.45) / 2), (width * 0.9, 0.06, height - 0.55 - sill + 0.25), GLASS, gloss=0.2),
        box((0, front - 0.02, height - 0.26), (width * 0.7, 0.08, 0.24), (1.0, 0.65, 0.1)),
        both_sides(box((width * 0.36, front, floor + 0.4), (0.42, 0.08, 0.24), HEADLIGHT, gloss=0.5)),
        box((0, front - 0.03, floor + 0.08), (width * 0.96, 0.14, 0.26), DARK),
        both_sides(box((width * 0.5 + 0.14, front + 0.05, height - 0.7), (0.14, 0.1, 0.4), BLACK)),
        # rear window, engine grille, lights
        box((0, rear, lintel - 0.15), (width * 0.7, 0.05, 0.5), GLASS, gloss=0.2),
        box((0, rear, floor + 0.55), (width * 0.55, 0.06, 0.6), DARK),
        both_sides(box((width * 0.42, rear, floor + 0.75), (0.2, 0.06, 0.55), TAIL_LIGHT, gloss=0.4)),
    ]
    windows = int(rng.integers(5, 9))
    pitch = length * 0.9 / windows
    for i in range(windows):
        y = -length * 0.45 + (i + 0.5) * pitch
        low = floor + 0.3 if i == 0 else sill  # the first is the door
        parts.append(box((0, y, (low + lintel) / 2), (width + 0.03, pitch * 0.86, lintel - low), GLASS, gloss=0.2))
    hub = gray(rng, 0.5, 0.85)
    for y in (-length * 0.27, length * 0.28):
        parts.append(both_sides(wheel(width / 2 - 0.12, y, 0.5, 0.3, hub)))
    return join(parts)


def aeroplane(rng: np.random.Generator) -> Mesh:
    """Return an airliner with jets under the wings or a light aircraft with a propeller at the nose."""
    airliner = chance(rng, 0.6)
    length = uniform(rng, 32, 42) if airliner else uniform(rng, 7.5, 9.5)
    radius = length * (uniform(rng, 0.05, 0.06) if airliner else uniform(rng, 0.065, 0.085))
    span = length * (uniform(rng, 0.85, 1.0) if airliner else uniform(rng, 1.1, 1.3))
    hull, livery = (pale(rng) if airliner else paint(rng)), paint(rng)
    parts = [_fuselage(length, radius, hull)]
    parts += _wings(rng, length, radius, span, gray(rng, 0.6, 0.85) if airliner else hull, airliner)
    parts += _tail(rng, length, radius, span, livery)
    nose = -length / 2
    if airliner:
        engine_x, engine_y = span * uniform(rng, 0.14, 0.19), -length * 0.1
        engine = join(
            [
                cylinder(
                    (engine_x, engine_y - radius, -radius * 0.95),
                    (engine_x, engine_y + radius, -radius * 0.9),
                    radius * 0.5,
                    livery,
                    end_radius=radius * 0.35,
                    gloss=0.3,
                ),
                cylinder(
                    (engine_x, engine_y - radius * 1.02, -radius * 0.95),
                    (engine_x, engine_y, -radius * 0.95),
                    radius * 0.42,
                    BLACK,
                ),
            ]
        )
        parts.append(both_sides(engine))
        parts.append(box((0, -length * 0.02, radius * 0.25), (radius * 2.01, length * 0.62, radius * 0.16), DARK))
        parts.append(
            ellipsoid(
                (0, nose + length * 0.075, radius * 0.42),
                (radius * 0.62, radius * 0.6, radius * 0.28),
                GLASS,
                gloss=0.2,
            )
        )
    else:
        blade = length * 0.11
        parts += [
            ellipsoid(
                (0, -length * 0.12, radius * 0.85), (radius * 0.8, length * 0.13, radius * 0.7), GLASS, gloss=0.2
            ),
            cylinder(
                (0, nose - length * 0.02, 0),
                (0, nose + length * 0.05, 0),
                radius * 0.2,
                livery,
                end_radius=radius * 0.45,
            ),
            box((0, nose, 0), (blade * 2, length * 0.008, radius * 0.25), DARK),
            box((0, nose, 0), (radius * 0.25, length * 0.008, blade * 2), DARK),
            both_sides(wheel(radius * 1.3, -length * 0.1, radius * 0.4, radius * 0.3, hull, z=-radius * 1.5)),
            both_sides(
                cylinder(
                    (radius * 1.3, -length * 0.1, -radius * 1.5),
                    (radius * 0.5, -length * 0.1, -radius * 0.5),
                    radius * 0.1,
                    DARK,
                )
            ),
        ]
    return join(parts)


def _fuselage(length: float, radius: float, color: Color) -> Mesh:
    """Round in section; the belly rises towards the tail."""
    stations = np.array([0.0, 0.015, 0.05, 0.11, 0.2, 0.65, 0.8, 0.92, 1.0])
    radii = np.array([0.05, 0.3, 0.62, 0.9, 1.0, 1.0, 0.75, 0.38, 0.1]) * radius
    lift = np.array([-0.12, -0.1, -0.06, 0.0, 0.0, 0.0, 0.2, 0.45, 0.6]) * radius
    angles = np.arange(20) * 2 * np.pi / 20
    rings = [
        np.column_stack([r * np.cos(angles), np.full(20, (s - 0.5) * length), z + r * np.sin(angles)])
        for s, r, z in zip(stations, radii, lift, strict=True)
    ]
    return loft(rings, color, gloss=0.35)


def _fin(
    root: tuple[float, float, float],
    tip: tuple[float, float, float],
    root_chord: float,
    tip_chord: float,
    thick: tuple[float, float, float],
    color: Color,
) -> Mesh:
    """Return a wing from the root's leading edge to the tip's, with chords along +y; ``thick`` is half its thickness."""
    section = np.array([(0.0, 0.0), (0.25, 1.0), (1.0, 0.05), (1.0, -0.05), (0.25, -1.0)])
    rings = [
        np.array(edge) + section[:, :1] * np.array([0.0, chord, 0.0]) + section[:, 1:] * np.array(thick) * share
        for edge, chord, share in ((root, root_chord, 1.0), (tip, tip_chord, 0.4))
    ]
    return loft(rings, color, gloss=0.25)


def _wings(
    rng: np.random.Generator, length: float, radius: float, span: float, color: Color, swept: bool
) -> list[Mesh]:
    chord = length * (uniform(rng, 0.17, 0.21) if swept else uniform(rng, 0.17, 0.2))
    sweep = length * uniform(rng, 0.17, 0.24) if swept else length * 0.01
    z = -radius * 0.5 if swept or chance(rng, 0.5) else radius * 0.9
    root = (radius * 0.3, -length * (0.16 if swept else 0.2), z)
    tip = (span / 2, root[1] + sweep, z + span * 0.035)
    return [both_sides(_fin(root, tip, chord, chord * (0.35 if swept else 0.8), (0, 0, chord * 0.06), color))]


def _tail(rng: np.random.Generator, length: float, radius: float, span: float, color: Color) -> list[Mesh]:
    height = length * uniform(rng, 0.14, 0.18)
    y, chord = length * 0.36, length * 0.13
    fin = _fin(
        (0, y, radius * 0.4),
        (0, y + length * 0.09, radius * 0.4 + height),
        chord,
        chord * 0.5,
        (chord * 0.05, 0, 0),
        color,
    )
    plane = _fin(
        (radius * 0.1, y + length * 0.02, radius * 0.5),
        (span * 0.19, y + length * 0.08, radius * 0.7),
        chord * 0.85,
        chord * 0.4,
        (0, 0, chord * 0.05),
        color,
    )
    return [fin, both_sides(plane)]
