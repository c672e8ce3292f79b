"""Poses found in synthetic feature maps, which are ray-cast from a known mesh: no part of the search makes them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from eval.systems.neural_mesh.geometry import Cuboid, SurfacePoints, cuboid_points, sphere_points
from eval.systems.neural_mesh.grid import (
    Cameras,
    covering_grid,
    expected_cameras,
    nearest_of,
    published_grid,
    uniform_grid,
)
from eval.systems.neural_mesh.search import (
    Meshes,
    PoseSearch,
    Starts,
    bilinear,
    classify_and_search,
    interpolated,
    turned,
)
from llava_pose.pose.geometry import geodesic_angle, rotation_matrix

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
    vertices, normals, area = coarse
    meshes = Meshes(vertices, normals, area, torch.tensor(features, dtype=torch.float32))
    starts = Starts(
        torch.tensor(grid, dtype=torch.float32),
        torch.tensor([math.log(SCALE), 0.0, 0.0]).expand(len(surfaces), len(grid), 3),
        torch.full((len(surfaces), 3), spread),
        torch.tensor(DISTANCE),
    )
    memory = torch.tensor(clutter(), dtype=torch.float32)
    return PoseSearch(meshes, interpolated(meshes, *fine[:2]), memory, starts, **options)


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


def test_the_published_mean_is_drawn_away_from_a_cuboids_pose_and_the_ratio_is_not():
    """From the true pose itself."""
    surface = Surface("cuboid", seed=1)
    true = Rotation.random(6, random_state=3).as_matrix()
    maps = torch.tensor(np.stack([surface.picture(rotation) for rotation in true]), dtype=torch.float32)
    pairs = (list(range(6)), [0] * 6)
    away = {
        score: degrees(search_of(surface, grid=true, score=score, best=1).search(maps, *pairs).rotations, true)
        for score in ("ratio", "mean")
    }
    assert np.median(away["mean"]) > 3
    assert np.median(away["ratio"]) < 1


def test_place_and_size_are_found_with_the_pose_as_far_as_training_objects_stray():
    surface = Surface("cuboid", seed=3)
    true = Rotation.random(6, random_state=4).as_matrix()
    picture = [surface.picture(rotation, center=(0.53, 0.48), scale=0.93) for rotation in true]
    maps, pairs = torch.tensor(np.stack(picture), dtype=torch.float32), (list(range(6)), [0] * 6)
    grid = true @ Rotation.from_rotvec([0.1, -0.1, 0.1]).as_matrix()
    fixed, free = (search_of(surface, grid=grid, spread=s, best=1).search(maps, *pairs) for s in (0.0, 0.05))
    assert np.median(degrees(free.rotations, true)) < 3
    assert np.median(degrees(free.rotations, true)) < np.median(degrees(fixed.rotations, true))
    torch.testing.assert_close(free.cameras[:, 1:].median(0).values, torch.tensor([0.03, -0.02]), atol=0.01, rtol=0)
    assert abs(free.cameras[:, 0].median().exp() - 0.93) < 0.03
    torch.testing.assert_close(fixed.cameras, torch.tensor([[math.log(SCALE), 0.0, 0.0]]).expand(6, 3))


def test_the_class_is_voted_for_and_its_mesh_posed():
    surfaces = [Surface("cuboid", seed=seed) for seed in (1, 2, 3)]
    true = Rotation.random(6, random_state=5).as_matrix()
    maps = torch.tensor(
        np.stack([surfaces[i % 3].picture(rotation) for i, rotation in enumerate(true)]), dtype=torch.float32
    )
    search = search_of(*surfaces, grid=true, steps=0, count=300)
    for tried in (1, 3):
        found, classes, share = classify_and_search(search, maps, tried)
        assert classes == [0, 1, 2, 0, 1, 2]
        assert min(share) > 0.5
        np.testing.assert_allclose(degrees(found.rotations, true), 0, atol=0.1)
    assert (search.votes(maps).sum(1) < 0.6).all()  # the rest of the picture is clutter


def test_grid_scores_are_sums_over_what_is_seen():
    """The batched look-up against a plain loop, on a map of noise; the mean is that of the vertices that face the camera."""
    surface = Surface("cuboid", seed=1)
    maps = torch.nn.functional.normalize(torch.randn(2, DIMS, 5, 7, generator=torch.Generator().manual_seed(0)), dim=1)
    grid = Rotation.random(3, random_state=1).as_matrix()
    scores = {
        name: search_of(surface, grid=grid, count=60, score=name).grid_scores(maps, 0) for name in ("ratio", "mean")
    }
    search = search_of(surface, grid=grid, count=60)
    for pose, rotation in enumerate(grid):
        points = surface.points(60)
        toward = DISTANCE * rotation[2] - points.vertices
        cosines = (points.normals * toward).sum(-1) / np.linalg.norm(toward, axis=-1)
        camera = points.vertices @ rotation.T
        shrink = SCALE * DISTANCE / (DISTANCE - camera[:, 2])
        places = np.stack([0.5 + shrink * camera[:, 0], 0.5 - shrink * camera[:, 1]], -1)
        for image in range(2):
            similarity = torch.einsum("vd,dyx->vyx", search.meshes.features[0], maps[image])
            clear = (similarity - torch.einsum("nd,dyx->nyx", search.clutter, maps[image]).amax(0)).numpy()
            plain, over = (
                np.array([read(table[v], *places[v]) for v in range(60)]) for table in (similarity.numpy(), clear)
            )
            assert scores["mean"][image, pose] == pytest.approx(plain[cosines > 0].mean(), abs=1e-4)
            expected = (over * cosines.clip(0)).sum() * SCALE**2 * points.area / 60
            assert scores["ratio"][image, pose] == pytest.approx(expected, abs=1e-4)


def read(table: np.ndarray, x: float, y: float) -> float:
    """A map (rows, columns) at a share of width and height, between the middles of its positions; 0 beyond it."""
    padded = np.pad(table, 1)
    column, row = x * table.shape[1] + 0.5, y * table.shape[0] + 0.5
    left, top = math.floor(column), math.floor(row)
    a, b = column - left, row - top
    (p, q), (r, s) = padded[top : top + 2, left : left + 2]
    return (1 - b) * ((1 - a) * p + a * q) + b * ((1 - a) * r + a * s)


def test_poses_that_are_followed_are_apart():
    """Four poses within a few degrees, of which the best is followed, one half a turn away, and no third."""
    turns = Rotation.from_rotvec([[0, 0, angle] for angle in np.radians([0, 5, 10, -5, 180])])
    surface = Surface("cuboid", seed=1)
    grid = Rotation.random(random_state=0).as_matrix() @ turns.as_matrix()
    maps = torch.tensor(surface.picture(grid[1])[None], dtype=torch.float32)
    chosen, scores = search_of(surface, grid=grid, count=200)._grid(maps, [0], [0])
    assert chosen[0, :2].tolist() == [1, 4]
    assert torch.isfinite(scores).tolist() == [[True, True, False]]


def test_beyond_the_map_there_is_nothing():
    places, weights = bilinear(torch.tensor([[-0.4, 0.5], [0.0, 0.5], [0.5, 0.5]]), 4, 4)
    torch.testing.assert_close(weights.sum(-1), torch.tensor([0.0, 0.5, 1.0]))
    assert places.min() >= 0
    assert places.max() < 16


def test_a_turn_is_the_rotation_about_its_axis():
    turn = torch.tensor([0.0, 0.02, 0.0], dtype=torch.float64)
    expected = Rotation.from_rotvec([0, 0.02, 0]).as_matrix()
    np.testing.assert_allclose(turned(torch.eye(3, dtype=torch.float64), turn).numpy(), expected, atol=1e-6)


def test_the_published_grid_covers_a_third_and_the_uniform_one_all():
    rotations = Rotation.random(4000, random_state=0).as_matrix()
    published, uniform = published_grid(), uniform_grid(1152)
    for grid in (published, uniform):
        np.testing.assert_allclose(grid @ grid.swapaxes(1, 2), np.eye(3)[None].repeat(len(grid), 0), atol=1e-9)
        np.testing.assert_allclose(np.linalg.det(grid), 1)
    assert len(published) == 144
    assert 0.25 < (nearest_of(rotations, published)[0] < math.radians(30)).mean() < 0.45
    assert nearest_of(rotations, uniform)[0].max() < math.radians(26)


def test_a_cover_holds_all_training_rotations_with_few():
    rng = np.random.default_rng(0)
    tilts = np.stack([rng.uniform(0, 2 * math.pi, 3000), rng.uniform(-0.2, 0.9, 3000), rng.normal(0, 0.05, 3000)], -1)
    rotations = rotation_matrix(*tilts.T)
    grid = covering_grid(rotations, math.radians(20))
    away, which = nearest_of(rotations, grid)
    assert away.max() <= math.radians(20) + 1e-6
    assert len(grid) < 80
    for row in range(5):
        angles = geodesic_angle(rotations[row], grid)
        assert away[row] == pytest.approx(angles.min(), abs=1e-6)
        assert which[row] == angles.argmin()


def test_a_camera_is_expected_as_near_training_objects_of_its_class_had_it():
    """Two classes that stand differently, each differently from the front and from behind."""
    front, back = np.eye(3), Rotation.from_rotvec([0, 0, math.pi]).as_matrix()
    rows = [(front, 0, 1.0), (back, 0, 2.0), (front, 1, 5.0), (front, 1, 5.2)]
    cameras = Cameras(
        np.stack([row[0] for row in rows for _ in range(50)]),
        np.array([(row[2], 0.1 * row[2], -0.1) for row in rows for _ in range(50)]),
        np.array([row[1] for row in rows for _ in range(50)]),
    )
    mean, spread = expected_cameras(cameras, np.stack([front, back]), 3)
    np.testing.assert_allclose(mean[0, :, 0], (1, 2), atol=0.1)
    np.testing.assert_allclose(mean[1, :, 0], (5.1, 2), atol=0.1)  # none seen from behind: as the other class there
    np.testing.assert_allclose(mean[2, :, 0], (3.7, 2), atol=0.2)
    np.testing.assert_allclose(mean[..., 2], -0.1, atol=1e-6)
    np.testing.assert_allclose(spread[:2, 0], (0, 0.1), atol=0.06)
    assert np.isfinite(spread).all()
