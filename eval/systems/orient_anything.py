"""`llava-pose orient-anything`: turn answers in the convention of Orient Anything into prediction lines.

What its angles are, and that they are ours, says :func:`llava_pose.pose.conventions.pose_from_orient_anything`.
"""

from __future__ import annotations

import csv
import logging
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.systems.options import SystemOptions
from llava_pose.data.jsonl import read_jsonl, write_jsonl
from llava_pose.data.records import ObjectRecord, Pose, Prediction, read_records
from llava_pose.errors import InputError
from llava_pose.pose.conventions import pose_from_orient_anything
from llava_pose.utils.command import command, say_next
from llava_pose.utils.config import check_fields, require_folder
from llava_pose.utils.files import open_regular
from llava_pose.utils.output_folder import own_file, require_other, require_suffix
from llava_pose.utils.values import Name

logger = logging.getLogger(__name__)
SYSTEM = "Orient-Anything"
# field -> what it may be called, the second names being those of version 2's inference
_NAMES = {
    "azimuth": ("azimuth", "ref_az_pred"),
    "polar": ("polar", "elevation", "ref_el_pred"),
    "rotation": ("rotation", "ref_ro_pred"),
}
_ORDER = ("symmetry_order", "ref_alpha_pred")  # of version 2 alone
_ORDERS = (0, 1, 2, 4)  # 0 where it finds no front
_RANGES = {"azimuth": (-360.0, 360.0), "polar": (-90.0, 90.0), "rotation": (-180.0, 180.0)}


@dataclass(kw_only=True)
class OrientAnythingConfig:
    """The options of ``llava-pose orient-anything``."""

    answers: Name = field(
        metadata={
            "help": "JSON lines or CSV: id, azimuth, polar and rotation in degrees, confidence, and the order of symmetry that "
            "version 2 finds."
        }
    )
    data: Name = field(metadata={"help": "The prepared folder that was answered."})
    out: Name = field(metadata={"help": "The predictions.jsonl to write."})
    split: str = field(default="val", metadata={"help": "The split that was answered."})
    system: str = field(default=SYSTEM, metadata={"help": "The name in the tables."})

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(kw_only=True)
class OrientAnythingOptions(SystemOptions):
    """The options of Orient Anything as one of the systems of a benchmark."""

    answers: Name = field(metadata={"help": "As of llava-pose orient-anything."})

    def __post_init__(self) -> None:
        check_fields(self)
        self.system = self.system or SYSTEM


class OrientAnything:
    """Answers of Orient Anything."""

    def __init__(self, options: OrientAnythingOptions | OrientAnythingConfig):
        self.options = options

    def answer(self, records: Sequence[ObjectRecord]) -> list[Prediction]:
        """Return a prediction for each record; one without an answer gets none of a pose.

        Raises:
            InputError: a line is bad, an answer is for no object of the split, or an object has two.
        """
        options = self.options
        of_split = read_records(options.data, options.split)
        answers = _read_answers(
            Path(options.answers), {record.id for record in of_split}, f"{options.data}/{options.split}"
        )
        return [
            Prediction.of(
                record,
                system=options.system,
                pose=pose,
                pred_category=None,
                confidence=confidence,
                symmetry_order=order,
            )
            for record in records
            for pose, confidence, order in [answers.get(record.id, (None, None, None))]
        ]


def convert(config: OrientAnythingConfig) -> Path:
    """Write a prediction for each object of the split; an object without an answer gets a line without a pose.

    Raises:
        InputError: a file or a line is bad, an answer is for no object of the split, or an object has two.
    """
    folder = require_folder(config.data, "--data", "make it with llava-pose prepare")
    require_suffix("--out", config.out, ".jsonl")
    require_other("--out", [config.out], [config.answers, folder / config.split])
    predictions = OrientAnything(config).answer(read_records(config.data, config.split))
    with own_file(config.out, "--out", "orient-anything"):
        write_jsonl(config.out, (prediction.to_dict() for prediction in predictions))
    without = sum(prediction.pose is None for prediction in predictions)
    logger.info(
        f"{len(predictions)} predictions of {config.system} are in {config.out}, {without} of them without a pose"
    )
    say_next(f"llava-pose score {config.out} --out scores.json")
    return Path(config.out)


Answer = tuple[Pose | None, float | None, int | None]  # pose, confidence, order of symmetry


def _read_answers(path: Path, ids: Collection[str], split: str) -> dict[str, Answer]:
    answers: dict[str, Answer] = {}
    for where, value in _lines(path):
        id_ = str(value.get("id") or "")
        if id_ not in ids:
            raise InputError(f"{where}: the id {id_!r} is no object of {split}; check --split")
        if id_ in answers:
            raise InputError(f"{where}: the id {id_!r} stands on two lines; delete one of them")
        confidence = _number(value.get("confidence"), f"{where}: 'confidence'")
        answers[id_] = _pose(value, where), confidence, _order(value, where)
    if not answers:
        raise InputError(f"--answers {path}: there is no answer in it")
    return answers


def _lines(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield ("file:line", fields) of JSON lines, or of a CSV with a header where the name ends in .csv."""
    if path.suffix.lower() != ".csv":
        yield from read_jsonl(path)
        return
    try:
        with open_regular(path, "r", newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            for value in reader:
                yield f"{path}:{reader.line_num}", value
    except OSError as error:
        raise InputError(f"{path}: cannot read the file ({error.strerror}); check the path") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a CSV file in UTF-8 ({error}); give CSV or JSON lines") from error


def _pose(value: Mapping[str, Any], where: str) -> Pose | None:
    """Return the pose of a line; None if all its angles are empty, which is how an answer is said to be missing."""
    angles = {}
    for name, names in _NAMES.items():
        given = next((n for n in names if n in value), None)
        if given is None:
            raise InputError(f"{where}: there is no '{name}'; give id, azimuth, polar and rotation in degrees")
        angle = _number(value[given], f"{where}: '{given}'")
        low, high = _RANGES[name]
        if angle is not None and not low <= angle <= high and math.isfinite(angle):
            raise InputError(
                f"{where}: '{given}' is {angle:g}, not in {low:g} to {high:g} degrees; "
                "give the angles that Orient Anything's get_3angle returns, not the numbers of its bins"
            )
        angles[name] = angle
    if all(angle is None for angle in angles.values()):
        return None
    return Pose(*map(float, pose_from_orient_anything(*(math.nan if a is None else a for a in angles.values()))))


def _order(value: Mapping[str, Any], where: str) -> int | None:
    given = next((name for name in _ORDER if name in value), None)
    order = None if given is None else _number(value[given], f"{where}: '{given}'")
    if order is not None and order not in _ORDERS:
        raise InputError(f"{where}: '{given}' is {order:g}, and must be one of 0, 1, 2, 4, as version 2 gives it")
    return None if order is None else int(order)


def _number(value: Any, where: str) -> float | None:
    if value is None or value == "":
        return None
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where} must be a number, not {value!r}") from error


main = command(
    OrientAnythingConfig,
    convert,
    prog="llava-pose orient-anything",
    description="Turn answers in Orient Anything's convention (azimuth, polar, rotation) into prediction lines.",
    example="llava-pose orient-anything --answers angles.csv --data prepared --out orient_anything.jsonl",
)

if __name__ == "__main__":
    raise SystemExit(main())
