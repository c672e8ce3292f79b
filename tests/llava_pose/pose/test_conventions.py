"""Poses in other programs' conventions: the same point of an object falls on the same pixel, by each one's own formulas."""

from __future__ import annotations

import json
import math
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from llava_pose.data.convert import ConvertConfig, FormatName, convert, main
from llava_pose.data.jsonl import write_jsonl
from llava_pose.data.poses.formats import FORMATS, read_poses, write_poses
from llava_pose.data.poses.posed_object import PosedObject
from llava_pose.data.records import Pose, Prediction
from llava_pose.errors import InputError
from llava_pose.pose.conventions import (
    CONVENTIONS,
    box_corners,
    box_orientations,
    camera_of_pose,
    pose_of_camera,
    qwen_angles,
    qwen_rotation,
)
from llava_pose.pose.geometry import geodesic_angle_of_poses, opencv_camera, project_points, rotation_matrix
from llava_pose.pose.quaternions import matrix_to_quaternion, nearest_rotation, quaternion_to_matrix
from tests.conftest import REPOSITORY

# A car: its nose is half a unit before its middle, its roof 0.3 above, its left side 0.2 beside. In the axes of each
# convention, as a person who knows it would say them; nothing here comes from the table of the library.
Z_UP_FRONT_MINUS_Y = {"nose": (0, -0.5, 0), "roof": (0, 0, 0.3), "left": (0.2, 0, 0)}
Y_UP_FRONT_Z = {"nose": (0, 0, 0.5), "roof": (0, 0.3, 0), "left": (0.2, 0, 0)}
FRONT_X_Y_DOWN = {"nose": (0.5, 0, 0), "roof": (0, -0.3, 0), "left": (0, 0, 0.2)}
CAR = {
    **dict.fromkeys(("opencv", "opengl", "blender", "bop", "colmap"), Z_UP_FRONT_MINUS_Y),
    **dict.fromkeys(("threejs", "objectron"), Y_UP_FRONT_Z),
    **dict.fromkeys(("omni3d", "qwen3-vl"), FRONT_X_Y_DOWN),
    "unity": {"nose": (0, 0, 0.5), "roof": (0, 0.3, 0), "left": (-0.2, 0, 0)},  # left-handed: +x is the object's right
    "ros": {"nose": (0.5, 0, 0), "roof": (0, 0, 0.3), "left": (0, 0.2, 0)},
}
OUR_CAR = Z_UP_FRONT_MINUS_Y


def z_forward_y_down(point, fx, fy, cx, cy):
    x, y, z = point
    return fx * x / z + cx, fy * y / z + cy


def z_backward_y_up(point, fx, fy, cx, cy):
    x, y, z = point
    return cx + fx * x / -z, cy - fy * y / -z


def unity_pixel(point, fx, fy, cx, cy):
    x, y, z = point  # x right, y up, z forward
    return cx + fx * x / z, cy - fy * y / z


def objectron_pixel(point, fx, fy, cx, cy):
    """objectron-geometry-tutorial.ipynb: u comes of the second, v of the first coordinate in the space of the projection."""
    x, y, z = point
    return cx + fx * y / -z, cy + fy * x / -z


PIXEL = {
    **dict.fromkeys(("opencv", "ros", "bop", "omni3d", "qwen3-vl", "colmap"), z_forward_y_down),
    **dict.fromkeys(("opengl", "blender", "threejs"), z_backward_y_up),
    "unity": unity_pixel,
    "objectron": objectron_pixel,
}


def turned(point, quaternion):
    """q v q* by Hamilton's product, w first."""
    w, *vector = quaternion
    v = np.array(vector)
    return np.asarray(point) + 2 * w * np.cross(v, point) + 2 * np.cross(v, np.cross(v, point))


def cookbook_rotate(point, pitch, yaw, roll):
    """Qwen3-VL's 3d_grounding.ipynb: about x, then y, then z."""
    x, y, z = point
    y, z = y * math.cos(pitch) - z * math.sin(pitch), y * math.sin(pitch) + z * math.cos(pitch)
    x, z = x * math.cos(yaw) + z * math.sin(yaw), -x * math.sin(yaw) + z * math.cos(yaw)
    x, y = x * math.cos(roll) - y * math.sin(roll), x * math.sin(roll) + y * math.cos(roll)
    return np.array([x, y, z])


