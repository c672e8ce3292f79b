"""``llava-pose instruct``: from prepared records to train.json."""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.instruct.command import (
    DEFAULT_QUESTIONS,
    InstructConfig,
    draw_kinds,
    instruct,
    main,
    make_samples,
    write_json_array,
)
from llava_pose.data.conversation import POSE_TOKEN, describe_pose, validate_sample
from llava_pose.data.records import ObjectRecord, Pose, write_records
from llava_pose.errors import InputError
from llava_pose.pose import categories

CATEGORIES = ("car", "aeroplane", "scissors", "bottle", "cup")


def make_record(index: int, **changes) -> ObjectRecord:
    category = CATEGORIES[index % len(CATEGORIES)]
    rng = np.random.default_rng(index)
    fields = {
        "file_name": f"{category}/n{index:03d}_00.JPEG",
        "id": f"{category}/n{index:03d}/0",
        "category": category,
        "pose": Pose(*rng.uniform(0, 3, 3).tolist(), 5.0, 110.0, 100.0),
        "viewport": 1500.0,
        "focal": 2.0,
        "width": 224,
        "height": 200,
        "bbox": (0.0, 0.0, 224.0, 200.0),
    }
    return ObjectRecord(**{**fields, **changes})


def make_prepared(folder: Path, records: list[ObjectRecord], split: str = "train") -> Path:
    write_records(folder, split, records)
    for record in records:
        path = folder / split / record.file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    return folder


@pytest.fixture
def prepared(tmp_path) -> Path:
    return make_prepared(tmp_path / "prepared", [make_record(i) for i in range(20)])


def run(prepared: Path, **options) -> list[dict]:
    out = prepared.parent / "train.json"
    instruct(InstructConfig(data=str(prepared), out=str(out), **options))
    return json.loads(out.read_text(encoding="utf-8"))


def text_of(sample: dict) -> str:
    return " ".join(turn["value"] for turn in sample["conversations"])


# The samples


def test_every_sample_is_valid_and_complete(prepared):
    samples = run(prepared)
    assert len(samples) == 60
    assert len({sample["id"] for sample in samples}) == 60
    records = {record.id: record for record in (make_record(i) for i in range(20))}
    for sample in samples:
        validate_sample(sample, where=sample["id"])
        record = records[sample["record"]]
        assert (prepared / sample["image"]).is_file()
        assert sample["poses"] == [record.pose.to_dict()] * text_of(sample).count(POSE_TOKEN)
        assert (sample["category"], sample["width"], sample["height"]) == (record.category, 224, 200)
        assert sample["viewport"] == 3000.0  # the focal length is in it
        assert sample["conversations"][0]["value"].startswith("<image>\n")
        assert [turn["from"] for turn in sample["conversations"]] == ["human", "gpt"]
        assert sample["kind"] in DEFAULT_QUESTIONS


def test_questions_and_answers_go_together(prepared):
    for sample in run(prepared, questions_per_object=9):
        question, answer = (turn["value"] for turn in sample["conversations"])
        words = sample["category"].replace("aeroplane", "airplane").replace("scissors", "pair of scissors")
        asked = question.removeprefix("<image>\n")
        if sample["kind"] == "pose":
            assert asked in [phrasing.format(object=words) for phrasing in DEFAULT_QUESTIONS["pose"]]
            assert answer == f"The {words} is at <pose6D>."
        else:
            assert asked in DEFAULT_QUESTIONS[sample["kind"]]
            assert words not in asked
            assert f" {words} " in answer
        if sample["kind"] == "joint":
            assert answer in (f"This is a {words} at <pose6D>.", f"This is an {words} at <pose6D>.")


def test_the_answer_reads_well_with_its_pose(prepared):
    sample = next(s for s in run(prepared, kinds=["pose"], weights=[1.0]) if s["category"] == "car")
    answer = sample["conversations"][1]["value"]
    pose = Pose.from_dict(sample["poses"][0], where="sample")
    assert answer.replace(POSE_TOKEN, describe_pose(pose)).startswith("The car is at (azimuth ")


