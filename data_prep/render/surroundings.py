"""Surroundings stand before, beside and behind the object: plain solids, and other objects of the data set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .mesh import Mesh, axis_rotation
from .parametric.palette import paint
from .primitives import cylinder, ellipsoid, rounded_box
from .raycast import RayCaster
from .sampling import stands
from .scene import Camera


def draw_occluders(rng: np.random.Generator, camera: Camera, mesh: Mesh) -> list[Mesh]:
    """One or two plain solids between the camera and the mesh, each before some point of it."""
    points = camera.project(mesh.vertices)
    size = np.linalg.norm(points.max(axis=0) - points.min(axis=0))
    reach = mesh.reach
    occluders = []
    for _ in range(int(rng.integers(1, 3))):
        u, v = points[rng.integers(len(points))] + rng.normal(0, 0.15, 2) * size
        depth = camera.distance - rng.uniform(1.4, 2.0) * reach
        position = camera.center + depth * camera.directions(np.array([u]), np.array([v]))[0, 0]
        solid = _plain_solid(rng)
        turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        scale = rng.uniform(0.15, 0.4) * size * depth / (camera.viewport * camera.focal)
        occluders.append(solid.transformed(turn * scale, position))
    return occluders


def draw_distractors(
    rng: np.random.Generator, camera: Camera, mesh: Mesh, companions: Sequence[RayCaster]
) -> list[RayCaster]:
    """One or two of the companions beside the mesh, most of them behind it; none if there are no companions.

    They stand as the mesh stands, or are turned anyhow where it tumbles.
    """
    if not companions:
        return []
    points = camera.project(mesh.vertices)
    low, high = points.min(axis=0), points.max(axis=0)
    placed = []
    for _ in range(int(rng.integers(1, 3))):
        companion = companions[int(rng.integers(len(companions)))]
        angle = rng.uniform(0, 2 * np.pi)
        u, v = (low + high) / 2 + rng.uniform(0.45, 0.8) * (high - low) * (np.cos(angle), np.sin(angle))
        depth = camera.distance + rng.uniform(-0.7, 3.0) * mesh.reach
        position = camera.center + depth * camera.directions(np.array([u]), np.array([v]))[0, 0]
        scale = rng.uniform(0.6, 1.2) * mesh.reach / companion.mesh.reach
        turn = axis_rotation("z", rng.uniform(0, 2 * np.pi)) if stands(camera) else _any_rotation(rng)
        vertices = companion.mesh.vertices
        middle = (vertices.min(axis=0) + vertices.max(axis=0)) / 2
        placed.append(companion.placed(turn, scale, position - scale * turn @ middle))
    return placed


def _any_rotation(rng: np.random.Generator) -> np.ndarray:
    turn, upper = np.linalg.qr(rng.normal(size=(3, 3)))
    turn = turn * np.sign(np.diag(upper))
    return turn if np.linalg.det(turn) > 0 else -turn


def _plain_solid(rng: np.random.Generator) -> Mesh:
    """Return a box, ellipsoid or bar about the origin, of size about 1."""
    color = paint(rng)
    kind = rng.choice(["box", "ellipsoid", "bar"])
    if kind == "box":
        return rounded_box((0, 0, 0), rng.uniform(0.4, 1.3, 3), color, radius=rng.uniform(0.01, 0.2))
    if kind == "ellipsoid":
        return ellipsoid((0, 0, 0), rng.uniform(0.25, 0.7, 3), color)
    return cylinder((0, 0, -2.5), (0, 0, 2.5), rng.uniform(0.08, 0.25), color)
