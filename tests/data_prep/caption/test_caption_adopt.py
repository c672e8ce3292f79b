"""Captions that others wrote, with several <pose6D>: each goes to the right objects, or is left out with its reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.caption.command import CaptionConfig, caption, main
from data_prep.caption.lines import read_captions
from data_prep.instruct.command import InstructConfig, instruct
from data_prep.instruct.validate import ValidateConfig, validate
from data_prep.prepare.command import PrepareConfig, prepare
from llava_pose.data.records import read_records
from llava_pose.errors import InputError

BOXES = {
    "car": (20.0, 200.0, 220.0, 400.0),
    "chair": (260.0, 220.0, 380.0, 420.0),
    "second car": (420.0, 60.0, 620.0, 260.0),
}


@pytest.fixture
def prepared(raw_dataset: Any, tmp_path: Path) -> Path:
    """Whole pictures: n1 with a car and a chair, n2 with two cars and a chair, n3 with one cup."""

    def thing(name: str, category: str) -> dict[str, Any]:
        x1, y1, x2, y2 = BOXES[name]
        place = {"px": (x1 + x2) / 2, "py": (y1 + y2) / 2, "bbox": np.array([x1, y1, x2, y2])}
        return raw_dataset.object(**place, azimuth=len(name) / 3, **{"class": category})

    both = [thing("car", "car"), thing("chair", "chair")]
    raw_dataset.add("n1", objects=both)
    raw_dataset.add("n2", objects=[*both, thing("second car", "car")])
    raw_dataset.add("n3", category="cup", objects=[thing("chair", "cup")])
    options = {"splits": "train", "workers": 1, "crop": "whole"}
    return prepare(PrepareConfig(data_root=str(raw_dataset.root), out=str(tmp_path / "prepared"), **options))


def adopted(prepared: Path, captions: Any, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The usable captions by picture, and the summary."""
    source, out = prepared.parent / "theirs.json", prepared.parent / "captions.jsonl"
    source.write_text(captions if isinstance(captions, str) else json.dumps(captions))
    out.unlink(missing_ok=True)
    out.with_name("captions.jsonl.settings.yaml").unlink(missing_ok=True)
    caption(CaptionConfig(data=str(prepared), out=str(out), adopt=str(source), **options))
    usable = {image: line for image, line in read_captions(out).items() if line.status == "ok"}
    return usable, json.loads((prepared.parent / "captions_summary.json").read_text())


IMAGE = "train/car/n1.JPEG"
TEXT = "A chair <pose6D> stands beside\n a car at <pose6D>."


@pytest.mark.parametrize(
    "captions",
    [
        {"car/n1.JPEG": TEXT},
        {"imagenet3d_v1/images/car/n1.JPEG": {"caption": TEXT}},
        {"n1": TEXT},
        [{"image": "images/car/n1.JPEG", "caption": TEXT}],
        [{"file_name": "n1.jpg", "text": TEXT, "score": 0.3}],
        json.dumps({"image": "car/n1", "caption": TEXT}) + "\n",
        json.dumps({"image": "car/n1", "caption": TEXT})
        + "\n"
        + json.dumps({"image": "cup/n3", "caption": "A cup <pose6D>."}),
    ],
    ids=["by name", "path", "stem", "list", "other fields", "one line", "lines"],
)
def test_json_and_json_lines_by_any_name_of_the_picture(prepared: Path, captions: Any) -> None:
    lines, _ = adopted(prepared, captions)
    line = lines[IMAGE]
    assert line.caption == "A chair <pose6D> stands beside a car at <pose6D>."
    assert line.objects == ("car/n1/1", "car/n1/0"), "in the order of the tokens"
    assert line.writer == "others"


