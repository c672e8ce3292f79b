"""Predictions that somebody's own system has made already, as a system."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from eval.compared import require_annotation
from eval.systems.options import SystemOptions, Task
from llava_pose.data.records import ObjectRecord, Prediction, read_predictions
from llava_pose.errors import InputError
from llava_pose.utils.config import check_fields
from llava_pose.utils.values import Name


@dataclass(kw_only=True)
class PredictionsFileOptions(SystemOptions):
    """The options of ready predictions."""

    file: Name = field(metadata={"help": "The predictions.jsonl of one system (docs/EVALUATION.md)."})
    system: str = field(default="predictions", metadata={"help": "The name in the tables."})
    task: Task = field(default="pose", metadata={"help": "Whether the lines must name categories, too (joint)."})

    def __post_init__(self) -> None:
        check_fields(self)


class PredictionsFile:
    """A file of ready predictions."""

    def __init__(self, options: PredictionsFileOptions):
        """
        Raises:
            InputError: there is no such file.
        """
        if not Path(options.file).is_file():
            raise InputError(f"file {options.file}: there is no such file; give the predictions of a system")
        self.options = options

    def answer(self, records: Sequence[ObjectRecord]) -> list[Prediction]:
        """Return the lines of the objects that are asked about, under the system's name.

        Raises:
            InputError: the file is malformed, holds several systems, lacks an object, was made on other annotations, or names
                no category in the joint task.
        """
        where = f"file {self.options.file}"
        predictions = read_predictions(self.options.file)
        systems = sorted({prediction.system for prediction in predictions})
        if len(systems) > 1:
            raise InputError(f"{where}: holds {len(systems)} systems ({', '.join(systems)}); give a file of one")
        by_id = {prediction.id: prediction for prediction in predictions}
        missing = [record.id for record in records if record.id not in by_id]
        if missing:
            raise InputError(
                f"{where}: {len(missing)} of {len(records)} objects have no line, the first {missing[0]!r}; predict them, or "
                "write a line without a pose for each, which counts as a failure"
            )
        for record in records:
            require_annotation(by_id[record.id], record, f"{where}: the line of {record.id!r}")
        if self.options.task == "joint" and all(by_id[record.id].pred_category is None for record in records):
            raise InputError(
                f"{where}: names no category ('pred_category' is null in all of its lines), and the joint task asks for the "
                "category too; predict with it, or take the file to llava-pose open-vocabulary"
            )
        return [replace(by_id[record.id], system=self.options.system) for record in records]
