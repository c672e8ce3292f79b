"""Predictions that somebody's own system has made already, as one of the systems of a task."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

from eval.compared import require_annotation
from eval.systems.record_choice import select_records
from llava_pose.data.records import read_predictions, write_jsonl
from llava_pose.errors import InputError
from llava_pose.utils.config import require
from llava_pose.utils.distributed import is_first_process

logger = logging.getLogger(__name__)


@dataclass
class ReadyPredictionsConfig:
    """Which file, and which objects it must answer."""

    file: str | None = field(default=None, metadata={"help": "predictions.jsonl of one system (docs/EVALUATION.md)"})
    data: str | None = field(default=None, metadata={"help": "the prepared folder"})
    output_dir: str | None = field(default=None, metadata={"help": "predictions.jsonl goes there"})
    system: str = field(default="predictions", metadata={"help": "name in the tables"})
    task: str = field(default="pose", metadata={"help": "joint: the lines must name categories"})
    predict_split: str = field(default="val", metadata={"help": "split that is answered"})
    predict_categories: list[str] | None = field(
        default=None, metadata={"help": "objects of these alone; default: every object of the split"}
    )

    def __post_init__(self) -> None:
        require(self.file, "file")
        if not Path(cast(str, self.file)).is_file():
            raise InputError(f"file {self.file}: there is no such file; give the predictions of a system")


def run(config: ReadyPredictionsConfig) -> Path:
    """Write the lines of the objects that the task asks about, under the system's name; returns their path.

    Raises:
        InputError: the file is malformed, holds several systems, lacks an object, was made on other annotations, or names no
            category in the joint task.
    """
    records = select_records(
        cast(str, config.data), config.predict_split, config.predict_categories, "predict_categories"
    )
    predictions = read_predictions(cast(str, config.file))
    systems = sorted({prediction.system for prediction in predictions})
    if len(systems) > 1:
        raise InputError(f"file {config.file}: holds {len(systems)} systems ({', '.join(systems)}); give a file of one")
    by_id = {prediction.id: prediction for prediction in predictions}
    missing = [record.id for record in records if record.id not in by_id]
    if missing:
        raise InputError(
            f"file {config.file}: {len(missing)} of {len(records)} objects have no line, the first {missing[0]!r}; predict "
            "them, or write a line without a pose for each, which counts as a failure"
        )
    for record in records:
        require_annotation(by_id[record.id], record, f"file {config.file}: the line of {record.id!r}")
    if config.task == "joint" and all(by_id[record.id].pred_category is None for record in records):
        raise InputError(
            f"file {config.file}: names no category ('pred_category' is null in all of its lines), and the joint task asks "
            "for the category too; predict with it, or take the file to llava-pose open-vocabulary"
        )
    out = Path(cast(str, config.output_dir)) / "predictions.jsonl"
    if is_first_process():
        out.parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(out, (replace(by_id[record.id], system=config.system).to_dict() for record in records))
        logger.info(f"{len(records)} predictions of {config.system} are in {out}")
    return out
