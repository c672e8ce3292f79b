"""`llava-pose joint`: train every system on all categories, and predict class and pose of unseen objects (Table 3).

scripts/recipes/benchmark_joint.yaml is an example.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from eval.benchmark.task import Scope, TaskConfig, build_systems, names_in, read_split, run_task
from llava_pose.errors import InputError
from llava_pose.pose import categories
from llava_pose.utils.config import command

TABLE = 3


@dataclass
class JointConfig(TaskConfig):
    """A task: its data and its systems."""

    predict_categories: list[str] | None = field(
        default=None, metadata={"help": "predict objects of these alone; default: every object of the split"}
    )


def joint(config: JointConfig) -> Path:
    """Run, or go on with, the systems; returns the output folder.

    Raises:
        InputError: bad data or settings, or a category that no system is trained on is to be predicted.
    """
    asked = None
    records = read_split(config, config.predict_split)
    if config.predict_categories:
        place = f"{config.data}/{config.predict_split}"
        records = categories.only_of(config.predict_categories, records, option="--predict-categories", place=place)
        asked = sorted(names_in(records))
    unseen = names_in(records) - names_in(read_split(config, "train"))
    if unseen:
        raise InputError(
            f"{config.data}/{config.predict_split}: nothing of the category {sorted(unseen)[0]!r} is in the train split, so "
            "that no system can name it; prepare the data anew, name others with --predict-categories, or see "
            "llava-pose open-vocabulary"
        )
    if any(entry.get("oracle") for entry in config.systems):
        raise InputError("systems: oracle has no meaning here, where all are trained on every category; take it out")
    run_task(TABLE, config, build_systems(config, lambda oracle: Scope(None, asked, "joint")))
    return Path(config.output_dir)


main = command(
    JointConfig,
    joint,
    prog="llava-pose joint",
    description="Train systems on all categories and predict class and pose of unseen objects: Table 3, from one YAML.",
    example="llava-pose joint --config scripts/recipes/benchmark_joint.yaml --data prepared --output-dir runs/joint",
)

if __name__ == "__main__":
    raise SystemExit(main())
