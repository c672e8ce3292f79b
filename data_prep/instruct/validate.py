"""``llava-pose validate``: checks a train.json, whoever wrote it, against the prepared folder that its pictures are in.

What a sample says of itself is checked for all samples; what it says of an object of the prepared folder for those that name
its record, as the samples of ``llava-pose instruct`` do. Whether words such as "from above" are true is not worked out again.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import PositiveInt
from tqdm import tqdm

from data_prep.scene.scenes import Scene, make_scenes, noun
from llava_pose.data.conversation import POSE_TOKEN, pictures_meant, pictures_of
from llava_pose.data.images import check_picture
from llava_pose.data.records import ObjectRecord, Pose, category_of, read_records
from llava_pose.data.samples import read_samples
from llava_pose.errors import InputError, listed
from llava_pose.utils.command import command
from llava_pose.utils.config import check_fields, require_folder
from llava_pose.utils.files import of_split

logger = logging.getLogger(__name__)
_SAME = 1e-9  # relative: numbers that went through JSON


@dataclass
class ValidateConfig:
    """The options of ``llava-pose validate``."""

    train_json: str = field(metadata={"help": "The file of conversations, such as llava-pose instruct writes it."})
    data: str = field(metadata={"help": "The prepared folder that its pictures are in."})
    most: PositiveInt = field(default=20, metadata={"help": "The number of faults to name; the rest is counted."})

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class ValidateResult:
    """The counts of a file without a fault.

    Attributes:
        conversations: all samples.
        questions: the questions of all samples.
        of_records: the samples that name a record, and were held against it.
    """

    conversations: int
    questions: int
    of_records: int


@dataclass(frozen=True)
class _Split:
    """The records of one split, and the scene of each one's picture."""

    records: Mapping[str, ObjectRecord]
    scenes: Mapping[str, Scene]

    @classmethod
    def read(cls, prepared: Path, name: str) -> _Split:
        records = read_records(prepared, name)
        return cls({record.id: record for record in records}, make_scenes(records))


def validate(config: ValidateConfig) -> ValidateResult:
    """Check a file whole.

    Raises:
        InputError: the file or the prepared folder cannot be read, or a sample is wrong; the message names the samples.
    """
    prepared = require_folder(config.data, "--data", "make it with: llava-pose prepare --data-root … --out …")
    samples = read_samples(config.train_json)
    splits: dict[str, _Split] = {}
    ids: set[Any] = set()
    faults: list[str] = []
    for sample in tqdm(samples, desc="validate", unit="sample", mininterval=1.0):
        try:
            if not isinstance(sample["id"], str) or sample["id"] in ids:
                raise InputError("the id stands twice, or is no text")
            ids.add(sample["id"])
            _check(sample, prepared, splits)
        except InputError as error:
            faults.append(f"sample {sample['id']!r}: {error}")
    if faults:
        raise InputError(
            f"{config.train_json}: {len(faults)} of {len(samples)} samples are wrong; mend them, or make the file again "
            f"with llava-pose instruct:{listed(faults, config.most)}"
        )
    result = ValidateResult(
        len(samples),
        sum(turn["from"] == "human" for sample in samples for turn in sample["conversations"]),
        sum("record" in sample for sample in samples),
    )
    logger.info(
        "%s: %d conversations with %d questions are sound, %d of them held against their records",
        *(config.train_json, result.conversations, result.questions, result.of_records),
    )
    return result


def _check(sample: Mapping[str, Any], prepared: Path, splits: dict[str, _Split]) -> None:
    """Check one sample, whose format :func:`read_samples` has found right.

    Raises:
        InputError: what is wrong with it.
    """
    for name in pictures_of(sample):
        check_picture(*of_split(prepared, name))
    questions = [turn for turn in sample["conversations"] if turn["from"] == "human"]
    kinds = sample.get("kinds") or []
    if kinds and len(kinds) != len(questions):
        raise InputError(f"'kinds' names {len(kinds)} kinds, and there are {len(questions)} questions")
    if kinds and sample.get("kind") != kinds[0]:
        raise InputError(f"'kind' is {sample.get('kind')!r}, not {kinds[0]!r}")
    _check_pictures(sample)
    if "record" not in sample:
        return
    image = sample.get("image")
    if isinstance(image, list):
        raise InputError("'record' is of an object of one picture, and 'image' is a list; leave 'record' out")
    split = str(image).split("/", 1)[0]
    if split not in splits:
        splits[split] = _Split.read(prepared, split)
    record = splits[split].records.get(sample["record"]) if isinstance(sample["record"], str) else None
    if record is None:
        raise InputError(f"there is no record {sample['record']!r} in the split {split!r}")
    _check_frame(sample, record, split)
    shown = _check_answers(sample, splits[split].scenes[record.id].objects)
    if sample.get("flippable"):
        strange = next((r for r in shown or [record] if category_of(r).mirror_axis != "x"), None)
        if strange is not None:
            raise InputError(f"'flippable' is true, and the mirror image of {category_of(strange).indefinite} is none")


