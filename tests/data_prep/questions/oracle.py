"""A second way to every answer: a question is read back from its words, and answered from the records.

Nothing is taken from a sample's making but its text: the question is read by the phrasings of its kind, the objects that it
points at are looked up, and answer, poses and ``flippable`` follow. A sample that may be mirrored is mirrored as training
does it, and held against the mirrored records as well.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

from data_prep.caption.check import Mismatch
from data_prep.caption.grammar import check_caption
from data_prep.questions.base import LETTERS
from data_prep.questions.boxes import BoxJointKind, BoxKind, LocateKind, SeveralKind
from data_prep.questions.captioned import HANDED
from data_prep.questions.given import WRONG_FROM, GivenKind, VerifyKind, WhichKind, rotation_error
from data_prep.questions.relative import RELATIONS
from data_prep.questions.single import DescribedKind, JointKind, ListedKind, PoseKind, joint_answer
from data_prep.questions.words import yes_no_answers
from data_prep.scene.facts import PREDICATES
from data_prep.scene.scenes import Scene, box_text, noun
from data_prep.scene.topics import TOPICS, Topic
from data_prep.scene.viewpoint_captions import caption_templates, caption_words
from data_prep.scene.words import listing, sentence
from llava_pose.data.conversation import (
    CAPTION_QUESTIONS,
    IMAGE_TOKEN,
    POSE_ANSWER,
    POSE_TOKEN,
    mirror_sides,
    object_words,
    validate_sample,
)
from llava_pose.data.records import ObjectRecord, Pose, category_of
from llava_pose.errors import InputError
from llava_pose.pose.categories import Category
from tests.data_prep.questions.reading import (
    Untrue,
    expect,
    expect_answer,
    expect_poses,
    expect_slots,
    in_box,
    mirrored,
    mirrored_pose,
    parse_box,
    readings,
    resolve_all,
    same_box,
    slots_of,
    split_listing,
)

_BRIEFLY_YES_NO = " Answer yes or no."
_BY_LETTER = "\nAnswer with the letter."
_OPTION = re.compile(r"\n([A-H])\. ")


class Asked(NamedTuple):
    """One question and its answer, as they are written."""

    scene: Scene
    record: ObjectRecord
    question: str
    answer: str
    poses: list[Pose]


class Found(NamedTuple):
    """The objects that a turn speaks of, and whether its words may be mirrored."""

    about: Sequence[ObjectRecord]
    flippable: bool = True


def _none_of_the_kind(question: str) -> Untrue:
    return Untrue(f"the question {question!r} is none of the kind")


def _only(asked: Asked, phrase: str) -> None:
    (found,) = resolve_all(asked.scene, {"ref": phrase}, ["ref"])
    expect(found.id == asked.record.id, f"'the {phrase}' is {found.id!r}, not {asked.record.id!r}")


def _options(text: str, record: ObjectRecord) -> None:
    options = split_listing(text, "or", "an? ")
    right = object_words(category_of(record))["an_object"]
    expect(len(set(options)) == len(options), f"an option stands twice: {text}")
    expect(right in options, f"{right!r} is not among the options: {text}")


# One object


def joint(asked: Asked) -> Found:
    expect(any(readings(JointKind.questions, asked.question)), f"{asked.question!r} is none of the kind")
    expect_answer(asked.answer, [joint_answer(asked.record)])
    expect_poses(asked.poses, [asked.record])
    return Found([asked.record])


def listed(asked: Asked) -> Found:
    _options(expect_slots(ListedKind.questions, asked.question)["options"], asked.record)
    expect_answer(asked.answer, [joint_answer(asked.record)])
    expect_poses(asked.poses, [asked.record])
    return Found([asked.record])


def described(asked: Asked) -> Found:
    record, kind = asked.record, DescribedKind
    text = category_of(record).description
    found = [p for p, slots in readings(kind.questions, asked.question) if slots["description"] == text]
    expect(found, f"the question does not describe {record.category!r}")
    expect_answer(asked.answer, [joint_answer(record) if found[0] is kind.questions[2] else kind.pose_answer])
    expect_poses(asked.poses, [record])
    # a mirrored description would say "left" of the object where the real one says "right"
    return Found([record], mirror_sides(text) == text)


def pose(asked: Asked) -> Found:
    slots = expect_slots(PoseKind.questions, asked.question)
    if len(asked.scene.owners) > 1 or slots["object"] != noun(asked.record):
        _only(asked, slots["object"])
    expect_answer(asked.answer, [POSE_ANSWER.format(object=slots["object"], pose=POSE_TOKEN)])
    expect_poses(asked.poses, [asked.record])
    return Found([asked.record])


# Boxes


def _boxed(asked: Asked, box: str) -> None:
    found = in_box(asked.scene, box)
    expect(found is not None and found.id == asked.record.id, f"the box {box} is not that of {asked.record.id!r}")


def box(asked: Asked) -> Found:
    name = noun(asked.record)
    slots = expect_slots(BoxKind.questions, asked.question, lambda slots: parse_box(slots["box"]))
    _boxed(asked, slots["box"])
    expect(slots["object"] == name, f"in the box {slots['box']} is no {slots['object']}")
    expect_answer(asked.answer, [BoxKind.answer.format(object=name, pose=POSE_TOKEN)])
    expect_poses(asked.poses, [asked.record])
    return Found([asked.record])


def box_joint(asked: Asked) -> Found:
    slots = expect_slots(BoxJointKind.questions, asked.question, lambda slots: parse_box(slots["box"]))
    _boxed(asked, slots["box"])
    if "options" in slots:
        _options(slots["options"], asked.record)
    words = object_words(category_of(asked.record))
    expect_answer(asked.answer, [BoxJointKind.answer.format(pose=POSE_TOKEN, **words)])
    expect_poses(asked.poses, [asked.record])
    return Found([asked.record])


def locate(asked: Asked) -> Found:
    phrase = expect_slots(LocateKind.questions, asked.question)["ref"]
    _only(asked, phrase)
    start, end = LocateKind.answer.split("{box}")
    start, end, answer = start.format(ref=phrase), end.format(pose=POSE_TOKEN), asked.answer
    expect(answer.startswith(start) and answer.endswith(end), f"the answer {answer!r} holds no box")
    numbers = parse_box(answer[len(start) : -len(end)])
    is_right = numbers is not None and same_box(asked.record, numbers)
    expect(is_right, f"the box is {answer[len(start) : -len(end)]}, not {box_text(asked.record)}")
    expect_poses(asked.poses, [asked.record])
    return Found([asked.record])


def several(asked: Asked) -> Found:
    references = split_listing(expect_slots(SeveralKind.questions, asked.question)["refs"], "and", "the ")
    expect(all(r.startswith("the ") for r in references), f"no list of objects: {asked.question!r}")
    named = {str(i): reference.removeprefix("the ") for i, reference in enumerate(references)}
    records = resolve_all(asked.scene, named, list(named))
    expect(len({r.id for r in records}) == len(records) >= 2, "an object is asked about twice")
    expect(asked.record.id in {r.id for r in records}, f"{asked.record.id!r} is not among the objects")
    said = listing([f"{reference} is at {POSE_TOKEN}" for reference in references])
    expect_answer(asked.answer, [f"{sentence(said)}."])
    expect_poses(asked.poses, records)
    return Found(records)


# Yes or no, and multiple choice

PoseOf = Callable[[str], tuple[Category, Pose]]


def _is_yes_no(question: str, answer: str, pose_of: PoseOf) -> bool:
    """Whether the question is of this kind; its answer is then right."""
    briefly = question.endswith(_BRIEFLY_YES_NO)
    for predicate in PREDICATES.values():
        slots = slots_of(predicate.question, question.removesuffix(_BRIEFLY_YES_NO))
        if slots is not None:
            category, where = pose_of(slots["ref"])
            expect(predicate.can_be_asked(category), f"of {category.indefinite} it cannot be said: {question!r}")
            answers = yes_no_answers(predicate, where, briefly=briefly)
            expect(answers, f"too close to call: {question!r}")
            expect_answer(answer, answers.values())
            return True
    return False


def _is_choice(question: str, answer: str, pose_of: PoseOf) -> bool:
    """Whether the question is of this kind; its answer is then right."""
    by_letter = question.endswith(_BY_LETTER)
    stem, *parts = _OPTION.split(question.removesuffix(_BY_LETTER))
    letters, options = parts[::2], parts[1::2]
    for topic in TOPICS.values():
        slots = slots_of(topic.question, stem)
        if slots is not None:
            category, where = pose_of(slots["ref"])
            expect(topic.can_be_asked(category), f"of {category.indefinite} it cannot be said: {question!r}")
            truth = _the_right_one(topic, where, letters, options)
            right = letters[options.index(truth)]
            expect_answer(answer, [right if by_letter else f"{right}. {truth}"])
            return True
    return False


def _the_right_one(topic: Topic, where: Pose, letters: list[str], options: list[str]) -> str:
    in_order = "".join(letters) == LETTERS[: len(letters)] and len(letters) >= 2
    expect(in_order, f"the options are not A, B, …: {letters}")
    truth = topic.truth(where)
    if truth is None:
        raise Untrue("too close to call")
    expect(options.count(truth) == 1, f"the right option, {truth!r}, does not stand once among {options}")
    doubtful = set(options) - {truth} - set(topic.wrong(where))
    is_clear = not doubtful and len(set(options)) == len(options)
    expect(is_clear, f"options that are not clearly wrong: {sorted(doubtful)}")
    return truth


def _in_words(asked: Asked, is_one: Callable[[str, str, PoseOf], bool]) -> Found:
    def pose_of(phrase: str) -> tuple[Category, Pose]:
        _only(asked, phrase)
        return category_of(asked.record), asked.record.pose

    if not is_one(asked.question, asked.answer, pose_of):
        raise _none_of_the_kind(asked.question)
    expect_poses(asked.poses, [])
    return Found([asked.record])


def yesno(asked: Asked) -> Found:
    return _in_words(asked, _is_yes_no)


def choice(asked: Asked) -> Found:
    return _in_words(asked, _is_choice)


# Two objects


def relative(asked: Asked) -> Found:
    for relation in RELATIONS.values():
        for phrasing in relation.questions:
            slots = slots_of(phrasing, asked.question)
            if slots is None:
                continue
            a, b = resolve_all(asked.scene, slots, ["a", "b"])
            expect(a.id != b.id, f"both are {a.id!r}: {asked.question!r}")
            expect(asked.record.id in (a.id, b.id), f"neither is {asked.record.id!r}: {asked.question!r}")
            expect(relation.can_be_asked(a, b), f"of the two it cannot be said: {asked.question!r}")
            truth = relation.fact(a.pose, b.pose)
            expect(truth is not None, f"too close to call: {asked.question!r}")
            expect_answer(asked.answer, [relation.answers[0 if truth else 1].format(**slots)])
            expect_poses(asked.poses, [])
            return Found([a, b])
    raise _none_of_the_kind(asked.question)


# A pose in the question


def verify(asked: Asked) -> Found:
    _only(asked, expect_slots(VerifyKind.questions, asked.question)["ref"])
    expect(asked.poses, "the question has no pose")
    is_wrong = rotation_error(asked.poses[0], asked.record.pose, category_of(asked.record)) >= WRONG_FROM
    if not is_wrong:
        expect_poses(asked.poses[:1], [asked.record])
    expect_answer(asked.answer, [VerifyKind.no if is_wrong else VerifyKind.yes])
    expect_poses(asked.poses[1:], [asked.record] if is_wrong else [])
    return Found([asked.record])


def which(asked: Asked) -> Found:
    expect(any(readings(WhichKind.questions, asked.question)), f"{asked.question!r} is none of the kind")
    expect(re.fullmatch("The .*[.]", asked.answer), f"the answer {asked.answer!r} names no object")
    _only(asked, asked.answer[4:-1])
    expect_poses(asked.poses, [asked.record])
    expect(WhichKind().applies(asked.scene, asked.record), "another object is at nearly the same pose")
    return Found([asked.record])


def given(asked: Asked) -> Found:
    record, category = asked.record, category_of(asked.record)
    start = GivenKind.prefix.format(an_object=object_words(category)["an_object"], pose=POSE_TOKEN)
    expect(asked.question.startswith(start), f"the question does not suppose {category.indefinite} at a pose")
    expect(len(asked.poses) == 1, f"1 pose expected, found {len(asked.poses)}")
    (where,) = asked.poses
    is_here = (where.distance, where.py) == (record.pose.distance, record.pose.py)
    expect(is_here, f"the given pose has not the distance and place of {record.id!r}")

    def pose_of(phrase: str) -> tuple[Category, Pose]:
        expect(phrase == noun(record), f"the question goes on with another object: {phrase!r}")
        return category, where

    rest = asked.question[len(start) :]
    if not _is_yes_no(rest, asked.answer, pose_of) and not _is_choice(rest, asked.answer, pose_of):
        raise _none_of_the_kind(asked.question)
    return Found([record])


# Captions of the grammar


def caption(asked: Asked) -> Found:
    expect(asked.question in CAPTION_QUESTIONS, f"{asked.question!r} is none of the kind")
    flippable = not HANDED.search(asked.answer)
    record = asked.record
    if len(asked.scene.owners) == 1:
        category = category_of(record)
        words = caption_words(record.pose, category)
        expect_answer(asked.answer, [template.format(**words) for template in caption_templates(category)])
        expect_poses(asked.poses, [record])
        return Found([record], flippable)
    return Found(named(asked.scene, asked.answer, asked.poses), flippable)


def named(scene: Scene, text: str, poses: Sequence[Pose]) -> Sequence[ObjectRecord]:
    """The objects that a caption of the grammar names; two of one pose are told apart by what is said of them."""
    choices = [[record for record in scene.distinct if _is_at(record, where)] for where in poses]
    reason = Untrue("a pose of the caption is that of no object of the picture")
    for objects in product(*choices):
        try:
            check_caption(text, objects)
        except Mismatch as error:
            reason = Untrue(str(error))
        else:
            return objects
    raise reason


def _is_at(record: ObjectRecord, where: Pose) -> bool:
    try:
        expect_poses([where], [record])
    except Untrue:
        return False
    return True


_ONE = (joint, pose, caption, listed, described, box, box_joint, locate)
_OTHERS = (several, yesno, choice, relative, verify, which, given)
CHECKS: Mapping[str, Callable[[Asked], Found]] = {check.__name__: check for check in (*_ONE, *_OTHERS)}


# A whole sample


def rederive(sample: Mapping[str, Any], record: ObjectRecord, scene: Scene, split: str = "train") -> None:
    """Hold one sample against the records.

    Raises:
        Untrue: what is not so.
    """
    try:
        poses = validate_sample(sample, where="sample")
    except InputError as error:
        raise Untrue(str(error)) from error
    for name, value in {
        "record": record.id,
        "category": record.category,
        "image": f"{split}/{record.file_name}",
        "width": record.width,
        "height": record.height,
        "kind": sample["kinds"][0],
    }.items():
        expect(sample[name] == value, f"'{name}' is {sample[name]!r}, not {value!r}")
    expect(math.isclose(sample["viewport"], record.viewport * record.focal, rel_tol=1e-9), "the viewport is another")
    texts = [turn["value"] for turn in sample["conversations"]]
    expect(texts[0].startswith(f"{IMAGE_TOKEN}\n"), "the first question does not begin with the image")
    texts[0] = texts[0].removeprefix(f"{IMAGE_TOKEN}\n")
    found = _check_turns(sample, texts, poses, record, scene)
    mirrors = all(one.flippable and all(category_of(r).mirror_axis == "x" for r in one.about) for one in found)
    expect(sample["flippable"] is mirrors, f"'flippable' is {sample['flippable']}, not {mirrors}")
    if mirrors:
        flipped = [mirrored_pose(where, sample["width"]) for where in poses]
        view = mirrored(scene)
        _check_turns(sample, list(map(mirror_sides, texts)), flipped, view.by_id[record.id], view)


def _check_turns(
    sample: Mapping[str, Any], texts: list[str], poses: list[Pose], record: ObjectRecord, scene: Scene
) -> list[Found]:
    found, rest = [], poses
    for kind, question, answer in zip(sample["kinds"], texts[::2], texts[1::2], strict=True):
        count = (question + answer).count(POSE_TOKEN)
        of_turn, rest = rest[:count], rest[count:]
        found.append(CHECKS[kind](Asked(scene, record, question, answer, of_turn)))
    return found