def placed(name, path, point):
    """A point of the first object of a file in the camera's frame, in metres, as a program reads this format."""
    if name in ("opengl", "blender", "unity", "threejs", "opencv"):
        line = json.loads(path.read_text().splitlines()[0])
        w_first = {"unity": [3, 0, 1, 2], "threejs": [3, 0, 1, 2]}.get(name, [0, 1, 2, 3])
        by_matrix = (np.array(line["matrix"]) @ [*point, 1.0])[:3]
        by_quaternion = turned(point, np.array(line["quaternion"])[w_first]) + line["position"]
        np.testing.assert_allclose(by_matrix, by_quaternion, atol=1e-12)
        return by_matrix
    if name == "ros":
        box = json.loads(path.read_text().splitlines()[0])["detections"][0]["bbox"]["center"]
        q, p = box["orientation"], box["position"]
        return turned(point, [q["w"], q["x"], q["y"], q["z"]]) + np.array([p["x"], p["y"], p["z"]])
    if name == "bop":
        r, t = path.read_text().splitlines()[1].split(",")[4:6]
        rotation = np.array(list(map(float, r.split()))).reshape(3, 3)
        return (rotation @ (np.array(point) * 1000) + list(map(float, t.split()))) / 1000
    if name == "omni3d":
        box = json.loads(path.read_text())["annotations"][0]
        return np.array(box["R_cam"]) @ point + box["center_cam"]
    if name == "objectron":
        box = json.loads(path.read_text().splitlines()[0])
        return np.reshape(box["rotation"], (3, 3)) @ point + box["translation"]
    if name == "qwen3-vl":
        numbers = json.loads(path.read_text())[0]["bbox_3d"]
        return cookbook_rotate(point, *np.deg2rad(np.array(numbers[6:]) * 180)) + numbers[:3]
    words = path.read_text().splitlines()[2].split()  # COLMAP
    return turned(point, list(map(float, words[1:5]))) + np.array(list(map(float, words[5:8])))


POSE = Pose(azimuth=0.7, elevation=0.35, theta=-0.2, distance=4.0, px=330.0, py=250.0)


def car(pose=POSE, **changes):
    known = {"viewport": 800.0, "width": 640.0, "height": 480.0, "size": (0.4, 1.0, 0.6), "confidence": 0.5}
    return PosedObject(id="1", picture="a.jpg", category="car", pose=pose, **{**known, **changes})


def suffix(name):
    return {"bop": ".csv", "omni3d": ".json", "qwen3-vl": ".json", "colmap": ".txt"}.get(name, ".jsonl")


@pytest.mark.parametrize("name", CAR)
@pytest.mark.parametrize("part", OUR_CAR)
def test_a_point_of_the_object_falls_on_the_same_pixel_in_every_convention(name, part, tmp_path):
    camera = (800.0, 800.0, 330.0, 250.0)  # whose middle the object's origin stands before: every point is exact
    path = tmp_path / f"images{suffix(name)}"
    write_poses(path, name, [car(camera=camera)])
    seen = placed(name, path, CAR[name][part])
    expected = project_points(np.array(OUR_CAR[part]), **vars(POSE), viewport=800.0)
    np.testing.assert_allclose(PIXEL[name](seen, *camera), expected, atol=1e-9)