@pytest.mark.parametrize(
    "objects",
    [
        ["car/n2/2", "car/n2/1", "car/n2/0"],
        [2, 1, 0],
        [list(BOXES["second car"]), list(BOXES["chair"]), list(BOXES["car"])],
        [{"bbox": [422, 55, 615, 270]}, "chair", {"id": "car/n2/0"}],
        [[420 / 640, 60 / 480, 620 / 640, 260 / 480], "chair", 0],
    ],
    ids=["ids", "numbers", "boxes", "mixed", "shares"],
)
def test_marks_in_the_file_tell_two_cars_apart(prepared: Path, objects: list[Any]) -> None:
    text = "A car <pose6D>, a chair <pose6D> and another car <pose6D>."
    lines, _ = adopted(prepared, [{"image": "car/n2", "caption": text, "objects": objects}])
    assert lines["train/car/n2.JPEG"].objects == ("car/n2/2", "car/n2/1", "car/n2/0")


def test_the_order_of_the_annotation_is_taken_only_if_asked_for(prepared: Path) -> None:
    captions = {"car/n2": "A car <pose6D>, a chair <pose6D> and another car <pose6D>."}
    lines, _ = adopted(prepared, captions, match="order")
    assert lines["train/car/n2.JPEG"].objects == ("car/n2/0", "car/n2/1", "car/n2/2")
    with pytest.raises(InputError, match="its picture has several objects of one of its names"):
        adopted(prepared, captions, strict=True)


@pytest.mark.parametrize(
    ("entry", "options", "reason"),
    [
        ({"image": "car/n9", "caption": "A car <pose6D>."}, {}, "there is no picture of that name"),
        ({"image": "car/n1", "caption": "A car."}, {}, "there is no <pose6D> in it"),
        ({"image": "cup/n3", "caption": "A cup <pose6D> <pose6D>."}, {}, "more <pose6D> than its picture has objects"),
        (
            {"image": "cup/n3", "caption": "A mug-like thing <pose6D>."},
            {},
            "does not stand directly after an object's name",
        ),
        ({"image": "car/n1", "caption": "A car <pose6D> and a dog on a sofa."}, {}, "'sofa' is not among the objects"),
        ({"image": "car/n1", "caption": "The vehicle <pose6D>."}, {}, "follows no name of an object of its picture"),
        ({"image": "car/n1", "caption": "A car <pose6D>, 40 degrees."}, {}, "an angle of its own"),
        ({"image": "car/n1", "caption": "A car <pose6D>.", "objects": [5]}, {}, "'5' is no object of its picture"),
        (
            {"image": "car/n1", "caption": "A car <pose6D>.", "objects": []},
            {},
            "'objects' are not as many as its <pose6D>",
        ),
        ({"image": "car/n1", "caption": "A car <pose6D>.", "objects": [[0, 0, 9, 9]]}, {}, "is none of its picture's"),
        ({"image": "car/n1", "caption": "A car <pose6D>.", "objects": [[0, 0, 9]]}, {}, "is not four numbers"),
        ({"image": "car/n2", "caption": "A car <pose6D>.", "objects": ["car"]}, {}, "may be any of 2 objects"),
        ({"image": "car/n1", "caption": "A car <pose6D>."}, {"match": "box"}, "it says no boxes of its objects"),
        ({"image": "car/n1", "caption": "A car <pose6D>."}, {"match": "order"}, "so that their order says nothing"),
        (
            {"image": "car/n2", "caption": "A car <pose6D>, a car <pose6D>.", "objects": [0, 0]},
            {},
            "two of its <pose6D> mean one object",
        ),
    ],
)
def test_what_cannot_be_used_is_left_out_with_its_reason(
    prepared: Path, entry: dict[str, Any], options: dict[str, Any], reason: str
) -> None:
    good = {"image": "car/n1" if "n1" not in entry["image"] else "cup/n3"}
    good["caption"] = "A chair <pose6D>." if good["image"] == "car/n1" else "A cup <pose6D>."
    good["objects"] = [list(BOXES["chair"])]
    lines, summary = adopted(prepared, [entry, good], **options)
    assert len(lines) == 1, "the good one is taken"
    assert summary["left_out"]["captions"] == 1
    ((found, count),) = summary["left_out"]["because"].items()
    assert reason in found
    assert count == 1
    with pytest.raises(InputError, match=r"theirs\.json: entry 0: the caption of .*leave out --strict"):
        adopted(prepared, [entry, good], strict=True, **options)


