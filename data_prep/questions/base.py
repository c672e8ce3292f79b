"""A turn, the balance of answers, and what there is to ask about: all kinds of questions share them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from data_prep.scene.scenes import Scene
from llava_pose.data.records import ObjectRecord, Pose, category_of

LETTERS = "ABCDEFGH"
CATEGORY = "category"


@dataclass(frozen=True)
class Told:
    """Something that the words of a turn tell of an object: CATEGORY or an aspect of its pose (``data_prep.scene.facts``)."""

    record: str
    aspect: str


@dataclass(frozen=True)
class Turn:
    """One question and its answer.

    Attributes:
        poses: one for each `<pose6D>`, those of the question first.
        about: the objects that question and answer speak of.
        tells: what the words give away.
        asks: what no earlier turn may have told.
        flippable: whether both stay true of the mirrored picture, once their sides are swapped.
        topic, outcome: for the report of balance; outcome is what is balanced ("yes", "no"; the right option).
        options: what the outcome was one of.
        letter: of the right option, of a multiple choice.
    """

    kind: str
    question: str
    answer: str
    poses: tuple[Pose, ...]
    about: tuple[ObjectRecord, ...]
    tells: frozenset[Told] = frozenset()
    asks: frozenset[Told] = frozenset()
    flippable: bool = True
    topic: str = ""
    outcome: str = ""
    options: tuple[str, ...] = ()
    letter: str = ""

    @property
    def mirrors(self) -> bool:
        # training flips about x = 0 alone; a cup, mirrored about y = 0, comes out turned by half a turn
        return self.flippable and all(category_of(record).mirror_axis == "x" for record in self.about)


@dataclass
class Balance:
    """Keeps answers even over the whole data set, so that no word can be guessed without looking.

    Of any two answers that are offered together under a topic, neither may be the right one more than ``slack`` times
    oftener than the other. Letters of multiple choice take turns.
    """

    slack: int = 1
    wins: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    letters: Counter[tuple[str, int, str]] = field(default_factory=Counter)

    def lead(self, topic: str, answer: str, other: str) -> int:
        """Return how much oftener ``answer`` was right than ``other``, where both were offered."""
        return self.wins[topic, answer, other] - self.wins[topic, other, answer]

    def allows(self, topic: str, answer: str, other: str) -> bool:
        return self.lead(topic, answer, other) < self.slack

    def count(self, topic: str, answer: str, others: Iterable[str]) -> None:
        for other in others:
            self.wins[topic, answer, other] += 1

    def next_letter(self, kind: str, options: int, rng: random.Random) -> str:
        """Choose the letter for the right one of so many options, and count it."""
        letters = rng.sample(LETTERS[:options], options)
        letter = min(letters, key=lambda letter: self.letters[kind, options, letter])
        self.letters[kind, options, letter] += 1
        return letter


@dataclass(frozen=True)
class Asking:
    """The subject of a question: a scene, the object whose turn it is, and where chance comes from.

    Attributes:
        phrasings: how many phrasings of a kind are in use, from the first on; 0 is all.
        pool: what the categories of the data set are called, with their articles, in order.
        angles: canonical name of a category -> (azimuth, elevation, theta) of its objects, radians.
    """

    scene: Scene
    record: ObjectRecord
    rng: random.Random
    balance: Balance
    phrasings: int = 0
    pool: tuple[str, ...] = ()
    angles: Mapping[str, Sequence[tuple[float, float, float]]] = field(default_factory=dict)
    _decks: dict[tuple[str, ...], Iterator[str]] = field(default_factory=dict)

    def choose(self, choices: tuple[str, ...]) -> str:
        """Draw one of the phrasings; it comes again only after all the others."""
        if choices not in self._decks:
            self._decks[choices] = _shuffled_forever(choices[: self.phrasings or None], self.rng)
        return next(self._decks[choices])

    def reference(self, record: ObjectRecord) -> str:
        return self.rng.choice(self.scene.references[record.id])


def _shuffled_forever(choices: tuple[str, ...], rng: random.Random) -> Iterator[str]:
    while True:
        yield from rng.sample(choices, len(choices))


class Kind(Protocol):
    """One kind of question.

    Attributes:
        name: as ``--kinds`` calls it.
        balanced: whether what is asked depends on what was answered elsewhere in the data set.
        rank: where a conversation asks it; no question may come after an answer that tells it.
    """

    name: str
    balanced: bool
    rank: int

    def applies(self, scene: Scene, record: ObjectRecord) -> bool:
        """Return whether it can be asked about the object at all."""
        ...

    def ask(self, asking: Asking) -> Turn | None:
        """Ask, and return the turn; None where balance, or too close a truth, leaves nothing to ask."""
        ...


def told(records: Iterable[ObjectRecord], *aspects: str) -> frozenset[Told]:
    return frozenset(Told(record.id, aspect) for record in records for aspect in aspects)