FACING = {  # rotation and place of a car four metres away that faces the camera, by thought
    "opencv": ([[1, 0, 0], [0, 0, -1], [0, 1, 0]], (0, 0, 4)),
    "opengl": ([[1, 0, 0], [0, 0, 1], [0, -1, 0]], (0, 0, -4)),
    "blender": ([[1, 0, 0], [0, 0, 1], [0, -1, 0]], (0, 0, -4)),
    "unity": (np.diag([-1, 1, -1]), (0, 0, 4)),  # turned about y by half a turn
    "threejs": (np.eye(3), (0, 0, -4)),  # which faces +z where the camera is
    "ros": ([[0, 1, 0], [0, 0, -1], [-1, 0, 0]], (0, 0, 4)),
    "bop": ([[1, 0, 0], [0, 0, -1], [0, 1, 0]], (0, 0, 4000)),
    "omni3d": (
        [[0, 0, 1], [0, 1, 0], [-1, 0, 0]],
        (0, 0, 4),
    ),  # a rotation_y of 90 degrees, as oncoming cars of KITTI have
    "qwen3-vl": ([[0, 0, 1], [0, 1, 0], [-1, 0, 0]], (0, 0, 4)),
    "colmap": ([[1, 0, 0], [0, 0, -1], [0, 1, 0]], (0, 0, 4)),
    "objectron": ([[0, -1, 0], [1, 0, 0], [0, 0, 1]], (0, 0, -4)),  # its left is the picture's right, +y; its top is -x
}


@pytest.mark.parametrize("name", FACING)
def test_a_car_that_faces_the_camera_is_what_one_would_say(name):
    seen = opencv_camera(azimuth=0, elevation=0, theta=0, distance=4, px=0, py=0, viewport=1)
    rotation, place = CONVENTIONS[name].from_opencv(seen.rotation, seen.translation)
    np.testing.assert_allclose(rotation, FACING[name][0], atol=1e-15)
    np.testing.assert_allclose(place, FACING[name][1], atol=1e-12)
    if name == "qwen3-vl":
        np.testing.assert_allclose(qwen_angles(rotation), [0, 0.5, 0], atol=1e-15)


@pytest.mark.parametrize("name", CAR)
@pytest.mark.parametrize("part", OUR_CAR)
def test_before_a_real_camera_all_conventions_mean_the_same_point(name, part, tmp_path):
    """The object stands at the side of a picture whose camera has its principal point elsewhere."""
    camera = (700.0, 710.0, 300.0, 260.0)
    item = car(Pose(0.7, 0.35, -0.2, 4.0, 560.0, 90.0), camera=camera)
    path = tmp_path / f"images{suffix(name)}"
    write_poses(path, name, [item])
    cv = camera_of_pose(**vars(item.pose), intrinsics=camera)
    expected = cv.rotation @ OUR_CAR[part] + cv.translation
    np.testing.assert_allclose(
        PIXEL[name](placed(name, path, CAR[name][part]), *camera), z_forward_y_down(expected, *camera), atol=1e-8
    )
    np.testing.assert_allclose(PIXEL[name](placed(name, path, (0, 0, 0)), *camera), (560.0, 90.0), atol=1e-8)
    assert np.linalg.norm(placed(name, path, (0, 0, 0))) == pytest.approx(4.0)


def test_a_pose_without_a_camera_of_its_own_is_opencv_camera_to_the_bit_of_rounding(tmp_path):
    write_poses(tmp_path / "p.jsonl", "opencv", [car()])
    line = json.loads((tmp_path / "p.jsonl").read_text())
    cv = opencv_camera(**vars(POSE), viewport=800.0)
    np.testing.assert_allclose(np.array(line["matrix"])[:3, :3], cv.rotation, atol=1e-15)
    np.testing.assert_allclose(line["position"], cv.translation, atol=1e-15)
    assert line["intrinsics"] == [800.0, 800.0, 330.0, 250.0]


def test_the_camera_that_looks_at_an_object_shows_what_the_other_one_does():
    """To first order in the object's size, the six numbers and the viewport give the picture of a camera at an angle."""
    camera = (700.0, 700.0, 320.0, 240.0)
    rotation = Rotation.random(random_state=3).as_matrix()
    translation = np.array([1.5, -0.8, 4.0])
    values = pose_of_camera(rotation, translation, camera)
    points = 0.01 * np.random.default_rng(0).normal(size=(40, 3))
    true = np.array([z_forward_y_down(rotation @ p + translation, *camera) for p in points])
    ours = project_points(points, **values)
    middle = z_forward_y_down(translation, *camera)
    spread = np.abs(true - middle).max()
    assert np.abs(ours - true).max() < 0.15 * spread, "the plane picture stretches unequally; on average it fits"
    plain = project_points(points, **{**values, **_unturned(rotation)})
    assert np.abs(ours - true).mean() < 0.5 * np.abs(plain - true).mean(), "without the turn it is a sheared picture"


