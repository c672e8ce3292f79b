"""Boxes and cameras of hostile numbers are one sentence, or listed; nothing is computed with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llava_pose.data.records import Pose, Prediction
from llava_pose.errors import InputError
from llava_pose.inference import photos
from llava_pose.inference.answers import PoseAnswer
from scripts.backgrounds import strips
from tests.hostile.data_commands import posed_object


@pytest.mark.parametrize("numbers", [[10**400] * 4, [1.5, 1.5, 10**400, 10**400]], ids=["all", "beside floats"])
def test_boxes_beyond_every_float_are_listed(numbers: list[float], tmp_path: Path) -> None:
    path = tmp_path / "boxes.json"
    images = [{"id": 1, "file_name": "a.jpg"}]
    good = {"image_id": 1, "bbox": [1, 2, 3, 4]}
    path.write_text(json.dumps({"images": images, "annotations": [{"image_id": 1, "bbox": numbers}, good]}))
    faults: list[InputError] = []
    assert [box for _, _, box, _ in photos._read_boxes(path, faults)] == [(1.0, 2.0, 4.0, 6.0)]
    assert len(faults) == 1


@pytest.mark.parametrize("change", [{"camera": (0.0, 1.0, 2.0, 3.0)}, {"width": 0.0}, {"viewport": -1.0}], ids=str)
def test_a_camera_that_is_none_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="positive number of pixels"):
        posed_object(**change)


def test_boxes_outside_of_a_picture_leave_no_background_larger_than_it() -> None:
    for box in ((1e30, 1e30, 1e30, 1e30), (-1e30, -1e30, -1e29, -1e29)):
        assert all(
            0 <= left < right <= 64 and 0 <= top < bottom <= 48
            for left, top, right, bottom in strips(64, 48, [box], 10)
        )


@pytest.mark.parametrize("confidence", [1e308, -1e308, 1e31])
def test_a_confidence_beyond_all_sums_is_a_sentence(confidence: float) -> None:
    pose = {"azimuth": 0.1, "elevation": 0.2, "theta": 0.3}
    line = {"id": "car/n/0", "category": "car", "pose": pose, "true": pose, "confidence": confidence}
    with pytest.raises(InputError, match="p:1: 'confidence' must be null or from 0 to 1, not"):
        Prediction.from_dict(line, where="p:1")


@pytest.mark.parametrize("distance", [float("nan"), float("inf")])
def test_an_answer_whose_distance_is_no_number_is_json_none_the_less(distance: float) -> None:
    answer = PoseAnswer(Pose(0.1, 0.2, 0.3, distance, 1.0, 2.0), 0.5, "car").to_dict()
    assert json.loads(json.dumps(answer, allow_nan=False))["pose"]["distance"] is None
