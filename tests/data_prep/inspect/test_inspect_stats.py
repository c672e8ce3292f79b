"""`llava-pose inspect`: any stage's output is known by what is in it, and counted."""

from __future__ import annotations

import html
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from data_prep.caption.command import main as caption
from data_prep.inspect.command import main
from data_prep.inspect.entries import Dataset, Entry
from data_prep.inspect.reading import open_dataset
from data_prep.inspect.report import statistics_text
from data_prep.inspect.statistics import statistics
from data_prep.instruct.command import main as instruct
from data_prep.prepare.command import main as prepare
from llava_pose.data.jsonl import write_jsonl
from llava_pose.data.records import Pose, Prediction, read_records
from llava_pose.errors import InputError


@pytest.fixture
def raw(raw_dataset) -> Path:
    make = raw_dataset.object
    raw_dataset.add("front", objects=[make(azimuth=0.0, elevation=0.0, theta=0.0)])
    raw_dataset.add("two", objects=[make(object_status="status_partially"), make(object_status="status_bad")])
    raw_dataset.add(
        "mug", category="cup", split="val", objects=[make(**{"class": "cup", "cad_index": ..., "dense": ...})]
    )
    return raw_dataset.root


@pytest.fixture
def prepared(raw, tmp_path) -> Path:
    out = tmp_path / "prepared"
    assert prepare(["--data-root", str(raw), "--out", str(out), "--size", "64", "--workers", "1"]) == 0
    return out


@pytest.fixture
def train_json(prepared) -> Path:
    assert instruct(["--data", str(prepared), "--out", str(prepared / "train.json")]) == 0
    return prepared / "train.json"


@pytest.fixture
def predictions(prepared, tmp_path) -> Path:
    lines = []
    for split in ("train", "val"):
        for number, record in enumerate(read_records(prepared, split)):
            pose = None if number == 1 else Pose(record.pose.azimuth + 0.1, record.pose.elevation, record.pose.theta)
            lines.append(Prediction(record.id, "net", record.category, "car", pose, record.pose).to_dict())
    path = tmp_path / "predictions.jsonl"
    write_jsonl(path, lines)
    return path


