"""Meshes: what is on them, what is seen of them (against rays), and where it is seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from eval.systems.neural_mesh.geometry import (
    Cuboid,
    cuboid_of_cads,
    cuboid_points,
    cuboids_of,
    facing,
    project,
    sphere_points,
)
from llava_pose.errors import InputError
from llava_pose.pose.geometry import angles_from_rotation, camera_center, project_points

BOX = Cuboid((-0.1, -0.4, -0.2), (0.2, 0.3, 0.25))
MESHES = {"sphere": sphere_points(300, 0.4), "cuboid": cuboid_points(300, BOX)}


def is_inside(kind: str, points: np.ndarray) -> np.ndarray:
    if kind == "sphere":
        return np.linalg.norm(points, axis=-1) < 0.4 - 1e-9
    return ((points > np.array(BOX.low) + 1e-9) & (points < np.array(BOX.high) - 1e-9)).all(-1)


@pytest.mark.parametrize("kind", MESHES)
def test_a_vertex_is_seen_where_no_part_of_the_mesh_is_before_it(kind):
    """A ray from the camera to the vertex, in small steps, and all the way to it."""
    mesh = MESHES[kind]
    vertices, normals = torch.tensor(mesh.vertices), torch.tensor(mesh.normals)
    steps = np.concatenate([np.linspace(0, 1, 3000)[:-1], 1 - np.geomspace(1e-7, 1e-3, 30)])[:, None]
    for angles in np.random.default_rng(0).uniform(-3, 3, (12, 2)):
        center = camera_center(*angles, 1.5)
        closed = facing(vertices, normals, torch.tensor(center)).numpy()
        for vertex, cosine in zip(mesh.vertices, closed, strict=True):
            if abs(cosine) > 1e-3:  # on the very outline rounding decides
                hidden = is_inside(kind, center + steps * (vertex - center)).any()
                assert hidden == (cosine < 0)


@pytest.mark.parametrize("kind", MESHES)
def test_vertices_are_on_the_surface_and_cover_it(kind):
    mesh = MESHES[kind]
    assert mesh.vertices.shape == mesh.normals.shape == (300, 3)
    assert not is_inside(kind, mesh.vertices).any()
    assert is_inside(kind, mesh.vertices - 1e-6 * mesh.normals).all()
    np.testing.assert_allclose(np.linalg.norm(mesh.normals, axis=-1), 1)
    dense = sphere_points(5000, 0.4) if kind == "sphere" else cuboid_points(5000, BOX)
    gaps = np.linalg.norm(dense.vertices[:, None] - mesh.vertices, axis=-1).min(1)
    assert gaps.max() < 0.07  # 300 points on the sphere are 0.08 apart


def test_a_flat_cuboid_has_vertices_on_all_sides():
    mesh = cuboid_points(50, Cuboid((-0.5, -0.01, -0.3), (0.5, 0.01, 0.3)))
    assert len(mesh.vertices) == 50
    assert len(np.unique(mesh.normals, axis=0)) == 6
    with pytest.raises(ValueError, match="six faces"):
        cuboid_points(5, BOX)


def test_projection_is_the_projects_own():
    rotations = Rotation.random(5, random_state=0).as_matrix()
    vertices = torch.tensor(MESHES["cuboid"].vertices)
    distance, scale, principal = 3.0, 40.0, (70.0, 50.0)
    ours = project(
        vertices,
        torch.tensor(rotations),
        scale=torch.full((5,), scale, dtype=torch.float64),
        principal=torch.tensor([principal], dtype=torch.float64),
        distance=torch.full((5,), distance, dtype=torch.float64),
    )
    azimuth, elevation, theta = (angle[:, None] for angle in angles_from_rotation(rotations))
    pose = {"azimuth": azimuth, "elevation": elevation, "theta": theta, "px": principal[0], "py": principal[1]}
    theirs = project_points(MESHES["cuboid"].vertices, **pose, distance=distance, viewport=scale * distance)
    np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-9)


def write_off(path: Path, low: tuple[float, ...], high: tuple[float, ...], header: str = "OFF\n3 1 0") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    middle = [(a + b) / 2 for a, b in zip(low, high, strict=True)]
    rows = [" ".join(map(str, row)) for row in (low, middle, high)]
    path.write_text("\n".join([header, "# corners", *rows, "3 0 1 2"]) + "\n")


def test_a_cuboid_is_the_mean_of_the_models_boxes_and_never_flat(tmp_path):
    write_off(tmp_path / "car" / "01.off", (-0.1, -0.4, 0.0), (0.1, 0.4, 0.0))
    write_off(tmp_path / "car" / "02.off", (-0.3, -0.2, 0.0), (0.3, 0.4, 0.0), header="OFF3 1 0")
    found = cuboid_of_cads(tmp_path / "car")
    np.testing.assert_allclose(found, ((-0.2, -0.3, -0.01), (0.2, 0.4, 0.01)))
    assert cuboid_points(60, found).area == pytest.approx(2 * (0.4 * 0.7 + 0.4 * 0.02 + 0.7 * 0.02))


@pytest.mark.parametrize(("header", "beside"), [("COFF", "255 0 0 255"), ("OFF", "0.9 0.9 0.9"), ("NOFF", "0 0 1")])
def test_colours_and_normals_beside_a_vertex_are_no_coordinates(tmp_path, header, beside):
    low, high = (-0.2, -0.4, -0.1), (0.2, 0.4, 0.1)
    rows = [" ".join(map(str, row)) + f" {beside}" for row in (low, high, (0, 0, 0))]
    (tmp_path / "01.off").write_text("\n".join([header, "3 1 0", *rows, "3 0 1 2"]) + "\n")
    np.testing.assert_allclose(cuboid_of_cads(tmp_path), (low, high))


def test_a_category_is_found_by_any_of_its_names_and_missed_by_name(tmp_path):
    write_off(tmp_path / "car" / "01.off", (-0.1, -0.4, -0.1), (0.1, 0.4, 0.1))
    write_off(tmp_path / "TVmonitor" / "01.off", (-0.4, -0.1, -0.3), (0.4, 0.1, 0.3))
    assert len(cuboids_of(tmp_path, ["car", "tvmonitor"])) == 2
    with pytest.raises(InputError, match=r"no CAD model of 'chair' \(and of 1 more\); add chair/01.off") as caught:
        cuboids_of(tmp_path, ["car", "chair", "sofa"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "PLY\n1 0 0\n0 0 0\n",
        "1024 1 0\n0 0 0\n",
        "OFF\n3 1 0\n0 0 0\n",
        "OFF\n0 0 0\n",
        "OFF\n1 0 0\nnan 0 0\n",
        "\xff",
    ],
)
def test_a_cad_model_that_is_none_is_named(tmp_path, text):
    path = tmp_path / "car" / "01.off"
    path.parent.mkdir()
    path.write_text(text, encoding="latin-1")
    remedies = "save the model as an ASCII OFF file|save the file as UTF-8|copy the file again"
    with pytest.raises(InputError, match=rf"car/01\.off: .*({remedies})"):
        cuboid_of_cads(path.parent)
