"""``llava-pose validate``: a file that instruct wrote passes, and each kind of damage is found and named."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from data_prep.caption.command import CaptionConfig, caption
from data_prep.instruct.command import InstructConfig, instruct
from data_prep.instruct.command import main as instruct_main
from data_prep.instruct.validate import ValidateConfig, main, validate
from llava_pose.data.conversation import POSE_TOKEN
from llava_pose.errors import InputError
from tests.data_prep.made_scenes import make_prepared, make_records

NAMES = "car|bus|sofa|chair|guitar|airship|cup|bottle|dining table|pair of scissors"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, list[dict]]:
    """A prepared folder, and the samples of all kinds that were made of it."""
    folder = tmp_path_factory.mktemp("validate")
    prepared = make_prepared(folder / "prepared", make_records(24))
    out = folder / "train.json"
    instruct(
        InstructConfig(
            data=str(prepared), out=str(out), kinds=["all"], questions_per_object=8, turns_per_conversation=2
        )
    )
    return prepared, json.loads(out.read_text(encoding="utf-8"))


def fault(prepared: Path, sample: dict, tmp_path: Path, **options) -> str:
    path = tmp_path / "train.json"
    path.write_text(json.dumps([sample]), encoding="utf-8")
    with pytest.raises(InputError) as error:
        validate(ValidateConfig(data=str(prepared), train_json=str(path), **options))
    return str(error.value)


def test_a_whole_file_passes(made, tmp_path, caplog):
    prepared, samples = made
    path = tmp_path / "train.json"
    path.write_text(json.dumps(samples), encoding="utf-8")
    caplog.set_level("INFO")
    assert main(["--data", str(prepared), str(path)]) == 0
    assert f"{len(samples)} conversations with" in caplog.messages[-1]
    result = validate(ValidateConfig(data=str(prepared), train_json=str(path)))
    assert result.conversations == result.of_records == len(samples)
    assert result.questions == sum(len(sample["kinds"]) for sample in samples)


def first(samples: list[dict], kind: str, *, contains: str = "", answer: str = "") -> tuple[dict, int]:
    """A copy of a sample that asks the kind, and where in its conversation the question stands."""
    for sample in samples:
        for index, found in enumerate(sample["kinds"]):
            question, said = (sample["conversations"][2 * index + i]["value"] for i in (0, 1))
            if found == kind and re.search(contains, question) and re.search(answer, said):
                return copy.deepcopy(sample), 2 * index
    raise AssertionError(f"no {kind} with {contains!r} and {answer!r}")


@pytest.mark.parametrize("name", ["azimuth", "elevation", "theta", "distance", "px", "py"])
def test_a_wrong_pose_is_found(made, tmp_path, name):
    prepared, samples = made
    sample, _ = first(samples, "pose")
    index = sample["conversations"][0]["value"].count(POSE_TOKEN)
    sample["poses"][index][name] += 0.001
    assert f"its {name} is" in fault(prepared, sample, tmp_path)


def test_poses_in_the_wrong_order_are_found(made, tmp_path):
    """By the names that stand before their tokens; the poses of a question may be any."""
    prepared, samples = made
    found = 0
    for sample in samples:
        answers = [turn["value"] for turn in sample["conversations"][1::2]]
        if sample["kinds"][0] not in ("several", "caption") or len(sample["poses"]) < 2:
            continue
        names = re.findall(rf"({NAMES})(?: on the \w+| in the box [^\]]*\])?(?: is)? at <pose6D>", answers[0])
        if len(sample["kinds"]) == 1 and len(set(names)) == len(names) == len(sample["poses"]):
            changed = copy.deepcopy(sample)
            changed["poses"].reverse()
            assert re.search(r"the pose after '.*' is that of '.*', a ", fault(prepared, changed, tmp_path))
            found += 1
    assert found > 3


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("category", "bus", "'category' is 'bus'"),
        ("width", 8, "'width' is 8, not 240"),
        ("height", None, "'height' must be a number of pixels, not None"),
        ("viewport", 1.0, "'viewport' is 1.0, not 900"),
        ("flippable", None, "'flippable' must be true or false"),
        ("kind", "caption2", "'kind' is 'caption2'"),
        ("kinds", "pose", "'kinds' must be a list"),
        ("kinds", ["pose"] * 5, "'kinds' names 5 kinds, and there are 2 questions"),
        ("record", "car/none/0", "there is no record 'car/none/0' in the split 'train'"),
        ("record", None, "there is no record None"),
        ("image", "val/car/x.JPEG", "val"),
        ("image", "train/car/other.JPEG", "train/car/other.JPEG"),
    ],
)
def test_a_wrong_frame_is_found(made, tmp_path, field, value, match):
    prepared, samples = made
    sample = copy.deepcopy(next(s for s in samples if s["category"] == "car"))
    sample[field] = value
    assert match in fault(prepared, sample, tmp_path)


def test_what_has_no_mirror_image_is_not_flippable(made, tmp_path):
    prepared, samples = made
    for category in ("guitar", "cup"):
        sample = copy.deepcopy(next(s for s in samples if s["category"] == category))
        assert not sample["flippable"]
        sample["flippable"] = True
        said = fault(prepared, sample, tmp_path)
        assert f"'flippable' is true, and the mirror image of a {category} is none" in said


def test_a_file_of_somebody_elses_is_checked_as_far_as_it_says_something(made, tmp_path):
    """No record, no kind: what is there is checked, and a sample of text alone is one, too."""
    prepared, samples = made
    own = ("id", "image", "conversations", "poses", "width", "height", "viewport")
    samples = [{name: sample[name] for name in own} for sample in samples[:5]]
    text = [{"from": "human", "value": "What is up?"}, {"from": "gpt", "value": "+z."}]
    samples.append({"id": "text", "conversations": text, "poses": []})
    path = tmp_path / "train.json"
    path.write_text(json.dumps(samples), encoding="utf-8")
    result = validate(ValidateConfig(data=str(prepared), train_json=str(path)))
    assert (result.conversations, result.of_records) == (6, 0)
    samples[0]["poses"] = [*samples[0]["poses"], {"azimuth": 300.0, "elevation": 0.0, "theta": 0.0}]
    assert "<pose6D> but" in fault(prepared, samples[0], tmp_path)
    samples[1]["image"] = "train/nothing.JPEG"
    assert "cannot read the picture" in fault(prepared, samples[1], tmp_path)
    samples[5]["poses"] = [{"azimuth": 300.0, "elevation": 0.0, "theta": 0.0}]
    samples[5]["conversations"][1]["value"] = "It is at <pose6D>."
    assert "'azimuth' is 300, which cannot be radians" in fault(prepared, samples[5], tmp_path)


def test_a_picture_that_is_gone_is_found(tmp_path):
    records = make_records(1)
    prepared = make_prepared(tmp_path / "prepared", records)
    out = tmp_path / "train.json"
    instruct(InstructConfig(data=str(prepared), out=str(out)))
    (prepared / "train" / records[0].file_name).unlink()
    with pytest.raises(InputError, match=r"3 of 3 samples .*\n  sample .* cannot read the picture"):
        validate(ValidateConfig(data=str(prepared), train_json=str(out)))


def test_an_id_that_stands_twice_is_found_and_only_so_many_are_named(made, tmp_path, capsys):
    prepared, samples = made
    path = tmp_path / "train.json"
    path.write_text(json.dumps([samples[0]] * 5), encoding="utf-8")
    assert main(["--data", str(prepared), "--train-json", str(path), "--most", "2"]) == 2
    error = capsys.readouterr().err
    assert "4 of 5 samples" in error
    assert error.count("the id stands twice") == 2
    assert "and 2 more" in error


# Captions from a file


def test_captions_of_a_file_are_held_against_it(made, tmp_path):
    prepared, _ = made
    captions, out = tmp_path / "captions.jsonl", tmp_path / "train.json"
    caption(CaptionConfig(data=str(prepared), out=str(captions)))
    config = InstructConfig(
        data=str(prepared), out=str(out), kinds=["caption"], captions=str(captions), questions_per_object=1
    )
    assert instruct(config).questions == {"caption": 24}
    samples = json.loads(out.read_text(encoding="utf-8"))
    lines = {json.loads(line)["image"]: json.loads(line)["caption"] for line in captions.read_text().splitlines()}
    assert {sample["image"]: sample["conversations"][1]["value"] for sample in samples} == lines
    assert validate(ValidateConfig(data=str(prepared), train_json=str(out))).questions == 24


@pytest.mark.parametrize("writer", ["somebody", "grammar"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda line: {"caption": f"{line['caption']} It is seen at 40 degrees."}, "degrees"),
        (lambda line: {"objects": ["nobody"] * len(line["objects"])}, "the caption names 'nobody'"),
        (lambda line: {"caption": f"{line['caption']} <pose6D>"}, "<pose6D>"),
    ],
    ids=["words", "objects", "tokens"],
)
def test_a_caption_that_is_not_true_is_left_out_and_said(made, tmp_path, capsys, change, said, writer):
    """Somebody has edited captions.jsonl: the others are asked for, and the exit code says that one is missing."""
    prepared, _ = made
    captions, out = tmp_path / "captions.jsonl", tmp_path / "out" / "train.json"
    caption(CaptionConfig(data=str(prepared), out=str(captions)))
    argv = ["--data", str(prepared), "--out", str(out), "--kinds", "caption", "--captions", str(captions)]
    assert instruct_main(argv) == 0
    before = json.loads(out.read_text())
    lines = [json.loads(line) for line in captions.read_text().splitlines()]
    line = lines[len(lines) // 2]
    line.update(change(line), writer=writer)
    captions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    capsys.readouterr()
    assert instruct_main(argv) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"1 objects or captions cannot be used and are in no conversation; the first: {captions}" in error
    assert f"the caption of {line['image']} is left out: " in error
    assert said in error
    assert json.loads(out.read_text()) == [sample for sample in before if sample["image"] != line["image"]]


def test_captions_of_records_that_have_changed_are_left_out(tmp_path, capsys):
    """The grammar's sentences are held against the records as they are now."""
    records = make_records(4)
    prepared = make_prepared(tmp_path / "prepared", records)
    captions = tmp_path / "captions.jsonl"
    caption(CaptionConfig(data=str(prepared), out=str(captions)))
    turned = [replace(r, pose=replace(r.pose, azimuth=r.pose.azimuth + 2.0, elevation=-1.0)) for r in records]
    make_prepared(prepared, turned)
    argv = ["--data", str(prepared), "--out", str(tmp_path / "t.json"), "--kinds", "caption"]
    assert instruct_main([*argv, "--captions", str(captions)]) == 2
    assert "the records do not say" in capsys.readouterr().err