class TestReading:
    def test_raw(self, raw):
        dataset = open_dataset(raw)
        assert dataset.kind == "raw"
        assert [entry.id for entry in dataset.entries] == ["car/front/0", "car/two/0", "car/two/1", "cup/mug/0"]
        front, mug = dataset.entries[0], dataset.entries[3]
        assert (front.split, front.category, front.status, front.size) == ("train", "car", "status_good", (640, 480))
        assert front.poses == (Pose(0.0, 0.0, 0.0, 5.0, 0.52 * 640, 0.47 * 480),)
        assert front.viewport == 2000
        assert front.picture == raw / "images" / "car" / "front.JPEG"
        assert mug.missing == ("cad_index", "dense", "source", "instance")
        assert [problem.reason for problem in dataset.problems] == ["filtered: status_bad"]
        assert dataset.cad is None

    def test_prepared_and_its_files(self, raw, prepared, train_json):
        (raw / "CAD").mkdir()
        dataset = open_dataset(prepared)
        assert dataset.kind == "prepared"
        assert [(entry.id, entry.split) for entry in dataset.entries] == [
            ("car/front/0", "train"),
            ("car/two/0", "train"),
            ("cup/mug/0", "val"),
        ]
        assert dataset.cad == raw / "CAD"
        lines = open_dataset(prepared / "val" / "metadata.jsonl")
        assert (lines.kind, lines.entries, lines.cad) == ("records", dataset.entries[2:], dataset.cad)
        texts = open_dataset(train_json)
        assert texts.kind == "instructions"
        assert {entry.split for entry in texts.entries} == {"train"}
        assert all(entry.poses and entry.picture.is_file() for entry in texts.entries)
        assert texts.problems == ()

    def test_predictions(self, predictions):
        dataset = open_dataset(predictions)
        assert dataset.kind == "predictions"
        assert [entry.predicted is None for entry in dataset.entries] == [False, True, False]
        assert dataset.entries[1].missing == ("pose", "confidence")

    def test_captions(self, prepared, tmp_path):
        image, path = "train/car/front_00.JPEG", prepared / "captions.jsonl"
        assert caption(["--data", str(prepared), "--split", "train", "--out", str(path)]) == 0
        dataset = open_dataset(path)
        assert dataset.kind == "captions"
        assert dataset.problems == ()
        [front] = [entry for entry in dataset.entries if entry.id == image]
        [record] = [entry for entry in open_dataset(prepared).entries if entry.id == "car/front/0"]
        assert (front.category, front.split, front.source) == ("car", "train", "grammar")
        assert (front.poses, front.bbox, front.viewport) == (record.poses, record.bbox, record.viewport)
        assert "<pose6D>" in front.texts[0]
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        [line] = [line for line in lines if line["image"] == image]
        bad = [
            {**line, "caption": "Nothing."},
            {**line, "status": "failed", "caption": "", "objects": [], "reason": "it names a dog"},
            {**line, "objects": ["car/nobody/0"]},
            {"caption": "A car."},
        ]
        write_jsonl(path, bad)
        dataset = open_dataset(path)
        assert [problem.reason for problem in dataset.problems] == [
            "tokens and objects differ",
            "caption failed",
            "object unknown",
            "caption malformed",
        ]
        assert dataset.problems[1].sentence.endswith("captions.jsonl:2: it names a dog")
        write_jsonl(tmp_path / "elsewhere.jsonl", lines)
        assert open_dataset(tmp_path / "elsewhere.jsonl", prepared=str(prepared)).entries[0].poses
        assert not open_dataset(tmp_path / "elsewhere.jsonl").entries[0].poses

    def test_a_bad_object_stops_nothing(self, raw_dataset):
        make = raw_dataset.object
        raw_dataset.add("good")
        raw_dataset.add("no_angle", objects=[make(azimuth=...)])
        raw_dataset.add("degrees", objects=[make(azimuth=300.0)])
        raw_dataset.add("no_file", objects=b"")
        raw_dataset.add("damaged", objects=b"PK no zip")
        raw_dataset.add("no_picture", image=b"")
        raw_dataset.add("empty", objects=[])
        (raw_dataset.root / "lists" / "car_imagenet_val.txt").write_text("../../secret\n")
        (raw_dataset.root / "annotations" / "car" / "unlisted.npz").write_bytes(b"")
        dataset = open_dataset(raw_dataset.root)
        assert len(dataset.entries) == 4
        assert {problem.reason for problem in dataset.problems} == {
            *("azimuth missing", "azimuth out of range", "annotation missing", "annotation unreadable"),
            *("image missing", "annotation empty", "bad name", "annotation in no list"),
        }
        assert dataset.entries[1].poses == ()
        assert dataset.entries[1].missing == ("azimuth",)

    def test_bad_lines_are_problems(self, prepared):
        file = prepared / "train" / "metadata.jsonl"
        good = file.read_text().splitlines()
        file.write_text("\n".join(['{"torn": ', good[0], good[1].replace('"bbox"', '"box"'), "[]", good[1]]))
        dataset = open_dataset(prepared)
        assert [problem.reason for problem in dataset.problems] == [
            "line unreadable",
            "record malformed",
            "line unreadable",
        ]
        assert [entry.id for entry in dataset.entries] == ["car/front/0", "car/two/0", "cup/mug/0"]

    def test_a_bad_line_of_any_file_is_named_counted_and_passed_over(self, prepared, train_json, predictions, tmp_path):
        captions = prepared / "captions.jsonl"
        assert caption(["--data", str(prepared), "--split", "train", "--out", str(captions)]) == 0
        lines = {
            "records": (prepared / "train" / "metadata.jsonl").read_text().splitlines(),
            "captions": captions.read_text().splitlines(),
            "instructions": [json.dumps(item) for item in json.loads(train_json.read_text())],
            "predictions": predictions.read_text().splitlines(),
        }
        for kind, good in lines.items():
            file = prepared / f"{kind}.jsonl"
            torn = b'{"torn": ', b'{"no text": "\xff"}', b'"text"'
            file.write_bytes(b"\n".join([torn[0], good[0].encode(), torn[1], *map(str.encode, good[1:]), torn[2]]))
            dataset = open_dataset(file)
            assert (dataset.kind, len(dataset.entries)) == (kind, len(good))
            bad = [problem.sentence for problem in dataset.problems if problem.reason == "line unreadable"]
            numbers = [1, 3, len(good) + 3]
            assert [sentence.split(": ")[0] for sentence in bad] == [f"{file}:{number}" for number in numbers]
            assert statistics(dataset)["problems"]["line unreadable"]["count"] == 3

    @pytest.mark.parametrize(
        ("name", "content", "said"),
        [
            ("none", None, "there is no such file or folder; give a raw dataset"),
            ("empty.jsonl", "", "there is nothing in it"),
            ("text.jsonl", "hello", "neither a JSON array nor JSON Lines"),
            ("torn.json", '[{"conversations": [', "not valid JSON"),
            ("other.jsonl", '{"a": 1, "b": 2}', "no record, caption, conversation or prediction (it has a, b)"),
            ("other.json", '[{"a": 1}]', "none of its 1 items has 'conversations'"),
            ("torn.jsonl", '{"a": ', "torn.jsonl:1: not valid JSON"),
            ("all_torn.jsonl", '{"a": \n{"b": ', "all_torn.jsonl:1: not valid JSON"),
            ("later.jsonl", '{"a": \n{"b": 1}', "later.jsonl:2: the line is no record"),
        ],
    )
    def test_what_is_no_dataset(self, tmp_path, capsys, name, content, said):
        if content is not None:
            (tmp_path / name).write_text(content)
        assert main([str(tmp_path / name)]) == 2
        err = capsys.readouterr().err
        assert said in err
        assert str(tmp_path / name) in err
        assert err.count("\n") == 1

    def test_folders_that_are_no_dataset(self, prepared, tmp_path):
        with pytest.raises(InputError, match="it is no dataset; give a raw dataset"):
            open_dataset(prepared / "train" / "car")
        with pytest.raises(InputError, match="one split of a prepared folder; give"):
            open_dataset(prepared / "train")
        (tmp_path / "processed" / "train" / "annotations").mkdir(parents=True)
        with pytest.raises(InputError, match="processed layout"):
            open_dataset(tmp_path / "processed")
        with pytest.raises(InputError, match=r"--prepared .*none: there is no such folder"):
            open_dataset(prepared / "train" / "metadata.jsonl", prepared=str(tmp_path / "none"))


