"""Solids, normals and the parametric objects: closed, outward, canonical, different by seed."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
import trimesh

from data_prep.render.mesh import Mesh, axis_rotation, both_sides, corner_normals, join, off_text
from data_prep.render.parametric import BUILDERS, build
from data_prep.render.parametric.palette import BLACK, HEADLIGHT, TAIL_LIGHT
from data_prep.render.primitives import box, cylinder, ellipsoid, lathe, loft, prism, rounded_box, triangulate, tube
from data_prep.render.sources import ParametricSource
from llava_pose.errors import InputError

RED = (0.8, 0.1, 0.1)
CONCAVE = [(0, 0), (4, 0), (4, 3), (2, 1), (0, 3)]  # area 8


def _half_circle(radius: float) -> np.ndarray:
    angles = np.linspace(0, np.pi, 101)
    return radius * np.column_stack([np.cos(angles), np.sin(angles), np.zeros(101)])


def _torus_rings() -> list[np.ndarray]:
    """A circle of radius 0.5 carried round the z axis at radius 2."""
    angles = np.arange(64) * 2 * np.pi / 64
    section = np.column_stack([2 + 0.5 * np.cos(angles), np.zeros(64), 0.5 * np.sin(angles)])
    return [section @ axis_rotation("z", angle).T for angle in angles]


SOLIDS: dict[str, tuple[Callable[[], Mesh], float, float]] = {  # what, its volume, relative tolerance
    "box": (lambda: box((1, 2, 3), (2, 3, 4), RED), 24.0, 1e-9),
    "tapered box": (lambda: box((0, 0, 0), (2, 2, 3), RED, top=(0.5, 0.5), shift=(1, 0)), 3 * (4 + 1 + 2) / 3, 1e-9),
    "rounded box": (lambda: rounded_box((0, 0, 0), (2, 3, 4), RED, radius=0.1), 24 - 0.1**2 * (4 - np.pi) * 9, 2e-3),
    "cylinder": (lambda: cylinder((0, 0, 0), (3, 4, 0), 1, RED, sides=64), 5 * np.pi, 5e-3),
    "cone": (lambda: cylinder((0, 0, 2), (0, 0, -1), 1, RED, end_radius=0, sides=64), np.pi, 5e-3),
    "sphere": (lambda: ellipsoid((5, 0, 0), (1, 2, 3), RED, sides=80), 8 * np.pi, 5e-3),
    "torus": (lambda: loft(_torus_rings(), RED, closed=True), 2 * np.pi**2 * 2 * 0.25, 5e-3),
    "hollow cup": (
        lambda: lathe([(0, 0), (2, 0), (2, 3), (1, 3), (1, 1), (0, 1)], RED, sides=96),
        np.pi * (4 * 3 - 1 * 2),
        5e-3,
    ),
    "bent tube": (lambda: tube(_half_circle(3), 0.3, RED, sides=48), 3 * np.pi * 0.09 * np.pi, 1e-2),
    **{
        f"concave prism along {axis}": (lambda axis=axis: prism(CONCAVE, axis, -1, 2, RED), 24.0, 1e-9)
        for axis in "xyz"
    },
    "clockwise prism": (lambda: prism(CONCAVE[::-1], "z", -1, 2, RED), 24.0, 1e-9),
    "mirrored": (lambda: box((1, 2, 3), (2, 3, 4), RED).mirrored(), 24.0, 1e-9),
    "turned": (lambda: box((1, 2, 3), (2, 3, 4), RED).rotated("y", 0.7).translated(1, 1, 1), 24.0, 1e-9),
    "two sides": (lambda: both_sides(box((1, 2, 3), (1, 3, 4), RED)), 24.0, 1e-9),
}


def as_trimesh(mesh: Mesh) -> trimesh.Trimesh:
    return trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)


@pytest.mark.parametrize("name", SOLIDS)
def test_solids_are_closed_outward_and_of_the_right_volume(name: str) -> None:
    make, volume, tolerance = SOLIDS[name]
    solid = as_trimesh(make())
    assert solid.is_watertight
    assert solid.is_winding_consistent
    assert solid.volume == pytest.approx(volume, rel=tolerance)  # negative if the faces pointed inward


def test_loft_joins_rings_that_shrink_to_a_point() -> None:
    square = np.array([(1, 1, 0), (-1, 1, 0), (-1, -1, 0), (1, -1, 0)], dtype=float)
    pyramid = as_trimesh(loft([square, square * 0 + [0, 0, 3]], RED))
    assert len(pyramid.vertices) == 6  # four corners, the base's centre, the tip
    assert pyramid.volume == pytest.approx(4)


def test_triangulation_covers_the_outline_and_refuses_one_that_crosses_itself() -> None:
    outline = np.array(CONCAVE, dtype=float)
    corners = outline[triangulate(outline)]
    first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    areas = (first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]) / 2
    assert (areas > 0).all()
    assert areas.sum() == pytest.approx(8)
    with pytest.raises(ValueError, match="crosses itself"):
        triangulate(np.array([(0, 0), (2, 2), (2, 0), (0, 2)], dtype=float))


def test_normals_are_smooth_on_a_sphere_and_sharp_on_a_box() -> None:
    sphere = ellipsoid((0, 0, 0), (1, 1, 1), RED, sides=40)
    radial = sphere.vertices[sphere.faces]
    assert np.einsum("fci,fci->fc", corner_normals(sphere.vertices, sphere.faces), radial).min() > 0.995
    cube = box((0, 0, 0), (1, 1, 1), RED)
    normals = corner_normals(cube.vertices, cube.faces)
    np.testing.assert_allclose(np.abs(normals).max(axis=-1), 1, atol=1e-6)  # each along an axis
    np.testing.assert_allclose(normals[:, 0], normals[:, 1], atol=1e-6)


def test_off_text_is_read_back_by_trimesh() -> None:
    mesh = join([box((0, 0, 0), (1, 2, 3), RED), ellipsoid((2, 0, 0), (0.5, 0.5, 0.5), RED)]).normalized()
    loaded = trimesh.load(io.BytesIO(off_text(mesh).encode()), file_type="off", process=False)
    np.testing.assert_allclose(loaded.vertices, mesh.vertices, atol=1e-6)
    np.testing.assert_array_equal(loaded.faces, mesh.faces)
    tiny = mesh.transformed(1e-6 * np.eye(3))  # a millimetre, of somebody who draws in kilometres
    loaded = trimesh.load(io.BytesIO(off_text(tiny).encode()), file_type="off", process=False)
    np.testing.assert_allclose(loaded.vertices, tiny.vertices, atol=1e-13)


@pytest.mark.parametrize("category", BUILDERS)
def test_objects_are_normalized_closed_and_drawn_by_seed(category: str) -> None:
    meshes = [build(category, np.random.default_rng(seed)) for seed in range(6)]
    for mesh in meshes:
        low, high = mesh.vertices.min(axis=0), mesh.vertices.max(axis=0)
        np.testing.assert_allclose(low + high, 0, atol=1e-12)
        assert np.linalg.norm(high - low) == pytest.approx(1)
        assert 300 < len(mesh.faces) < 6000
        assert len(mesh.colors) == len(mesh.gloss) == len(mesh.faces)
        assert mesh.colors.min() >= 0
        assert mesh.colors.max() <= 1
        solid = as_trimesh(mesh)
        assert solid.is_watertight
        assert solid.is_winding_consistent
        assert all(part.volume > 0 for part in solid.split(only_watertight=False))
    again = build(category, np.random.default_rng(0))
    np.testing.assert_array_equal(again.vertices, meshes[0].vertices)
    np.testing.assert_array_equal(again.colors, meshes[0].colors)
    shapes = {tuple(np.round(mesh.vertices.max(axis=0), 4)) for mesh in meshes}
    assert len(shapes) == len(meshes)


def _mean_of_color(mesh: Mesh, color: tuple[float, float, float]) -> np.ndarray:
    faces = mesh.faces[np.abs(mesh.colors - np.array(color, dtype=np.float32)).max(axis=1) < 1e-6]
    assert len(faces)
    return mesh.vertices[faces].mean(axis=(0, 1))


def _lights_white_in_front_red_behind(mesh: Mesh) -> bool:
    return bool(_mean_of_color(mesh, HEADLIGHT)[1] < -0.3 and _mean_of_color(mesh, TAIL_LIGHT)[1] > 0.3)


def _mean_above(mesh: Mesh, share: float, axis: int) -> float:
    """Mean coordinate on ``axis`` of the vertices in the uppermost ``share`` of the height."""
    z = mesh.vertices[:, 2]
    return float(mesh.vertices[z > z.max() - share * np.ptp(z), axis].mean())


def _thin_end(mesh: Mesh, axis: int) -> int:
    """-1 or 1: towards which end of the axis the object is thinner."""
    position = mesh.vertices[:, axis]
    others = [k for k in range(3) if k != axis]
    spread = [
        np.ptp(mesh.vertices[position * sign > 0.85 * position.max()][:, others], axis=0).max() for sign in (-1, 1)
    ]
    return -1 if spread[0] < spread[1] else 1


def _sticks_out(mesh: Mesh) -> int:
    """-1 or 1: on which side along x the middle of the height reaches farther from the axis of the round rim."""
    x, z = mesh.vertices[:, 0], mesh.vertices[:, 2]
    rim = x[z > z.max() - 0.03 * np.ptp(z)]
    middle = x[np.abs(z - z.max() + 0.45 * np.ptp(z)) < 0.3 * np.ptp(z)] - (rim.min() + rim.max()) / 2
    return 1 if middle.max() > -middle.min() else -1


CANONICAL: dict[str, Callable[[Mesh], bool]] = {
    "aeroplane": lambda mesh: _mean_above(mesh, 0.05, 1) > 0.2,  # the fin is behind
    "bed": lambda mesh: _mean_above(mesh, 0.15, 1) > 0.1,  # the headboard is behind
    "bus": _lights_white_in_front_red_behind,
    "camera": lambda mesh: _thin_end(mesh, 1) == -1,  # the lens points forward
    "car": _lights_white_in_front_red_behind,
    "chair": lambda mesh: _mean_above(mesh, 0.2, 1) > 0.05,  # the back is behind
    "cup": lambda mesh: _sticks_out(mesh) == 1,  # the handle is on the +x side
    "guitar": lambda mesh: _thin_end(mesh, 2) == 1,  # the neck points up
    "hammer": lambda mesh: _mean_of_color(mesh, (0.85, 0.85, 0.87))[0] > 0.05,  # the polished face is on the +x side
    "laptop": lambda mesh: _mean_above(mesh, 0.3, 1) > 0.1,  # the screen stands behind the keys
    "piano": lambda mesh: _mean_above(mesh, 0.1, 1) > 0.05,  # the keys are in front of the case
    "power_drill": lambda mesh: _thin_end(mesh, 1) == -1,  # the bit points forward
    "skate": lambda mesh: _mean_of_color(mesh, BLACK)[1] > 0.2,  # the brake is behind
    "sofa": lambda mesh: _mean_above(mesh, 0.1, 1) > 0.05,  # the back is behind
    "teapot": lambda mesh: _thin_end(mesh, 0) == 1,  # the spout is on the +x side
    "toilet": lambda mesh: _mean_above(mesh, 0.1, 1) > 0.1,  # the cistern is behind
    "treadmill": lambda mesh: _mean_above(mesh, 0.2, 1) < -0.1,  # the console is in front
    "tvmonitor": lambda mesh: np.ptp(mesh.vertices[:, 1]) < np.ptp(mesh.vertices[:, 0]),
}


@pytest.mark.parametrize("category", BUILDERS)
def test_objects_stand_in_the_canonical_frame(category: str) -> None:
    for seed in range(12):
        assert CANONICAL[category](build(category, np.random.default_rng(seed))), f"seed {seed}"


def test_an_unknown_category_is_named() -> None:
    with pytest.raises(InputError, match="unicorn"):
        build("unicorn", np.random.default_rng(0))


def test_an_instance_does_not_depend_on_how_many_there_are() -> None:
    few = ParametricSource(("car", "cup"), train_instances=1, val_instances=1)
    many = ParametricSource(("bus", "cup"), train_instances=3, val_instances=2)
    by_name = {instance.name: instance for instance in many.instances()}
    for instance in few.instances()[2:]:
        np.testing.assert_array_equal(few.mesh(instance).vertices, many.mesh(by_name[instance.name]).vertices)
    assert len({instance.key for instance in many.instances()}) == len(many.instances()) == 10
    val = [instance for instance in many.instances() if instance.split == "val" and instance.category == "cup"]
    assert [instance.cad_index for instance in val] == [4, 5]
