"""``llava-pose instruct``: LLaVA-format conversations with `<image>` and `<pose6D>` from prepared records.

What is asked of an object depends on the seed and on the record's id only, so that the order of the records, or a record
more or less, changes nothing for the others. Kinds with balanced answers also depend on what was answered elsewhere; the
objects then take turns in an order that is drawn by the seed, which is that of the conversations in the file.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import random
from bisect import bisect
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, NonNegativeInt, PositiveInt
from tqdm import tqdm

from data_prep.caption.check import Mismatch
from data_prep.caption.lines import CaptionLine, read_captions
from data_prep.instruct.report import InstructReport, report_path
from data_prep.questions.base import Asking, Balance, Kind, Told, Turn
from data_prep.questions.kinds import KIND_NAMES, make_kinds
from data_prep.scene.scenes import Scene, make_scenes
from llava_pose.data.conversation import CAPTION_QUESTIONS, IMAGE_TOKEN, JOINT_QUESTIONS, POSE_QUESTIONS, object_words
from llava_pose.data.descriptions import read_descriptions
from llava_pose.data.images import check_picture
from llava_pose.data.records import METADATA_FILE, ObjectRecord, category_of, read_records
from llava_pose.errors import InputError, joined, left_out
from llava_pose.pose import categories
from llava_pose.utils.command import command, say_next
from llava_pose.utils.config import check_fields, require_folder
from llava_pose.utils.files import atomic_file, write_json
from llava_pose.utils.output_folder import own_file, require_other, require_suffix

logger = logging.getLogger(__name__)

# The kinds of the default, in the order in which a conversation asks them, since no question may come after an answer that
# tells it: "joint" is asked before the category is named, and a caption, whose words tell the viewpoint, after both.
DEFAULT_QUESTIONS: Mapping[str, tuple[str, ...]] = {
    "joint": JOINT_QUESTIONS,
    "pose": POSE_QUESTIONS,
    "caption": CAPTION_QUESTIONS,
}
ALL_KINDS = "all"
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass
class InstructConfig:
    """The options of ``llava-pose instruct``."""

    data: str = field(metadata={"help": "The prepared folder, as llava-pose prepare writes it."})
    out: str = field(metadata={"help": "The JSON file to write, such as train.json."})
    split: str = field(default="train", metadata={"help": "The split of the prepared folder."})
    categories: list[str] | None = field(
        default=None,
        metadata={"help": "Ask about objects of these only; by default about every category of the split."},
    )
    kinds: list[str] = field(
        default_factory=lambda: ["pose", "joint", "caption"],
        metadata={"help": f"The questions that are asked: {', '.join(KIND_NAMES)}, or all (docs/DATA.md)."},
    )
    weights: list[NotNegative] = field(
        default_factory=list,
        metadata={"help": "The relative frequency of each of the kinds; all are alike if it is not given."},
    )
    captions: str | None = field(
        default=None, metadata={"help": "The captions.jsonl of llava-pose caption, for the kind caption."}
    )
    descriptions: str | None = field(
        default=None,
        metadata={
            "help": "A JSON file of your own descriptions, category -> text, for the kind described; the taxonomy's stand for "
            "categories that it does not have."
        },
    )
    questions_per_object: PositiveInt = field(default=3, metadata={"help": "The questions about each object."})
    turns_per_conversation: PositiveInt = field(
        default=1, metadata={"help": "The most questions about one image in one conversation."}
    )
    phrasings: NonNegativeInt = field(
        default=0,
        metadata={"help": "Use this many phrasings of each kind, from the one that evaluation asks on; 0 is all."},
    )
    seed: int = field(default=0, metadata={"help": "Draws kinds and phrasings, for each record by its own id."})

    def __post_init__(self) -> None:
        check_fields(self)
        if self.kinds == [ALL_KINDS]:
            self.kinds = list(KIND_NAMES)
        for kind in self.kinds:
            if kind not in KIND_NAMES:
                raise InputError(f"--kinds: there is no kind {kind!r}; choose from {', '.join(KIND_NAMES)}, or all")
        if not self.kinds or len(set(self.kinds)) != len(self.kinds):
            raise InputError(f"--kinds: name each kind once, not {self.kinds}")
        self.weights = self.weights or [1.0] * len(self.kinds)
        if len(self.weights) != len(self.kinds):
            raise InputError(f"--weights: give one for each of the {len(self.kinds)} kinds, not {len(self.weights)}")
        if sum(self.weights) == 0:
            raise InputError(f"--weights: they must not be all 0: {self.weights}")
        if self.captions is not None and "caption" not in self.kinds:
            raise InputError("--captions: they are for the kind caption, which --kinds does not name")
        if self.descriptions is not None and "described" not in self.kinds:
            raise InputError("--descriptions: they are for the kind described, which --kinds does not name")


@dataclass(frozen=True)
class InstructResult:
    """The file that was written, the report beside it, and the counts of conversations and of questions of each kind."""

    path: Path
    report: Path
    conversations: int
    questions: dict[str, int]


def instruct(config: InstructConfig) -> InstructResult:
    """Write the conversations for one split as a JSON array, whole or not at all, and a report of them beside it.

    Raises:
        InputError: the prepared folder is missing or unusable, or ``out`` cannot be written. Also where records, their images
            or captions of ``captions`` cannot be used: the others have been written then.
    """
    out = Path(config.out)
    require_suffix("--out", out, ".json")
    read = [path for path in (config.captions, config.descriptions) if path is not None]
    require_other("--out", (out, report_path(out)), read)
    prepared = require_folder(config.data, "--data", "make it with: llava-pose prepare --data-root … --out …")
    faults: list[InputError] = []
    records = [
        record
        for record in read_records(prepared, config.split, faults=faults)
        if _is_usable(record, prepared / config.split, faults)
    ]
    if not records and faults:
        raise joined(faults, f"{prepared / config.split}: none of its objects can be used")
    if not records:
        raise InputError(f"{prepared / config.split / METADATA_FILE}: there is no record in it; run llava-pose prepare")
    if config.categories:
        # of the others no question may tell anything: pictures are taken not to show them
        place = f"{config.data}/{config.split}"
        records = categories.only_of(config.categories, records, option="--categories", place=place)
    captions = None if config.captions is None else captions_of_split(config.captions, config.split)

    maker = SampleMaker(config, records, captions)
    report = InstructReport(config.kinds)

    def counted() -> Iterator[dict[str, Any]]:
        for record in tqdm(maker.order, desc=f"instruct {config.split}", unit="object", mininterval=1.0):
            hands = maker.hands(record)
            report.add_object(record, maker.drawn, hands)
            for sample in maker.samples(record, hands):
                report.add_sample(sample)
                yield sample

    with own_file(out, "--out", "instruct"):
        write_json_array(out, counted())
        summary = report.summary()
        write_json(report_path(out), summary)
    result = InstructResult(out, report_path(out), summary["conversations"], summary["questions"])
    logger.info(
        "%d conversations about %d objects (%s) are in %s",
        result.conversations,
        len(records),
        ", ".join(f"{count} {kind}" for kind, count in result.questions.items()),
        out,
    )
    say_next(f"python train.py --model BASE --data {prepared} --train-json {out} --output-dir OUT")
    what = "objects or captions" if maker.faults else "objects"
    faults += maker.faults.values()
    if faults:
        raise left_out(faults, f"{out}: {len(faults)} {what} cannot be used and are in no conversation")
    return result


def captions_of_split(path: str, split: str) -> dict[str, CaptionLine]:
    """Read the lines of captions.jsonl of one split, by picture.

    Raises:
        InputError: the file cannot be read, or holds no line of the split.
    """
    prefix = f"{split}/"
    lines = {
        image.removeprefix(prefix): line for image, line in read_captions(path).items() if image.startswith(prefix)
    }
    if not lines:
        raise InputError(f"{path}: no caption of the split {split!r}; make it with llava-pose caption --split {split}")
    return lines


def _is_usable(record: ObjectRecord, folder: Path, faults: list[InputError]) -> bool:
    pose = record.pose
    missing = [name for name in ("distance", "px", "py") if getattr(pose, name) is None]
    try:
        if missing:
            raise InputError(
                f"{folder / METADATA_FILE}: record {record.id!r} has no finite {missing[0]}; run llava-pose prepare again"
            )
        check_picture(folder, record.file_name)
    except InputError as error:
        faults.append(error)
        return False
    return True


def make_samples(record: ObjectRecord, config: InstructConfig) -> list[dict[str, Any]]:
    """Make the training samples for one object that is alone in its picture; see :class:`SampleMaker`."""
    maker = SampleMaker(config, [record], None)
    return maker.samples(record, maker.hands(record))


class SampleMaker:
    """Makes the samples of a data set, object by object, in the order of ``order``.

    Each sample is LLaVA's {"id", "image" (relative to the prepared folder), "conversations"} with "poses" (one for each
    `<pose6D>`, in their order), "category", "record" (the record's id), "width", "height" (pixels), "viewport" (pixels
    for a tangent of 1: the focal length is in it), "flippable" (whether ``geometry.flip_pose`` gives the poses in the
    mirrored image; the words then need ``conversation.mirror_sides``), "kind" (of the first question) and "kinds" (of all).
    """

    def __init__(
        self, config: InstructConfig, records: Sequence[ObjectRecord], captions: Mapping[str, CaptionLine] | None
    ) -> None:
        self.config = config
        self.scenes: dict[str, Scene] = make_scenes(records)
        self.kinds: dict[str, Kind] = make_kinds(captions, read_descriptions(config.descriptions))
        self.drawn: list[str] = []  # the kinds that were drawn for the latest object
        self.faults: dict[str, InputError] = {}  # picture -> what is wrong with its caption of the file
        self._balance = Balance()
        self._angles: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
        for record in sorted(records, key=lambda record: record.id):
            self._angles[category_of(record).name].append(record.pose.angles)
        self._pool = tuple(sorted({object_words(category_of(record))["an_object"] for record in records}))
        self.order: list[ObjectRecord]
        if any(self.kinds[kind].balanced for kind in config.kinds):
            # neighbours in the file are alike: balance would have to leave out more of them
            self.order = sorted(records, key=lambda record: _hash(config.seed, record.id))
        else:
            self.order = list(records)

    def hands(self, record: ObjectRecord) -> list[list[Turn]]:
        """Ask the questions about one object, and deal them over conversations."""
        scene = self.scenes[record.id]
        rng = random.Random(f"{self.config.seed}:{record.id}")
        applicable = [kind for kind in self.config.kinds if self.kinds[kind].applies(scene, record)]
        ranks = {name: (kind.rank, index) for index, (name, kind) in enumerate(self.kinds.items())}
        self.drawn = sorted(draw_kinds(self.config, rng, applicable), key=ranks.__getitem__)
        asking = Asking(scene, record, rng, self._balance, self.config.phrasings, self._pool, self._angles)
        turns = [turn for kind in self.drawn if (turn := self._ask(kind, asking)) is not None]
        return deal(turns, self.config.turns_per_conversation)

    def _ask(self, kind: str, asking: Asking) -> Turn | None:
        try:
            return self.kinds[kind].ask(asking)
        except Mismatch as error:
            picture = f"{self.config.split}/{asking.record.file_name}"
            what = f"{self.config.captions}: the caption of {picture} is left out: {error}; mend it, or write it anew"
            self.faults[picture] = InputError(what)
            return None

    def samples(self, record: ObjectRecord, hands: Sequence[Sequence[Turn]]) -> list[dict[str, Any]]:
        image = f"{self.config.split}/{record.file_name}"
        return [_make_sample(record, image, hand, index) for index, hand in enumerate(hands)]


def _hash(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()


def draw_kinds(config: InstructConfig, rng: random.Random, applicable: Iterable[str] | None = None) -> list[str]:
    """Draw a kind for each question of an object, by systematic sampling: every object's counts are within one of what the
    weights ask for, and right on average.

    Args:
        applicable: those of the config's kinds that can be asked of the object; all by default.
    """
    can_be_asked = set(config.kinds if applicable is None else applicable)
    weighted = [(kind, w) for kind, w in zip(config.kinds, config.weights, strict=True) if kind in can_be_asked]
    if not set(config.kinds) <= DEFAULT_QUESTIONS.keys():
        rng.shuffle(weighted)  # else the same kinds, evenly spaced, would always meet in one object
    kinds, edges = [kind for kind, _ in weighted], list(accumulate(w for _, w in weighted))
    if not edges or edges[-1] <= 0:
        return []
    offset = rng.random()
    points = [(i + offset) / config.questions_per_object * edges[-1] for i in range(config.questions_per_object)]
    return [kinds[bisect(edges, point, hi=len(edges) - 1)] for point in points]


def deal(turns: Sequence[Turn], most: int) -> list[list[Turn]]:
    """Deal turns, in the order in which they may be asked, like cards over as few conversations as allowed: kinds mix
    within a conversation and keep their order. A turn that asks what an earlier one of its conversation has told goes
    to a conversation of its own, or to one that has not told it.

    Args:
        most: turns a conversation.
    """
    conversations = math.ceil(len(turns) / most)
    hands: list[list[Turn]] = []
    spilled: list[Turn] = []
    for index in range(conversations):
        hand: list[Turn] = []
        for turn in turns[index::conversations]:
            (spilled if _is_told(turn, hand) else hand).append(turn)
        hands.append(hand)
    for turn in spilled:
        room = (hand for hand in hands[conversations:] if len(hand) < most and not _is_told(turn, hand))
        found = next(room, None)
        if found is None:
            found = []
            hands.append(found)
        found.append(turn)
    return hands


def _is_told(turn: Turn, before: Iterable[Turn]) -> bool:
    told: set[Told] = set()
    for earlier in before:
        told |= earlier.tells
    return bool(turn.asks & told)


def _make_sample(record: ObjectRecord, image: str, turns: Sequence[Turn], index: int) -> dict[str, Any]:
    conversation = []
    for turn in turns:
        conversation.append({"from": "human", "value": turn.question})
        conversation.append({"from": "gpt", "value": turn.answer})
    conversation[0]["value"] = f"{IMAGE_TOKEN}\n{conversation[0]['value']}"
    return {
        "id": f"{record.id}/{index}",
        "image": image,
        "conversations": conversation,
        "poses": [pose.to_dict() for turn in turns for pose in turn.poses],
        "category": record.category,
        "record": record.id,
        "width": record.width,
        "height": record.height,
        "viewport": record.viewport * record.focal,
        "flippable": all(turn.mirrors for turn in turns),
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