def test_only_what_mirrors_about_x_is_flippable(prepared):
    flippable = {sample["category"]: sample["flippable"] for sample in run(prepared)}
    # scissors are chiral; a cup's handle is at +x, and its mirror image is the cup turned by half a turn
    assert flippable == {"car": True, "aeroplane": True, "scissors": False, "bottle": True, "cup": False}


def test_a_category_of_the_users_own_is_asked_about_and_never_flipped(tmp_path):
    prepared = make_prepared(tmp_path / "prepared", [make_record(0, category="espresso_tamper")])
    samples = run(prepared)
    assert not any(sample["flippable"] for sample in samples)
    assert "This is an espresso tamper at <pose6D>." in [s["conversations"][1]["value"] for s in samples]


# Drawing


def test_the_same_seed_gives_the_same_file(prepared):
    first = (run(prepared, seed=5), (prepared.parent / "train.json").read_bytes())
    assert (run(prepared, seed=5), (prepared.parent / "train.json").read_bytes()) == first
    assert run(prepared, seed=6) != first[0]


def test_samples_do_not_depend_on_the_other_records(prepared, tmp_path):
    whole = {sample["id"]: sample for sample in run(prepared)}
    some = [make_record(i) for i in (17, 3, 11)]
    reordered = run(make_prepared(tmp_path / "other", some))
    assert [sample["record"] for sample in reordered[::3]] == [record.id for record in some]
    for sample in reordered:
        assert sample == whole[sample["id"]]


def test_only_some_categories_are_asked_about(prepared):
    """By any of their names; the samples are those that a data set of these alone gives."""
    samples = run(prepared, categories=["airplane", "cup"])
    assert {sample["category"] for sample in samples} == {"aeroplane", "cup"}
    assert samples == [sample for sample in run(prepared) if sample["category"] in ("aeroplane", "cup")]
    with pytest.raises(InputError, match=r"--categories bus: no object of it in .*train"):
        run(prepared, categories=["cup", "bus"])


def test_of_other_categories_nothing_is_told(tmp_path):
    """Two objects of one picture: a question about the first may not tell of the second, which is left out."""
    records = [make_record(0, bbox=(0.0, 50.0, 80.0, 150.0)), make_record(4, bbox=(140.0, 50.0, 220.0, 150.0))]
    records[1] = replace(records[1], file_name=records[0].file_name)
    prepared = make_prepared(tmp_path / "prepared", records)
    options = {"kinds": ["joint", "pose", "several", "which"], "questions_per_object": 12}
    assert any("cup" in text_of(sample) for sample in run(prepared, **options) if sample["category"] == "car")
    for sample in run(prepared, categories=["car"], **options):
        assert sample["kind"] in ("joint", "pose")
        assert "cup" not in text_of(sample)
        assert sample["poses"] == [records[0].pose.to_dict()]


def test_kinds_follow_their_weights(prepared):
    counts = Counter(
        s["kind"] for s in run(prepared, kinds=["caption", "pose"], weights=[1.0, 3.0], questions_per_object=4)
    )
    assert counts == {"caption": 20, "pose": 60}  # exact where the weights divide the questions


@pytest.mark.parametrize("questions", [1, 2, 5])
def test_kinds_are_right_on_average_and_never_off_by_one(questions):
    config = InstructConfig(
        "", "", kinds=["pose", "joint", "caption"], weights=[5, 3, 0], questions_per_object=questions
    )
    rng = random.Random(0)
    total = Counter()
    for _ in range(4000):
        drawn = draw_kinds(config, rng)
        assert len(drawn) == questions
        for kind, share in (("pose", 5 / 8), ("joint", 3 / 8), ("caption", 0)):
            assert abs(drawn.count(kind) - questions * share) < 1
        total.update(drawn)
    assert total["pose"] / total.total() == pytest.approx(5 / 8, abs=0.03)


