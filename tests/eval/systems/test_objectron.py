"""Objectron's networks as a system: its box and its picture in our convention always, the networks where they are."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.prepare.command import PrepareConfig, prepare
from eval.systems.objectron import KEYPOINTS, MODELS, Objectron, ObjectronOptions, _pose, _square, main
from eval.systems.system import asked_records
from llava_pose.data.records import ObjectRecord, Pose, read_predictions
from llava_pose.errors import InputError
from llava_pose.pose.geometry import project_points
from llava_pose.pose.metrics import pose_error
from tests.data_prep.made_scenes import make_prepared, make_record

MODELS_AT = os.environ.get("OBJECTRON_MODELS", "")  # package/ of npm's @mediapipe/objectron, unpacked


@pytest.fixture
def models() -> Path:
    pytest.importorskip("ai_edge_litert", reason="LiteRT is not installed: pip install 'llava-pose[objectron]'")
    if not MODELS_AT:
        pytest.skip("OBJECTRON_MODELS does not name a folder of Objectron's networks: npm pack @mediapipe/objectron")
    return Path(MODELS_AT)


def record_of(pose: Pose, bbox: tuple[float, float, float, float]) -> ObjectRecord:
    return ObjectRecord("chair/a.png", "chair/a/0", "chair", pose, 700.0, 256, 256, bbox, focal=1.5)


def test_the_corners_are_those_that_the_package_names():
    """index.d.ts of the package: which corner a number is, left and right as somebody sees them who faces the front."""
    back_bottom_left, front_bottom_left, back_top_left, front_top_left = KEYPOINTS[1:5]
    back_bottom_right, front_bottom_right, back_top_right, front_top_right = KEYPOINTS[5:]
    front, up, right = (0, -1, 0), (0, 0, 1), (1, 0, 0)  # of ours, seen from the front
    tops = np.stack([back_top_left, front_top_left, back_top_right, front_top_right])
    bottoms = np.stack([back_bottom_left, front_bottom_left, back_bottom_right, front_bottom_right])
    np.testing.assert_array_equal(tops - bottoms, np.tile(2 * np.array(up), (4, 1)))
    np.testing.assert_array_equal(tops[[1, 3]] - tops[[0, 2]], np.tile(2 * np.array(front), (2, 1)))
    np.testing.assert_array_equal(tops[2:] - tops[:2], np.tile(2 * np.array(right), (2, 1)))
    np.testing.assert_array_equal(KEYPOINTS[0], 0)


@pytest.mark.parametrize("azimuth", [0.0, 0.7, 2.4, 4.0])
@pytest.mark.parametrize("theta", [-0.3, 0.0, np.pi])
def test_keypoints_that_our_camera_sees_give_our_pose(azimuth: float, theta: float):
    """Objectron's camera has another focal length than the record's: at the same size in the picture the distance is ours."""
    size = np.array([0.45, 0.5, 0.74])
    size = size / np.linalg.norm(size)
    bbox = (60.0, 40.0, 180.0, 220.0)
    side = 1.5 * 180
    camera = {"distance": 2.5, "px": 126.0, "py": 133.0}
    truth = {"azimuth": azimuth, "elevation": 0.25, "theta": theta, **camera}
    pixels = project_points(KEYPOINTS * size / 2, **truth, viewport=2.0975 / 2 * side)
    points = (pixels - [120, 130]) / side  # from the middle of the square that is seen
    record = record_of(Pose(0, 0, 0), bbox)
    pose = _pose(points, record)
    assert np.degrees(pose_error(*(np.array(p) for p in (pose.angles, (azimuth, 0.25, theta))))) < 2
    assert (pose.px, pose.py) == pytest.approx((126.0, 133.0), abs=0.5)
    scale = (record.viewport * record.focal) / (
        2.0975 / 2 * side
    )  # of the record's camera to the one that was seen with
    assert pose.distance == pytest.approx(2.5 * scale, rel=0.01)


def test_an_object_without_extent_gets_no_pose():
    assert _pose(np.zeros((9, 2)), record_of(Pose(0, 0, 0), (5.0, 5.0, 5.0, 5.0))) is None
    assert _pose(np.full((9, 2), np.nan), record_of(Pose(0, 0, 0), (5.0, 5.0, 9.0, 9.0))) is None


def test_the_network_sees_half_as_much_again_as_the_box_and_the_border_repeated():
    width, height = 120, 100
    across, down = np.meshgrid(np.arange(width), np.arange(height))
    picture = Image.fromarray(np.stack([across, down, np.full_like(across, 200)], -1).astype(np.uint8))
    square = _square(picture, (60.0, 30.0, 100.0, 90.0)) * 255  # of 90 pixels about (80, 60): to 125 and 105
    assert (square.shape, square.dtype) == ((224, 224, 3), np.float32)
    middles = (np.arange(224) + 0.5) * 90 / 224
    np.testing.assert_allclose(square[5, :, 0], np.minimum(80 - 45 + middles - 0.5, width - 1), atol=1e-3)
    np.testing.assert_allclose(square[:, 7, 1], np.minimum(60 - 45 + middles - 0.5, height - 1), atol=1e-3)
    np.testing.assert_allclose(square[..., 2], 200, atol=1e-3)
    far = _square(picture, (-1e30, -1e30, 1e30, 1e30))
    assert np.isfinite(far).all()


def test_a_folder_without_the_networks_is_refused_in_a_sentence(tmp_path: Path, capsys):
    pytest.importorskip("ai_edge_litert", reason="LiteRT is not installed: pip install 'llava-pose[objectron]'")
    data = make_prepared(tmp_path / "prepared", [make_record("chair", 0, 0, np.random.default_rng(0))], "val")
    words = ["--models", str(tmp_path), "--data", str(data), "--output-dir", str(tmp_path / "out")]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "there is no object_detection_3d_chair.tflite" in error
    assert "npm pack @mediapipe/objectron" in error
    for name in MODELS.values():
        (tmp_path / name).write_bytes(b"no network")
    assert main(words) == 2
    assert "object_detection_3d_chair.tflite: is no TFLite file" in capsys.readouterr().err
    assert not (tmp_path / "out" / "predictions.jsonl").exists()


def test_categories_that_it_does_not_know_get_a_line_without_a_pose(models: Path, tmp_path: Path):
    rng = np.random.default_rng(0)
    records = [make_record(name, number, 0, rng) for number, name in enumerate(("chair", "car", "cup", "guitar"))]
    data = make_prepared(tmp_path / "prepared", records, "val")
    words = ["--models", str(models), "--data", str(data), "--output-dir", str(tmp_path / "out")]
    assert main(words) == 0
    lines = read_predictions(tmp_path / "out" / "predictions.jsonl")
    assert [line.id for line in lines] == [record.id for record in records]
    assert [line.pose is not None for line in lines] == [True, False, True, False]
    assert [line.confidence is not None for line in lines] == [True, False, True, False]
    assert {line.system for line in lines} == {"Objectron"}


def test_another_tflite_file_is_refused(models: Path, tmp_path: Path):
    for category, name in MODELS.items():
        (tmp_path / name).symlink_to(models / name)
        assert category in MODELS
    damaged = tmp_path / MODELS["cup"]
    damaged.unlink()
    damaged.write_bytes((models / MODELS["cup"]).read_bytes()[:1000])
    options = ObjectronOptions(models=str(tmp_path), data=str(tmp_path), output_dir=str(tmp_path / "out"))
    with pytest.raises(InputError, match="is no TFLite file that LiteRT can run"):
        Objectron(options).keypoints(Image.new("RGB", (64, 64)), (8, 8, 56, 56), "cup")


def test_real_chairs_stand_upright_and_face_where_they_are_annotated(models: Path, photos: Path, tmp_path: Path):
    """Of 61 chairs on photographs, most of them occluded, a third is within 30 degrees; chance is under one in a hundred."""
    root = tmp_path / "chairs"
    (root / "lists").mkdir(parents=True)
    for name in ("images", "annotations"):
        (root / name).symlink_to(photos / name)
    (root / "lists" / "chair_imagenet_val.txt").symlink_to(photos / "lists" / "chair_imagenet_val.txt")
    data = tmp_path / "prepared"
    prepare(PrepareConfig(str(root), str(data), splits="val", crop="box", workers=1))
    options = ObjectronOptions(models=str(models), data=str(data), output_dir=str(tmp_path / "out"))
    records = asked_records(options)
    answers = Objectron(options).answer(records)
    errors = np.degrees([pose_error(np.array(a.pose.angles), np.array(a.true.angles)) for a in answers])
    assert len(errors) == 61
    assert np.mean(errors < 30) > 0.25
    assert np.median(errors) < 60
    assert json.dumps([answer.to_dict() for answer in answers])
