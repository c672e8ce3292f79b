"""Textures, patterns, poses and what stands around: each does what it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.raw.imagenet3d import RawLayout, write_annotation, write_list
from data_prep.render.generate import render as render_set
from data_prep.render.materials import one_color, paint_groups, random_paint
from data_prep.render.mesh import axis_rotation, join
from data_prep.render.options import RenderConfig
from data_prep.render.parametric import build
from data_prep.render.poses import LEAST_POSES, NaturalPoses, UniformPoses, fit_poses
from data_prep.render.primitives import box, ellipsoid
from data_prep.render.raycast import RayCaster
from data_prep.render.sampling import ViewDistribution, draw_camera, draw_light
from data_prep.render.scene import Camera, render
from data_prep.render.skins import Pattern, PatternSkin, PictureSkin
from data_prep.render.surroundings import draw_distractors
from llava_pose.data.records import ObjectRecord, Pose, write_records
from llava_pose.errors import InputError
from llava_pose.pose.geometry import rotation_matrix

GREY = (0.5, 0.5, 0.5)


def square_skin(picture: np.ndarray) -> PictureSkin:
    """One face whose corners are (0, 0), (1, 0), (0, 1) of the picture."""
    return PictureSkin(np.array([[[0, 0], [1, 0], [0, 1]]], dtype=np.float32), np.zeros(1, np.int32), (picture,))


def sample(skin: PictureSkin, u: list[float], v: list[float], texels: float = 1.0) -> np.ndarray:
    count = len(u)
    return skin.colors(
        np.zeros((count, 3), dtype=np.float32),
        np.zeros(count, dtype=np.int64),
        np.array(u, dtype=np.float32),
        np.array(v, dtype=np.float32),
        np.zeros((count, 3), dtype=np.float32),
        np.full(count, texels, dtype=np.float32),
    )


def test_textures_are_upright_repeat_and_blend() -> None:
    picture = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], dtype=np.uint8)
    found = sample(square_skin(picture), [0.25, 0.75, 0.25, 1.25, 0.5], [0.75, 0.75, 0.25, -0.25, 0.75])
    np.testing.assert_allclose(found, [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0], [0.5, 0.5, 0]], atol=1e-6)


def test_a_texture_seen_small_is_averaged() -> None:
    checks = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    skin = square_skin(np.repeat(checks[..., None], 3, axis=2))
    u, v = np.random.default_rng(0).uniform(0, 1, (2, 50))
    assert np.ptp(sample(skin, list(u), list(v), texels=1.0)) > 0.3
    np.testing.assert_allclose(sample(skin, list(u), list(v), texels=4.0), 0.5, atol=0.01)


def test_texture_pixels_for_each_unit_of_length() -> None:
    skin = square_skin(np.zeros((50, 200, 3), dtype=np.uint8))
    vertices = np.array([[0, 0, 0], [2.0, 0, 0], [0, 2, 0]])
    np.testing.assert_allclose(skin.texels(vertices, np.array([[0, 1, 2]])), [np.sqrt(200 * 50) / 2], rtol=1e-5)


def test_patterns_are_fixed_to_the_object_wherever_it_stands() -> None:
    stripes = Pattern(
        colors=np.array([[1, 0, 0], [0, 0, 1]], dtype=np.float32),
        axis=np.array([0, 0, 20], dtype=np.float32),
        rings=False,
        waves=np.zeros((1, 3), dtype=np.float32),
        phases=np.zeros(1, dtype=np.float32),
        strengths=np.zeros(1, dtype=np.float32),
        sharpness=10.0,
    )
    points = np.array([[0, 0, np.pi / 40], [5, 5, np.pi / 40], [0, 0, 3 * np.pi / 40]], dtype=np.float32)
    np.testing.assert_allclose(stripes.at(points), [[0, 0, 1], [0, 0, 1], [1, 0, 0]], atol=1e-3)

    cube = box((0, 0, 0), (0.5, 0.5, 0.5), GREY)
    skin = PatternSkin(np.zeros(len(cube.faces), np.int32), (stripes,))
    caster = RayCaster(cube)
    mesh = type(cube)(cube.vertices, cube.faces, cube.colors, cube.gloss, skin)
    painted = caster.painted(mesh)
    camera = Camera(0.4, 0.3, 0.0, 10.0, 60.0, 60.0, 120, 120)
    light = draw_light(np.random.default_rng(0), camera)
    background = np.zeros((120, 120, 3), dtype=np.float32)
    still = render(painted, camera, light, background).image
    assert (np.ptp(still.reshape(-1, 3).astype(int), axis=0)[[0, 2]] > 100).all()
    # twice as large about the camera, and nothing but the distance changes
    offset = -camera.center
    larger = painted.placed(np.eye(3), 2.0, offset)
    blank = RayCaster(ellipsoid((0, 0, -50), (0.1, 0.1, 0.1), GREY))
    moved = render(blank, camera, light, background, occluders=[larger]).image
    np.testing.assert_allclose(moved.astype(int), still.astype(int), atol=2)


def test_a_placed_mesh_is_drawn_like_a_transformed_one() -> None:
    rng = np.random.default_rng(0)
    mesh = build("car", rng)
    turn, scale, offset = axis_rotation("z", 1.0) @ axis_rotation("x", 0.4), 0.6, np.array([0.2, -0.5, 0.1])
    camera = Camera(0.7, 0.3, 0.1, 10.0, 70.0, 60.0, 140, 120)
    light = draw_light(rng, camera, varied=True)
    background = np.full((120, 140, 3), 0.3, dtype=np.float32)
    ball = RayCaster(ellipsoid((0, 0, 0), (0.3, 0.3, 0.3), GREY))
    pictures = [
        render(ball, camera, light, background, occluders=[other])
        for other in (RayCaster(mesh).placed(turn, scale, offset), RayCaster(mesh.transformed(turn * scale, offset)))
    ]
    different = np.abs(pictures[0].image.astype(int) - pictures[1].image.astype(int)).max(axis=2) > 3
    assert different.mean() < 0.002  # single rays along an edge
    assert pictures[0].visible_fraction == pytest.approx(pictures[1].visible_fraction, abs=0.002)
    assert pictures[0].visible_fraction < 0.95


def test_parts_of_one_size_share_a_material() -> None:
    mesh = join(
        [
            box((0, 0, 0), (1, 1, 1), GREY),
            *(box((x, 0, -1), (0.2, 0.2, 0.5), GREY) for x in (-0.4, 0.4)),
            box((0, 0, 2), (0.3, 0.6, 0.1), GREY),
        ]
    )
    groups = paint_groups(mesh).reshape(4, -1)
    assert (groups == groups[:, :1]).all()
    assert groups[0, 0] == 0
    assert groups[1, 0] == groups[2, 0]
    assert len(set(groups[:, 0])) == 3


def test_random_paint_varies_with_the_seed_alone() -> None:
    mesh = build("chair", np.random.default_rng(0))
    groups = paint_groups(mesh)
    painted = [random_paint(np.random.default_rng(seed), mesh, groups) for seed in (1, 1, *range(2, 20))]
    np.testing.assert_array_equal(painted[0].colors, painted[1].colors)
    assert len({mesh.colors.tobytes() for mesh in painted}) == 19
    assert any(mesh.skin is not None for mesh in painted)
    for other in painted:
        assert other.colors.dtype == np.float32
        assert ((other.colors >= 0) & (other.colors <= 1)).all()
        assert other.vertices is mesh.vertices
    assert len(np.unique(one_color(np.random.default_rng(0), mesh).colors, axis=0)) == 1


def test_natural_uniform_poses_have_their_distributions() -> None:
    rng = np.random.default_rng(0)
    natural = np.degrees([NaturalPoses().draw(rng) for _ in range(1000)])
    assert natural[:, 1].min() >= -10
    assert natural[:, 1].max() <= 50
    rotations = np.array([rotation_matrix(*UniformPoses().draw(rng)) for _ in range(20_000)])
    np.testing.assert_allclose(rotations.mean(axis=0), 0, atol=0.02)  # what only the uniform distribution has,
    np.testing.assert_allclose((rotations**2).mean(axis=0), 1 / 3, atol=0.02)
    angle = np.degrees(np.arccos(np.clip((np.trace(rotations, axis1=1, axis2=2) - 1) / 2, -1, 1)))
    assert np.mean(angle < 90) == pytest.approx((np.pi / 2 - 1) / np.pi, abs=0.012)  # (x - sin x) / pi


def raw_set(root: Path, category: str, angles: list[tuple[float, float, float]], split: str = "train") -> None:
    layout = RawLayout(root)
    names = []
    for number, (azimuth, elevation, theta) in enumerate(angles):
        names.append(f"{category}{split}{number}")
        entry = {"azimuth": azimuth, "elevation": elevation, "theta": theta, "distance": 5.0, "px": 1.0, "py": 1.0}
        write_annotation(
            layout.annotation(category, names[-1]),
            [{**entry, "bbox": np.array([0.0, 0, 1, 1]), "class": category, "object_status": "status_good"}],
        )
    write_list(layout.list_file(category, split), names)


def test_fitted_poses_follow_each_categorys_train_annotations(tmp_path: Path) -> None:
    raw_set(tmp_path, "car", [(1.0, 0.2, 0.0)] * LEAST_POSES)
    raw_set(tmp_path, "cup", [(4.0, 0.9, 0.0)] * (LEAST_POSES - 1))
    raw_set(tmp_path, "car", [(3.0, -1.0, 2.0)] * 50, split="val")
    layout = RawLayout(tmp_path)
    layout.annotation("car", "cartrain0").write_bytes(b"damaged")
    raw_set(tmp_path, "bus", [(2.0, 0.0, 0.0)] * LEAST_POSES)
    fitted = fit_poses(tmp_path)
    rng = np.random.default_rng(0)
    bus = np.array([fitted.draw(rng, "bus") for _ in range(300)])
    np.testing.assert_allclose(bus.mean(axis=0), [2, 0, 0], atol=0.03)
    assert 3 < np.degrees(bus.std(axis=0)).min() < 9
    assert set(fitted.of_category) == {"bus"}  # the others have too few, one of car's being damaged
    others = np.array([fitted.draw(rng, "cup") for _ in range(300)])
    assert {round(value) for value in others[:, 0]} >= {1, 2, 4}
    assert others[:, 1].min() > -0.6  # nothing of val


def test_fitted_poses_of_a_prepared_folder(tmp_path: Path) -> None:
    pose = Pose(0.5, 0.1, 0.0, 5.0, 1.0, 1.0)
    records = [
        ObjectRecord(f"{n}.JPEG", f"car/{n}/0", "car", pose, 2000.0, 10, 10, (0.0, 0.0, 9.0, 9.0))
        for n in range(LEAST_POSES)
    ]
    write_records(tmp_path, "train", records)
    assert fit_poses(tmp_path).of_category["car"].shape == (LEAST_POSES, 3)
    assert fit_poses(tmp_path).draw(np.random.default_rng(0), "car")[0] == pytest.approx(0.5, abs=0.6)


def test_folders_without_poses_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        fit_poses(tmp_path / "none")
    with pytest.raises(InputError, match="neither"):
        fit_poses(tmp_path)
    raw_set(tmp_path, "car", [])
    with pytest.raises(InputError, match="no usable pose"):
        fit_poses(tmp_path)


def test_objects_seen_from_below_or_tilted_are_lit_too() -> None:
    rng = np.random.default_rng(3)
    white = ellipsoid((0, 0, 0), (0.3, 0.3, 0.3), (0.9, 0.9, 0.9))
    caster = RayCaster(white)
    views = ViewDistribution(poses=UniformPoses(), truncation=0.0)
    for varied in (False, True):
        for _ in range(25):
            camera = draw_camera(rng, white, 80, 80, views)
            light = draw_light(rng, camera, varied=varied)
            rendering = render(caster, camera, light, np.zeros((80, 80, 3), dtype=np.float32))
            assert rendering.image[rendering.coverage == 1].mean() > 90


def test_distractors_stand_beside_and_hide_little() -> None:
    rng = np.random.default_rng(1)
    mesh, other = build("sofa", rng), RayCaster(build("cup", rng))
    caster = RayCaster(mesh)
    background = np.zeros((120, 120, 3), dtype=np.float32)
    assert draw_distractors(rng, draw_camera(rng, mesh, 120, 120, ViewDistribution()), mesh, []) == []
    seen, fractions = [], []
    for _ in range(25):
        camera = draw_camera(rng, mesh, 120, 120, ViewDistribution(truncation=0.0))
        light = draw_light(rng, camera)
        placed = draw_distractors(rng, camera, mesh, [other])
        alone = render(caster, camera, light, background)
        together = render(caster, camera, light, background, occluders=placed)
        seen.append((np.abs(alone.image.astype(int) - together.image.astype(int)).max(axis=2) > 8).mean())
        fractions.append(together.visible_fraction)
        np.testing.assert_array_equal(alone.bbox, together.bbox)
    assert np.mean(np.array(seen) > 0.005) > 0.7
    assert 0.7 < np.mean(fractions) < 1


def test_materials_of_meshes_that_have_none(tmp_path: Path) -> None:
    folder = tmp_path / "m" / "cup"
    folder.mkdir(parents=True)
    (folder / "a.off").write_text(
        "OFF\n4 4 0\n0 0 .5\n.5 0 -.4\n-.3 .4 -.4\n-.3 -.4 -.4\n3 0 1 2\n3 0 2 3\n3 0 3 1\n3 1 3 2\n"
    )
    pictures = {}
    for materials in ("own", "plain"):
        out = tmp_path / materials
        render_set(
            RenderConfig(out=str(out), sources=[str(tmp_path / "m")], materials=materials, views=6, size=48, workers=1)
        )
        pictures[materials] = [np.asarray(Image.open(path)) for path in sorted(out.glob("images/cup/*"))]
    assert len({picture.tobytes() for picture in pictures["own"]}) == 6
    assert any(a.shape != b.shape or (a != b).any() for a, b in zip(pictures["own"], pictures["plain"], strict=True))