class TestStatistics:
    def test_counts_of_a_raw_dataset(self, raw):
        found = statistics(open_dataset(raw))
        assert (found["entries"], found["pictures"], found["poses"], found["categories"]) == (4, 3, 4, 2)
        assert found["by_split"] == {"train": 3, "val": 1}
        assert found["by_status"] == {"status_good": 2, "status_bad": 1, "status_partially": 1}
        assert found["by_meta_class"] == {"Vehicles": 3, "Household": 1}
        assert found["by_category"] == {"car": {"train": 3}, "cup": {"val": 1}}
        assert found["missing"] == {"source": 4, "instance": 4, "cad_index": 1, "dense": 1}
        assert found["problems"]["filtered: status_bad"]["count"] == 1
        assert found["box"]["longer_side"]["p50"] == 320
        assert found["box"]["share_of_picture"]["p50"] == pytest.approx(0.2)
        assert found["box"]["over_the_edge"] == 0
        json.dumps(found, allow_nan=False)

    def test_histograms_are_of_canonical_angles(self):
        poses = [(0.0, 0.0, 0.0), (-0.01, 0.0, 0.0), (0.3 + math.pi, math.pi - 0.2, math.pi)]  # the last: 0.3, 0.2, 0
        entries = [Entry(str(number), poses=(Pose(*angles),)) for number, angles in enumerate(poses)]
        angles = statistics(Dataset(Path("d"), "raw", tuple(entries)))["angles"]
        azimuth, elevation, theta = (np.array(angles[name]["counts"]) for name in ("azimuth", "elevation", "theta"))
        assert len(azimuth) == len(theta) == 36
        assert len(elevation) == 18
        assert np.flatnonzero(azimuth).tolist() == [0, 1, 35]  # 0 degrees, 17 degrees, just below 360
        assert elevation[9:11].tolist() == [2, 1]
        assert theta[18] == 3
        assert angles["theta"]["empty_bins"] == 35
        assert angles["theta"]["concentration"] == 1

    @pytest.mark.parametrize("rounding", [-1e-12, 0.0, 1e-12])
    def test_labels_at_multiples_of_ten_degrees_stay_together(self, rounding):
        entries = (Entry("a", poses=(Pose(math.radians(70) + rounding, 0.0, 0.0),)),)
        counts = statistics(Dataset(Path("d"), "raw", entries))["angles"]["azimuth"]["counts"]
        assert counts[7] == 1

    def test_duplicates(self, raw_dataset):
        picture = raw_dataset.picture(seed=5)
        raw_dataset.add("same", image=picture)
        raw_dataset.add("again", image=picture, objects=[raw_dataset.object(), raw_dataset.object()])
        raw_dataset.add("other", split="val", image=picture)
        raw_dataset.add("same", split="val", image=picture)
        found = statistics(open_dataset(raw_dataset.root))["duplicates"]
        assert found["same id"] == {"count": 1, "examples": [["car/same/0", "car/same/0"]]}
        assert found["same object twice in a picture"]["examples"] == [["car/again/0", "car/again/1"]]
        [[in_train, in_val]] = found["picture in several splits"]["examples"]
        assert in_train.startswith("train: ")
        assert in_val.startswith("val: ")

    def test_a_sound_dataset_has_no_duplicates(self, raw, prepared):
        assert statistics(open_dataset(raw))["duplicates"].keys() <= {"same object twice in a picture"}
        assert statistics(open_dataset(prepared))["duplicates"] == {}

    def test_texts(self, train_json):
        found = statistics(open_dataset(train_json))
        written = json.loads(train_json.read_text())
        assert sum(found["texts"]["kinds"].values()) == sum(len(item["kinds"]) for item in written)
        tokens = sum(int(tokens) * count for tokens, count in found["texts"]["tokens_of_poses"].items())
        assert tokens == found["poses"] == sum(len(item["poses"]) for item in written)
        assert sum(found["texts"]["turns"].values()) == len(written)
        assert found["problems"] == {}

    def test_systems(self, predictions):
        assert statistics(open_dataset(predictions))["by_system"] == {"net": 3}


