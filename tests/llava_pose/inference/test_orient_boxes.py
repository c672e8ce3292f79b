"""The front of boxes that have none: found from the true rotation, and by a checkpoint with random weights as a whole."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from llava_pose.data.poses.formats import read_poses, write_poses
from llava_pose.data.poses.posed_object import PosedObject, project_box
from llava_pose.data.records import Pose
from llava_pose.inference.orient_boxes import main, nearest_orientation
from llava_pose.pose.conventions import box_corners, box_orientations, camera_of_pose
from llava_pose.pose.geometry import angles_from_rotation, geodesic_angle, rotation_matrix

CAMERA = (300.0, 300.0, 160.0, 120.0)


def box(azimuth=0.6, elevation=0.3, theta=-0.1, picture="a.png", **changes):
    pose = Pose(azimuth, elevation, theta, 6.0, 200.0, 100.0)
    known = {"camera": CAMERA, "width": 320.0, "height": 240.0, "size": (0.4, 1.0, 0.6)}
    return PosedObject("b", picture, "car", pose, **{**known, **changes})


def corners_in_the_camera(item):
    pose = vars(item.pose)
    seen = camera_of_pose(**pose, intrinsics=CAMERA)
    corners = box_corners(item.size) @ seen.rotation.T + seen.translation
    return corners[np.lexsort(np.round(corners, 6).T)]


def turned_box(item, turn):
    """The same box with its axes named otherwise."""
    azimuth, elevation, theta = map(float, angles_from_rotation(rotation_matrix(*item.pose.angles) @ turn))
    size = tuple((np.abs(turn).T @ item.size).tolist())
    return replace(item, pose=replace(item.pose, azimuth=azimuth, elevation=elevation, theta=theta), size=size)


@pytest.mark.parametrize("which", ["upright", "all"])
@pytest.mark.parametrize("noise", [0, 20])
def test_the_true_front_comes_back_whichever_way_the_box_was_named(which, noise):
    """Every naming of the box leads to the one whose front is the object's, also from a rotation that is 20 degrees off."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        azimuth, elevation, theta = rng.uniform(0, 6.28), rng.uniform(-0.4, 1.2), rng.uniform(-0.3, 0.3)
        true = box(azimuth, elevation, theta)
        wrong = Rotation.from_rotvec(
            np.radians(noise) * (axis := rng.normal(size=3)) / np.linalg.norm(axis)
        ).as_matrix()
        predicted = wrong @ rotation_matrix(*true.pose.angles)
        for turn in box_orientations(which):
            found, left = nearest_orientation(turned_box(true, turn), predicted, which)
            assert geodesic_angle(*(rotation_matrix(*i.pose.angles) for i in (found, true))) < 1e-7
            assert found.size == pytest.approx(true.size)
            assert np.degrees(left) == pytest.approx(noise, abs=1e-6)


def test_the_box_itself_stays_where_it_is():
    item = box()
    for rotation in Rotation.random(20, random_state=0).as_matrix():
        for which in ("upright", "all"):
            found, _ = nearest_orientation(item, rotation, which)
            np.testing.assert_allclose(corners_in_the_camera(found), corners_in_the_camera(item), atol=1e-9)
            assert project_box(found) == pytest.approx(project_box(item))


def test_upright_boxes_keep_their_top():
    item = box()
    upside_down = rotation_matrix(*item.pose.angles) @ np.diag([-1.0, 1.0, -1.0])
    found, _ = nearest_orientation(item, upside_down)
    up = [rotation_matrix(*i.pose.angles)[:, 2] for i in (item, found)]
    np.testing.assert_allclose(*up, atol=1e-12)
    found, left = nearest_orientation(item, upside_down, "all")
    assert left < 1e-7


def scene(folder, name="qwen3-vl", **changes):
    folder.mkdir(exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (240, 320, 3), dtype=np.uint8)).save(folder / "a.png")
    items = [box(azimuth=0.3 + index, **changes) for index in range(3)]
    path = folder / "boxes.json"
    write_poses(path, name, items)
    return path


