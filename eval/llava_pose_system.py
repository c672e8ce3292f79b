"""LLaVA-pose as one of the systems of a task: instruct, train and predict, or predict with a checkpoint that is there."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.predict import TASKS, PredictConfig, predict
from llava_pose import cli
from llava_pose.config import fill_config, require
from llava_pose.distributed import agreed, is_first_process
from llava_pose.errors import InputError
from llava_pose.training import TrainConfig, train

logger = logging.getLogger(__name__)


@dataclass
class LlavaPoseSystemConfig:
    """What LLaVA-pose is trained on and how, and what it is asked."""

    data: str | None = field(default=None, metadata={"help": "the prepared folder"})
    output_dir: str | None = field(default=None, metadata={"help": "samples, checkpoint and predictions go there"})
    system: str = field(default="llava-pose", metadata={"help": "name in the tables"})
    model: str | None = field(default=None, metadata={"help": "the base to fine-tune"})
    checkpoint: str | None = field(default=None, metadata={"help": "in place of a base: a checkpoint, trained already"})
    train_json: str | None = field(
        default=None,
        metadata={"help": "samples that are there; default: made of the train split by llava-pose instruct"},
    )
    instruct: dict | None = field(default=None, metadata={"help": "options of llava-pose instruct"})
    train: dict | None = field(default=None, metadata={"help": "options of llava-pose train"})
    train_categories: list[str] | None = field(
        default=None, metadata={"help": "train on these alone; default: every category of the train split"}
    )
    task: str = field(default="pose", metadata={"help": f"as llava-pose predict has it: {', '.join(TASKS)}"})
    describe: bool = field(default=False, metadata={"help": "ask for an object by its description, not by its name"})
    predict_split: str = field(default="val", metadata={"help": "split to predict at the end"})
    predict_categories: list[str] | None = field(
        default=None, metadata={"help": "predict objects of these alone; default: every object of the split"}
    )
    batch_size: int = field(default=32, metadata={"help": "objects a forward pass, in predicting"})

    def __post_init__(self) -> None:
        if (self.model is None) == (self.checkpoint is None):
            raise InputError(
                f"{self.system}: give either model, a base to fine-tune, or checkpoint, one trained already"
            )
        if self.checkpoint is not None:
            told = [name for name in ("train_json", "instruct", "train") if getattr(self, name) is not None]
            if told:
                raise InputError(f"{self.system}: {told[0]} has no effect on a checkpoint that is trained already")
        if self.train_json is not None and self.instruct is not None:
            raise InputError(f"{self.system}: instruct has no effect on a train_json that is there")
        self.train_config = self._train_config() if self.model is not None else None

    def _train_config(self) -> TrainConfig:
        """Made at once, so that a wrong option is found before anything has run."""
        require(self.data, "data")
        require(self.output_dir, "output_dir")
        given = {
            "model": self.model,
            "data": self.data,
            "train_json": self.train_json or str(self.made_train_json),
            "output_dir": self.output_dir,
        }
        twice = sorted(given.keys() & (self.train or {}).keys())
        if twice:
            raise InputError(
                f"{self.system}: train: '{twice[0]}' is an option of the system itself; take it out of train"
            )
        return fill_config(TrainConfig, {**(self.train or {}), **given}, source=f"{self.system}: train")

    @property
    def made_train_json(self) -> Path:
        """Where samples go that are made here."""
        return Path(self.output_dir or "") / "train.json"


def run(config: LlavaPoseSystemConfig) -> Path:
    """Make the samples, train (or go on), and predict; returns the path of predictions.jsonl.

    Raises:
        InputError: bad data or settings.
    """
    require(config.data, "data")
    require(config.output_dir, "output_dir")
    checkpoint = config.checkpoint
    if config.train_config is not None:
        if config.train_json is None:
            if is_first_process() and not config.made_train_json.exists():  # which is written whole or not at all
                make_samples(config)
            agreed(None)  # the others wait for the file
        checkpoint = str(train(config.train_config))
    return predict(
        PredictConfig(
            checkpoint=str(checkpoint),
            data=config.data,
            out=str(Path(config.output_dir) / "predictions.jsonl"),
            split=config.predict_split,
            task=config.task,
            describe=config.describe,
            predict_categories=config.predict_categories,
            system=config.system,
            batch_size=config.batch_size,
            allow_custom_categories=True,
        )
    )


def make_samples(config: LlavaPoseSystemConfig) -> None:
    """``llava-pose instruct`` of the train split, restricted to the categories that may be trained on.

    Raises:
        InputError: it refused its options; what it said stands on stderr.
    """
    options: dict[str, Any] = dict(config.instruct or {})
    given = {"data": config.data, "out": str(config.made_train_json), "categories": config.train_categories}
    twice = sorted(given.keys() & options.keys())
    if twice:
        raise InputError(f"{config.system}: instruct: '{twice[0]}' is set by the task; take it out")
    words = ["instruct"]
    for name, value in {**options, **given}.items():
        if value is not None:
            values = value if isinstance(value, list) else [value]
            words += [f"--{name.replace('_', '-')}", *map(str, values)]
    config.made_train_json.parent.mkdir(parents=True, exist_ok=True)
    # through the command line, since what comes before training and what comes after it do not import each other
    if cli.main(words) != 0:
        raise InputError(f"{config.system}: llava-pose {' '.join(words[:1])} refused its options; see the line above")
