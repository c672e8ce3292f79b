"""A pose classifier that is trained already, as one of the systems of a task: asked about the mirror image too."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from accelerate import PartialState

from eval.systems.classifier.command import predict
from eval.systems.record_choice import select_records
from llava_pose.utils.config import require, require_folder
from llava_pose.utils.distributed import is_first_process

logger = logging.getLogger(__name__)


@dataclass
class TrainedClassifierConfig:
    """Which classifier, and what it is asked."""

    checkpoint: str | None = field(default=None, metadata={"help": "the folder of a trained classifier"})
    flip: bool = field(default=False, metadata={"help": "ask about the mirror image too"})
    data: str | None = field(default=None, metadata={"help": "the prepared folder"})
    output_dir: str | None = field(default=None, metadata={"help": "predictions.jsonl goes there"})
    system: str = field(default="pose-classifier", metadata={"help": "name in the tables"})
    task: str = field(
        default="pose", metadata={"help": "pose: the category is given, as far as flip goes; joint: it is found"}
    )
    predict_split: str = field(default="val", metadata={"help": "split to predict"})
    predict_categories: list[str] | None = field(
        default=None, metadata={"help": "predict objects of these alone; default: every object of the split"}
    )

    def __post_init__(self) -> None:
        require(self.checkpoint, "checkpoint")


def run(config: TrainedClassifierConfig) -> Path:
    """Write ``predictions.jsonl``; returns its path.

    Raises:
        InputError: bad data, or no whole classifier is in the folder.
    """
    folder = require_folder(cast(str, config.checkpoint), "checkpoint", "train one with llava-pose classifier")
    records = select_records(
        cast(str, config.data), config.predict_split, config.predict_categories, "predict_categories"
    )
    out = Path(cast(str, config.output_dir)) / "predictions.jsonl"
    predict(
        folder,
        records,
        Path(cast(str, config.data)) / config.predict_split,
        out,
        system=config.system,
        device=PartialState().device,
        flip=config.flip,
        given=config.task == "pose",
    )
    if is_first_process():
        logger.info(f"{len(records)} predictions of {config.system} are in {out}")
    return out
