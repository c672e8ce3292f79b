"""The rules of captions, and the answer format of models."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest

from data_prep.caption.check import MOST_WORDS, Mismatch, check_words, read_answer
from data_prep.caption.grammar import check_caption, scene_caption
from data_prep.caption.prompt import RULES, describe_object, first_messages, prompt_text
from data_prep.scene.scenes import make_scenes
from llava_pose.data.conversation import POSE_TOKEN
from llava_pose.data.records import ObjectRecord, Pose
from llava_pose.utils.openai_client import next_messages
from tests.data_prep.made_scenes import make_records


def thing(category: str, index: int = 0) -> ObjectRecord:
    return ObjectRecord(
        file_name="a.jpg",
        id=f"x/a/{index}",
        category=category,
        pose=Pose(0.7, 0.3, 0.0, 4.0, 50.0, 50.0),
        viewport=300.0,
        width=100,
        height=100,
        bbox=(10.0 + index, 20.0, 60.0 + index, 90.0),
    )


CAR, BICYCLE, CAN = thing("car"), thing("bicycle", 1), thing("can", 2)


@pytest.mark.parametrize(
    ("caption", "objects"),
    [
        ("A red car <pose6D> stands in the street, seen from its front-left.", [CAR]),
        ("A car at <pose6D> is parked behind a bicycle at <pose6D>; the car faces the camera.", [CAR, BICYCLE]),
        (
            "Two riders have left their bicycle (<pose6D>) beside a car <pose6D>, which can be seen from above.",
            [BICYCLE, CAR],
        ),
        ("The car <pose6D> faces the camera, and its sign of rust can be seen.", [CAR]),
        ("A can <pose6D> that somebody can open stands here.", [CAN]),
        (
            "A car <pose6D> and another car <pose6D>. The first car is nearer than the second car.",
            [CAR, thing("car", 1)],
        ),
        ("A camera <pose6D> faces the camera.", [thing("camera")]),
        ("An airplane <pose6D> over the sea.", [thing("aeroplane")]),
        ("A pair of scissors <pose6D>. The scissors point up.", [thing("scissors")]),
        ("An espresso tamper <pose6D> stands there.", [thing("espresso_tamper")]),
        # letters that are the same to a pattern which does not mind the case, and not to str.lower
        ("A ſink <pose6D> on the left.", [thing("sink")]),
        ("An İstanbul tile <pose6D> and a bıcycle <pose6D>.", [thing("İstanbul tile"), BICYCLE]),
        ("A STRAßE model <pose6D>.", [thing("Straße model")]),
    ],
)
def test_captions_that_keep_the_rules(caption, objects):
    check_words(caption, objects)


@pytest.mark.parametrize(
    ("caption", "objects", "match"),
    [
        ("", [CAR], "empty"),
        ("A car.", [CAR], "has 0 <pose6D>, but declares 1"),
        ("A car <pose6D> <pose6D>.", [CAR], "has 2 <pose6D>, but declares 1"),
        ("A car <pose6D> and a bicycle <pose6D>.", [CAR], "has 2 <pose6D>, but declares 1"),
        ("A car <pose6D> and a bicycle.", [CAR], "'bicycle' is not among the objects"),
        ("A car <pose6D> and a bicycle.", [CAR, BICYCLE], "has 1 <pose6D>, but declares 2"),
        ("A bicycle <pose6D> and a car <pose6D>.", [CAR, BICYCLE], "number 1 follows 'bicycle', but object number 1"),
        ("A car <pose6D> in front of a wine glass.", [CAR], "'wine glass' is not among"),
        ("A car <pose6D> beside a can.", [CAR], "'can' is not among"),
        ("A car <pose6D> and two cars.", [CAR], "'cars' is named without its <pose6D>"),
        ("A car, seen from the left: <pose6D>.", [CAR], "'car' is named without|does not stand directly after"),
        ("A vehicle <pose6D> in the rain.", [CAR], "does not stand directly after an object's name"),
        ("A car <pose6D>, turned by 45°.", [CAR], "an angle of its own"),
        ("A car <pose6D>, turned by 45 degrees.", [CAR], "an angle of its own"),
        ("A car <pose6D>, turned by forty-five degrees.", [CAR], "an angle of its own"),
        ("A car <pose6D> at an angle of about 45.", [CAR], "an angle of its own"),
        ("A car <pose6D> at two o'clock.", [CAR], "an angle of its own"),
        ("A car <pose6D> with an azimuth from the left.", [CAR], "the name of an angle"),
        ("A car <pose6D> 4.2 units away.", [CAR], "numbers from the annotation"),
        ("A car <pose6D> in [0, 1].", [CAR], "numbers from the annotation"),
        ("<image> A car <pose6D>.", [CAR], "angle brackets"),
        ("A car <pose6D>.\nNice.", [CAR], "one paragraph"),
        ("A car <pose6D>" + " very" * MOST_WORDS + " fast.", [CAR], "more than"),
    ],
)
def test_captions_that_break_a_rule(caption, objects, match):
    with pytest.raises(Mismatch, match=match):
        check_words(caption, objects)


def answer(numbers, caption) -> str:
    return json.dumps({"objects": numbers, "caption": caption})


def test_an_answer_says_which_objects_it_names():
    found = read_answer(answer([2, 1], "A bicycle <pose6D> and a car <pose6D>."), [CAR, BICYCLE])
    assert [record.category for record in found.objects] == ["bicycle", "car"]
    fenced = f"```json\n{answer([1], 'A car <pose6D>.')}\n```"
    assert read_answer(fenced, [CAR, BICYCLE]).caption == "A car <pose6D>."


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (None, "the answer is empty"),
        ("  ", "the answer is empty"),
        ("A car <pose6D>.", "not one JSON object"),
        ("Here you are: " + answer([1], "A car <pose6D>."), "not one JSON object"),
        ("[1]", "must have the keys"),
        ('{"caption": "A car <pose6D>."}', "must have the keys"),
        ('{"caption": "A car <pose6D>.", "objects": [1], "note": 1}', "must have the keys"),
        (answer([], "A car."), "not empty"),
        (answer("1", "A car <pose6D>."), "must be a list of object numbers"),
        (answer([True], "A car <pose6D>."), "must be a list of object numbers"),
        (answer([3], "A car <pose6D>."), "there is no object 3; the objects are 1 to 2"),
        (answer([0], "A car <pose6D>."), "there is no object 0"),
        (answer([1, 1], "A car <pose6D> and a car <pose6D>."), "a number twice"),
        (answer([1], None), "'caption' must be text"),
        (answer([2], "A car <pose6D>."), "number 1 follows 'car', but object number 1 of 'objects' is a bicycle"),
    ],
)
def test_answers_that_cannot_be_used(text, match):
    with pytest.raises(Mismatch, match=match):
        read_answer(text, [CAR, BICYCLE])


# The grammar


def test_captions_of_the_grammar_keep_the_rules_and_are_true_in_the_mirror():
    scenes = list({id(scene): scene for scene in make_scenes(make_records(40)).values()}.values())
    texts, counts = [], set()
    for seed, scene in enumerate(scenes * 2):
        text, objects = scene_caption(scene, random.Random(seed))
        check_words(text, objects)
        check_caption(text, objects)
        counts.add(len(objects))
        texts.append(text)
        # no pose comes after words that tell it
        assert POSE_TOKEN not in text.split(". ", 1)[-1] or ". " not in text
    assert counts == {1, 2, 3, 4}
    assert len(set(texts)) > 0.95 * len(texts)


def test_a_sentence_that_is_not_true_is_found():
    scene = make_scenes([CAR])[CAR.id]
    text, _ = scene_caption(scene, random.Random(0))
    for wrong in (text + " It flies.", "Look: " + text, text.replace("car", "bus")):
        with pytest.raises(Mismatch, match="the records do not say"):
            check_caption(wrong, [CAR])
    turned = replace(CAR, pose=Pose(2.7, 0.3, 0.1, 4.0, 50.0, 50.0))
    with pytest.raises(Mismatch, match="the records do not say"):
        check_caption(text, [turned])


# The prompt


def test_the_prompt_holds_the_2d_and_the_3d_annotations():
    scene = make_scenes([CAR, BICYCLE])[CAR.id]
    text = prompt_text(scene.objects)
    assert (
        '1. a car, to be called "car"; box [0.10, 0.20, 0.60, 0.90]; seen from its front-left, slightly from above'
        in text
    )
    assert "pose (azimuth 40°, elevation 17°, in-plane 0°)" in text
    assert '2. a bicycle, to be called "bicycle"' in text
    assert "front" not in describe_object(thing("bottle"), 1), "a bottle has none"
    assert POSE_TOKEN in RULES
    messages = first_messages(scene, None)
    assert [message["role"] for message in messages] == ["system", "user"]
    again = next_messages(messages, "no", "the answer is empty")
    assert [message["role"] for message in again] == ["system", "user", "assistant", "user"]
    assert "the answer is empty" in again[-1]["content"]
