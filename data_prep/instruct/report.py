"""The report that ``instruct`` writes beside train.json: counts, lengths, and how even the answers are."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.questions.base import Turn
from llava_pose.data.conversation import POSE_TOKEN
from llava_pose.data.records import ObjectRecord, category_of


def report_path(out: Path) -> Path:
    """Return where the report of a file stands: train_report.json beside train.json."""
    return out.with_name(f"{out.stem}_report.json")


class InstructReport:
    """Counts samples as they pass by.

    Args:
        kinds: those that were asked for, in their order.
    """

    def __init__(self, kinds: Sequence[str]) -> None:
        self._kinds = list(kinds)
        self._objects = 0
        self._images: set[str] = set()
        self._drawn: Counter[str] = Counter()
        self._asked: Counter[str] = Counter()
        self._flippable = 0
        self._novel: Counter[str] = Counter()
        self._outcomes: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        self._offered: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        self._letters: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        self._lengths: dict[str, Counter[int]] = defaultdict(Counter)

    def add_object(self, record: ObjectRecord, drawn: Iterable[str], hands: Sequence[Sequence[Turn]]) -> None:
        """Count one object, the kinds that were drawn for it, and the turns that came of them."""
        self._objects += 1
        self._images.add(record.file_name)
        self._drawn.update(drawn)
        self._novel["known" if category_of(record).known else "novel"] += 1
        for turn in (turn for hand in hands for turn in hand):
            self._asked[turn.kind] += 1
            self._lengths["words of a question"][len(turn.question.split())] += 1
            self._lengths["words of an answer"][len(turn.answer.split())] += 1
            key = (turn.kind, turn.topic)
            if turn.outcome:
                self._outcomes[key][turn.outcome] += 1
                self._offered[key].update(turn.options)
            if turn.letter:
                count = len(turn.options)
                self._letters[turn.kind, f"{count} options" if count else turn.topic][turn.letter] += 1

    def add_sample(self, sample: Mapping[str, Any]) -> None:
        self._flippable += sample["flippable"]
        self._lengths["turns of a conversation"][len(sample["kinds"])] += 1
        text = "".join(turn["value"] for turn in sample["conversations"])
        self._lengths[f"{POSE_TOKEN} of a conversation"][text.count(POSE_TOKEN)] += 1
        self._lengths["words of a conversation"][len(text.split())] += 1

    def summary(self) -> dict[str, Any]:
        """Return the counts, JSON-ready; ``not_asked`` was drawn, but balance or too close a truth left nothing to ask."""
        conversations = self._lengths["turns of a conversation"]
        return {
            "objects": self._objects,
            "objects_of_known_and_novel_categories": dict(sorted(self._novel.items())),
            "images": len(self._images),
            "conversations": conversations.total(),
            "flippable_conversations": self._flippable,
            "questions": {kind: self._asked[kind] for kind in self._kinds},
            "not_asked": {kind: self._drawn[kind] - self._asked[kind] for kind in self._kinds},
            "lengths": {what: _spread(counts) for what, counts in sorted(self._lengths.items())},
            "answers": {kind: self._answers_of(kind) for kind in self._kinds if self._has_answers(kind)},
            "places": {
                f"{kind}, {what}": dict(sorted(counts.items()))
                for (kind, what), counts in sorted(self._letters.items())
            },
        }

    def _has_answers(self, kind: str) -> bool:
        return any(found == kind for found, _ in self._outcomes)

    def _answers_of(self, kind: str) -> dict[str, Any]:
        return {
            topic: {
                outcome: {"right": counts[outcome], "offered": offered}
                for outcome, offered in sorted(self._offered[found, topic].items())
            }
            for (found, topic), counts in sorted(self._outcomes.items())
            if found == kind
        }


def _spread(counts: Counter[int]) -> dict[str, float]:
    values = np.repeat(np.array(sorted(counts)), [counts[value] for value in sorted(counts)])
    if not len(values):
        return {}
    return {
        "least": int(values[0]),
        "mean": round(float(values.mean()), 2),
        "median": float(np.median(values)),
        "95%": float(np.percentile(values, 95)),
        "most": int(values[-1]),
    }
