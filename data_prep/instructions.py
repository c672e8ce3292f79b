"""Prepared records -> LLaVA-format conversations with `<image>` and `<pose6D>`: ``llava-pose instruct``.

Three kinds of questions: the pose of an object whose category is given (``pose``), category and pose together
(``joint``), and a caption with its pose (``caption``). What is asked of an object depends on the seed and on the
record's id only, so that the order of the records, or a record more or less, changes nothing for the others.
"""

from __future__ import annotations

import json
import logging
import math
import os
import random
from bisect import bisect
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from data_prep.captions import offline_caption
from llava_pose import categories
from llava_pose.config import atomic_file, command, require, require_folder
from llava_pose.conversation import (
    CAPTION_QUESTIONS,
    IMAGE_TOKEN,
    JOINT_ANSWER,
    JOINT_QUESTIONS,
    POSE_ANSWER,
    POSE_QUESTIONS,
    POSE_TOKEN,
    object_words,
)
from llava_pose.errors import InputError
from llava_pose.records import METADATA_FILE, ObjectRecord, read_records

logger = logging.getLogger(__name__)

# In the order in which a conversation asks them, since no question may come after an answer that tells it: "joint" is
# asked before the category is named, and captions, whose words tell the viewpoint, come last.
QUESTIONS: Mapping[str, tuple[str, ...]] = {
    "joint": JOINT_QUESTIONS,
    "pose": POSE_QUESTIONS,
    "caption": CAPTION_QUESTIONS,
}


@dataclass
class InstructConfig:
    """What ``llava-pose instruct`` does."""

    data: str | None = field(default=None, metadata={"help": "the prepared folder, as llava-pose prepare writes it"})
    out: str | None = field(default=None, metadata={"help": "the JSON file to write, such as train.json"})
    split: str = field(default="train", metadata={"help": "which split of the prepared folder"})
    kinds: list[str] = field(
        default_factory=lambda: ["pose", "joint", "caption"],
        metadata={"help": "which questions are asked: pose (category given), joint (category and pose), caption"},
    )
    weights: list[float] = field(
        default_factory=lambda: [1.0, 1.0, 1.0], metadata={"help": "how often each of the kinds is asked, relatively"}
    )
    questions_per_object: int = field(default=3, metadata={"help": "questions about each object"})
    turns_per_conversation: int = field(
        default=1, metadata={"help": "at most this many questions about one image in one conversation"}
    )
    phrasings: int = field(
        default=0,
        metadata={"help": "use this many phrasings of each kind, from the one that evaluation asks on; 0 is all"},
    )
    seed: int = field(default=0, metadata={"help": "draws kinds and phrasings, for each record by its own id"})

    def __post_init__(self) -> None:
        for kind in self.kinds:
            if kind not in QUESTIONS:
                raise InputError(f"--kinds: there is no kind {kind!r}; choose from {', '.join(QUESTIONS)}")
        if not self.kinds or len(set(self.kinds)) != len(self.kinds):
            raise InputError(f"--kinds: name each kind once, not {self.kinds}")
        if len(self.weights) != len(self.kinds):
            raise InputError(f"--weights: give one for each of the {len(self.kinds)} kinds, not {len(self.weights)}")
        if not all(math.isfinite(w) and w >= 0 for w in self.weights) or sum(self.weights) == 0:
            raise InputError(f"--weights: they must not be negative, nor all 0: {self.weights}")
        for name, least in (("questions_per_object", 1), ("turns_per_conversation", 1), ("phrasings", 0)):
            if getattr(self, name) < least:
                raise InputError(f"--{name}: must be at least {least}, not {getattr(self, name)}")


@dataclass(frozen=True)
class InstructResult:
    """The file, its conversations, and how many questions of each kind they hold."""

    path: Path
    conversations: int
    questions: dict[str, int]


class Turn(NamedTuple):
    """One question and its answer, which holds one `<pose6D>`."""

    kind: str
    question: str
    answer: str


def instruct(config: InstructConfig) -> InstructResult:
    """Write the conversations for one split as a JSON array, whole or not at all.

    Raises:
        InputError: the prepared folder, a record or its image is missing or unusable, or ``out`` cannot be written.
    """
    require(config.data, "--data")
    require(config.out, "--out")
    prepared = require_folder(config.data, "--data", "make it with: llava-pose prepare --data-root … --out …")
    out = Path(config.out)
    if out.is_dir():
        raise InputError(f"--out {out}: this is a folder; name a file, such as {out / 'train.json'}")
    records = read_records(prepared, config.split)
    if not records:
        raise InputError(f"{prepared / config.split / METADATA_FILE}: there is no record in it; run llava-pose prepare")

    questions: Counter[str] = Counter()
    conversations = 0

    def counted() -> Iterator[dict[str, Any]]:
        nonlocal conversations
        for record in tqdm(records, desc=f"instruct {config.split}", unit="object", mininterval=1.0):
            _require_usable(record, prepared / config.split)
            for sample in make_samples(record, config):
                conversations += 1
                questions.update(sample["kinds"])
                yield sample

    write_json_array(out, counted())
    result = InstructResult(out, conversations, {kind: questions[kind] for kind in config.kinds})
    logger.info(
        "%d conversations about %d objects (%s) are in %s; next: "
        "python train.py --model BASE --data %s --train_json %s --output_dir OUT",
        conversations,
        len(records),
        ", ".join(f"{count} {kind}" for kind, count in result.questions.items()),
        out,
        prepared,
        out,
    )
    return result


