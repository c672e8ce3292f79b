"""What is probed, on which objects. Nothing heavy is imported here, so that ``--help`` is there at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from eval.systems.record_choice import select_records
from llava_pose.data.records import ObjectRecord
from llava_pose.errors import InputError
from llava_pose.utils.config import require

LEARNING_RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
GRID_FILE = "probe_grid.json"


@dataclass
class ProbeSettings:
    """What holds for every backbone that is probed."""

    data: str = field(default="", metadata={"help": "the prepared folder"})
    output_dir: str = field(default="", metadata={"help": "predictions, the grid's figures and the features go there"})
    train_categories: list[str] | None = field(
        default=None, metadata={"help": "train on these alone; default: every category of the train split"}
    )
    predict_split: str = field(default="val", metadata={"help": "split to predict"})
    predict_categories: list[str] | None = field(
        default=None, metadata={"help": "predict objects of these alone; default: every category of the split"}
    )
    limit: int | None = field(default=None, metadata={"help": "train on so many objects, drawn by the seed"})
    image_size: int | None = field(
        default=None, metadata={"help": "side of the input, pixels; default: what each image processor says"}
    )
    learning_rates: list[float] = field(
        default_factory=lambda: list(LEARNING_RATES), metadata={"help": "of the grid; default: the published ones"}
    )
    epochs: int = field(default=5, metadata={"help": "passes over the training objects; small data need more"})
    batch_size: int = field(default=128, metadata={"help": "objects a step"})
    holdout: float = field(default=0.2, metadata={"help": "share of each category's train objects to choose a cell on"})
    seed: int = field(default=0, metadata={"help": "of the hold-out, the order of objects, and the limit"})
    cache_dir: str | None = field(default=None, metadata={"help": "for features; default: OUTPUT_DIR/features"})

    def __post_init__(self) -> None:
        require(self.data, "--data")
        require(self.output_dir, "--output-dir")
        for name in ("limit", "image_size", "epochs", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name.replace('_', '-')} {value}: must be at least 1")
        if not 0 < self.holdout < 1:
            raise InputError(f"--holdout {self.holdout}: must be a share between 0 and 1")
        if not self.learning_rates or min(self.learning_rates) <= 0:
            raise InputError("--learning-rates: give at least one, all of them over 0")


@dataclass
class LinearProbeConfig(ProbeSettings):
    """One backbone to probe."""

    backbone: str = field(default="", metadata={"help": "hub id or folder that AutoModel can load"})
    system: str | None = field(
        default=None, metadata={"help": "name in the tables; default: the backbone folder's name"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.backbone, "--backbone")
        self.system = self.system or Path(self.backbone).name


def training_records(config: ProbeSettings) -> list[ObjectRecord]:
    """The objects to train on.

    Raises:
        InputError: there are none, or none of a category that is asked for.
    """
    records = select_records(config.data, "train", config.train_categories, "--train-categories")
    if config.limit is not None and config.limit < len(records):
        chosen = np.random.default_rng(config.seed).permutation(len(records))[: config.limit]
        records = [records[index] for index in sorted(chosen)]
    return records


def predict_records(config: ProbeSettings) -> list[ObjectRecord]:
    """The objects to predict.

    Raises:
        InputError: as :func:`training_records`.
    """
    return select_records(config.data, config.predict_split, config.predict_categories, "--predict-categories")