def _unturned(rotation):
    values = pose_of_camera(rotation, [0, 0, 1.0], None)
    return {name: values[name] for name in ("azimuth", "elevation", "theta")}


# ---------------------------------------------------------------- the table and its arithmetic


def test_left_and_right_handed_frames_are_what_they_say():
    for name, convention in CONVENTIONS.items():
        sign = 1 if convention.right_handed else -1
        for axes in (convention.object_axes, convention.camera_axes):
            assert np.linalg.det(axes) == pytest.approx(sign), name
            np.testing.assert_allclose(axes @ axes.T, np.eye(3))
        assert convention.source, f"{name} says where it is written down"
        assert (not convention.has_front) or convention.front
    assert [name for name, convention in CONVENTIONS.items() if not convention.right_handed] == ["unity"]


def test_every_format_has_a_name_to_ask_for_it_by():
    assert set(get_args(FormatName)) == set(FORMATS)
    assert set(FORMATS) == {*CONVENTIONS, "orient-anything"}


def test_quaternions_are_scipys():
    rotations = Rotation.random(200, random_state=0)
    theirs = rotations.as_quat()
    theirs = np.where(theirs[:, 3:] < 0, -theirs, theirs)
    np.testing.assert_allclose(matrix_to_quaternion(rotations.as_matrix(), "xyzw"), theirs, atol=1e-12)
    np.testing.assert_allclose(quaternion_to_matrix(3 * theirs, "xyzw"), rotations.as_matrix(), atol=1e-12)
    half_turns = np.array([np.diag(signs) for signs in ((1, -1, -1), (-1, 1, -1), (-1, -1, 1))], dtype=float)
    np.testing.assert_allclose(quaternion_to_matrix(matrix_to_quaternion(half_turns)), half_turns, atol=1e-15)


def test_qwens_angles_are_the_turns_of_its_cookbook():
    for rotation in Rotation.random(50, random_state=1).as_matrix():
        angles = qwen_angles(rotation)
        assert np.abs(angles).max() <= 1
        for point in np.eye(3):
            np.testing.assert_allclose(cookbook_rotate(point, *(angles * math.pi)), rotation @ point, atol=1e-12)
    for pitch in (0.3, -0.8):  # yaw at the pole, where roll is of no account
        locked = qwen_rotation([pitch, 0.5, 0.2])
        np.testing.assert_allclose(qwen_rotation(qwen_angles(locked)), locked, atol=1e-9)


def test_furniture_of_one_room_stands_on_one_floor_as_qwen_answered():
    """The answers that 3d_grounding.ipynb prints: of its lounge a table, two chairs and a sofa, and of its street two cars."""
    lounge = np.array([[0.87, 0.09, 0.94], [0.13, -0.09, -0.06], [0.13, -0.07, -0.05], [0.28, 0.33, 0.23]])
    street = np.array([[0.75, 0.49, 0.75], [0.82, 0.49, 0.82]])
    ups = qwen_rotation(lounge)[..., 1]
    assert np.degrees(np.arccos((ups @ ups.T).clip(-1, 1))).max() < 3, "all of them have one vertical"
    assert np.degrees(np.arccos(np.abs(qwen_rotation(street)[:, 1, 1]))).max() < 2, (
        "which is the picture's, on a street"
    )
    as_documented = Rotation.from_euler("xyz", lounge).as_matrix()[..., 1]  # roll, pitch, yaw in radians
    assert np.degrees(np.arccos((as_documented @ as_documented.T).clip(-1, 1))).max() > 50


def test_the_documents_order_of_qwens_angles_would_be_another_rotation():
    angles = np.array([0.1, 0.3, -0.2])
    assert not np.allclose(qwen_rotation(angles), qwen_rotation(angles[[1, 2, 0]]), atol=0.1)


