"""ObjectRecord and Prediction on disk: nothing is lost on the way, and bad lines are named."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from llava_pose.data.jsonl import append_jsonl, drop_torn_line, read_jsonl, write_jsonl
from llava_pose.data.records import ObjectRecord, Pose, Prediction, read_predictions, read_records, write_records
from llava_pose.errors import InputError

POSE = Pose(0.1, -0.2, 0.3, 5.0, 100.5, 90.25)


def make_record(index: int = 0, **changes) -> ObjectRecord:
    fields = {
        "file_name": f"car/x_{index}_00.JPEG",
        "id": f"car/x_{index}/0",
        "category": "car",
        "pose": POSE,
        "viewport": 2000.0,
        "width": 224,
        "height": 200,
        "bbox": (-3.5, 0.0, 220.0, 199.0),
        "object_status": "status_partially",
        "crop": {"left": 3.0, "top": -2.0, "scale": 0.5},
        "source": {"source": "eth80", "cad_index": 2, "Überschrift": "naïve"},
    }
    return ObjectRecord(**{**fields, **changes})


def make_prediction(index: int = 0, **changes) -> Prediction:
    fields = {
        "id": f"car/x_{index}/0",
        "system": "ours",
        "category": "car",
        "pred_category": "bus",
        "pose": Pose(1.0, 0.5, 0.0),
        "true": POSE,
        "confidence": 0.75,
        "source": "eth80",
    }
    return Prediction(**{**fields, **changes})


def as_json(value: dict, **changes) -> str:
    return json.dumps({**value, **changes})


# Records


def test_records_come_back_as_they_went(tmp_path):
    records = [make_record(i) for i in range(3)]
    path = write_records(tmp_path, "train", records)
    assert path == tmp_path / "train" / "metadata.jsonl"
    assert read_records(tmp_path, "train") == records
    assert list(path.parent.iterdir()) == [path]  # no temporary file stays behind


def test_occluded():
    assert make_record().occluded
    assert not make_record(object_status="status_good").occluded


def test_fields_with_defaults_may_be_missing(tmp_path):
    value = make_record().to_dict()
    for name in ("focal", "object_status", "crop", "source"):
        del value[name]
    write_jsonl(tmp_path / "val" / "metadata.jsonl", [value])
    (record,) = read_records(tmp_path, "val")
    assert (record.focal, record.object_status, record.crop, record.source) == (1.0, "status_good", {}, {})


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"azimut": 1}, "unknown field 'azimut'"),
        ({"pose": None}, "a pose must be an object"),
        ({"pose": {"azimuth": 1.0, "elevation": 0.0}}, "no 'theta'"),
        ({"pose": {"azimuth": "east", "elevation": 0.0, "theta": 0.0}}, "'azimuth' must be a number, not 'east'"),
        ({"pose": {"azimuth": 10**400, "elevation": 0.0, "theta": 0.0}}, "'azimuth' must be a number"),
        ({"pose": {"azimuth": None, "elevation": 0.0, "theta": 0.0}}, "not finite"),
        ({"bbox": 5}, "'bbox' must be four numbers"),
        ({"bbox": [1, 2, 3]}, "'bbox' must be four numbers"),
        ({"bbox": [1, 2, 3, None]}, "'bbox' must be four numbers"),
        ({"width": "224"}, "'width' must be a positive number, not '224'"),
        ({"viewport": None}, "'viewport' must be a positive number"),
        ({"viewport": 0}, "'viewport' must be a positive number, not 0"),
        ({"height": -1}, "'height' must be a positive number, not -1"),
        ({"source": []}, r"'source' must be a JSON object, not \[\]"),
        ({"crop": 5}, "'crop' must be a JSON object, not 5"),
        ({"object_status": None}, "'object_status' must be text, not None"),
        ({"id": 7}, "'id' must be text"),
    ],
)
def test_a_malformed_record_is_named(tmp_path, change, match):
    path = tmp_path / "train" / "metadata.jsonl"
    write_jsonl(path, [make_record(0).to_dict(), {**make_record(1).to_dict(), **change}])
    with pytest.raises(InputError, match=match) as caught:
        read_records(tmp_path, "train")
    assert str(caught.value).startswith(f"{path}:2")


@pytest.mark.parametrize("name", ["file_name", "id", "category", "pose", "viewport", "width", "height", "bbox"])
def test_a_missing_field_is_named(tmp_path, name):
    value = make_record().to_dict()
    del value[name]
    write_jsonl(tmp_path / "train" / "metadata.jsonl", [value])
    with pytest.raises(InputError, match=f"no '{name}'.*prepare"):
        read_records(tmp_path, "train")


def test_two_records_with_one_id_are_refused(tmp_path):
    write_records(tmp_path, "train", [make_record(1), make_record(2), make_record(1)])
    with pytest.raises(InputError, match=r"'car/x_1/0' stands on two lines"):
        read_records(tmp_path, "train")


def test_a_missing_split_is_told_from_those_that_are_there(tmp_path):
    write_records(tmp_path, "train", [make_record()])
    with pytest.raises(InputError, match="there is no split val in it, but train; give one that is there, or make it"):
        read_records(tmp_path, "val")


def test_a_missing_split_says_how_to_make_it(tmp_path):
    with pytest.raises(InputError, match="llava-pose prepare"):
        read_records(tmp_path, "train")


# Predictions


def test_predictions_come_back_as_they_went(tmp_path):
    predictions = [make_prediction(0), make_prediction(1, pose=None, pred_category=None, confidence=None)]
    path = tmp_path / "predictions.jsonl"
    write_jsonl(path, (p.to_dict() for p in predictions))
    assert read_predictions(path) == predictions


def test_what_is_not_finite_is_written_as_null_and_read_as_nan(tmp_path):
    path = tmp_path / "predictions.jsonl"
    broken = make_prediction(pose=Pose(math.nan, 0.0, math.inf, math.nan, None, 3.0), confidence=math.nan)
    write_jsonl(path, [broken.to_dict()])
    assert "NaN" not in path.read_text()
    assert "Infinity" not in path.read_text()
    (prediction,) = read_predictions(path)
    assert math.isnan(prediction.pose.azimuth)
    assert math.isnan(prediction.pose.theta)
    assert prediction.pose.elevation == 0.0
    assert (prediction.pose.distance, prediction.pose.px, prediction.pose.py) == (None, None, 3.0)
    assert prediction.confidence is None


def test_nan_of_another_writer_is_read_as_nan(tmp_path):
    path = tmp_path / "theirs.jsonl"
    value = {"id": "a", "category": "car", "true": {"azimuth": 0, "elevation": 0, "theta": 0}}
    pose = {"azimuth": math.nan, "elevation": math.inf, "theta": 1}
    path.write_text(json.dumps({**value, "pose": pose, "confidence": math.nan}) + "\n")
    (prediction,) = read_predictions(path)
    assert math.isnan(prediction.pose.azimuth)
    assert prediction.confidence is None


def test_numpy_numbers_are_written(tmp_path):
    path = tmp_path / "predictions.jsonl"
    pose = Pose(*np.array([0.5, 0.25, 1.0], dtype=np.float32), distance=np.float64(2.0))
    write_jsonl(path, [make_prediction(pose=pose, confidence=np.float32(0.5)).to_dict()])
    (prediction,) = read_predictions(path)
    assert prediction.pose == Pose(0.5, 0.25, 1.0, 2.0)
    assert prediction.confidence == 0.5


def test_other_peoples_files_are_read(tmp_path):
    """The least that scoring needs, extra fields, whole numbers, blank lines, CRLF and a byte order mark."""
    path = tmp_path / "theirs.jsonl"
    angles = {"azimuth": 1, "elevation": 0, "theta": 0}
    lines = [
        {"id": "a", "category": "car", "true": angles, "pose": {**angles, "roll": 3}, "model_version": "x"},
        {"id": 17, "category": "bus", "true": angles, "system": None, "confidence": "high"},
    ]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n\r\n".join(json.dumps(line) for line in lines).encode())
    first, second = read_predictions(path)
    assert first == Prediction("a", "unnamed", "car", None, Pose(1, 0, 0), Pose(1, 0, 0))
    assert (second.id, second.system, second.pose, second.confidence) == ("17", "unnamed", None, None)


GOOD = make_prediction().to_dict()


@pytest.mark.parametrize(
    ("line", "match"),
    [
        (as_json(GOOD)[:-9], "not valid JSON.*cut off"),
        ("[1, 2]", "expected a JSON object, found a list"),
        (as_json(GOOD, id=None), "no 'id'"),
        (as_json({k: v for k, v in GOOD.items() if k != "true"}), "no 'true'"),
        (as_json(GOOD, true={"azimuth": None, "elevation": 0, "theta": 0}), "true pose is not finite"),
        (as_json(GOOD, pose=[0, 0, 0]), "'pose': a pose must be an object"),
        (as_json(GOOD, pose={"azimuth": True, "elevation": 0, "theta": 0}), "'azimuth' must be a number, not True"),
        (as_json(GOOD, true={**GOOD["true"], "px": False}), "'px' must be a number, not False"),
        (as_json(GOOD, pose={"azimuth": 1}), "'pose': the pose has no 'elevation'"),
        (as_json(GOOD, id="9" * 50).replace('"' + "9" * 50 + '"', "9" * 5000), "not valid JSON"),
    ],
)
def test_a_malformed_prediction_is_named(tmp_path, line, match):
    path = tmp_path / "predictions.jsonl"
    path.write_text(as_json(GOOD, id="another") + "\n" + line + "\n")
    with pytest.raises(InputError, match=match) as caught:
        read_predictions(path)
    assert str(caught.value).startswith(f"{path}:2")


def test_a_system_answers_an_object_once(tmp_path):
    path = tmp_path / "predictions.jsonl"
    write_jsonl(path, [make_prediction().to_dict(), make_prediction(system="theirs").to_dict()])
    assert len(read_predictions(path)) == 2  # two systems may answer the same object
    append_jsonl(path, [make_prediction().to_dict()])
    with pytest.raises(InputError, match="stands on two lines"):
        read_predictions(path)


@pytest.mark.parametrize(
    ("content", "match"), [(b"", "no prediction"), (b"\n \n", "no prediction"), (b"\xff\xfe{}\n", "not UTF-8 text")]
)
def test_a_file_without_predictions_is_refused(tmp_path, content, match):
    path = tmp_path / "predictions.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=match):
        read_predictions(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.jsonl: cannot read the file \(No such file"):
        read_predictions(tmp_path / "nowhere.jsonl")


# Files that grow


def test_a_torn_line_is_dropped_and_the_rest_kept(tmp_path):
    path = tmp_path / "predictions.jsonl"
    append_jsonl(path, [{"id": 1}, {"id": "Ü"}])
    whole = path.read_bytes()
    for torn in (b'{"id": 3', b'{"id": 3}', "Ü".encode()[:1]):
        path.write_bytes(whole + torn)
        drop_torn_line(path)
        assert path.read_bytes() == whole
    append_jsonl(path, [{"id": 4}])
    assert [value["id"] for _, value in read_jsonl(path)] == [1, "Ü", 4]


def test_dropping_from_nothing_does_nothing(tmp_path):
    path = tmp_path / "predictions.jsonl"
    drop_torn_line(path)
    assert not path.exists()
    path.write_bytes(b"no line end at all")
    drop_torn_line(path)
    assert path.read_bytes() == b""


def test_nan_is_no_json(tmp_path):
    path = tmp_path / "x.jsonl"
    write_jsonl(path, [{"x": 1}])
    for write in (write_jsonl, append_jsonl):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write(path, [{"x": 2}, {"x": math.nan}])
    assert path.read_text() == '{"x": 1}\n'  # what stood there is whole
