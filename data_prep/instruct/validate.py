"""``llava-pose validate``: works every answer of a train.json out again from the records it was made of."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_prep.instruct.command import captions_of_split
from data_prep.instruct.rederive import rederive
from data_prep.questions.base import Kind, Mismatch
from data_prep.questions.kinds import make_kinds
from data_prep.scene.scenes import Scene, make_scenes
from llava_pose.data.records import ObjectRecord, read_records
from llava_pose.data.samples import read_samples
from llava_pose.errors import InputError, listed
from llava_pose.utils.config import command, require, require_folder

logger = logging.getLogger(__name__)


@dataclass
class ValidateConfig:
    """What ``llava-pose validate`` does."""

    train_json: str | None = field(default=None, metadata={"help": "the file that llava-pose instruct wrote"})
    data: str | None = field(default=None, metadata={"help": "the prepared folder that it was made of"})
    captions: str | None = field(default=None, metadata={"help": "the captions.jsonl that it was made with, if any"})
    most: int = field(default=20, metadata={"help": "faults to name before the rest is only counted"})

    def __post_init__(self) -> None:
        if self.most < 1:
            raise InputError(f"--most: must be at least 1, not {self.most}")


@dataclass(frozen=True)
class ValidateResult:
    """How many conversations and questions there are, all of them right."""

    conversations: int
    questions: int
    mirrored: int


class _Split:
    """The records of one split, their scenes, and the kinds with the split's captions."""

    def __init__(self, prepared: Path, name: str, captions: str | None) -> None:
        records = read_records(prepared, name)
        self.records: dict[str, ObjectRecord] = {record.id: record for record in records}
        self.scenes: dict[str, Scene] = make_scenes(records)
        self.kinds: dict[str, Kind] = make_kinds(None if captions is None else captions_of_split(captions, name))


def validate(config: ValidateConfig) -> ValidateResult:
    """Check a file whole.

    Raises:
        InputError: the file or the prepared folder cannot be read, or a sample is wrong; the message names the samples.
    """
    require(config.train_json, "--train-json")
    require(config.data, "--data")
    prepared = require_folder(config.data, "--data", "make it with: llava-pose prepare --data-root … --out …")
    samples = read_samples(config.train_json)
    faults: list[str] = []
    splits: dict[str, _Split] = {}
    seen: set[Any] = set()
    questions = mirrored = 0
    for sample in tqdm(samples, desc="validate", unit="sample", mininterval=1.0):
        try:
            _check(sample, prepared, config.captions, splits, seen)
        except Mismatch as error:
            faults.append(str(error))
            continue
        questions += len(sample["kinds"])
        mirrored += sample["flippable"]
    if faults:
        raise InputError(
            f"{config.train_json}: {len(faults)} of {len(samples)} samples are not what the records say; "
            f"make the file again with llava-pose instruct:{listed(faults, config.most)}"
        )
    logger.info(
        "%s: %d conversations with %d questions agree with the records, %d of them mirrored as well",
        config.train_json,
        len(samples),
        questions,
        mirrored,
    )
    return ValidateResult(len(samples), questions, mirrored)


def _check(
    sample: Mapping[str, Any], prepared: Path, captions: str | None, splits: dict[str, _Split], seen: set[Any]
) -> None:
    name = f"sample {sample['id']!r}"
    image = sample.get("image")
    if not isinstance(sample["id"], str) or sample["id"] in seen:
        raise Mismatch(f"{name}: the id stands twice, or is no text")
    seen.add(sample["id"])
    if not isinstance(image, str) or "/" not in image:
        raise Mismatch(f"{name}: 'image' is {image!r}; a picture of the prepared folder was expected")
    split = image.split("/", 1)[0]
    if split not in splits:
        try:
            splits[split] = _Split(prepared, split, captions)
        except InputError as error:
            raise Mismatch(f"{name}: {error}") from error
    known = splits[split]
    record = known.records.get(sample.get("record")) if isinstance(sample.get("record"), str) else None
    if record is None:
        raise Mismatch(f"{name}: there is no record {sample.get('record')!r} in the split {split!r}")
    if not (prepared / image).is_file():
        raise Mismatch(f"{name}: the picture {prepared / image} is not there")
    rederive(sample, record, known.scenes[record.id], split, known.kinds)


main = command(
    ValidateConfig,
    validate,
    prog="llava-pose validate",
    description="Work every answer of a train.json out again from the records, and name each sample that is wrong.",
    example="llava-pose validate --data prepared train.json",
    positional="train_json",
)

if __name__ == "__main__":
    raise SystemExit(main())