@pytest.mark.parametrize(("which", "count"), [("upright", 4), ("all", 24)])
def test_the_orientations_of_a_box_bring_it_onto_itself(which, count):
    turns = box_orientations(which)
    assert len({tuple(turn.ravel()) for turn in turns}) == count
    for turn in turns:
        assert np.linalg.det(turn) == pytest.approx(1)
        corners = {tuple(c) for c in np.round(box_corners((2, 2, 2)) @ turn.T, 9)}
        assert corners == {tuple(c) for c in np.round(box_corners((2, 2, 2)), 9)}
        assert which == "all" or turn[2, 2] == 1


def test_a_matrix_that_is_no_rotation_is_refused_and_a_rounded_one_mended():
    rotation = Rotation.random(random_state=0).as_matrix()
    np.testing.assert_allclose(nearest_rotation(np.round(rotation, 3)), rotation, atol=1e-3)
    for wrong in (rotation @ np.diag([1, 1, -1]), 2 * rotation, np.zeros((3, 3)), np.full((3, 3), np.nan)):
        with pytest.raises(ValueError, match="rotation"):
            nearest_rotation(wrong)


angles = st.tuples(st.floats(0, 6.28), st.floats(-1.5, 1.5), st.floats(-3.1, 3.1))
places = st.tuples(st.floats(0.5, 50), st.floats(-100, 740), st.floats(-100, 580))
cameras = st.one_of(
    st.none(), st.tuples(st.floats(400, 2000), st.floats(400, 2000), st.floats(200, 440), st.floats(150, 330))
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("round_trip")


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(angles=angles, place=places, camera=cameras)
def test_a_pose_that_was_written_is_read_back(name, folder, angles, place, camera):
    item = car(Pose(*angles, *place), camera=camera, size=(0.4, 1.0, 0.6))
    path = folder / f"{name}{suffix(name)}"
    files, faults = write_poses(path, name, [item])
    assert not faults
    intrinsics = item.picture_camera() if name in ("ros", "bop") else None  # these do not hold their cameras
    [back], faults = read_poses(files[0], name, intrinsics=intrinsics)
    assert not faults
    assert geodesic_angle_of_poses(np.array(back.pose.angles), np.array(angles)) < 1e-7
    if name == "orient-anything":
        return
    assert (back.pose.distance, back.pose.px, back.pose.py) == pytest.approx(place, rel=1e-9, abs=1e-6)
    assert name == "colmap" or back.category == "car"
    assert back.picture == "a.jpg"
    if name not in ("bop", "colmap"):
        assert back.size == pytest.approx(item.size)


# ---------------------------------------------------------------- the command


def predictions(path, count=3):
    pose = {"azimuth": 0.5, "elevation": 0.1, "theta": 0.0, "distance": 3.0, "px": 100.0, "py": 90.0}
    lines = []
    for index in range(count):
        answer = Pose(**{**pose, "azimuth": 0.5 + index})
        lines.append(Prediction(f"car/n{index}/0", "mine", "car", "bus", answer, Pose(0.1, 0.2, 0.3), 0.5).to_dict())
    write_jsonl(path, lines)
    return lines


def test_predictions_go_out_and_come_back(tmp_path, capsys):
    predictions(tmp_path / "predictions.jsonl")
    words = ["--intrinsics", "500", "500", "128", "128"]
    out, back = tmp_path / "boxes.json", tmp_path / "back.jsonl"
    assert main([str(tmp_path / "predictions.jsonl"), "--to-format", "qwen3-vl", "--out", str(out), *words]) == 0
    assert json.loads(out.read_text())[2]["label"] == "bus"
    assert main([str(out), "--from-format", "qwen3-vl", "--to-format", "llava-pose", "--out", str(back)]) == 0
    read, _ = read_poses(back, "llava-pose")
    assert [item.id for item in read] == ["car/n0/0", "car/n1/0", "car/n2/0"]
    assert [item.pose.azimuth for item in read] == pytest.approx([0.5, 1.5, 2.5])
    assert read[0].pose.px == pytest.approx(100.0)


def test_metres_scale_distances_and_sizes_on_the_way_out_and_back(tmp_path):
    predictions(tmp_path / "p.jsonl", 1)
    convert(ConvertConfig(str(tmp_path / "p.jsonl"), "opencv", str(tmp_path / "cv.jsonl"), metres=2.5))
    assert json.loads((tmp_path / "cv.jsonl").read_text())["position"] == pytest.approx([0, 0, 7.5])
    convert(ConvertConfig(str(tmp_path / "cv.jsonl"), "llava-pose", str(tmp_path / "b.jsonl"), "opencv", metres=2.5))
    assert json.loads((tmp_path / "b.jsonl").read_text())["pose"]["distance"] == pytest.approx(3.0)


def test_a_table_of_poses_with_a_header_is_read(tmp_path):
    (tmp_path / "poses.csv").write_text("path,category,azimuth,elevation,theta,distance\na.jpg,car,1.0,0.2,0.1,\n")
    [item], _ = read_poses(tmp_path / "poses.csv", "llava-pose")
    assert (item.picture, item.category, item.pose.angles, item.pose.distance) == (
        "a.jpg",
        "car",
        (1.0, 0.2, 0.1),
        None,
    )
    write_poses(tmp_path / "again.csv", "llava-pose", [item])
    [again], _ = read_poses(tmp_path / "again.csv", "llava-pose")
    assert again == item


def test_what_a_model_answers_is_read_as_it_stands(tmp_path):
    text = 'Here they are:\n```json\n[{"bbox_3d": [0.1, 0.2, 3, 1, 1, 2, 0.1, -0.5, 0], "label": "car"}]\n```\n'
    (tmp_path / "answer.txt").write_text(text)
    [item], _ = read_poses(tmp_path / "answer.txt", "qwen3-vl", intrinsics=(500, 500, 320, 240))
    assert item.category == "car"
    assert item.size == pytest.approx((2, 1, 1))  # left to right (z), front to back (x), height (y)


def test_angles_in_radians_or_degrees_are_no_half_turns(tmp_path):
    (tmp_path / "a.json").write_text('[{"bbox_3d": [0, 0, 3, 1, 1, 1, 3, 1.5, 0], "label": "car"}]')
    with pytest.raises(InputError, match="half turns"):
        read_poses(tmp_path / "a.json", "qwen3-vl")


def test_bad_objects_are_named_and_the_others_written(tmp_path, capsys, caplog):
    lines = predictions(tmp_path / "p.jsonl")
    lines[1]["pose"] = None
    lines.append({"id": "x", "pose": {"azimuth": float("inf"), "elevation": 0, "theta": 0}})
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + "no json\n")
    code = main([str(tmp_path / "p.jsonl"), "--to-format", "opengl", "--out", str(tmp_path / "o.jsonl")])
    error = capsys.readouterr().err
    assert code == 2
    assert "3 of 5 poses could not be converted" in error
    assert len((tmp_path / "o.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "[1, 2]",
        "null",
        '{"matrix": [1], "results": 3}',
        "a,b\n1,2\n",
        '[{"bbox_3d": [1]}]',
        "1 2 3\n\n",
    ],
)
def test_a_file_that_is_something_else_is_one_sentence(name, text, tmp_path, capsys):
    path = tmp_path / f"input{suffix(name)}"
    path.write_text(text)
    words = [str(path), "--from-format", name, "--to-format", "opencv" if name != "opencv" else "ros"]
    assert main([*words, "--out", str(tmp_path / "out.jsonl")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert str(path) in error
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused(name, folder, data):
    path = folder / f"damaged_{name}{suffix(name)}"
    files, _ = write_poses(path, name, [car(), car()])
    text = files[0].read_text()
    start = data.draw(st.integers(0, len(text) - 1))
    junk = data.draw(st.sampled_from(["", "null", "NaN", "1e999", "-1", "[]", "{}", '"a"', "\x00", "true", ","]))
    files[0].write_text(text[:start] + junk + text[start + data.draw(st.integers(0, 6)) :])
    try:
        items, _ = read_poses(files[0], name)
    except InputError:
        return
    for item in items:
        assert all(map(math.isfinite, item.pose.angles))


JUNK = [None, 7, -1, "text", [], {}, [[]], [None], {"a": 1}, 1e308, True, 2**70, [1, 2, 3]]


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in ("bop", "colmap")])
def test_any_value_in_the_place_of_any_field_is_read_or_refused(name, tmp_path):
    path = tmp_path / f"a{suffix(name)}"
    write_poses(path, name, [car(camera=(700.0, 700.0, 320.0, 240.0))])
    value = json.loads(path.read_text())
    for index, place in enumerate(_places(value)):
        for junk in (JUNK[(4 * index + turn) % len(JUNK)] for turn in range(4)):  # all of them, in turn
            changed = json.loads(path.read_text())
            *outer, last = place
            inner = changed
            for step in outer:
                inner = inner[step]
            inner[last] = junk
            bad = tmp_path / f"bad{suffix(name)}"
            bad.write_text(json.dumps(changed))
            try:
                items, _ = read_poses(bad, name)
            except InputError:
                continue
            for item in items:
                assert all(map(math.isfinite, item.pose.angles))


