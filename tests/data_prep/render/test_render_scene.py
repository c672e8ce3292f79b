"""One image against the formulas of docs/POSE.md: where things project, what hides what, what is lit."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import binary_dilation
from scipy.spatial import ConvexHull

from data_prep.render.backgrounds import photo_background, procedural_background
from data_prep.render.mesh import Mesh, join
from data_prep.render.parametric import BUILDERS, build
from data_prep.render.poses import NaturalPoses
from data_prep.render.primitives import box, ellipsoid
from data_prep.render.raycast import RayCaster
from data_prep.render.sampling import (
    ViewDistribution,
    draw_camera,
    draw_image_size,
    draw_light,
    object_status,
    photograph,
)
from data_prep.render.scene import Camera, Light, Rendering, linear_to_srgb, render, srgb_to_linear
from data_prep.render.surroundings import draw_occluders
from llava_pose.pose.geometry import project_points

RED, GREEN, BLUE, GREY = (0.9, 0.05, 0.05), (0.05, 0.8, 0.05), (0.05, 0.05, 0.9), (0.5, 0.5, 0.5)
FROM_EVERYWHERE = Light(direction=np.array([0.0, 0.0, 1.0]), key=np.zeros(3), ambient=np.ones(3), fill=0.0)


def camera_at(azimuth: float = 0.0, elevation: float = 0.0, theta: float = 0.0, **other: float) -> Camera:
    """Angles in degrees; 200 x 160 pixels, the origin in the middle, ten units away."""
    settings = {"distance": 10.0, "px": 100.0, "py": 80.0, "width": 200, "height": 160, **other}
    return Camera(np.radians(azimuth), np.radians(elevation), np.radians(theta), **settings)  # type: ignore[arg-type]


def draw(mesh: Mesh, camera: Camera, light: Light = FROM_EVERYWHERE, **other) -> Rendering:
    background = np.full((camera.height, camera.width, 3), 1.0, dtype=np.float32)
    return render(RayCaster(mesh), camera, light, background, **other)


@pytest.mark.parametrize("category", BUILDERS)
def test_mask_and_projected_vertices_agree_to_a_pixel(category: str) -> None:
    rng = np.random.default_rng(5)
    mesh = build(category, rng)
    views = ViewDistribution(poses=NaturalPoses(elevation=(-80, 0, 80), tilt=60), truncation=0.0)
    for _ in range(4):
        camera = draw_camera(rng, mesh, *draw_image_size(rng, 160, views), views)
        # the formula itself, not the camera's own method
        points = project_points(
            mesh.vertices,
            azimuth=camera.azimuth,
            elevation=camera.elevation,
            theta=camera.theta,
            distance=camera.distance,
            px=camera.px,
            py=camera.py,
            viewport=2000.0,
        )
        rendering = draw(mesh, camera, samples=4)

        near_mask = binary_dilation(rendering.silhouette, structure=np.ones((3, 3)))
        column, row = np.floor(points).astype(int).T
        inside = (column >= 0) & (column < camera.width) & (row >= 0) & (row < camera.height)
        assert inside.mean() > 0.99
        assert near_mask[row[inside], column[inside]].all()

        hull = ConvexHull(points)
        rows, columns = np.nonzero(rendering.silhouette)
        centers = np.column_stack([columns, rows]) + 0.5
        outside_by = (centers @ hull.equations[:, :2].T + hull.equations[:, 2]).max(axis=1)
        assert outside_by.max() < 0.75  # a pixel that the object touches only at a corner

        expected = np.concatenate([points.min(axis=0), points.max(axis=0)])
        np.testing.assert_allclose(rendering.bbox, np.clip(expected, 0, [camera.width, camera.height] * 2), atol=1.0)


def test_a_sphere_covers_the_area_that_geometry_gives() -> None:
    ball = ellipsoid((0, 0, 0), (0.4, 0.4, 0.4), GREY, sides=120)
    whole = draw(ball, camera_at(30, 20, 10, distance=12.0))
    radius = 2000 * 0.4 / np.sqrt(12.0**2 - 0.4**2)
    assert whole.coverage.sum() == pytest.approx(np.pi * radius**2, rel=0.01)
    assert whole.visible_fraction == 1
    np.testing.assert_allclose(whole.bbox, [100 - radius, 80 - radius, 100 + radius, 80 + radius], atol=0.75)
    assert set(np.unique(whole.coverage)) == {0, 0.25, 0.5, 0.75, 1}  # 2 x 2 samples


@pytest.mark.parametrize(("px", "py"), [(100.0, 80.0), (37.25, 130.5), (181.0, 12.0)])
def test_the_origin_projects_on_px_py(px: float, py: float) -> None:
    ball = ellipsoid((0, 0, 0), (0.03, 0.03, 0.03), GREY)
    rendering = draw(ball, camera_at(200, 40, 15, px=px, py=py), samples=4)
    rows, columns = np.indices(rendering.coverage.shape) + 0.5
    weight = rendering.coverage / rendering.coverage.sum()
    assert (columns * weight).sum() == pytest.approx(px, abs=0.05)
    assert (rows * weight).sum() == pytest.approx(py, abs=0.05)


def _dice() -> Mesh:
    """Red in front (-y), green on the right seen from there (+x), blue on top, grey elsewhere."""
    half = 0.25
    plates = [((0, -half, 0), RED, 1), ((half, 0, 0), GREEN, 0), ((0, 0, half), BLUE, 2)]
    parts = [box((0, 0, 0), (0.5, 0.5, 0.5), GREY)]
    for center, color, thin in plates:
        size = [0.48, 0.48, 0.48]
        size[thin] = 0.02
        parts.append(box(center, size, color))
    return join(parts)


@pytest.mark.parametrize(
    ("azimuth", "elevation", "expected"), [(0, 0, RED), (90, 0, GREEN), (180, 0, GREY), (270, 0, GREY), (0, 90, BLUE)]
)
def test_azimuth_0_shows_the_front_90_the_right_and_elevation_90_the_top(
    azimuth: float, elevation: float, expected: tuple[float, float, float]
) -> None:
    seen = draw(_dice(), camera_at(azimuth, elevation)).image[80, 100] / 255
    share = 0.7 if elevation == 0 else 1.0  # the sky lights walls less than what lies flat
    np.testing.assert_allclose(seen, linear_to_srgb(share * srgb_to_linear(np.array(expected))), atol=0.02)


def test_positive_theta_turns_the_image_anticlockwise_and_z_is_up() -> None:
    mesh = join([box((0, 0, 0.2), (0.1, 0.1, 0.2), RED), box((0, 0, -0.2), (0.1, 0.1, 0.2), BLUE)])
    upright = draw(mesh, camera_at()).image
    assert upright[40, 100, 0] > upright[40, 100, 2]
    assert upright[120, 100, 2] > upright[120, 100, 0]
    turned = draw(mesh, camera_at(theta=90)).image
    assert turned[80, 60, 0] > turned[80, 60, 2]  # what was above lies left
    assert turned[80, 140, 2] > turned[80, 140, 0]


def test_a_lamp_lights_the_side_it_stands_on() -> None:
    ball = ellipsoid((0, 0, 0), (0.3, 0.3, 0.3), GREY)
    from_right = Light(direction=np.array([1.0, -0.2, 0.0]), key=np.ones(3), ambient=np.full(3, 0.1))
    image = draw(ball, camera_at(0), from_right).image.astype(int)
    assert image[80, 150].mean() > image[80, 50].mean() + 60
    image = draw(ball, camera_at(180), from_right).image.astype(int)
    assert image[80, 50].mean() > image[80, 150].mean() + 20


def test_an_inside_out_mesh_is_lit_like_the_proper_one() -> None:
    ball = ellipsoid((0, 0, 0), (0.3, 0.3, 0.3), GREY)
    light = Light(direction=np.array([0.5, -1.0, 1.0]), key=np.ones(3), ambient=np.full(3, 0.1))
    inside_out = Mesh(ball.vertices, ball.faces[:, ::-1].copy(), ball.colors, ball.gloss)
    proper, turned = (draw(mesh, camera_at(20, 10), light).image.astype(int) for mesh in (ball, inside_out))
    assert np.abs(proper - turned).max() <= 1


def test_visible_fraction_counts_what_an_occluder_and_the_image_edge_hide() -> None:
    slab = box((0, 0, 0), (0.6, 0.01, 0.4), GREY)
    left_half = RayCaster(box((-0.5, -2, 0), (1.0, 0.01, 2.0), RED))
    behind = RayCaster(box((-0.5, 2, 0), (1.0, 0.01, 2.0), RED))

    half = draw(slab, camera_at(), occluders=[left_half])
    assert half.visible_fraction == pytest.approx(0.5, abs=0.02)
    assert half.image[80, 60, 0] > half.image[80, 60, 2] + 100  # the red one is in front
    assert half.silhouette[80, 60]
    assert half.coverage[80, 60] == 0
    np.testing.assert_allclose(half.bbox, [40, 40, 160, 120], atol=1)  # the whole object's, hidden half included

    assert draw(slab, camera_at(), occluders=[behind]).visible_fraction == 1

    cut = draw(slab, camera_at(px=0.0))
    assert cut.visible_fraction == pytest.approx(0.5, abs=0.02)
    np.testing.assert_allclose(cut.bbox, [0, 40, 60, 120], atol=1)

    away = draw(slab, camera_at(px=-500.0))
    assert away.visible_fraction == 0
    assert not away.silhouette.any()
    np.testing.assert_array_equal(away.bbox, 0)


def test_object_status_follows_the_visible_fraction() -> None:
    statuses = [object_status(fraction) for fraction in (1.0, 0.84, 0.49, 0.05)]
    assert statuses == ["status_good", "status_partially", "status_barely", "status_bad"]


def test_background_shows_where_nothing_is_drawn() -> None:
    camera = camera_at()
    background = procedural_background(camera.width, camera.height, np.random.default_rng(3))
    rendering = render(RayCaster(box((0, 0, 0), (0.3, 0.3, 0.3), RED)), camera, FROM_EVERYWHERE, background)
    empty = ~rendering.silhouette
    np.testing.assert_array_equal(rendering.image[empty], (background[empty] * 255 + 0.5).astype(np.uint8))


def test_drawn_cameras_keep_to_their_distribution() -> None:
    rng = np.random.default_rng(0)
    mesh = build("chair", rng)
    views = ViewDistribution(truncation=0.0)
    cameras = [draw_camera(rng, mesh, *draw_image_size(rng, 256, views), views) for _ in range(400)]
    elevation = np.degrees([(c.elevation + np.pi) % (2 * np.pi) - np.pi for c in cameras])
    assert elevation.min() >= -10
    assert elevation.max() <= 50
    quarters = np.bincount((np.array([c.azimuth for c in cameras]) // (np.pi / 2)).astype(int), minlength=4)
    assert quarters.min() > 60  # uniform would be 100 in each
    assert {max(c.width, c.height) for c in cameras} == {256}
    for camera in cameras[:50]:
        points = camera.project(mesh.vertices)
        assert (points >= -0.5).all()
        assert (points <= np.array([camera.width, camera.height]) + 0.5).all()
        assert 0.5 < np.max(np.ptp(points, axis=0) / (camera.width, camera.height)) < 0.95

    cut = ViewDistribution(truncation=1.0)
    for _ in range(20):
        camera = draw_camera(rng, mesh, 256, 256, cut)
        points = camera.project(mesh.vertices)
        assert (points < 0).any() or (points > 256).any()


def test_occluders_stand_between_camera_and_object_and_hide_some_of_it() -> None:
    rng = np.random.default_rng(1)
    mesh = build("sofa", rng)
    caster = RayCaster(mesh)
    background = np.zeros((160, 160, 3), dtype=np.float32)
    views = ViewDistribution(truncation=0.0)
    fractions = []
    for _ in range(25):
        camera = draw_camera(rng, mesh, 160, 160, views)
        solids = draw_occluders(rng, camera, mesh)
        light = draw_light(rng, camera)
        occluders = [RayCaster(solid) for solid in solids]
        fractions.append(render(caster, camera, light, background, occluders=occluders).visible_fraction)
    assert np.mean(fractions) < 0.95
    assert np.mean(np.array(fractions) < 1) > 0.8


def test_drawn_lights_leave_no_object_in_the_dark() -> None:
    rng = np.random.default_rng(2)
    white = ellipsoid((0, 0, 0), (0.3, 0.3, 0.3), (0.9, 0.9, 0.9))
    for _ in range(20):
        camera = camera_at(np.degrees(rng.uniform(0, 2 * np.pi)), rng.uniform(-10, 50))
        rendering = draw(white, camera, draw_light(rng, camera))
        assert rendering.image[rendering.coverage == 1].mean() > 100


def test_photograph_keeps_shape_and_stays_close() -> None:
    image = draw(_dice(), camera_at(30, 30)).image
    taken = photograph(np.random.default_rng(0), image)
    assert taken.shape == image.shape
    assert taken.dtype == np.uint8
    assert 0 < np.abs(taken.astype(int) - image.astype(int)).mean() < 40


@pytest.mark.parametrize("seed", range(8))
def test_backgrounds_are_of_the_size_asked_for(seed: int, tmp_path) -> None:
    from PIL import Image

    made = procedural_background(90, 70, np.random.default_rng(seed))
    assert made.shape == (70, 90, 3)
    assert made.dtype == np.float32
    assert made.min() >= 0
    assert made.max() <= 1
    photo = tmp_path / "wide.png"
    Image.fromarray((made * 255).astype(np.uint8)).resize((300, 40)).save(photo)
    taken = photo_background(photo, 60, 90, np.random.default_rng(seed))
    assert taken.shape == (90, 60, 3)
    assert 0 <= taken.min() < taken.max() <= 1


def test_srgb_and_linear_are_inverse() -> None:
    values = np.linspace(0, 1, 101)
    np.testing.assert_allclose(linear_to_srgb(srgb_to_linear(values)), values, atol=1e-5)