def _require_usable(record: ObjectRecord, folder: Path) -> None:
    remedy = "run llava-pose prepare again"
    pose = record.pose
    for name, value in (("distance", pose.distance), ("px", pose.px), ("py", pose.py), ("viewport", record.viewport)):
        if value is None or not math.isfinite(value):
            raise InputError(f"{folder / METADATA_FILE}: record {record.id!r} has no finite {name}; {remedy}")
    if not (folder / record.file_name).is_file():
        raise InputError(f"{folder / record.file_name}: the image of record {record.id!r} is missing; {remedy}")


def make_samples(record: ObjectRecord, config: InstructConfig) -> list[dict[str, Any]]:
    """The training samples for one object: ``questions_per_object`` questions in as few conversations as allowed.

    Each sample is LLaVA's {"id", "image" (relative to the prepared folder), "conversations"} with "poses" (one for each
    `<pose6D>`, in their order), "category", "record" (the record's id), "width", "height" (pixels), "viewport" (pixels
    for a tangent of 1: the focal length is in it), "flippable" (whether ``geometry.flip_pose`` gives the pose in the
    mirrored image; the words then need ``conversation.mirror_sides``), "kind" (of the first question) and "kinds" (of all).
    """
    rng = random.Random(f"{config.seed}:{record.id}")
    kinds = sorted(draw_kinds(config, rng), key=list(QUESTIONS).index)
    turns = make_turns(record, kinds, config.phrasings, rng)
    conversations = math.ceil(len(turns) / config.turns_per_conversation)
    # dealt out like cards, so that the kinds mix within a conversation and keep their order
    image = f"{config.split}/{record.file_name}"
    return [_make_sample(record, image, turns[i::conversations], i) for i in range(conversations)]


def draw_kinds(config: InstructConfig, rng: random.Random) -> list[str]:
    """One kind for each question of an object, by systematic sampling: every object's counts are within one of what the
    weights ask for, and right on average."""
    edges = list(accumulate(config.weights))
    offset = rng.random()
    points = [(i + offset) / config.questions_per_object * edges[-1] for i in range(config.questions_per_object)]
    return [config.kinds[bisect(edges, point, hi=len(edges) - 1)] for point in points]


def make_turns(record: ObjectRecord, kinds: Iterable[str], phrasings: int, rng: random.Random) -> list[Turn]:
    """A question and answer for each of ``kinds``; a phrasing comes again only after all the others of its kind.

    Args:
        phrasings: how many phrasings of a kind are in use, from the first on; 0 is all.
    """
    category = _category(record)
    words = object_words(category)
    decks = {kind: _shuffled_forever(QUESTIONS[kind][: phrasings or None], rng) for kind in QUESTIONS}
    turns = []
    for kind in kinds:
        question = next(decks[kind]).format(**words)
        if kind == "caption":
            answer = offline_caption(record.pose, category, rng)
        else:
            answer = (POSE_ANSWER if kind == "pose" else JOINT_ANSWER).format(pose=POSE_TOKEN, **words)
        turns.append(Turn(kind, question, answer))
    return turns


def _category(record: ObjectRecord) -> categories.Category:
    # which categories of the user's own are welcome was settled when the records were made
    return categories.get(record.category, allow_custom=True, source=record.id)


def _shuffled_forever(phrasings: tuple[str, ...], rng: random.Random) -> Iterator[str]:
    while True:
        yield from rng.sample(phrasings, len(phrasings))


def _make_sample(record: ObjectRecord, image: str, turns: list[Turn], index: int) -> dict[str, Any]:
    conversation = []
    for turn in turns:
        conversation.append({"from": "human", "value": turn.question})
        conversation.append({"from": "gpt", "value": turn.answer})
    conversation[0]["value"] = f"{IMAGE_TOKEN}\n{conversation[0]['value']}"
    return {
        "id": f"{record.id}/{index}",
        "image": image,
        "conversations": conversation,
        "poses": [record.pose.to_dict() for _ in turns],
        "category": record.category,
        "record": record.id,
        "width": record.width,
        "height": record.height,
        "viewport": record.viewport * record.focal,
        # the dataset flips about x = 0 alone; a cup, mirrored about y = 0, comes out turned by half a turn
        "flippable": _category(record).mirror_axis == "x",
        "kind": turns[0].kind,
        "kinds": [turn.kind for turn in turns],
    }


def write_json_array(path: str | os.PathLike[str], values: Iterable[Any]) -> None:
    """Write a JSON array, an element a line, atomically and without holding it in memory; NaN, no JSON, is refused.

    Raises:
        InputError: the file cannot be written.
    """
    with atomic_file(path) as file:
        separator = "[\n"
        for value in values:
            file.write(separator + json.dumps(value, ensure_ascii=False, allow_nan=False))
            separator = ",\n"
        file.write("[]\n" if separator == "[\n" else "\n]\n")


main = command(
    InstructConfig,
    instruct,
    prog="llava-pose instruct",
    description="Write LLaVA-format conversations with <pose6D> from prepared data.",
    example="llava-pose instruct --data prepared --out train.json --seed 1",
)

if __name__ == "__main__":
    raise SystemExit(main())