def test_a_line_that_failed_is_not_asked_for(made, tmp_path):
    prepared, _ = made
    captions = tmp_path / "captions.jsonl"
    caption(CaptionConfig(data=str(prepared), out=str(captions)))
    lines = [json.loads(line) for line in captions.read_text().splitlines()]
    for line in lines[:10]:
        line.update(status="failed", caption="", objects=[], reason="empty")
    captions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = InstructConfig(
        data=str(prepared),
        out=str(tmp_path / "t.json"),
        kinds=["caption"],
        captions=str(captions),
        questions_per_object=1,
    )
    assert instruct(config).questions == {"caption": 14}


def of_two_pictures(samples: list[dict], *texts: str, places: tuple[int, ...] = (1, 0)) -> dict:
    """A sample of somebody's own about the pictures of two of these."""
    one, other = (next(s for s in samples if s["category"] == name) for name in ("car", "cup"))
    texts = texts or ("<image>\n<image>\nHow are they turned?", "In picture 2 at <pose6D>, in picture 1 at <pose6D>.")
    return {
        "id": "two",
        "image": [one["image"], other["image"]],
        "conversations": [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)],
        "poses": [{"azimuth": 1.0, "elevation": 0.1, "theta": 0.0, "picture": place} for place in places],
    }


def test_a_sample_of_several_pictures_passes(made, tmp_path):
    prepared, samples = made
    path = tmp_path / "train.json"
    path.write_text(json.dumps([*samples, of_two_pictures(samples)]), encoding="utf-8")
    assert validate(ValidateConfig(data=str(prepared), train_json=str(path))).of_records == len(samples)


def test_what_is_wrong_with_one_of_several_pictures_is_found(made, tmp_path):
    prepared, samples = made
    sample = of_two_pictures(samples)
    gone = {**sample, "image": [sample["image"][0], "train/cup/none.JPEG"]}
    assert "cannot read the picture" in fault(prepared, gone, tmp_path)
    named = {**sample, "record": samples[0]["record"]}
    assert "'record' is of an object of one picture, and 'image' is a list" in fault(prepared, named, tmp_path)


def test_a_pose_of_another_picture_than_the_words_name_is_found(made, tmp_path):
    prepared, samples = made
    sample = of_two_pictures(samples, places=(0, 0))
    assert "turn 1: the words before a pose name picture 2, and its 'picture' is 0" in fault(prepared, sample, tmp_path)
    asked = ("<image>\n<image>\nWhat is at <pose6D> in the second picture?", "The cup, not at <pose6D>.")
    assert "turn 1: the words" in fault(prepared, of_two_pictures(samples, *asked, places=(0, 0)), tmp_path)
