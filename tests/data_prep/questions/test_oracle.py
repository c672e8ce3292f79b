"""The oracle of the questions finds what is wrong: each kind of damage to a sample that instruct wrote."""

from __future__ import annotations

import copy
import math
import random
import re
from functools import cache

import pytest

from data_prep.instruct.command import InstructConfig, SampleMaker
from data_prep.questions.kinds import KIND_NAMES
from data_prep.scene.scenes import Scene
from data_prep.scene.words import listing
from llava_pose.data.conversation import POSE_TOKEN
from llava_pose.data.records import ObjectRecord
from llava_pose.pose import categories
from tests.data_prep.made_scenes import make_records
from tests.data_prep.questions.oracle import CHECKS, Asked, rederive
from tests.data_prep.questions.reading import Untrue, slots_of, split_listing

NAMES = "car|bus|sofa|chair|guitar|airship|cup|bottle|dining table|pair of scissors"


@cache
def made() -> tuple[list[dict], dict[str, ObjectRecord], dict[str, Scene]]:
    """Samples of all kinds, and what they were made of."""
    records = make_records(24)
    config = InstructConfig("", "", kinds=["all"], questions_per_object=8, turns_per_conversation=2)
    writer = SampleMaker(config, records, None)
    samples = [sample for record in writer.order for sample in writer.samples(record, writer.hands(record))]
    return samples, {record.id: record for record in records}, writer.scenes


def fault(sample: dict) -> str:
    """What the oracle says against a sample."""
    _, records, scenes = made()
    with pytest.raises(Untrue) as error:
        rederive(sample, records[sample["record"]], scenes[sample["record"]])
    return str(error.value)


def first(kind: str, *, contains: str = "", answer: str = "") -> tuple[dict, int]:
    """A copy of a sample that asks the kind, and where in its conversation the question stands."""
    for sample in made()[0]:
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
def test_a_wrong_answer_is_found(kind, contains, answer, old, new, match):
    sample, turn = first(kind, contains=contains, answer=answer)
    assert match in fault(change(sample, turn + 1, old, new))


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
def test_a_changed_question_is_found(kind, contains, old, new, match):
    sample, turn = first(kind, contains=contains)
    message = fault(change(sample, turn, old, new))
    assert re.search(match, message), message


@pytest.mark.parametrize("name", ["azimuth", "elevation", "theta", "distance", "px", "py"])
def test_a_wrong_pose_is_found(name):
    sample, _ = first("pose")
    index = sample["conversations"][0]["value"].count(POSE_TOKEN)
    sample["poses"][index][name] += 0.001
    assert f"its {name} is" in fault(sample)


def test_poses_in_the_wrong_order_are_found():
    sample, _ = first("several")
    sample["poses"].reverse()
    assert "is not that of" in fault(sample)


def test_a_given_pose_that_makes_another_answer_true_is_found():
    sample, _ = first("verify", answer="Yes")
    sample["poses"] = [{**pose, "azimuth": pose["azimuth"] + math.pi} for pose in sample["poses"]]
    assert fault(sample)


def test_a_wrong_flippable_is_found():
    for value in (True, False):
        sample = copy.deepcopy(next(s for s in made()[0] if s["flippable"] is value))
        sample["flippable"] = not value
        assert f"'flippable' is {not value}, not {value}" in fault(sample)


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_a_kind_does_not_take_another_ones_question(kind):
    _, records, scenes = made()
    other = "joint" if kind != "joint" else "yesno"
    sample, turn = first(other)
    question, answer = (sample["conversations"][turn + i]["value"].removeprefix("<image>\n") for i in (0, 1))
    record = records[sample["record"]]
    with pytest.raises(Untrue):
        CHECKS[kind](Asked(scenes[record.id], record, question + "?", answer, []))


# Reading


def test_a_phrasing_reads_what_it_writes():
    phrasing = "Is the {a} (of two) nearer than the {b}?"
    text = phrasing.format(a="car in the box [0.10, 0.20, 0.30, 0.40]", b="bus")
    assert slots_of(phrasing, text) == {"a": "car in the box [0.10, 0.20, 0.30, 0.40]", "b": "bus"}
    assert slots_of(phrasing, text + " ") is None


@pytest.mark.parametrize("category", categories.all_categories(), ids=lambda c: c.name)
def test_lists_can_be_read_back_whatever_is_in_them(category):
    others = [c.indefinite for c in random.Random(category.name).sample(categories.all_categories(), 4)]
    names = list(dict.fromkeys([category.indefinite, *others]))
    assert split_listing(listing(names, "or"), "or", "an? ") == names