def test_other_words_for_objects_are_taken_by_option(prepared: Path, tmp_path: Path) -> None:
    captions = {
        "car/n1": {
            "caption": "The vehicle <pose6D> on the lawn, a dog beside it, and a seat <pose6D>.",
            "objects": [0, 1],
        },
        "cup/n3": "A mug-like thing <pose6D> on a table.",
    }
    assert adopted(prepared, captions)[0] == {}
    lines, _ = adopted(prepared, captions, any_nouns=True)
    assert lines[IMAGE].objects == ("car/n1/0", "car/n1/1")
    assert lines["train/cup/n3.JPEG"].objects == ("cup/n3/0",)
    # and they reach the conversations, each token with its object's pose
    out = tmp_path / "train.json"
    options: dict[str, Any] = {"kinds": ["caption"], "questions_per_object": 1}
    instruct(InstructConfig(data=str(prepared), out=str(out), captions=str(tmp_path / "captions.jsonl"), **options))
    samples = {sample["image"]: sample for sample in json.loads(out.read_text())}
    records = {record.id: record for record in read_records(prepared, "train")}
    assert [pose["azimuth"] for pose in samples[IMAGE]["poses"]] == [
        records[name].pose.azimuth for name in ("car/n1/0", "car/n1/1")
    ]
    validate(ValidateConfig(data=str(prepared), train_json=str(out)))


def test_a_second_caption_of_a_picture_is_left_out(prepared: Path) -> None:
    _, summary = adopted(prepared, [{"image": name, "caption": "A cup <pose6D>."} for name in ("cup/n3", "n3.JPEG")])
    assert summary["left_out"]["because"] == {"its picture has a caption already": 1}


def test_a_caption_goes_to_the_crop_that_shows_all_that_it_names(raw_dataset: Any, tmp_path: Path) -> None:
    near = raw_dataset.object(bbox=np.array([300.0, 200.0, 330.0, 230.0]), px=315.0, py=215.0, **{"class": "cup"})
    large = raw_dataset.object(bbox=np.array([100.0, 50.0, 600.0, 450.0]), px=350.0, py=250.0)
    raw_dataset.add("n1", objects=[near, large])
    options = {"splits": "train", "workers": 1, "crop": "box"}
    prepared = prepare(PrepareConfig(data_root=str(raw_dataset.root), out=str(tmp_path / "prepared"), **options))
    lines, _ = adopted(prepared, {"car/n1": "A cup <pose6D> before a car <pose6D>."}, any_nouns=True)
    assert list(lines) == ["train/car/n1_01.JPEG"], "the cup's own crop shows no whole car"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("3", "must hold captions by picture"),
        ('[{"caption": "A car <pose6D>."}]', "entry 0: must have the picture's name as 'image'"),
        ('[{"image": "a", "caption": 3}]', "must have the picture's name as 'image' and its text as 'caption'"),
        ('[{"image": "a", "caption": "b", "objects": 3}]', "'objects' must be a list"),
        ("[3]", "entry 0: must have"),
        ("no json", r"theirs\.json:1: "),
    ],
)
def test_a_file_that_holds_no_captions_is_one_sentence(prepared: Path, text: str, match: str) -> None:
    with pytest.raises(InputError, match=match):
        adopted(prepared, text)


@pytest.mark.parametrize("name", ["", ".", "..", "/", "../../etc/passwd", "a\x00b", "n1/", "\ud800", "x" * 5000])
def test_names_that_are_none_are_left_out(prepared: Path, name: str) -> None:
    _, summary = adopted(
        prepared, json.dumps([{"image": name, "caption": "A car <pose6D>."}]) if name != "\ud800" else []
    )
    assert summary["ok"] + summary["left_out"]["captions"] == (name != "\ud800")


def test_options_of_others_captions_need_their_file(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(prepared), "--out", "x.jsonl", "--strict"]) == 2
    assert "name their file with --adopt" in capsys.readouterr().err
