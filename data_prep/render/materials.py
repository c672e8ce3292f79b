"""Paint for meshes that came without: every part a colour or a solid pattern, drawn anew for each image."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from .mesh import Mesh, face_normals
from .parametric.palette import darker, gray, paint, pale, wood
from .skins import Pattern, PatternSkin

MOST_MATERIALS = 4  # that one object is made of
_ALIKE = 25.0  # parts whose areas differ by less than about 1 / this are taken for the same part: wheels, legs
_KINDS = {"plain": 0.4, "stripes": 0.12, "rings": 0.13, "clouds": 0.35}


def paint_groups(mesh: Mesh) -> np.ndarray:
    """Return (F,) int32, which faces wear the same material: connected parts, and parts of the same area together.

    Group 0 has the largest area.
    """
    corners = mesh.faces.ravel()
    others = np.roll(mesh.faces, 1, axis=1).ravel()
    edges = coo_matrix((np.ones(len(corners), dtype=bool), (corners, others)), shape=(len(mesh.vertices),) * 2)
    part_of_vertex = connected_components(edges, directed=False)[1]
    part = part_of_vertex[mesh.faces[:, 0]]
    face_area = np.linalg.norm(face_normals(mesh.vertices, mesh.faces), axis=1)
    area = np.bincount(part, face_area, minlength=part_of_vertex.max() + 1)
    size = np.round(_ALIKE * np.log(np.maximum(area, 1e-30))).astype(np.int64)
    group = np.unique(size, return_inverse=True)[1].ravel()[part]
    by_area = np.argsort(-np.bincount(group, face_area), kind="stable")
    rank = np.empty_like(by_area)
    rank[by_area] = np.arange(len(by_area))
    return rank[group].astype(np.int32)


def one_color(rng: np.random.Generator, mesh: Mesh) -> Mesh:
    """Return the mesh in one plain colour."""
    count = len(mesh.faces)
    return replace(
        mesh,
        colors=np.tile(np.array(_color(rng), dtype=np.float32), (count, 1)),
        gloss=np.full(count, rng.uniform(0, 0.4), dtype=np.float32),
        skin=None,
    )


def random_paint(rng: np.random.Generator, mesh: Mesh, groups: np.ndarray) -> Mesh:
    """Return the mesh painted at random.

    Args:
        groups: (F,) of :func:`paint_groups`; the groups share up to :data:`MOST_MATERIALS` materials.
    """
    count = int(rng.integers(1, MOST_MATERIALS + 1))
    colors = np.empty((count, 3), dtype=np.float32)
    gloss = rng.uniform(0, 1, count).astype(np.float32) ** 2 * 0.6
    patterns: list[Pattern] = []
    wears = np.full(count, -1, dtype=np.int32)
    for index in range(count):
        color, pattern = _material(rng, mesh.reach)
        colors[index] = color
        if pattern is not None:
            wears[index] = len(patterns)
            patterns.append(pattern)
    material = rng.integers(0, count, groups.max() + 1)
    material[0] = 0
    of_face = material[groups]
    skin = PatternSkin(wears[of_face], tuple(patterns)) if patterns else None
    return replace(mesh, colors=colors[of_face], gloss=gloss[of_face], skin=skin)


def _color(rng: np.random.Generator) -> tuple[float, float, float]:
    kind = rng.choice(["paint", "wood", "gray", "pale"], p=[0.55, 0.15, 0.18, 0.12])
    if kind == "gray":
        return gray(rng, 0.12, 0.92)
    return {"paint": paint, "wood": wood, "pale": pale}[str(kind)](rng)


def _material(rng: np.random.Generator, reach: float) -> tuple[tuple[float, float, float], Pattern | None]:
    kind = str(rng.choice(list(_KINDS), p=list(_KINDS.values())))
    color = wood(rng) if kind == "rings" and rng.random() < 0.7 else _color(rng)
    if kind == "plain":
        return color, None
    second = _color(rng) if rng.random() < 0.35 else darker(color, rng.uniform(0.45, 0.85))
    frequency = rng.uniform(8, 45) / reach
    direction = rng.normal(size=3)
    waves = int(rng.integers(3, 6))
    straight, strength = {"stripes": (1.0, rng.choice([0.0, 0.6])), "rings": (1.0, 0.7), "clouds": (0.3, 2.2)}[kind]
    return color, Pattern(
        colors=np.array([color, second], dtype=np.float32),
        axis=(straight * frequency * direction / np.linalg.norm(direction)).astype(np.float32),
        rings=kind == "rings",
        waves=(rng.normal(size=(waves, 3)) * frequency * rng.uniform(0.2, 0.7)).astype(np.float32),
        phases=rng.uniform(0, 2 * np.pi, waves).astype(np.float32),
        strengths=(strength * rng.uniform(0.5, 1.5, waves)).astype(np.float32),
        sharpness=float(rng.uniform(0, 3)),
    )