class TestCommand:
    def test_text_json_and_plots(self, prepared, tmp_path, capsys):
        out = tmp_path / "statistics"
        assert main([str(prepared), "--out", str(out)]) == 0
        text = capsys.readouterr().out
        assert "3 objects, 3 pictures, 3 poses, 2 categories" in text
        assert "split:      train 2, val 1" in text
        assert json.loads((out / "statistics.json").read_text())["entries"] == 3
        page = (out / "statistics.html").read_text()
        assert text in html.unescape(page)
        bars = [float(share) for share in re.findall(r'<i style="height: ([\d.]+)%"', page)]
        assert len(bars) == 36 + 18 + 36
        assert bars.count(100.0) >= 3  # the highest of each angle

    @pytest.mark.parametrize("kind", ["raw", "prepared", "train_json", "predictions"])
    def test_every_kind_reads_as_text(self, kind, request, capsys):
        assert main(["stats", str(request.getfixturevalue(kind))]) == 0
        text = capsys.readouterr().out
        assert "azimuth" in text
        assert max(map(len, text.splitlines())) < 300

    def test_nothing_at_all(self):
        text = statistics_text(statistics(Dataset(Path("empty"), "prepared", ())))
        assert "0 objects" in text
        assert "missing fields: none" in text

    def test_a_folder_without_its_pictures(self, prepared, capsys):
        shutil.rmtree(prepared / "val" / "cup")
        assert main([str(prepared)]) == 0
        assert "1 image missing" in capsys.readouterr().out

    @pytest.mark.slow
    def test_the_photographs(self, photos, capsys):
        assert main([str(photos)]) == 0
        text = capsys.readouterr().out
        assert "11 categories" in text
        assert "filtered: status_bad" in text
