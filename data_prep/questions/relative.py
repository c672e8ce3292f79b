"""Questions about two objects of one picture, computed from their poses (``data_prep.scene.relations``).

Which of two is nearer is asked of objects of one kind only, since the unit of distance is the object's own size. The order
in which the two are named is chosen so that the first is right as often as the second.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from data_prep.questions.base import CATEGORY, Asking, Turn, told
from data_prep.scene import relations
from data_prep.scene.facts import DISTANCE, HEADING, HEIGHT
from data_prep.scene.scenes import Scene
from llava_pose.data.records import ObjectRecord, Pose, category_of


@dataclass(frozen=True)
class Relation:
    """A fact about two objects, and how it is asked.

    Attributes:
        questions: with {a} and {b}; the answer to each is one of ``answers``, true or false.
        answers: what is said where the fact is true, and where it is false; with {a} and {b}.
        turns: whether exchanging the two turns the answer round.
    """

    name: str
    aspect: str
    fact: Callable[[Pose, Pose], bool | None]
    questions: tuple[str, ...]
    answers: tuple[str, str]
    turns: bool
    needs_front: bool = True
    needs_up: bool = False
    one_kind: bool = False

    def can_be_asked(self, a: ObjectRecord, b: ObjectRecord) -> bool:
        kinds = [category_of(a), category_of(b)]
        return (
            (not self.needs_front or all(kind.has_front for kind in kinds))
            and (not self.needs_up or all(kind.has_up for kind in kinds))
            and (not self.one_kind or kinds[0].name == kinds[1].name)
        )


_WHICH = ("The {a}.", "The {b}.")
_YES_NO = ("Yes.", "No.")

RELATIONS: Mapping[str, Relation] = {
    relation.name: relation
    for relation in (
        Relation(
            "which faces the camera more",
            HEADING,
            relations.faces_camera_more,
            (
                "Which faces the camera more, the {a} or the {b}?",
                "Whose front is turned more to the camera: that of the {a} or that of the {b}?",
            ),
            _WHICH,
            turns=True,
        ),
        Relation(
            "faces the camera more",
            HEADING,
            relations.faces_camera_more,
            ("Does the {a} face the camera more than the {b}?",),
            _YES_NO,
            turns=True,
        ),
        Relation(
            "same way",
            HEADING,
            relations.same_way,
            (
                "Do the {a} and the {b} face the same way?",
                "Is the front of the {a} pointing in the same direction as that of the {b}?",
            ),
            _YES_NO,
            turns=False,
        ),
        Relation(
            "opposite ways",
            HEADING,
            relations.opposite_ways,
            ("Do the {a} and the {b} face in opposite directions?",),
            _YES_NO,
            turns=False,
        ),
        Relation(
            "turned",
            HEADING,
            relations.turned_left,
            # the mirror image of a question must be a question of the kind, too
            (
                "Relative to the heading of the {b}, is the {a} turned to the left or to the right?",
                "To face the way of the {a}, would the {b} have to turn to its own left or to its own right?",
                "Relative to the heading of the {b}, is the {a} turned to the right or to the left?",
                "To face the way of the {a}, would the {b} have to turn to its own right or to its own left?",
            ),
            ("To the left.", "To the right."),
            turns=True,
            needs_up=True,
        ),
        Relation(
            "which is nearer",
            DISTANCE,
            relations.nearer,
            ("Which is nearer to the camera, the {a} or the {b}?", "Which of the two is closer: the {a} or the {b}?"),
            _WHICH,
            turns=True,
            needs_front=False,
            one_kind=True,
        ),
        Relation(
            "which is seen more from above",
            HEIGHT,
            relations.seen_more_from_above,
            ("Which is seen more from above, the {a} or the {b}?",),
            _WHICH,
            turns=True,
            needs_front=False,
            needs_up=True,
        ),
    )
}


class RelativeKind:
    """Asks which of two faces the camera more, whether they face the same way, and the like."""

    name, balanced, rank = "relative", True, 4

    def applies(self, scene: Scene, record: ObjectRecord) -> bool:
        return bool(scene.references[record.id]) and any(
            other.id != record.id and scene.references[other.id] for other in scene.objects
        )

    def ask(self, asking: Asking) -> Turn | None:
        scene, record = asking.scene, asking.record
        candidates = []
        for other in scene.objects:
            if other.id == record.id or not scene.references[other.id]:
                continue
            for relation in RELATIONS.values():
                for a, b in ((record, other), (other, record)) if relation.turns else ((record, other),):
                    truth = relation.fact(a.pose, b.pose) if relation.can_be_asked(a, b) else None
                    if truth is None:
                        continue
                    outcome, wrong = self._outcomes(relation, truth)
                    if asking.balance.allows(relation.name, outcome, wrong):
                        lead = asking.balance.lead(relation.name, outcome, wrong)
                        candidates.append((lead, relation, a, b, truth))
        if not candidates:
            return None
        name = asking.rng.choice(list(dict.fromkeys(c[1].name for c in candidates)))
        fitting = [c for c in candidates if c[1].name == name]
        least = min(c[0] for c in fitting)
        _, relation, a, b, truth = asking.rng.choice([c for c in fitting if c[0] == least])
        outcome, wrong = self._outcomes(relation, truth)
        asking.balance.count(relation.name, outcome, [wrong])
        phrases = {"a": asking.reference(a), "b": asking.reference(b)}
        return Turn(
            self.name,
            asking.choose(relation.questions).format(**phrases),
            relation.answers[0 if truth else 1].format(**phrases),
            (),
            (a, b),
            tells=told([a, b], CATEGORY, relation.aspect),
            asks=told([a, b], relation.aspect),
            topic=relation.name,
            outcome=outcome,
            options=tuple(sorted((outcome, wrong))),
        )

    @staticmethod
    def _outcomes(relation: Relation, truth: bool) -> tuple[str, str]:
        names = {_WHICH: ("first", "second"), _YES_NO: ("yes", "no")}.get(relation.answers, ("left", "right"))
        return names if truth else (names[1], names[0])
