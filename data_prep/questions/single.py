"""Questions about one object whose answer is its category, its pose or both: joint, listed, described, pose."""

from __future__ import annotations

import re
from collections.abc import Mapping

from data_prep.questions.base import CATEGORY, LETTERS, Asking, Turn, told
from data_prep.scene.scenes import Scene, noun
from data_prep.scene.words import listing
from llava_pose.data.conversation import (
    DESCRIBED_ANSWER,
    DESCRIBED_QUESTIONS,
    JOINT_ANSWER,
    JOINT_QUESTIONS,
    POSE_ANSWER,
    POSE_QUESTIONS,
    POSE_TOKEN,
    object_words,
)
from llava_pose.data.descriptions import description_of
from llava_pose.data.records import ObjectRecord, category_of
from llava_pose.pose import categories

_LIST_LENGTHS = (3, 4, 5, 6, 8)
_SIDE_WORDS = re.compile(r"\b(left|right)\b", re.IGNORECASE)


def joint_answer(record: ObjectRecord) -> str:
    return JOINT_ANSWER.format(pose=POSE_TOKEN, **object_words(category_of(record)))


def draw_options(kind: str, asking: Asking, record: ObjectRecord) -> tuple[list[str], str]:
    """Draw a closed list of categories with the right one among them, at each place as often as at any other.

    Half of the others come from the data set, since a name that is never right could be passed over unread.

    Returns:
        The names with their articles, and the letter of the right one's place.
    """
    right = object_words(category_of(record))["an_object"]
    length = asking.rng.choice(_LIST_LENGTHS)
    near = [name for name in asking.pool if name != right]
    others = asking.rng.sample(near, min(len(near), (length - 1 + 1) // 2))
    far = [c.indefinite for c in categories.all_categories() if c.indefinite not in {right, *others}]
    others += asking.rng.sample(far, length - 1 - len(others))
    asking.rng.shuffle(others)
    letter = asking.balance.next_letter(kind, length, asking.rng)
    place = LETTERS.index(letter)
    return [*others[:place], right, *others[place:]], letter


class JointKind:
    """Asks what the object of a picture is, and for its pose."""

    name, balanced, rank = "joint", False, 0
    questions = JOINT_QUESTIONS

    def applies(self, scene: Scene, record: ObjectRecord) -> bool:
        return len(scene.owners) == 1

    def ask(self, asking: Asking) -> Turn:
        record = asking.record
        question = asking.choose(self.questions).format()
        return Turn(
            self.name, question, joint_answer(record), (record.pose,), (record,), tells=told([record], CATEGORY)
        )


class ListedKind:
    """Asks the same with a closed list of categories in the question."""

    name, balanced, rank = "listed", True, 0
    questions = (
        "Which of these is it, and what is its pose: {options}?",
        "The object is one of {options}. Name it and give its pose.",
        "Is this {options}? Say which, with its 6D pose.",
    )

    def applies(self, scene: Scene, record: ObjectRecord) -> bool:
        return len(scene.owners) == 1

    def ask(self, asking: Asking) -> Turn:
        record = asking.record
        options, letter = draw_options(self.name, asking, record)
        return Turn(
            self.name,
            asking.choose(self.questions).format(options=listing(options, "or")),
            joint_answer(record),
            (record.pose,),
            (record,),
            tells=told([record], CATEGORY),
            asks=told([record], CATEGORY),
            topic=f"place in a list of {len(options)}",
            letter=letter,
        )


class DescribedKind:
    """Asks for the pose of what is described, not named, as one would ask for a category that no training picture shows.

    Args:
        descriptions: canonical category -> a description that stands in place of the taxonomy's.
    """

    name, balanced, rank = "described", False, 0
    questions = DESCRIBED_QUESTIONS
    pose_answer = DESCRIBED_ANSWER.format(pose=POSE_TOKEN)

    def __init__(self, descriptions: Mapping[str, str] | None = None) -> None:
        self._own = descriptions or {}

    def applies(self, scene: Scene, record: ObjectRecord) -> bool:
        alone = len(scene.owners) == 1 or noun(record) in scene.references[record.id]
        return alone and bool(description_of(category_of(record), self._own))

    def ask(self, asking: Asking) -> Turn:
        record = asking.record
        description = description_of(category_of(record), self._own)
        phrasing = asking.choose(self.questions)
        names = phrasing is self.questions[2]
        return Turn(
            self.name,
            phrasing.format(description=description),
            joint_answer(record) if names else self.pose_answer,
            (record.pose,),
            (record,),
            tells=told([record], CATEGORY),
            asks=told([record], CATEGORY),
            flippable=not _SIDE_WORDS.search(description),
            topic="known category" if category_of(record).known else "novel category",
        )


class PoseKind:
    """Asks for the pose of a named object; where several of its kind are seen, of the one on the left or in a box."""

    name, balanced, rank = "pose", False, 2
    questions = POSE_QUESTIONS

    def applies(self, scene: Scene, record: ObjectRecord) -> bool:
        return len(scene.owners) == 1 or bool(scene.references[record.id])

    def ask(self, asking: Asking) -> Turn:
        record = asking.record
        phrasing = asking.choose(self.questions)
        name = noun(record) if len(asking.scene.owners) == 1 else asking.reference(record)
        return Turn(
            self.name,
            phrasing.format(object=name),
            POSE_ANSWER.format(object=name, pose=POSE_TOKEN),
            (record.pose,),
            (record,),
            tells=told([record], CATEGORY),
        )
