"""`llava-pose inspect diff`: entries of one alone, changed fields with the largest differences, counts."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest

from data_prep.inspect.command import main
from data_prep.inspect.diff import compare
from data_prep.inspect.reading import open_dataset
from data_prep.prepare.command import main as prepare
from data_prep.raw.imagenet3d import RawLayout, read_annotation, write_annotation, write_list
from llava_pose.data.records import Pose, Prediction, read_records, write_jsonl


@pytest.fixture
def pair(raw_dataset, tmp_path) -> tuple[Path, Path]:
    """A raw dataset and the same once more, in a folder of its own."""
    for number in range(3):
        raw_dataset.add(f"car_{number}", objects=[raw_dataset.object(azimuth=0.1)])
    raw_dataset.add("mug", category="cup", split="val", objects=[raw_dataset.object(**{"class": "cup"})])
    other = tmp_path / "other"
    shutil.copytree(raw_dataset.root, other)
    return raw_dataset.root, other


def change(root: Path, category: str, name: str, **changes: object) -> None:
    file = RawLayout(root).annotation(category, name)
    [raw] = read_annotation(file)
    write_annotation(file, [{key: value for key, value in {**raw, **changes}.items() if value is not ...}])


def run(*words: object) -> int:
    return main(["diff", *map(str, words)])


def test_the_same_twice(pair, capsys):
    assert run(*pair) == 0
    out = capsys.readouterr().out
    assert "in both: 4, of which 0 differ" in out
    assert "only in A: 0" in out
    found = compare(*map(open_dataset, pair))
    assert (found["changed_fields"], found["categories"], found["splits"]) == ({}, {}, {})


def test_changed_fields_and_the_largest_of_them(pair, tmp_path, capsys):
    a, b = pair
    change(b, "car", "car_0", azimuth=0.4, note="new")
    change(b, "car", "car_1", azimuth=0.1 - 0.2 + 2 * math.pi, object_status="status_bad")
    change(b, "car", "car_2", dense=...)
    assert run(a, b, "--out", tmp_path / "diff.json") == 0
    found = json.loads((tmp_path / "diff.json").read_text())
    assert found["changed"] == 3
    azimuth = found["changed_fields"]["azimuth"]
    assert azimuth["count"] == 2
    assert azimuth["largest"] == pytest.approx(0.3)  # the other is 0.2 by the shorter way round
    assert azimuth["examples"][0] == {"id": "car/car_0/0", "a": 0.1, "b": 0.4, "difference": pytest.approx(0.3)}
    assert azimuth["examples"][1]["difference"] == pytest.approx(0.2)
    assert found["changed_fields"]["rotation (degrees)"]["largest"] == pytest.approx(math.degrees(0.3))
    assert found["changed_fields"]["note"]["examples"] == [{"id": "car/car_0/0", "a": "(missing)", "b": "new"}]
    assert found["changed_fields"]["dense"]["examples"][0]["b"] == "(missing)"
    assert found["statuses"] == {
        "status_bad": {"a": 0, "b": 1, "difference": 1},
        "status_good": {"a": 4, "b": 3, "difference": -1},
    }
    out = capsys.readouterr().out
    assert "azimuth                               2         0.3  car/car_0/0: 0.1 → 0.4" in out


def test_another_turn_of_the_same_angle_is_no_rotation(pair):
    a, b = pair
    change(b, "car", "car_0", azimuth=0.1 + math.pi, elevation=math.pi - 0.2, theta=6.2 + math.pi)
    found = compare(open_dataset(a), open_dataset(b))
    assert set(found["changed_fields"]) == {"azimuth", "elevation", "theta"}


def test_tolerance(pair):
    a, b = pair
    change(b, "car", "car_0", px=0.52 * 640 + 1e-4, distance=5.5)
    loose = compare(open_dataset(a), open_dataset(b), tolerance=1e-3)
    assert set(loose["changed_fields"]) == {"distance"}
    assert compare(open_dataset(a), open_dataset(b), tolerance=0.6)["changed"] == 0
    assert set(compare(open_dataset(a), open_dataset(b))["changed_fields"]) == {"px", "distance"}


def test_entries_of_one_alone_and_in_another_split(pair, capsys):
    a, b = pair
    layout = RawLayout(b)
    write_list(layout.list_file("car", "train"), ["car_0", "car_1"])
    write_list(layout.list_file("car", "val"), ["car_1"])  # twice: in train, and here
    write_list(layout.list_file("cup", "val"), [])
    write_list(layout.list_file("cup", "train"), ["mug"])
    found = compare(open_dataset(a), open_dataset(b))
    assert found["only_a"] == {"count": 1, "ids": ["car/car_2/0"]}
    assert found["only_b"] == {"count": 0, "ids": []}
    assert found["repeated_ids"] == {"a": 0, "b": 1}
    assert found["changed_fields"]["split"]["examples"] == [{"id": "cup/mug/0", "a": "val", "b": "train"}]
    assert found["splits"] == {}  # three and one, both times
    assert run(a, b) == 0
    out = capsys.readouterr().out
    assert "only in A: 1, such as car/car_2/0" in out
    assert "ids that come again and are not compared: A 0, B 1" in out


def test_prepared_folders_and_their_files(pair, tmp_path):
    for number, root in enumerate(pair):
        if number:
            change(root, "car", "car_0", object_status="status_partially")
        words = ["--data-root", str(root), "--out", str(tmp_path / f"p{number}"), "--size", "64", "--workers", "1"]
        assert prepare(words) == 0
    found = compare(open_dataset(tmp_path / "p0"), open_dataset(tmp_path / "p1"))
    assert set(found["changed_fields"]) == {"object_status"}
    assert run(tmp_path / "p0", tmp_path / "p1" / "val" / "metadata.jsonl") == 0


def test_predictions_by_system_and_id(pair, tmp_path):
    true = Pose(0.1, 0.2, 0.0)

    def written(name: str, turn: float) -> Path:
        path = tmp_path / name
        lines = [Prediction("a", system, "car", None, Pose(0.1 + turn, 0.2, 0.0), true) for system in ("one", "two")]
        write_jsonl(path, [line.to_dict() for line in lines])
        return path

    found = compare(*(open_dataset(written(name, turn)) for name, turn in (("x.jsonl", 0.0), ("y.jsonl", 0.25))))
    assert found["in_both"] == 2
    assert found["changed_fields"]["predicted rotation (degrees)"]["largest"] == pytest.approx(math.degrees(0.25))
    assert found["changed_fields"]["pose.azimuth"]["largest"] == pytest.approx(0.25)


@pytest.mark.parametrize("numbers", [1, 3])
def test_two_are_needed(pair, capsys, numbers):
    assert run(*([pair[0]] * numbers)) == 2
    assert f"give two datasets to compare, not {numbers}" in capsys.readouterr().err


def test_only_the_same_kind_is_compared(pair, tmp_path, capsys):
    assert prepare(["--data-root", str(pair[0]), "--out", str(tmp_path / "p"), "--size", "64", "--workers", "1"]) == 0
    assert read_records(tmp_path / "p", "train")
    capsys.readouterr()
    assert run(pair[0], tmp_path / "p") == 2
    err = capsys.readouterr().err
    assert "is a dataset in the raw layout and" in err
    assert "is a prepared folder: compare two of the same kind" in err
    assert run(*pair, "--tolerance", "-1") == 2