def test_phrasings_of_an_object_repeat_only_when_all_were_used(prepared):
    for record in (make_record(i) for i in range(5)):
        n = len(DEFAULT_QUESTIONS["joint"])
        config = InstructConfig("", "", kinds=["joint"], weights=[1.0], questions_per_object=2 * n)
        asked = [s["conversations"][0]["value"].removeprefix("<image>\n") for s in make_samples(record, config)]
        assert Counter(asked) == dict.fromkeys(DEFAULT_QUESTIONS["joint"], 2)
        assert set(asked[:n]) == set(DEFAULT_QUESTIONS["joint"])


def test_phrasings_can_be_limited_to_the_one_that_evaluation_asks(prepared):
    samples = run(prepared, phrasings=1)
    asked = {s["kind"]: s["conversations"][0]["value"] for s in samples if s["category"] == "car"}
    assert asked == {kind: "<image>\n" + DEFAULT_QUESTIONS[kind][0].format(object="car") for kind in DEFAULT_QUESTIONS}


# Conversations of several turns


def test_several_questions_in_one_conversation(prepared):
    samples = run(prepared, turns_per_conversation=3)
    assert len(samples) == 20
    for sample in samples:
        validate_sample(sample, where=sample["id"])
        assert [turn["from"] for turn in sample["conversations"]] == ["human", "gpt"] * 3
        assert len(sample["poses"]) == 3
        # no question comes after an answer that tells it: the category first, viewpoint words last
        assert sample["kinds"] == ["joint", "pose", "caption"]
        assert sample["kind"] == "joint"


@pytest.mark.parametrize(("questions", "turns", "lengths"), [(6, 3, [3, 3]), (5, 2, [2, 2, 1]), (4, 10, [4])])
def test_questions_are_dealt_over_conversations(questions, turns, lengths):
    config = InstructConfig("", "", questions_per_object=questions, turns_per_conversation=turns)
    for i in range(10):
        samples = make_samples(make_record(i), config)
        assert sorted((len(s["kinds"]) for s in samples), reverse=True) == lengths
        for sample in samples:
            assert sample["kinds"] == sorted(sample["kinds"], key=list(DEFAULT_QUESTIONS).index)


# The file


def test_an_object_without_its_picture_is_left_out_and_said(prepared):
    out = prepared.parent / "train.json"
    samples = run(prepared)
    missing = prepared / "train" / make_record(15).file_name
    missing.unlink()
    with pytest.raises(InputError, match=rf"1 objects cannot be used .* {missing}: cannot read the picture"):
        run(prepared)
    assert json.loads(out.read_text()) == [sample for sample in samples if sample["record"] != "car/n015/0"]
    assert sorted(os.listdir(prepared.parent)) == ["prepared", "train.json", "train_report.json"]


def test_one_sample_a_line(prepared):
    samples = run(prepared)
    lines = (prepared.parent / "train.json").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "["
    assert lines[-1] == "]"
    assert [json.loads(line.rstrip(",")) for line in lines[1:-1]] == samples


@pytest.mark.parametrize("values", [[], [{"a": "Ü"}], [1, 2, 3]])
def test_arrays_of_any_length(tmp_path, values):
    write_json_array(tmp_path / "x.json", iter(values))
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == values


def test_the_result_counts(prepared):
    out = prepared.parent / "train.json"
    result = instruct(InstructConfig(data=str(prepared), out=str(out), turns_per_conversation=2))
    assert (result.path, result.conversations) == (out, 40)
    assert result.questions == {"pose": 20, "joint": 20, "caption": 20}


# The command


def test_the_command(prepared, capsys, caplog):
    caplog.set_level("INFO")
    out = prepared.parent / "deep" / "val.json"
    make_prepared(prepared, [make_record(50)], split="val")
    argv = [
        "--data",
        str(prepared),
        "--out",
        str(out),
        "--split",
        "val",
        "--kinds",
        "pose",
        "joint",
        "--weights",
        "1",
        "2",
    ]
    assert main([*argv, "--questions-per-object", "6"]) == 0
    samples = json.loads(out.read_text(encoding="utf-8"))
    assert Counter(sample["kind"] for sample in samples) == {"pose": 2, "joint": 4}
    assert samples[0]["image"].startswith("val/")
    assert caplog.messages[-2] == f"6 conversations about 1 objects (2 pose, 4 joint) are in {out}"
    assert caplog.messages[-1].startswith("next: python train.py --model")
    assert capsys.readouterr().out == ""