def _check_pictures(sample: Mapping[str, Any]) -> None:
    """Check that the picture of a pose of an answer is the one that the words name for it, where they name one."""
    poses = iter(sample["poses"])
    question = ""
    for number, turn in enumerate(sample["conversations"]):
        *before, _ = turn["value"].split(POSE_TOKEN)
        pictures = [pose.get("picture", 0) for pose in islice(poses, len(before))]
        if turn["from"] != "gpt":
            question = turn["value"]
            continue
        named = pictures_meant(question, before, len(pictures_of(sample)))
        for meant, picture in zip(named, pictures, strict=True):
            if meant is not None and meant != picture:
                raise InputError(
                    f"turn {number}: the words before a pose name picture {meant + 1}, and its 'picture' is {picture}, counted "
                    f"from 0; mend one of them"
                )


def _check_frame(sample: Mapping[str, Any], record: ObjectRecord, split: str) -> None:
    true = {
        "category": record.category,
        "image": f"{split}/{record.file_name}",
        "width": record.width,
        "height": record.height,
    }
    for name, value in true.items():
        if sample.get(name) != value:
            raise InputError(f"'{name}' is {sample.get(name)!r}, not {value!r}")
    viewport, expected = sample.get("viewport"), record.viewport * record.focal
    if not isinstance(viewport, int | float) or not math.isclose(viewport, expected, rel_tol=_SAME):
        raise InputError(f"'viewport' is {viewport!r}, not {expected}")


def _check_answers(sample: Mapping[str, Any], objects: Sequence[ObjectRecord]) -> list[ObjectRecord]:
    """Check that the poses of the answers are those of the objects that are named before their tokens.

    A question may hold any pose; an answer holds only poses of the picture.

    Returns:
        The objects whose poses the answers hold.
    """
    rest = [Pose.from_dict(value, where="'poses'") for value in sample["poses"]]
    shown = []
    for number, turn in enumerate(sample["conversations"]):
        *before, _ = turn["value"].split(POSE_TOKEN)
        of_turn, rest = rest[: len(before)], rest[len(before) :]
        for text, pose in zip(before, of_turn, strict=True):
            if turn["from"] != "gpt":
                continue
            fitting = [record for record in objects if _same(record.pose, pose)]
            if not fitting:
                raise InputError(f"turn {number}: {_nearest(objects, pose)}")
            names = _names_in(text, objects)
            meant = [record for record in fitting if not names or noun(record) in names]
            if not meant:
                found = f"{fitting[0].id!r}, a {noun(fitting[0])}"
                raise InputError(f"turn {number}: the pose after {' and '.join(map(repr, names))} is that of {found}")
            shown.append(meant[0])
    return shown


def _same(a: Pose, b: Pose) -> bool:
    return not any(_differing(a, b))


def _differing(a: Pose, b: Pose) -> list[str]:
    return [
        name
        for name, value in vars(a).items()
        if value != (other := getattr(b, name))
        and (value is None or other is None or not math.isclose(value, other, rel_tol=_SAME, abs_tol=_SAME))
    ]


def _nearest(objects: Sequence[ObjectRecord], pose: Pose) -> str:
    """Say how a pose differs from that of the object that it differs least from."""
    record = min(objects, key=lambda record: len(_differing(record.pose, pose)))
    name = _differing(record.pose, pose)[0]
    return (
        f"a pose is that of no object of the picture; of {record.id!r}, its {name} is {getattr(pose, name)}, not "
        f"{getattr(record.pose, name)}"
    )


def _names_in(text: str, objects: Sequence[ObjectRecord]) -> list[str]:
    """Return which of the objects' names stand in a text, of two at one place the longer one."""
    names = sorted({noun(record) for record in objects}, key=len, reverse=True)
    return list(dict.fromkeys(re.findall(rf"(?<!\w)(?:{'|'.join(map(re.escape, names))})(?!\w)", text)))


main = command(
    ValidateConfig,
    validate,
    prog="llava-pose validate",
    description="Check a train.json against the prepared folder of its pictures, and name each sample that is wrong.",
    example="llava-pose validate --data prepared train.json",
    positional="train_json",
)

if __name__ == "__main__":
    raise SystemExit(main())
