"""Questions that hold a pose: is the object at it, which object is, and what would be seen of one that were.

The answer follows from the pose that is given (and, where the picture's object is meant, from the record's), never from
words. A given pose that is not a record's keeps the record's distance and place in the picture.
"""

from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy as np

from data_prep.questions.base import CATEGORY, Asking, Turn, told
from data_prep.questions.words import ask_choice, ask_yes_no
from data_prep.scene.facts import ALL_ASPECTS
from data_prep.scene.scenes import Scene, noun
from llava_pose.data.conversation import POSE_TOKEN, object_words
from llava_pose.data.records import ObjectRecord, Pose, category_of
from llava_pose.pose.categories import Category
from llava_pose.pose.metrics import symmetric_pose_error

WRONG_FROM = math.radians(45)  # a given pose that far from the true one is wrong, whatever the category's symmetry
_TELLS_APART = math.radians(30)
_PLACES_APART = 0.1  # of the picture's width
_ASPECTS = tuple(sorted(ALL_ASPECTS))


def rotation_error(a: Pose, b: Pose, category: Category) -> float:
    """Return the radians between two poses, the symmetries of the category allowed for."""
    return float(symmetric_pose_error(np.array(a.angles), np.array(b.angles), *category.symmetry_group))


class VerifyKind:
    """Asks whether the object is at a pose; if not, the answer gives the true one."""

    name, balanced, rank = "verify", True, 5
    questions = (
        f"Is the {{ref}} at {POSE_TOKEN}?",
        f"Does {POSE_TOKEN} fit the {{ref}} in the picture?",
        f"Somebody says that the {{ref}} is at {POSE_TOKEN}. Is that so?",
    )
    yes, no = "Yes.", f"No, it is at {POSE_TOKEN}."

    def applies(self, scene: Scene, record: ObjectRecord) -> bool:
        return bool(scene.references[record.id])

    def ask(self, asking: Asking) -> Turn | None:
        record = asking.record
        wrong = self._wrong_pose(asking)
        right = wrong is None or asking.rng.random() < 0.5
        outcome, other = ("yes", "no") if right else ("no", "yes")
        if not asking.balance.allows(self.name, outcome, other):
            if wrong is None:
                return None
            right, outcome, other = not right, other, outcome
        asking.balance.count(self.name, outcome, [other])
        return Turn(
            self.name,
            asking.choose(self.questions).format(ref=asking.reference(record)),
            self.yes if right else self.no,
            (record.pose,) if right or wrong is None else (wrong, record.pose),
            (record,),
            tells=told([record], CATEGORY, *_ASPECTS),
            asks=told([record], *_ASPECTS),
            topic="a given pose is right",
            outcome=outcome,
            options=("yes", "no"),
        )

    @staticmethod
    def _wrong_pose(asking: Asking) -> Pose | None:
        """Take the angles of another object of the category, if one is turned otherwise: a wrong pose must not be told from
        a true one by being an unlikely one. Else the true angles, turned about the vertical."""
        record, rng = asking.record, asking.rng
        category = category_of(record)
        true = record.pose
        others = asking.angles.get(category.name, ())
        tries = [rng.choice(others) for _ in range(20) if others]
        tries += [(true.azimuth + rng.uniform(WRONG_FROM, math.pi), true.elevation, true.theta) for _ in range(3)]
        for azimuth, elevation, theta in tries:
            pose = replace(true, azimuth=azimuth, elevation=elevation, theta=theta)
            if rotation_error(pose, true, category) >= WRONG_FROM:
                return pose
        return None


class WhichKind:
    """Asks which object of the picture is at a pose."""

    name, balanced, rank = "which", False, 5
    questions = (
        f"Which object is at {POSE_TOKEN}?",
        f"What is seen at {POSE_TOKEN}?",
        f"Of which object is {POSE_TOKEN} the pose?",
    )

    def applies(self, scene: Scene, record: ObjectRecord) -> bool:
        others = [other for other in (*scene.objects, *scene.bystanders) if other.id != record.id]
        return bool(others) and bool(scene.references[record.id]) and all(self._apart(record, o) for o in others)

    @staticmethod
    def _apart(a: ObjectRecord, b: ObjectRecord) -> bool:
        if a.pose.px is None or a.pose.py is None or b.pose.px is None or b.pose.py is None:
            return False
        offset = math.hypot(a.pose.px - b.pose.px, a.pose.py - b.pose.py)
        return offset >= _PLACES_APART * a.width or rotation_error(a.pose, b.pose, category_of(a)) >= _TELLS_APART

    def ask(self, asking: Asking) -> Turn:
        record = asking.record
        return Turn(
            self.name,
            asking.choose(self.questions).format(),
            f"The {asking.reference(record)}.",
            (record.pose,),
            (record,),
            tells=told([record], CATEGORY, *_ASPECTS),
            asks=told([record], *_ASPECTS),
        )


class GivenKind:
    """Asks what would be seen of an object at a pose that is not the picture's: yes or no, or multiple choice."""

    name, balanced, rank = "given", True, 5
    prefix = "Suppose that {an_object} were at {pose}. "

    def applies(self, scene: Scene, record: ObjectRecord) -> bool:
        return True

    def ask(self, asking: Asking) -> Turn | None:
        record, category = asking.record, category_of(asking.record)
        start = self.prefix.format(an_object=object_words(category)["an_object"], pose=POSE_TOKEN)
        for _ in range(20):
            pose = self._some_pose(record, asking.rng)
            if asking.rng.random() < 0.5:
                words = ask_choice(self.name, asking, category, pose)
            else:
                words = ask_yes_no(self.name, asking, category, pose)
            if words is not None:
                return Turn(
                    self.name,
                    start + words.question.format(ref=noun(record)),
                    words.answer,
                    (pose,),
                    (record,),
                    tells=told([record], CATEGORY),
                    topic=words.topic,
                    outcome=words.outcome,
                    options=words.options,
                    letter=words.letter,
                )
        return None

    @staticmethod
    def _some_pose(record: ObjectRecord, rng: random.Random) -> Pose:
        return replace(
            record.pose,
            azimuth=rng.uniform(0, 2 * math.pi),
            elevation=math.radians(rng.choice((rng.uniform(-60, 85), rng.gauss(12, 15)))),
            theta=math.radians(rng.choice((rng.uniform(-60, 60), rng.gauss(0, 8), 0.0))),
        )