def _places(value, path=()):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        if not isinstance(inner, list) or len(inner) != 36:  # the covariance, which nobody reads
            yield from _places(inner, (*path, key))


def test_a_camera_that_is_needed_is_asked_for(tmp_path, capsys):
    predictions(tmp_path / "p.jsonl")
    assert main([str(tmp_path / "p.jsonl"), "--to-format", "omni3d", "--out", str(tmp_path / "o.json")]) == 2
    assert "--intrinsics FX FY CX CY" in capsys.readouterr().err


@pytest.mark.parametrize("numbers", [["1", "2"], ["0", "1", "2", "3"], ["nan", "1", "2", "3"]])
def test_senseless_intrinsics_are_named(numbers, tmp_path, capsys):
    predictions(tmp_path / "p.jsonl")
    words = [
        str(tmp_path / "p.jsonl"),
        "--to-format",
        "ros",
        "--out",
        str(tmp_path / "o.jsonl"),
        "--intrinsics",
        *numbers,
    ]
    assert main(words) == 2
    assert "--intrinsics" in capsys.readouterr().err


def test_the_input_is_not_written_over(tmp_path, capsys):
    predictions(tmp_path / "p.jsonl")
    before = (tmp_path / "p.jsonl").read_bytes()
    assert main([str(tmp_path / "p.jsonl"), "--to-format", "unity", "--out", str(tmp_path / "p.jsonl")]) == 2
    assert (tmp_path / "p.jsonl").read_bytes() == before


