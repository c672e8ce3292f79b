"""Questions about one object that words answer: yes or no (``yesno``) and multiple choice (``choice``).

Both are balanced: under each question, over the whole data set, yes is right as often as no, and of two options that
stand side by side neither is right oftener than the other.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from data_prep.questions.base import CATEGORY, LETTERS, Asking, Turn, told
from data_prep.scene.facts import PREDICATES, Predicate, correction
from data_prep.scene.scenes import Scene
from data_prep.scene.topics import TOPICS
from llava_pose.data.records import ObjectRecord, Pose, category_of
from llava_pose.pose.categories import Category

_BRIEFLY_YES_NO = " Answer yes or no."
_BY_LETTER = "\nAnswer with the letter."
_OPTION = re.compile(r"\n([A-H])\. ")


class Words(NamedTuple):
    """A question without the object's reference filled in, with its answer."""

    topic: str
    question: str
    answer: str
    aspect: str
    outcome: str
    options: tuple[str, ...]
    letter: str = ""


def yes_no_answers(predicate: Predicate, pose: Pose, *, briefly: bool) -> dict[bool, str]:
    """Return the true answer by the truth that it tells; {} where it is too close to call."""
    truth = predicate.truth(pose)
    if truth is None:
        return {}
    if briefly:
        return {truth: "Yes." if truth else "No."}
    return {truth: f"Yes, {predicate.statement}." if truth else f"No, {correction(predicate, pose)}."}


def ask_yes_no(kind: str, asking: Asking, category: Category, pose: Pose) -> Words | None:
    """Ask a yes/no question about a pose, of those that balance needs most; None where it allows none."""
    candidates = []
    for predicate in PREDICATES.values():
        truth = predicate.truth(pose) if predicate.can_be_asked(category) else None
        if truth is not None:
            outcome, other = ("yes", "no") if truth else ("no", "yes")
            topic = f"{kind}: {predicate.name}"
            if asking.balance.allows(topic, outcome, other):
                candidates.append((asking.balance.lead(topic, outcome, other), predicate, outcome, other))
    if not candidates:
        return None
    least = min(lead for lead, *_ in candidates)
    _, predicate, outcome, other = asking.rng.choice([c for c in candidates if c[0] == least])
    asking.balance.count(f"{kind}: {predicate.name}", outcome, [other])
    briefly = asking.rng.random() < 0.5
    (answer,) = yes_no_answers(predicate, pose, briefly=briefly).values()
    question = predicate.question + (_BRIEFLY_YES_NO if briefly else "")
    return Words(predicate.name, question, answer, predicate.aspect, outcome, ("yes", "no"))


def ask_choice(kind: str, asking: Asking, category: Category, pose: Pose) -> Words | None:
    """Ask a multiple choice about a pose; None where balance leaves no option beside the right one."""
    candidates = []
    for topic in TOPICS.values():
        truth = topic.truth(pose) if topic.can_be_asked(category) else None
        if truth is not None:
            wrong = [
                other for other in topic.wrong(pose) if asking.balance.allows(f"{kind}: {topic.name}", truth, other)
            ]
            if wrong:
                candidates.append((topic, truth, wrong))
    if not candidates:
        return None
    topic, truth, wrong = asking.rng.choice(candidates)
    count = min(asking.rng.randint(2, 4), 1 + len(wrong))
    key = f"{kind}: {topic.name}"
    asking.rng.shuffle(wrong)  # ties by chance
    wrong = sorted(wrong, key=lambda other: asking.balance.lead(key, truth, other))[: count - 1]
    asking.rng.shuffle(wrong)
    asking.balance.count(key, truth, wrong)
    letter = asking.balance.next_letter(kind, count, asking.rng)
    place = LETTERS.index(letter)
    options = (*wrong[:place], truth, *wrong[place:])
    by_letter = asking.rng.random() < 0.5
    listed = "".join(f"\n{LETTERS[i]}. {option}" for i, option in enumerate(options))
    question = topic.question + listed + (_BY_LETTER if by_letter else "")
    answer = letter if by_letter else f"{letter}. {truth}"
    return Words(topic.name, question, answer, topic.aspect, truth, options, letter)


class _AboutOne:
    """The common part of two kinds, which ask about an object that a phrase points at."""

    name: str
    balanced, rank = True, 4

    def applies(self, scene: Scene, record: ObjectRecord) -> bool:
        return bool(scene.references[record.id])

    def _turn(self, asking: Asking, words: Words | None) -> Turn | None:
        if words is None:
            return None
        record = asking.record
        return Turn(
            self.name,
            words.question.format(ref=asking.reference(record)),
            words.answer,
            (),
            (record,),
            tells=told([record], CATEGORY, words.aspect),
            asks=told([record], words.aspect),
            topic=words.topic,
            outcome=words.outcome,
            options=words.options,
            letter=words.letter,
        )


class YesNoKind(_AboutOne):
    """Asks whether an object faces the camera, is seen from above, and the like."""

    name = "yesno"

    def ask(self, asking: Asking) -> Turn | None:
        return self._turn(asking, ask_yes_no(self.name, asking, category_of(asking.record), asking.record.pose))


class ChoiceKind(_AboutOne):
    """Asks from which of its own sides an object is seen, and the like, by letters."""

    name = "choice"

    def ask(self, asking: Asking) -> Turn | None:
        return self._turn(asking, ask_choice(self.name, asking, category_of(asking.record), asking.record.pose))
