"""Questions with boxes in the text, and about several objects at once: box, box_joint, locate, several."""

from __future__ import annotations

from collections.abc import Sequence

from data_prep.questions.base import CATEGORY, Asking, Turn, told
from data_prep.questions.single import draw_options
from data_prep.scene.scenes import Scene, box_text, noun
from data_prep.scene.words import listing, sentence
from llava_pose.data.conversation import POSE_TOKEN, object_words
from llava_pose.data.records import ObjectRecord, category_of

_MOST_AT_ONCE = 4


class BoxKind:
    """Asks for the pose of a named object in a box."""

    name, balanced, rank = "box", False, 2
    questions = (
        "What is the pose of the {object} in the box {box}?",
        "The box {box} holds one {object}. How is it turned?",
        "Estimate the 6D pose of the {object} inside {box}.",
        "Look at the region {box}. What is the 6D pose of the {object} there?",
        "In {box} one {object} is seen. Give its viewpoint.",
    )
    answer = "The {object} in the box is at {pose}."

    def applies(self, scene: Scene, record: ObjectRecord) -> bool:
        return scene.is_clear(record)

    def ask(self, asking: Asking) -> Turn:
        record = asking.record
        name = noun(record)
        return Turn(
            self.name,
            asking.choose(self.questions).format(object=name, box=box_text(record)),
            self.answer.format(object=name, pose=POSE_TOKEN),
            (record.pose,),
            (record,),
            tells=told([record], CATEGORY),
        )


class BoxJointKind:
    """Asks what is in a box, and for its pose; open or with a closed list."""

    name, balanced, rank = "box_joint", True, 0
    questions = (
        "What is in the box {box}, and what is its pose?",
        "Name the object in the box {box} and give its 6D pose.",
        "Look at the region {box}. Which object is there, and how is it turned?",
        "Which of these is in the box {box}, and at which pose: {options}?",
        "The box {box} holds one of {options}. Say which, with its pose.",
    )
    answer = "In the box is {an_object} at {pose}."

    def applies(self, scene: Scene, record: ObjectRecord) -> bool:
        return scene.is_clear(record)

    def ask(self, asking: Asking) -> Turn:
        record = asking.record
        phrasing = asking.choose(self.questions)
        slots, topic, letter = {"box": box_text(record)}, "", ""
        if "{options}" in phrasing:
            options, letter = draw_options(self.name, asking, record)
            slots["options"], topic = listing(options, "or"), f"place in a list of {len(options)}"
        return Turn(
            self.name,
            phrasing.format(**slots),
            self.answer.format(pose=POSE_TOKEN, **object_words(category_of(record))),
            (record.pose,),
            (record,),
            tells=told([record], CATEGORY),
            asks=told([record], CATEGORY),
            topic=topic,
            letter=letter,
        )


class LocateKind:
    """Asks where a named object is (its box is the answer), and for its pose."""

    name, balanced, rank = "locate", False, 2
    questions = (
        "Where in the picture is the {ref}, and what is its pose?",
        "Locate the {ref} and tell how it is turned.",
        "Give the box and the 6D pose of the {ref}.",
    )
    answer = "The {ref} is in the box {box} at {pose}."

    def applies(self, scene: Scene, record: ObjectRecord) -> bool:
        return scene.is_clear(record) and bool(self._references(scene, record))

    @staticmethod
    def _references(scene: Scene, record: ObjectRecord) -> list[str]:
        return [phrase for phrase in scene.references[record.id] if "[" not in phrase]

    def ask(self, asking: Asking) -> Turn:
        record = asking.record
        reference = asking.rng.choice(self._references(asking.scene, record))
        return Turn(
            self.name,
            asking.choose(self.questions).format(ref=reference),
            self.answer.format(ref=reference, box=box_text(record), pose=POSE_TOKEN),
            (record.pose,),
            (record,),
            tells=told([record], CATEGORY),
        )


class SeveralKind:
    """Asks for the poses of several named objects of one picture, in the order of the question."""

    name, balanced, rank = "several", False, 2
    questions = (
        "What are the poses of {refs}?",
        "How are {refs} turned?",
        "Give the 6D pose of each: {refs}.",
        "From where are {refs} seen?",
    )

    def applies(self, scene: Scene, record: ObjectRecord) -> bool:
        return len(self._nameable(scene)) >= 2 and bool(scene.references[record.id])

    @staticmethod
    def _nameable(scene: Scene) -> list[ObjectRecord]:
        return [record for record in scene.objects if scene.references[record.id]]

    def ask(self, asking: Asking) -> Turn:
        others = [record for record in self._nameable(asking.scene) if record.id != asking.record.id]
        count = asking.rng.randint(1, min(len(others), _MOST_AT_ONCE - 1))
        records = [asking.record, *asking.rng.sample(others, count)]
        asking.rng.shuffle(records)
        references = [f"the {asking.reference(record)}" for record in records]
        return Turn(
            self.name,
            asking.choose(self.questions).format(refs=listing(references)),
            self._answer(references),
            tuple(record.pose for record in records),
            tuple(records),
            tells=told(records, CATEGORY),
        )

    @staticmethod
    def _answer(references: Sequence[str]) -> str:
        return sentence(listing([f"{reference} is at {POSE_TOKEN}" for reference in references])) + "."