def test_the_cameras_beside_the_input_are_not_written_over(tmp_path, capsys):
    write_poses(tmp_path / "images.txt", "colmap", [car()])
    before = (tmp_path / "cameras.txt").read_bytes()
    words = [str(tmp_path / "images.txt"), "--from-format", "colmap", "--to-format", "colmap"]
    assert main([*words, "--out", str(tmp_path / "others.txt")]) == 2
    assert "is one of the files that are read" in capsys.readouterr().err
    assert (tmp_path / "cameras.txt").read_bytes() == before


def test_the_convention_of_orient_anything_has_one_home():
    from eval.systems import orient_anything
    from llava_pose.pose import conventions

    assert orient_anything.pose_from_orient_anything is conventions.pose_from_orient_anything
    assert rotation_matrix(*conventions.pose_from_orient_anything(30, 20, 10)) == pytest.approx(
        rotation_matrix(*np.radians([30, 20, 10]))
    )


def test_every_convention_is_drawn_and_described():
    page = (REPOSITORY / "docs" / "POSE.md").read_text(encoding="utf-8")
    for name in CONVENTIONS:
        assert f"](images/conventions/{name}.png)" in page
        assert (REPOSITORY / "docs" / "images" / "conventions" / f"{name}.png").stat().st_size < 20_000
    for name in FORMATS:
        assert f"| `{name}` |" in page, "a row of the table"
