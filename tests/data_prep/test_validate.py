"""``llava-pose validate``: a file that instruct wrote passes, and each kind of damage is found and named."""

from __future__ import annotations

import copy
import json
import math
import re
from pathlib import Path

import pytest

from data_prep.caption.command import CaptionConfig, caption
from data_prep.instruct.command import InstructConfig, instruct
from data_prep.instruct.command import main as instruct_main
from data_prep.instruct.validate import ValidateConfig, main, validate
from llava_pose.data.conversation import POSE_TOKEN, mirror_sides
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
    assert result.mirrored == sum(sample["flippable"] for sample in samples)


def first(samples: list[dict], kind: str, *, contains: str = "", answer: str = "") -> tuple[dict, int]:
    """A copy of a sample that asks the kind, and where in its conversation the question stands."""
    for sample in samples:
        for index, found in enumerate(sample["kinds"]):
            question, said = (sample["conversations"][2 * index + i]["value"] for i in (0, 1))
            if found == kind and re.search(contains, question) and re.search(answer, said):
                return copy.deepcopy(sample), 2 * index
    raise AssertionError(f"no {kind} with {contains!r} and {answer!r}")


def change(sample: dict, turn: int, old: str, new: str) -> dict:
    text = sample["conversations"][turn]["value"]
    changed = re.sub(old, new, text, count=1)
    assert changed != text, text
    sample["conversations"][turn]["value"] = changed
    return sample


@pytest.mark.parametrize(
    ("kind", "contains", "answer", "old", "new", "match"),
    [
        ("joint", "", "", "This is an? .* at", "This is a thing at", "the records say 'This is a"),
        ("listed", "", "", "This is an? ", "This is the ", "the records say"),
        ("described", "", "This is", "This is an? .* at", "This is a thing at", "the records say"),
        ("pose", "", "^The car is", "The car", "The bus", "the records say 'The car"),
        ("box", "", "", "in the box", "in a box", "the records say"),
        ("box_joint", "", "", "In the box is an? .* at", "In the box is a yurt at", "the records say"),
        ("locate", "", "", r"\[\d", "[9", "the box is"),
        ("locate", "", r"\[0\.[0-6]", r"\[0\.[0-6]", "[0.8", "the box is"),
        ("several", "", "", "and the .* is at <pose6D>.$", "and the yurt is at <pose6D>.", "the records say"),
        ("yesno", "Answer", "Yes", "Yes", "No", "the answer is 'No.'; the records say 'Yes.'"),
        ("yesno", "Answer", "No", "No", "Yes", "the answer is 'Yes.'; the records say 'No.'"),
        ("yesno", "\\?$", "^No, it", "it .*", "it stands still.", "the records say 'No, it"),
        ("choice", "letter", "[AB]", "[AB]", "C", "the answer is 'C'"),
        ("relative", "Which", "The", "The .*", "The yurt.", "the records say"),
        ("relative", "(Do|Does|Is the front)", "Yes", "Yes", "No", "the records say 'Yes.'"),
        ("relative", "(heading|face the way)", "left", "left", "right", "the records say 'To the left.'"),
        ("verify", "", "Yes", "Yes.", "No, it is at <pose6D>.", "poses"),
        ("which", "", "", "The .*", "The yurt.", "there is no 'the yurt'"),
        ("given", "Answer yes", "Yes", "Yes", "No", "the records say 'Yes.'"),
        ("caption", "", "", r"\.$", ", seen from nowhere.", "the records"),
        ("caption", "", "", r"^\w+", "Somewhere", "the records"),
    ],
)
def test_a_wrong_answer_is_found(made, tmp_path, kind, contains, answer, old, new, match):
    prepared, samples = made
    sample, turn = first(samples, kind, contains=contains, answer=answer)
    message = fault(prepared, change(sample, turn + 1, old, new), tmp_path)
    assert f"sample {sample['id']!r}" in message
    assert match in message


@pytest.mark.parametrize(
    ("kind", "contains", "old", "new", "match"),
    [
        ("joint", "", r"\?$|\.$", "!", "is none of the kind"),
        ("listed", "", "an? .* or ", "a yurt or ", "is not among the options"),
        ("described", "", r"In the canonical frame", "In a frame", "does not describe"),
        ("box", "", r"\[0\.\d", "[0.9", "is not that of"),
        ("box", r"\[", "(pose of the|pose of|holds one|In) ", r"\1 red ", "none of the kind|there is no|is no red"),
        ("yesno", "from above", "from above", "from below", "records say|too close"),
        ("choice", r"\nB\. ", r"\nB\. .*", r"\nB. upwards", "options that are not clearly wrong|does not stand once"),
        ("choice", r"\nB\. ", r"\nB\. ", r"\nC. ", "options are not A, B"),
        ("relative", "", rf"the ({NAMES})", "the yurt", "there is no 'the yurt"),
        ("several", "", rf"the ({NAMES})", "the yurt", "there is no 'the yurt"),
        ("given", "", "an? [a-zA-Z ]+ were", "a yurt were", "does not suppose"),
    ],
)
def test_a_changed_question_is_found(made, tmp_path, kind, contains, old, new, match):
    prepared, samples = made
    sample, turn = first(samples, kind, contains=contains)
    message = fault(prepared, change(sample, turn, old, new), tmp_path)
    assert re.search(match, message), message


