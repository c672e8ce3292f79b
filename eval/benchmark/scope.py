"""The options of a benchmark, and what its table has its systems train on and predict."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

from eval.systems.system import KINDS
from eval.tables import TableNumber
from llava_pose.data.records import ObjectRecord, category_of, read_records
from llava_pose.errors import InputError
from llava_pose.pose import categories
from llava_pose.utils.config import check_fields, require_folder
from llava_pose.utils.files import read_text
from llava_pose.utils.values import Name

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class BenchmarkConfig:
    """The options of a benchmark: its table, its data, and its systems."""

    table: TableNumber = field(
        metadata={
            "help": "The table of the report: 1 is linear probing, 2 open vocabulary, 3 joint classification and pose."
        }
    )
    data: Name = field(metadata={"help": "The prepared folder."})
    output_dir: Name = field(metadata={"help": "The folder of the table, and of a folder of each system's name."})
    systems: Annotated[list[dict], Field(min_length=1)] = field(
        metadata={
            "help": f"The systems, in the YAML file: a list of {{name, kind, options}}. Kinds: {', '.join(KINDS)}."
        }
    )
    defaults: dict | None = field(
        default=None,
        metadata={"help": "The options of a kind, in the YAML file, for all its systems that do not say other."},
    )
    only: list[str] | None = field(default=None, metadata={"help": "Run these systems of the list; by default all."})
    split: str = field(default="val", metadata={"help": "The split to predict."})
    categories: list[str] | None = field(
        default=None, metadata={"help": "Predict objects of these categories alone (tables 1 and 3); by default all."}
    )
    known: list[str] | None = field(
        default=None, metadata={"help": "The categories to train on (table 2); by default the taxonomy's known ones."}
    )
    known_file: str | None = field(
        default=None, metadata={"help": "A text file of the categories to train on (table 2), one a line."}
    )

    predict_known: bool = field(
        default=False,
        metadata={
            "help": "Predict known categories as well (table 2), whose accuracy then stands beside that of novel ones."
        },
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if self.table != 2 and (self.known or self.known_file):
            raise InputError("known: belongs to table 2, open vocabulary; take it out")
        if self.table != 2 and self.predict_known:
            raise InputError("predict_known: belongs to table 2, open vocabulary; take it out")
        if self.table == 2 and self.categories:
            raise InputError("categories: belong to tables 1 and 3; in table 2 what is not known is predicted")


@dataclass(frozen=True)
class Scope:
    """The scope of a system's training and predictions: canonical names, or None for all; and the task."""

    train_categories: list[str] | None
    categories: list[str] | None
    task: str


def scope_of(config: BenchmarkConfig) -> Callable[[bool], Scope]:
    """Return what a system is trained on and predicts, given whether it is an oracle.

    Raises:
        InputError: the table cannot be made of this data, or has no use for an oracle.
    """
    if config.table == 2:
        known, novel = known_and_novel(config)
        logger.info(f"{len(known)} known categories to train on, {len(novel)} novel ones to predict")
        asked_about = None if config.predict_known else novel
        return lambda oracle: Scope(None if oracle else known, asked_about, "pose")
    if any(entry.get("oracle") for entry in config.systems):
        raise InputError("systems: oracle has no meaning here, where all are trained on every category; take it out")
    records, asked = _read_split(config, config.split), None
    place = f"{config.data}/{config.split}"
    if config.categories:
        records = categories.only_of(config.categories, records, option="--categories", place=place)
        asked = sorted(_names_in(records))
    unseen = _names_in(records) - _names_in(_read_split(config, "train"))
    if config.table == 3 and unseen:
        raise InputError(
            f"{place}: nothing of the category {sorted(unseen)[0]!r} is in the train split, so that no system can name it; "
            "prepare the data anew, name others with --categories, or see llava-pose open-vocabulary"
        )
    return lambda oracle: Scope(None, asked, "joint" if config.table == 3 else "pose")


def known_and_novel(config: BenchmarkConfig) -> tuple[list[str], list[str]]:
    """Return canonical names: what is known and in the train split, and what is novel and in the split to predict.

    Raises:
        InputError: there is none of either, or a name that is given is no category's.
    """
    wanted = _named_known(config.known, config.known_file)
    if wanted is None:
        wanted = {category.name for category in categories.all_categories() if category.known}
    to_train, to_predict = (_names_in(_read_split(config, split)) for split in ("train", config.split))
    strange = sorted(name for name in wanted - to_train - to_predict if categories.find(name) is None)
    if strange:
        raise InputError(
            f"--known {strange[0]}: neither the taxonomy nor {config.data} has such a category, and what is not known is "
            "predicted as novel; correct the name"
        )
    known, novel = sorted(to_train & wanted), sorted(to_predict - wanted)
    if not known:
        raise InputError(f"{config.data}/train: no category of it is known; name some with --known")
    if not novel:
        raise InputError(
            f"{config.data}/{config.split}: every category of it is known; name fewer with --known, or choose another --split"
        )
    return known, novel


def _named_known(names: Sequence[str] | None, file: str | None) -> set[str] | None:
    """Return the canonical names of a list, or of a file with a category a line; None if neither is given."""
    if names and file:
        raise InputError("--known and --known-file: give one of them")
    if file:
        text = read_text(file, name=f"--known-file {file}", remedy="give a text file")
        names = [line.strip() for line in text.splitlines() if line.strip()]
        if not names:
            raise InputError(f"--known-file {file}: there is no category in it; write one a line")
    return {categories.get(name, allow_custom=True).name for name in names} if names else None


def _read_split(config: BenchmarkConfig, split: str) -> list[ObjectRecord]:
    require_folder(config.data, "--data", "make it with llava-pose prepare")
    records = read_records(config.data, split)
    if not records:
        raise InputError(f"{config.data}/{split}: there is no object in it; choose another split")
    return records


def _names_in(records: Sequence[ObjectRecord]) -> set[str]:
    return {category_of(record).name for record in records}
