"""Poses found in synthetic feature maps, which are ray-cast from a known mesh: no part of the search makes them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from eval.baselines.neural_mesh import classify_and_search
from eval.baselines.neural_mesh_geometry import Cuboid, SurfacePoints, cuboid_points, sphere_points
from eval.baselines.neural_mesh_grid import (
    Cameras,
    angles_to_nearest,
    covering_grid,
    expected_cameras,
    published_grid,
    uniform_grid,
)
from eval.baselines.neural_mesh_search import Meshes, PoseSearch, Starts, bilinear, interpolated, turned
from llava_pose.geometry import geodesic_angle

RADIUS, BOX = 0.4, Cuboid((-0.22, -0.4, -0.15), (0.22, 0.38, 0.2))
SIDE, DISTANCE, SCALE = 28, 5.0, 1.0  # positions across, object units, pictures an object unit
DIMS, CLUTTER = (
    64,
    16,
)  # of the features; the last of them are those of clutter, which a trained model tells from objects


class Surface:
    """A mesh with a smooth feature at every point of its surface, and pictures of it."""

    def __init__(self, kind: str, seed: int):
        rng = np.random.default_rng(seed)
        self.kind = kind
        self.waves = rng.normal(0, 4, (DIMS - CLUTTER, 3))
        self.phases = rng.uniform(0, 2 * math.pi, DIMS - CLUTTER)
        self.background = clutter()[rng.integers(0, 100, SIDE * SIDE)]

    def points(self, count: int) -> SurfacePoints:
        return sphere_points(count, RADIUS) if self.kind == "sphere" else cuboid_points(count, BOX)

    def features(self, points: np.ndarray) -> np.ndarray:
        """(..., 3) points in object units -> (..., dims) of length 1."""
        values = np.cos(points @ self.waves.T + self.phases)
        values = values / np.linalg.norm(values, axis=-1, keepdims=True)
        return np.concatenate([values, np.zeros((*values.shape[:-1], CLUTTER))], -1)

    def picture(self, rotation: np.ndarray, center=(0.5, 0.5), scale: float = SCALE) -> np.ndarray:
        """(dims, SIDE, SIDE): what a ray through the middle of each position hits, or clutter."""
        places = (np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)), -1).reshape(-1, 2) + 0.5) / SIDE
        slopes = (places - center) / (scale * DISTANCE)
        rays = np.stack([slopes[:, 0], -slopes[:, 1], -np.ones(len(slopes))], -1) @ rotation
        eye = DISTANCE * rotation[2]
        along = hit_sphere(eye, rays) if self.kind == "sphere" else hit_box(eye, rays)
        found = np.isfinite(along)
        values = self.background.copy()
        values[found] = self.features(eye + along[found, None] * rays[found])
        return values.T.reshape(DIMS, SIDE, SIDE)


def clutter() -> np.ndarray:
    """(100, dims) features of no surface."""
    values = np.random.default_rng(9).normal(size=(100, CLUTTER))
    values = values / np.linalg.norm(values, axis=-1, keepdims=True)
    return np.concatenate([np.zeros((100, DIMS - CLUTTER)), values], -1)


def hit_sphere(eye: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """(n,) how many rays' lengths away the first hit is, infinity for none."""
    a, b, c = (rays * rays).sum(-1), rays @ eye, eye @ eye - RADIUS**2
    inner = b * b - a * c
    return np.where(inner > 0, (-b - np.sqrt(np.maximum(inner, 0))) / a, np.inf)


def hit_box(eye: np.ndarray, rays: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        bounds = (np.array(BOX)[:, None] - eye) / rays
    enter, leave = bounds.min(0).max(-1), bounds.max(0).min(-1)
    return np.where(enter < leave, enter, np.inf)


def search_of(*surfaces: Surface, grid: np.ndarray, count: int = 1000, spread: float = 0.0, **options) -> PoseSearch:
    coarse, fine = (
        [torch.tensor(np.stack(rows), dtype=torch.float32) for rows in zip(*meshes, strict=True)]
        for meshes in ([surface.points(number) for surface in surfaces] for number in (count, 3 * count))
    )
    features = np.stack([surface.features(surface.points(count).vertices) for surface in surfaces])
    meshes = Meshes(*coarse, torch.tensor(features, dtype=torch.float32))
    starts = Starts(
        torch.tensor(grid, dtype=torch.float32),
        torch.tensor([math.log(SCALE), 0.0, 0.0]).expand(len(surfaces), len(grid), 3),
        torch.full((len(surfaces), 3), spread),
        torch.tensor(DISTANCE),
    )
    memory = torch.tensor(clutter(), dtype=torch.float32)
    return PoseSearch(meshes, interpolated(meshes, *fine), memory, starts, **options)


def degrees(found: torch.Tensor, true: np.ndarray) -> np.ndarray:
    return np.degrees(geodesic_angle(found.double().numpy(), true))


@pytest.mark.parametrize("kind", ["sphere", "cuboid"])
def test_random_poses_over_all_rotations_are_found_to_a_degree(kind):
    surface = Surface(kind, seed=1)
    true = Rotation.random(24, random_state=2).as_matrix()
    maps = torch.tensor(np.stack([surface.picture(rotation) for rotation in true]), dtype=torch.float32)
    pairs = (list(range(len(true))), [0] * len(true))
    grid = uniform_grid(600)
    coarse = degrees(search_of(surface, grid=grid, steps=0).search(maps, *pairs).rotations, true)
    fine = degrees(search_of(surface, grid=grid).search(maps, *pairs).rotations, true)
    assert np.median(coarse) > 5
    assert np.median(fine) < 1
    assert (fine < 3).mean() > 0.95
