"""The chat format: what a sample must be, what a person reads, and what a mirrored picture's text says."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_pose.data import conversation
from llava_pose.data.conversation import (
    CAPTION_QUESTIONS,
    JOINT_ANSWER,
    JOINT_QUESTIONS,
    POSE_ANSWER,
    POSE_QUESTIONS,
    POSE_TOKEN,
    count_pose_tokens,
    describe_pose,
    interleave_poses,
    mirror_sides,
    object_words,
    pictures_meant,
    space_poses,
    to_messages,
    validate_sample,
)
from llava_pose.data.records import Pose
from llava_pose.errors import InputError
from llava_pose.pose import categories


def make_sample(**changes) -> dict:
    sample = {
        "id": "s1",
        "image": "train/car/x.JPEG",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat is the pose of the car?"},
            {"from": "gpt", "value": "The car is at <pose6D>."},
        ],
        "poses": [{"azimuth": 0.0, "elevation": 0.0, "theta": 0.0}],
    }
    return {**sample, **changes}


ANGLES = {"azimuth": 0.0, "elevation": 0.0, "theta": 0.0}


def turns(*values: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]


# Templates


def test_evaluation_asks_the_first_phrasing_of_each_kind():
    assert POSE_QUESTIONS[0] == "What is the pose of the {object}?"
    assert JOINT_QUESTIONS[0] == "What is this and what is its pose?"
    assert CAPTION_QUESTIONS[0] == "Describe the picture with the pose of the object."


@pytest.mark.parametrize("questions", [POSE_QUESTIONS, JOINT_QUESTIONS, CAPTION_QUESTIONS])
def test_phrasings_are_several_and_distinct(questions):
    assert len(set(questions)) == len(questions) >= 4


def test_only_pose_questions_name_the_object():
    assert all("{object}" in question for question in POSE_QUESTIONS)
    assert not any("{" in question for question in JOINT_QUESTIONS + CAPTION_QUESTIONS)


def test_object_words_make_singular_sentences():
    car, scissors, aeroplane = (object_words(categories.get(name)) for name in ("car", "scissors", "aeroplane"))
    assert POSE_ANSWER.format(pose=POSE_TOKEN, **car) == "The car is at <pose6D>."
    assert JOINT_ANSWER.format(pose=POSE_TOKEN, **scissors) == "This is a pair of scissors at <pose6D>."
    assert POSE_QUESTIONS[1].format(**scissors) == "How is the pair of scissors turned?"
    assert aeroplane["an_object"].startswith("an ")


def test_object_words_of_all_categories():
    for category in categories.all_categories():
        words = object_words(category)
        assert words["an_object"] in (f"a {words['object']}", f"an {words['object']}")
        assert mirror_sides(words["object"]) == words["object"]  # no category is turned into another by a flip


# Messages


def test_turns_become_messages():
    messages = to_messages([{"from": "system", "value": "s"}, *turns("q", "a")])
    assert messages == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"},
    ]


@pytest.mark.parametrize(
    "turn", [{"from": "bot", "value": "x"}, {"value": "x"}, {"from": "gpt"}, {"from": "gpt", "value": 3}]
)
def test_a_malformed_turn_is_named(turn):
    with pytest.raises(InputError, match=r"s1: a turn needs 'from' \(one of human, gpt, system\)"):
        to_messages([turn], where="s1")


def test_pose_tokens_are_counted_in_questions_and_answers():
    assert count_pose_tokens(turns("It is at <pose6D>. And now?", "At <pose6D>, then <pose6D>.")) == 3
    assert count_pose_tokens([]) == 0


# What a person reads


@pytest.mark.parametrize(
    ("degrees", "expected"),
    [
        ((30, 10, -5), "(azimuth 30°, elevation 10°, in-plane -5°)"),
        ((-30, 10, 355), "(azimuth 330°, elevation 10°, in-plane -5°)"),
        ((210, 170, 175), "(azimuth 30°, elevation 10°, in-plane -5°)"),
        ((359.7, 0, 0), "(azimuth 0°, elevation 0°, in-plane 0°)"),
        ((30, 90, 10), "(azimuth 20°, elevation 90°, in-plane 0°)"),
        ((0.2, -0.2, -0.2), "(azimuth 0°, elevation 0°, in-plane 0°)"),
    ],
)
def test_a_pose_in_words(degrees, expected):
    assert describe_pose(Pose(*map(math.radians, degrees))) == expected


def test_poses_are_interleaved_in_their_order():
    poses = [Pose(0.0, 0.0, 0.0), Pose(math.pi, 0.0, 0.0)]
    text = interleave_poses("A car at <pose6D> behind a bus at <pose6D>.", poses)
    assert text == (
        "A car at (azimuth 0°, elevation 0°, in-plane 0°) behind a bus at (azimuth 180°, elevation 0°, in-plane 0°)."
    )
    assert interleave_poses("No pose.", []) == "No pose."
    with pytest.raises(ValueError, match="1 <pose6D> in the text, but 2 poses"):
        interleave_poses("<pose6D>", poses)


@pytest.mark.parametrize(
    ("text", "spaced"),
    [
        ("A car at<pose6D>, a bus at<pose6D>.", "A car at <pose6D>, a bus at <pose6D>."),
        ("At <pose6D>.", "At <pose6D>."),
        ("<pose6D> and (<pose6D>)", "<pose6D> and (<pose6D>)"),
        ("<pose6D><pose6D>", "<pose6D> <pose6D>"),
        ("None.", "None."),
    ],
)
def test_a_pose_stands_apart_from_the_word_before_it(text, spaced):
    assert space_poses(text) == spaced


# Mirrored text


def test_sides_are_swapped():
    text = "Seen from its front-left; it faces the viewer's right. Left is upright, bright, leftover."
    mirrored = "Seen from its front-right; it faces the viewer's left. Right is upright, bright, leftover."
    assert mirror_sides(text) == mirrored


@given(st.text(alphabet="leftrigh-L R<>", max_size=40))
@settings(max_examples=200, deadline=None)
def test_mirroring_twice_gives_the_text_back(text):
    assert mirror_sides(mirror_sides(text)) == text


@pytest.mark.parametrize(
    ("text", "mirrored"),
    [
        ("the car in the box [0.10, 0.20, 0.30, 0.45]", "the car in the box [0.70, 0.20, 0.90, 0.45]"),
        (
            "[0.00, 0.00, 1.00, 1.00] and [0.25, 0.50, 1.00, 0.75]",
            "[0.00, 0.00, 1.00, 1.00] and [0.00, 0.50, 0.75, 0.75]",
        ),
        ("the left one in [0.57, 0.20, 0.58, 0.45]", "the right one in [0.42, 0.20, 0.43, 0.45]"),
        (
            "[1.50, 0.20, 1.90, 0.40] [0.1, 0.2, 0.3, 0.4] [0, 1]",
            "[1.50, 0.20, 1.90, 0.40] [0.1, 0.2, 0.3, 0.4] [0, 1]",
        ),
    ],
)
def test_boxes_are_mirrored(text, mirrored):
    assert mirror_sides(text) == mirrored
    assert mirror_sides(mirrored) == text


def test_templates_hold_no_sides():
    for text in conversation.POSE_QUESTIONS + JOINT_QUESTIONS + CAPTION_QUESTIONS + (POSE_ANSWER, JOINT_ANSWER):
        assert mirror_sides(text) == text


# Samples


@pytest.mark.parametrize(
    "sample",
    [
        make_sample(),
        make_sample(image=None, conversations=turns("Hello?", "Hello."), poses=[]),
        make_sample(flippable=True),
        make_sample(image="train/a..b/c.JPEG", flippable=False),
        make_sample(conversations=turns("<image>\nIt is at <pose6D>. And?", "At <pose6D>."), poses=[ANGLES, ANGLES]),
    ],
)
def test_good_samples_pass(sample):
    validate_sample(sample, where="train.json[0]")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"conversations": turns("What?", "The car is at <pose6D>.")}, "0 <image> in the text of sample 's1'"),
        ({"conversations": turns("<image>", "<image> <pose6D>")}, "2 <image> in the text"),
        ({"image": None}, "1 <image> in the text"),
        ({"poses": []}, "has 1 <pose6D> but 0 poses"),
        ({"poses": [{}, {}]}, "has 1 <pose6D> but 2 poses"),
        ({"conversations": [{"from": "user", "value": "x"}]}, "a turn needs 'from'"),
        ({"conversations": ["<image> hello"]}, "a turn needs 'from'"),
        ({"conversations": "hello"}, "must be a list of turns"),
        ({"poses": None}, "must be a list of poses"),
        ({"flippable": 1}, "'flippable' must be true or false, not 1"),
        ({"flippable": "no"}, "'flippable' must be true or false, not 'no'"),
        ({"image": "/etc/a.JPEG"}, "'image' must be a path below the prepared folder, '/etc/a.JPEG' leads out"),
        ({"image": "train/../../a.JPEG"}, "'image' must be a path below the prepared folder"),
        ({"image": "train\\..\\a.JPEG"}, "'image' must be a path below the prepared folder"),
    ],
)
def test_bad_samples_are_named(changes, match):
    with pytest.raises(InputError, match=match) as caught:
        validate_sample(make_sample(**changes), where="train.json[7]")
    assert str(caught.value).startswith("train.json[7]: ")


def test_a_sample_that_is_no_object_is_named():
    with pytest.raises(InputError, match=r"train.json\[7\]: the sample has no 'id'"):
        validate_sample(["s1"], where="train.json[7]")


@pytest.mark.parametrize("name", ["id", "conversations", "poses"])
def test_a_sample_without_a_field_is_named(name):
    sample = make_sample()
    del sample[name]
    with pytest.raises(InputError, match=rf"train.json\[7\]: the sample has no '{name}'.*instruct"):
        validate_sample(sample, where="train.json[7]")


# Several pictures


@pytest.mark.parametrize(
    ("question", "answer", "meant"),
    [
        ("How are the cars turned?", "In picture 2 at <pose6D>, in Picture 1 at <pose6D>.", [1, 0]),
        ("How are the cars turned?", "In the first image at <pose6D>, in the third photo at <pose6D>.", [0, 2]),
        ("How is the car in the second picture turned?", "It is at <pose6D>, and its mirror at <pose6D>.", [1, 1]),
        ("How is the car in picture 2 turned?", "In picture 3, at <pose6D>.", [2]),
        ("How are the cars turned?", "At <pose6D> and at <pose6D>.", [None, None]),
        ("How are the cars turned?", "Unlike picture 1, in picture 2 at <pose6D>.", [None]),
        ("How are the cars of the first and second picture turned?", "At <pose6D>.", [None]),
        ("How are the cars of picture 1 and 2 turned?", "At <pose6D>.", [None]),
        ("How is the second car turned?", "At <pose6D>.", [None]),
        ("How is the car in picture 4 turned?", "At <pose6D>.", [None]),
        ("How is the car in picture 0 turned?", "At <pose6D>.", [None]),
        ("How is the car in picture " + "2" * 5000 + " turned?", "At <pose6D>.", [None]),
    ],
)
def test_a_pose_is_of_the_one_picture_that_the_words_before_it_name(
    question: str, answer: str, meant: list[int | None]
):
    assert pictures_meant(question, answer.split(POSE_TOKEN)[:-1], 3) == meant


def test_with_one_picture_a_pose_is_of_that():
    assert pictures_meant("And in picture 2?", ["At ", " and picture 3 "], 1) == [0, 0]
    assert pictures_meant("And in picture 2?", ["At "], 0) == [None]