def test_ones_own_descriptions_are_asked_in_place_of_the_taxonomys(tmp_path):
    prepared = make_prepared(tmp_path / "prepared", [make_record(2), make_record(3)])
    own, texts = tmp_path / "own.json", {}
    own.write_text(json.dumps({"bottle": "A tall thing with a neck, on the left of the shelf. People drink from it."}))
    for name, options in (("taxonomy", {}), ("own", {"descriptions": str(own)})):
        samples = run(prepared, kinds=["described"], **options)
        texts[name] = {sample["category"]: text_of(sample) for sample in samples}
        flippable = {sample["category"]: sample["flippable"] for sample in samples}
    assert "A tall thing with a neck" in texts["own"]["bottle"]
    assert not flippable["bottle"], "its words have a side, which a mirror swaps"
    assert "A tall thing with a neck" not in texts["taxonomy"]["bottle"]
    (other,) = texts["own"].keys() - {"bottle"}
    assert categories.get(other).description in texts["own"][other], "a category that the file does not have"


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"kinds": ["pose", "colour"]}, "no kind 'colour'; choose from joint, pose, caption"),
        ({"kinds": ["pose", "pose"]}, "name each kind once"),
        ({"kinds": []}, "name each kind once"),
        ({"kinds": ["pose"], "weights": [1.0, 2.0]}, "--weights: give one for each of the 1 kinds, not 2"),
        ({"captions": "x.jsonl", "kinds": ["pose"]}, "--captions: they are for the kind caption"),
        ({"descriptions": "x.json", "kinds": ["pose"]}, "--descriptions: they are for the kind described"),
        ({"weights": [0.0, 0.0, 0.0]}, "must not be all 0"),
        ({"weights": [1.0, -1.0, 1.0]}, "--weights: must be at least 0"),
        ({"weights": [1.0, float("nan"), 1.0]}, "--weights: must be (at least 0|a finite number)"),
        ({"questions_per_object": 0}, "--questions-per-object: must be over 0, not 0"),
        ({"turns_per_conversation": 0}, "--turns-per-conversation: must be over 0"),
        ({"phrasings": -1}, "--phrasings: must be at least 0"),
    ],
)
def test_options_that_make_no_sense_are_named(options, match):
    with pytest.raises(InputError, match=match):
        InstructConfig("", "", **options)


def test_bad_input_ends_with_2(prepared, tmp_path, capsys):
    make_prepared(prepared, [], split="empty")
    out = str(tmp_path / "x.json")
    for argv, message in (
        (["--out", out], "the option --data is needed"),
        (["--data", str(prepared)], "the option --out is needed"),
        (["--data", str(tmp_path / "none"), "--out", out], "there is no such folder; make it with: llava-pose prepare"),
        (["--data", str(prepared), "--out", out, "--split", "test"], "llava-pose prepare --data-root"),
        (["--data", str(prepared), "--out", out, "--split", "empty"], "metadata.jsonl: there is no record in it"),
        (["--data", str(prepared), "--out", str(tmp_path)], "this is a folder; name a file"),
    ):
        assert main(argv) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert message in error
    assert not os.path.exists(out)


@pytest.mark.parametrize("name", ["distance", "px", "py"])
def test_a_pose_that_is_not_whole_is_named(tmp_path, name):
    pose = Pose(**{**make_record(3).pose.to_dict(), name: None})
    prepared = make_prepared(tmp_path / "prepared", [make_record(2), make_record(3, pose=pose)])
    with pytest.raises(InputError, match=rf"metadata\.jsonl: record 'bottle/n003/0' has no finite {name}"):
        run(prepared)
