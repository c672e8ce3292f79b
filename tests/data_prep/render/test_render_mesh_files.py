"""Mesh files: what people's files hold comes through, what cannot be drawn is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from data_prep.render.mesh import Mesh, corner_normals
from data_prep.render.mesh_files import AXES, MeshError, axes_to_canonical, clean, read_mesh
from data_prep.render.primitives import ellipsoid
from data_prep.render.raycast import RayCaster
from data_prep.render.scene import Camera, Light, render
from data_prep.render.skins import PictureSkin
from llava_pose.errors import InputError

BOX = trimesh.creation.box(extents=(1, 2, 3))
EVEN = Light(direction=np.array([0.0, 0.0, 1.0]), key=np.zeros(3), ambient=np.ones(3), fill=0.0)


def read(path: Path) -> Mesh:
    return read_mesh(path, name=path.name, file_type=path.suffix[1:].lower())


def picture(mesh: Mesh, azimuth: float = 0.0, light: Light = EVEN) -> np.ndarray:
    camera = Camera(np.radians(azimuth), 0.2, 0.0, 10.0 * mesh.reach * 2, 40.0, 40.0, 80, 80, viewport=500.0)
    return render(RayCaster(mesh), camera, light, np.zeros((80, 80, 3), dtype=np.float32)).image.astype(int)


@pytest.mark.parametrize("suffix", ["off", "obj", "ply", "glb"])
def test_every_format_gives_the_same_shape(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    BOX.export(path)
    mesh = read(path)
    assert mesh.vertices.shape == (8, 3)
    assert mesh.faces.shape == (12, 3)
    np.testing.assert_allclose(np.ptp(mesh.vertices, axis=0), [1, 2, 3], atol=1e-6)
    assert not mesh.oriented
    assert mesh.colors.shape == (12, 3)
    assert trimesh.Trimesh(mesh.vertices, mesh.faces, process=False).volume == pytest.approx(6, rel=1e-5)


def test_polygons_and_face_colours_of_off_files(tmp_path: Path) -> None:
    path = tmp_path / "a.off"
    path.write_text("OFF\n4 1 0\n0 0 0\n1 0 0\n1 1 0\n0 1 0\n4 0 1 2 3\n")
    assert len(read(path).faces) == 2
    assert not read(path).painted


def test_colours_textures_and_invisible_faces_of_an_obj(tmp_path: Path) -> None:
    Image.fromarray(np.array([[[255, 0, 0], [0, 0, 255]]], dtype=np.uint8)).save(tmp_path / "two.png")
    (tmp_path / "a.mtl").write_text(
        "newmtl red\nKd 1 0 0\nKs 1 1 1\nNs 100\nnewmtl air\nKd 1 1 1\nd 0.0\nnewmtl paper\nKd 1 1 1\nmap_Kd two.png\n"
    )
    corners = "".join(f"v {x} {y} {z}\n" for y in (0, 1, 2) for x, z in ((0, 0), (1, 0), (1, 1), (0, 1)))
    uv = "vt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\n"
    (tmp_path / "a.obj").write_text(
        f"mtllib a.mtl\n{corners}{uv}usemtl paper\nf 1/1 2/2 3/3 4/4\nusemtl red\nf 5/1 6/2 7/3 8/4\n"
        "usemtl air\nf 9/1 10/2 11/3 12/4\n"
    )
    mesh = read(tmp_path / "a.obj")
    assert mesh.painted
    assert len(mesh.faces) == 4
    assert len(mesh.vertices) == 8  # those of the invisible faces are gone
    assert isinstance(mesh.skin, PictureSkin)
    textured = mesh.skin.picture >= 0
    assert textured.sum() == 2
    np.testing.assert_array_equal(mesh.colors[~textured], [[1, 0, 0], [1, 0, 0]])
    assert (mesh.gloss[~textured] > 0.3).all()

    image = picture(mesh.normalized())  # from the front: the paper, red left and blue right
    assert image[40, 37, 0] > image[40, 37, 2] + 60
    assert image[40, 43, 2] > image[40, 43, 0] + 60


def test_mirrored_faces_keep_their_texture(tmp_path: Path) -> None:
    coordinates = np.array([[[0, 0], [1, 0], [0, 1]]], dtype=np.float32)
    skin = PictureSkin(coordinates, np.zeros(1, dtype=np.int32), (np.zeros((2, 2, 3), dtype=np.uint8),))
    mesh = Mesh(np.eye(3), np.array([[0, 1, 2]]), np.ones((1, 3), np.float32), np.ones(1, np.float32), skin)
    turned = mesh.mirrored()
    assert isinstance(turned.skin, PictureSkin)
    by_vertex = dict(zip(turned.faces[0].tolist(), turned.skin.coordinates[0].tolist(), strict=True))
    assert by_vertex == {0: [0, 0], 1: [1, 0], 2: [0, 1]}


def test_vertex_colours_of_a_ply(tmp_path: Path) -> None:
    box = BOX.copy()
    box.visual = trimesh.visual.ColorVisuals(box, vertex_colors=np.tile([0, 255, 0, 255], (8, 1)))
    box.export(tmp_path / "a.ply")
    mesh = read(tmp_path / "a.ply")
    assert mesh.painted
    np.testing.assert_allclose(mesh.colors, np.tile([0, 1, 0], (12, 1)))


def _off(vertices: str, faces: str) -> str:
    lines = [vertices.count(";") + 1, faces.count(";") + 1 if faces else 0]
    return f"OFF\n{lines[0]} {lines[1]} 0\n" + vertices.replace(";", "\n") + "\n" + faces.replace(";", "\n") + "\n"


TRIANGLE = "0 0 0;1 0 0;0 1 0"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "cannot read the mesh"),
        (b"not a mesh at all", "cannot read the mesh"),
        (_off(TRIANGLE, "").encode(), "no faces"),
        (_off("0 0 0;1 0 0;nan 1 0", "3 0 1 2").encode(), "1 vertices are not finite"),
        (_off("0 0 0;1 0 0;inf 1 0", "3 0 1 2").encode(), "not finite"),
        (_off("0 0 0;1 0 0;2 0 0", "3 0 1 2").encode(), "no face of the mesh has an area"),
        (_off("1 1 1;1 1 1;1 1 1", "3 0 1 2").encode(), "no extent"),
        (_off(TRIANGLE, "3 0 1 7").encode(), "a.off"),
    ],
)
def test_a_mesh_that_cannot_be_used_is_named(content: bytes, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "a.off"
    path.write_bytes(content)
    with pytest.raises(MeshError, match=sentence) as raised:
        read(path)
    assert "a.off" in str(raised.value)


@pytest.mark.parametrize("suffix", ["obj", "ply", "glb"])
def test_a_damaged_file_of_any_format_is_named(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    BOX.export(path)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(MeshError, match=f"a.{suffix}"):
        read(path)


def test_degenerate_faces_loose_vertices_and_seams_go_and_the_rest_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.off"
    path.write_text(_off(f"{TRIANGLE};0 0 0;0 1 0;-1 0 0;nan nan nan", "3 0 1 2;3 3 4 5;3 1 1 2;3 0 3 1"))
    mesh = read(path)
    assert len(mesh.faces) == 2
    assert len(mesh.vertices) == 4  # the seam is closed, the loose vertex gone


@pytest.mark.parametrize("light", [EVEN, Light(np.array([0.6, -1, 0.8]), np.ones(3), np.full(3, 0.1))])
def test_faces_wound_either_way_are_lit_as_if_they_were_not(light: Light) -> None:
    ball = ellipsoid((0, 0, 0), (0.4, 0.4, 0.4), (0.5, 0.5, 0.5), sides=24)
    mixed = ball.faces.copy()
    some = np.random.default_rng(0).random(len(mixed)) < 0.5
    mixed[some] = mixed[some][:, ::-1]
    unsure = Mesh(ball.vertices, mixed, ball.colors, ball.gloss, oriented=False)
    np.testing.assert_array_less(np.abs(picture(unsure, 20, light) - picture(ball, 20, light)), 3)


def test_an_open_mesh_shows_both_sides() -> None:
    plate = Mesh(
        vertices=np.array([[-0.5, 0, -0.5], [0.5, 0, -0.5], [0.5, 0, 0.5], [-0.5, 0, 0.5]]),
        faces=np.array([[0, 1, 2], [0, 2, 3]], dtype=np.int32),
        colors=np.full((2, 3), 0.5, dtype=np.float32),
        gloss=np.zeros(2, dtype=np.float32),
        oriented=False,
    )
    front, back = picture(plate, 0)[40, 40], picture(plate, 180)[40, 40]
    assert front.min() > 60
    np.testing.assert_allclose(front, back, atol=3)


def test_a_fan_of_very_many_faces_stays_cheap_and_flat() -> None:
    count = 30_000  # pairs of corners at the tip would be 900 million
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False)
    rim = np.column_stack([np.cos(angles), np.sin(angles), np.zeros(count)])
    faces = np.column_stack([np.full(count, count), np.arange(count), (np.arange(count) + 1) % count])
    normals = corner_normals(np.vstack([rim, [0, 0, 0]]), faces)
    np.testing.assert_allclose(normals.reshape(-1, 3), np.tile([0, 0, 1], (3 * count, 1)), atol=1e-6)


@pytest.mark.parametrize("up", AXES)
@pytest.mark.parametrize("front", AXES)
def test_axes_turn_up_to_z_and_front_to_minus_y(up: str, front: str) -> None:
    if up[-1] == front[-1]:
        with pytest.raises(InputError, match="along one line"):
            axes_to_canonical(up, front)
        return
    turn = axes_to_canonical(up, front)
    axis = {name: np.eye(3)["xyz".index(name[-1])] * (-1 if "minus" in name else 1) for name in AXES}
    np.testing.assert_array_equal(turn @ axis[up], [0, 0, 1])
    np.testing.assert_array_equal(turn @ axis[front], [0, -1, 0])
    assert np.linalg.det(turn) == pytest.approx(1)


def test_cleaning_keeps_scale_and_place() -> None:
    far = BOX.vertices * 1000 + 5000
    mesh = Mesh(far, BOX.faces, np.ones((12, 3), np.float32), np.zeros(12, np.float32))
    cleaned = clean(mesh, "a")
    np.testing.assert_allclose(cleaned.vertices.min(axis=0), far.min(axis=0))
    np.testing.assert_allclose(cleaned.vertices.max(axis=0), far.max(axis=0))
