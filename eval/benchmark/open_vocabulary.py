"""`llava-pose open-vocabulary`: train every system on known categories, and predict objects of novel ones (Table 2).

Novel is every category of the split that is not known; known are those of the taxonomy (63, as published) unless others are
given. A system with ``oracle: true`` is trained on all. scripts/recipes/benchmark_open_vocabulary.yaml is an example.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

from eval.benchmark.task import Scope, TaskConfig, build_systems, check_known, names_in, read_split, run_task
from llava_pose.errors import InputError
from llava_pose.pose import categories
from llava_pose.utils.config import command

logger = logging.getLogger(__name__)
TABLE = 2


@dataclass
class OpenVocabularyConfig(TaskConfig):
    """A task: its data, its systems, and which categories are known."""

    known: list[str] | None = field(
        default=None, metadata={"help": "categories to train on; default: the known ones of the taxonomy"}
    )
    known_file: str | None = field(default=None, metadata={"help": "a text file of them, one a line"})


def open_vocabulary(config: OpenVocabularyConfig) -> Path:
    """Run, or go on with, the systems; returns the output folder.

    Raises:
        InputError: bad data or settings, or no category is known, or none is novel.
    """
    known, novel = known_and_novel(config)
    logger.info(f"{len(known)} known categories to train on, {len(novel)} novel ones to predict")

    def scope(oracle: bool) -> Scope:
        return Scope(None if oracle else known, novel, "pose")

    run_task(TABLE, config, build_systems(config, scope))
    return Path(config.output_dir)


def known_and_novel(config: OpenVocabularyConfig) -> tuple[list[str], list[str]]:
    """Canonical names: what is known and in the train split, and what is novel and in the split to predict.

    Raises:
        InputError: there is none of either, or a name that is given is no category's.
    """
    wanted = check_known(config.known, config.known_file)
    if wanted is None:
        wanted = {category.name for category in categories.all_categories() if category.known}
    to_train, to_predict = (names_in(read_split(config, split)) for split in ("train", config.predict_split))
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
            f"{config.data}/{config.predict_split}: every category of it is known; name fewer with --known, or choose "
            "another --predict-split"
        )
    return known, novel


main = command(
    OpenVocabularyConfig,
    open_vocabulary,
    prog="llava-pose open-vocabulary",
    description="Train systems on known categories and predict poses of novel ones: Table 2, from one YAML.",
    example="llava-pose open-vocabulary --config scripts/recipes/benchmark_open_vocabulary.yaml --data prepared "
    "--output-dir runs/open",
)

if __name__ == "__main__":
    raise SystemExit(main())
