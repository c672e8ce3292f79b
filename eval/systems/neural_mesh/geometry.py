"""The meshes of neural mesh models: a sphere, and cuboids of CAD models, with what a camera sees of them in closed form.

Both are convex, and a point on a convex surface is seen exactly if the camera is outside of the surface's tangent plane
there: ``normal . (C - vertex) > 0``. On a sphere of radius r that is v . C > r^2, on a cuboid that C is on the outer side
of the face. No rasteriser is needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from llava_pose.errors import InputError
from llava_pose.pose import categories
from llava_pose.pose.meshes import off_vertices
from llava_pose.utils.config import require_folder

_SHEET = 0.02  # object units: a flatter cuboid would have sides without a vertex on them


class SurfacePoints(NamedTuple):
    """Points on a convex surface, evenly, the outer unit normals there, and the whole surface's area."""

    vertices: np.ndarray  # (V, 3) float64
    normals: np.ndarray  # (V, 3) float64
    area: float


class Cuboid(NamedTuple):
    """An axis-aligned box in object units: its corners with the least and the greatest coordinates."""

    low: tuple[float, float, float]
    high: tuple[float, float, float]


def sphere_points(count: int, radius: float) -> SurfacePoints:
    """Spread ``count`` points evenly on a sphere about the origin, on a Fibonacci spiral."""
    index = np.arange(count) + 0.5
    z = 1 - 2 * index / count
    turn = index * math.pi * (3 - math.sqrt(5))
    ring = np.sqrt(1 - z * z)
    normals = np.stack([ring * np.cos(turn), ring * np.sin(turn), z], axis=-1)
    return SurfacePoints(radius * normals, normals, 4 * math.pi * radius**2)


def cuboid_points(count: int, cuboid: Cuboid) -> SurfacePoints:
    """Spread exactly ``count`` points about evenly on the faces of a cuboid, none of them on an edge.

    Raises:
        ValueError: fewer points than faces.
    """
    if count < 6:
        raise ValueError(f"a cuboid has six faces: {count} points are too few")
    low, high = np.array(cuboid.low, dtype=np.float64), np.array(cuboid.high, dtype=np.float64)
    size = high - low
    areas = np.array([size[1] * size[2], size[2] * size[0], size[0] * size[1]]).repeat(2)
    vertices, normals = [], []
    for face, number in enumerate(_shares(count, areas)):
        axis, side = divmod(face, 2)
        others = [other for other in range(3) if other != axis]
        points = np.empty((number, 3))
        points[:, axis] = (low, high)[side][axis]
        points[:, others] = low[others] + _rows(number, *size[others]) * size[others]
        vertices.append(points)
        normals.append(np.tile((2 * side - 1) * np.eye(3)[axis], (number, 1)))
    return SurfacePoints(np.concatenate(vertices), np.concatenate(normals), float(areas.sum()))


def _shares(count: int, areas: np.ndarray) -> list[int]:
    """Divide ``count`` into whole numbers in proportion to the areas, at least one each."""
    exact = (count - len(areas)) * areas / areas.sum()
    shares = np.floor(exact).astype(int) + 1
    for face in np.argsort(-(exact - np.floor(exact)), kind="stable")[: count - shares.sum()]:
        shares[face] += 1
    return shares.tolist()


def _rows(count: int, width: float, height: float) -> np.ndarray:
    """Return (count, 2) points of the unit square, in rows that are evenly spaced once it is stretched to width x height."""
    rows = min(count, max(1, round(math.sqrt(count * height / width))))
    points = []
    for row in range(rows):
        number = (row + 1) * count // rows - row * count // rows
        points += [((column + 0.5) / number, (row + 0.5) / rows) for column in range(number)]
    return np.array(points)


def cad_folders(cad: str | Path) -> dict[str, Path]:
    """Find the folders ``<cad>/<category>`` that hold OFF files, by the taxonomy's names of their categories.

    Raises:
        InputError: there is no such folder.
    """
    root = require_folder(cad, "--cad", "give the folder with <category>/NN.off")
    folders = sorted(path for path in root.iterdir() if path.is_dir() and any(path.glob("*.off")))
    return {categories.get(path.name, allow_custom=True, source=str(path)).name: path for path in folders}


def cuboid_of_cads(folder: Path) -> Cuboid:
    """Return the mean bounding box of a category's CAD models; a side is at least 0.02 long.

    Raises:
        InputError: a model cannot be read, or holds no vertex.
    """
    models = [off_vertices(path) for path in sorted(folder.glob("*.off"))]
    low, high = np.mean([(vertices.min(0), vertices.max(0)) for vertices in models], axis=0)
    pad = np.maximum(_SHEET - (high - low), 0) / 2
    return Cuboid(tuple((low - pad).tolist()), tuple((high + pad).tolist()))


def cuboids_of(cad: str | Path, names: Sequence[str]) -> list[Cuboid]:
    """Return the cuboid of each category.

    Raises:
        InputError: a category has no CAD model; the sentence names it.
    """
    folders = cad_folders(cad)
    absent = [name for name in names if name not in folders]
    if absent:
        more = f" (and of {len(absent) - 1} more)" if len(absent) > 1 else ""
        raise InputError(
            f"--cad {cad}: there is no CAD model of '{absent[0]}'{more}; add {absent[0]}/01.off, "
            "leave the category out with --train-categories, or use --kind sphere"
        )
    return [cuboid_of_cads(folders[name]) for name in names]


def facing(vertices: Tensor, normals: Tensor, center: Tensor) -> Tensor:
    """Return the cosine between each normal and the direction to the camera; vertices with a positive one are seen.

    Args:
        vertices, normals: (..., V, 3).
        center: (..., 3) the camera's centre in the object frame.

    Returns:
        (..., V).
    """
    toward = center[..., None, :] - vertices
    return (normals * toward).sum(-1) / toward.norm(dim=-1)


def project(vertices: Tensor, rotation: Tensor, *, scale: Tensor, principal: Tensor, distance: Tensor) -> Tensor:
    """Project points as ``llava_pose.pose.geometry.project_points`` does, for rotation matrices.

    Args:
        vertices: (..., V, 3) in the object frame.
        rotation: (..., 3, 3) world to camera.
        scale: (...) pixels that one object unit takes at the object's distance: viewport focal / distance.
        principal: (..., 2) pixels.
        distance: (...) object units, greater than any vertex is from the origin.

    Returns:
        (..., V, 2) pixels, edge coordinates.
    """
    seen = vertices @ rotation.transpose(-1, -2)
    shrink = scale[..., None] * distance[..., None] / (distance[..., None] - seen[..., 2])
    offsets = torch.stack([shrink * seen[..., 0], -shrink * seen[..., 1]], -1)
    return principal[..., None, :] + offsets