@pytest.mark.parametrize("name", ["qwen3-vl", "omni3d"])
def test_a_checkpoint_turns_the_boxes_of_a_file(name, tiny_base, tmp_path, caplog):
    """Random weights see some rotation; each box comes back as the naming of it that is nearest to that."""
    caplog.set_level("INFO")
    boxes = scene(tmp_path / "pictures", name)
    out = tmp_path / "oriented.json"
    words = ["--pictures", str(tmp_path / "pictures"), "--checkpoint", str(tiny_base), "--format", name]
    assert main([str(boxes), *words, "--out", str(out), "--device", "cpu", "--batch-size", "2"]) == 0
    before, _ = read_poses(boxes, name)
    after, _ = read_poses(out, name)
    assert len(after) == len(before) == 3
    for old, new in zip(before, after, strict=True):
        np.testing.assert_allclose(corners_in_the_camera(new), corners_in_the_camera(old), atol=1e-7)
        assert 0 <= new.confidence <= 1
    assert "3 boxes are in" in caplog.messages[-1]
    again = tmp_path / "again.json"
    assert main([str(out), *words, "--out", str(again), "--device", "cpu"]) == 0
    thrice, _ = read_poses(again, name)
    for old, new in zip(after, thrice, strict=True):
        assert geodesic_angle(*(rotation_matrix(*i.pose.angles) for i in (old, new))) < 1e-4, (
            "a front that is right stays"
        )


def test_the_answer_of_qwen3_vl_about_one_picture(tiny_base, tmp_path):
    scene(tmp_path / "pictures")
    answer = [{"bbox_3d": [0.4, -0.2, 5.0, 1.8, 0.6, 0.7, 0.02, -0.3, 0.01], "label": "sofa"}]
    (tmp_path / "answer.txt").write_text(f"```json\n{json.dumps(answer)}\n```")
    words = [str(tmp_path / "answer.txt"), "--pictures", str(tmp_path / "pictures"), "--picture", "a.png"]
    words += ["--intrinsics", "300", "300", "160", "120", "--checkpoint", str(tiny_base), "--device", "cpu"]
    assert main([*words, "--out", str(tmp_path / "out.json")]) == 0
    [found] = json.loads((tmp_path / "out.json").read_text())
    assert sorted(found["bbox_3d"][3:6]) == pytest.approx(sorted(answer[0]["bbox_3d"][3:6]))
    assert found["bbox_3d"][:3] == pytest.approx(answer[0]["bbox_3d"][:3])
    assert found["label"] == "sofa"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"picture": "no.png"}, "no.png"),
        ({"picture": "../a.png"}, "leads out of its folder"),
        ({"picture": ""}, "--picture"),
        ({"size": None}, ""),
        ({"pose": Pose(0.6, 0.3, -0.1, 6.0, -300.0, 100.0)}, "outside of its picture"),
    ],
)
def test_a_box_that_cannot_be_seen_is_named_and_the_others_done(change, words, tiny_base, tmp_path, capsys):
    scene(tmp_path / "pictures")
    shutil.copy(tmp_path / "pictures" / "a.png", tmp_path / "a.png")
    items = [box(), replace(box(), **change), box()]
    write_poses(tmp_path / "boxes.jsonl", "opencv", items)
    options = ["--pictures", str(tmp_path / "pictures"), "--checkpoint", str(tiny_base), "--device", "cpu"]
    out = tmp_path / "out.jsonl"
    code = main([str(tmp_path / "boxes.jsonl"), "--format", "opencv", *options, "--out", str(out)])
    error = capsys.readouterr().err
    assert code == 2, error
    assert "1 of 3 boxes could not be taken" in error
    assert words in error
    assert len(out.read_text().splitlines()) == 2


def test_the_boxes_are_not_written_over(tiny_base, tmp_path):
    boxes = scene(tmp_path / "pictures")
    before = boxes.read_bytes()
    words = ["--pictures", str(tmp_path / "pictures"), "--checkpoint", str(tiny_base), "--device", "cpu"]
    assert main([str(boxes), *words, "--out", str(boxes)]) == 2
    assert boxes.read_bytes() == before