@pytest.mark.parametrize("name", ["azimuth", "elevation", "theta", "distance", "px", "py"])
def test_a_wrong_pose_is_found(made, tmp_path, name):
    prepared, samples = made
    sample, _ = first(samples, "pose")
    index = sample["conversations"][0]["value"].count(POSE_TOKEN)
    sample["poses"][index][name] += 0.001
    assert f"its {name} is" in fault(prepared, sample, tmp_path)


def test_poses_in_the_wrong_order_are_found(made, tmp_path):
    prepared, samples = made
    sample, _ = first(samples, "several")
    sample["poses"].reverse()
    assert "is not that of" in fault(prepared, sample, tmp_path)


def test_a_given_pose_that_makes_another_answer_true_is_found(made, tmp_path):
    prepared, samples = made
    sample, _ = first(samples, "verify", answer="Yes")
    sample["poses"] = [{**pose, "azimuth": pose["azimuth"] + math.pi} for pose in sample["poses"]]
    assert "sample" in fault(prepared, sample, tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("category", "bus", "'category' is 'bus'"),
        ("width", 8, "'width' is 8, not 240"),
        ("height", None, "'height' must be a number of pixels, not None"),
        ("viewport", 1.0, "'viewport' is 1.0, not 900"),
        ("flippable", None, "'flippable' must be true or false"),
        ("kind", "caption2", "'kind' is 'caption2'"),
        ("kinds", [], "'kinds' must be a list"),
        ("kinds", ["pose"] * 5, "'kind' is"),
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


def test_a_wrong_flippable_is_found(made, tmp_path):
    prepared, samples = made
    for value in (True, False):
        sample = copy.deepcopy(next(s for s in samples if s["flippable"] is value))
        sample["flippable"] = not value
        assert f"'flippable' is {not value}, not {value}" in fault(prepared, sample, tmp_path)


def test_a_picture_that_is_gone_is_found(tmp_path):
    records = make_records(1)
    prepared = make_prepared(tmp_path / "prepared", records)
    out = tmp_path / "train.json"
    instruct(InstructConfig(data=str(prepared), out=str(out)))
    (prepared / "train" / records[0].file_name).unlink()
    with pytest.raises(InputError, match=r"3 of 3 samples .*\n  sample .* is not there"):
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


def test_instruct_writes_nothing_that_is_not_true(made, tmp_path, monkeypatch, capsys):
    """A fault of a kind stops instruct with one sentence, and no file is left."""
    from data_prep.questions.words import YesNoKind

    prepared, _ = made
    asks = YesNoKind.ask

    def lies(self, asking):
        turn = asks(self, asking)
        return None if turn is None else turn.__class__(**{**vars(turn), "answer": "Perhaps."})

    monkeypatch.setattr(YesNoKind, "ask", lies)
    out = tmp_path / "out" / "train.json"
    assert instruct_main(["--data", str(prepared), "--out", str(out), "--kinds", "yesno"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.search(r"^error: --out .*train\.json: not written, .*: sample '.*': question \d \(yesno\): ", error)
    assert "the answer is 'Perhaps.'" in error
    assert error.endswith("report it as a fault of instruct, or leave that kind out of --kinds")
    assert not list(tmp_path.glob("out/*"))


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
    result = validate(ValidateConfig(data=str(prepared), train_json=str(out), captions=str(captions)))
    assert result.questions == 24
    sample = next(s for s in samples if mirror_sides(s["conversations"][1]["value"]) != s["conversations"][1]["value"])
    sample["conversations"][1]["value"] = mirror_sides(sample["conversations"][1]["value"])
    assert "the records say" in fault(prepared, sample, tmp_path, captions=str(captions))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda line: {"caption": f"{line['caption']} It is seen at 40 degrees."},
            r"sample '[^']+': question 0 \(caption\): .*degrees",
        ),
        (
            lambda line: {"objects": ["nobody"] * len(line["objects"])},
            r"sample about '[^']+': question \(caption\): .*nobody",
        ),
        (
            lambda line: {"caption": f"{line['caption']} <pose6D>"},
            r"sample '[^']+' has \d <pose6D> .*\(asked: caption\)",
        ),
    ],
    ids=["words", "objects", "tokens"],
)
def test_a_caption_that_is_not_true_stops_instruct_with_a_sentence(made, tmp_path, capsys, change, said):
    """Somebody has edited captions.jsonl; an earlier train.json and its report stay as they are."""
    prepared, _ = made
    captions, out = tmp_path / "captions.jsonl", tmp_path / "out" / "train.json"
    caption(CaptionConfig(data=str(prepared), out=str(captions)))
    argv = ["--data", str(prepared), "--out", str(out), "--kinds", "caption", "--captions", str(captions)]
    assert instruct_main(argv) == 0
    before = {path.name: path.read_bytes() for path in out.parent.iterdir()}
    assert before.keys() == {"train.json", "train_report.json"}
    lines = [json.loads(line) for line in captions.read_text().splitlines()]
    line = lines[len(lines) // 2]
    line.update(change(line), writer="somebody")
    captions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    capsys.readouterr()
    assert instruct_main(argv) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.search(f"^error: .*{said}", error), error
    assert f"mend the caption of {line['image']} in {captions}" in error
    assert {path.name: path.read_bytes() for path in out.parent.iterdir()} == before


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
