"""LLaVA-pose as one of the systems of a task: assemble, instruct, train and predict, or predict with a checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from eval.predict import TASKS, PredictConfig, predict
from eval.systems.record_choice import category_of, select_records
from llava_pose import cli
from llava_pose.backbones.assemble import AssembleConfig, assemble
from llava_pose.data.dataset import read_samples
from llava_pose.errors import InputError
from llava_pose.pose import categories
from llava_pose.train.arguments import DataArguments, ModelArguments
from llava_pose.train.command import train
from llava_pose.train.training_arguments import PoseTrainingArguments, require_compatible
from llava_pose.utils.config import fill_configs, require
from llava_pose.utils.distributed import broadcast, is_first_process

logger = logging.getLogger(__name__)
ASSEMBLED = "assemble.yaml"
TRAINING = (ModelArguments, DataArguments, PoseTrainingArguments)


@dataclass
class LlavaPoseSystemConfig:
    """What LLaVA-pose is trained on and how, and what it is asked."""

    data: str | None = field(default=None, metadata={"help": "the prepared folder"})
    output_dir: str | None = field(default=None, metadata={"help": "samples, checkpoint and predictions go there"})
    system: str = field(default="llava-pose", metadata={"help": "name in the tables"})
    model: str | None = field(default=None, metadata={"help": "the base to fine-tune"})
    assemble: dict | None = field(
        default=None, metadata={"help": "in place of a base that is there: options of llava-pose assemble"}
    )
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
    flip: bool = field(default=False, metadata={"help": "in predicting, ask about the mirror image too"})
    predict_split: str = field(default="val", metadata={"help": "split to predict at the end"})
    predict_categories: list[str] | None = field(
        default=None, metadata={"help": "predict objects of these alone; default: every object of the split"}
    )
    batch_size: int = field(default=32, metadata={"help": "objects a forward pass, in predicting"})

    def __post_init__(self) -> None:
        """Wrong options of the stages are found here, before anything has run; those of ``instruct`` when it runs."""
        if sum(way is not None for way in (self.model, self.assemble, self.checkpoint)) != 1:
            raise InputError(
                f"{self.system}: give one of model, a base to fine-tune; assemble, to make one; checkpoint, trained already"
            )
        if self.checkpoint is not None:
            told = [name for name in ("train_json", "instruct", "train") if getattr(self, name) is not None]
            if told:
                raise InputError(f"{self.system}: {told[0]} has no effect on a checkpoint that is trained already")
        if self.train_json is not None and self.instruct is not None:
            raise InputError(f"{self.system}: instruct has no effect on a train_json that is there")
        require(self.data, "data")
        require(self.output_dir, "output_dir")
        self.assemble_config: AssembleConfig | None = None
        self.training: tuple[ModelArguments, DataArguments, PoseTrainingArguments] | None = None
        if self.assemble is not None:
            base = str(Path(cast(str, self.output_dir)) / "base")
            (self.assemble_config,) = self._stage((AssembleConfig,), "assemble", {"out": base})
        if self.checkpoint is None:
            given = {
                "model": self.model or cast(AssembleConfig, self.assemble_config).out,
                "data": self.data,
                "train_json": self.train_json or str(self.made_train_json),
                "output_dir": self.output_dir,
            }
            self.training = self._stage(TRAINING, "train", given)
            require_compatible(*self.training)

    def _stage(self, config_classes: Sequence[type], name: str, given: Mapping[str, Any]) -> Any:
        options = getattr(self, name) or {}
        twice = sorted(given.keys() & options.keys())
        if twice:
            raise InputError(f"{self.system}: {name}: '{twice[0]}' is set by the system; take it out")
        return fill_configs(config_classes, {**options, **given}, source=f"{self.system}: {name}")

    @property
    def made_train_json(self) -> Path:
        """Where samples go that are made here."""
        return Path(self.output_dir or "") / "train.json"


def run(config: LlavaPoseSystemConfig) -> Path:
    """Make base and samples, train (or go on), and predict; returns the path of predictions.jsonl.

    Raises:
        InputError: bad data or settings.
    """
    checkpoint = config.checkpoint
    if config.training is not None:
        problem = None
        if is_first_process():
            try:
                _prepare_training(config)
            except InputError as error:
                problem = error
        problem = broadcast(problem)  # the others wait for what the first has made, or end with it
        if problem is not None:
            raise problem
        checkpoint = str(train(*config.training))
    return predict(
        PredictConfig(
            checkpoint=str(checkpoint),
            data=cast(str, config.data),
            out=str(Path(cast(str, config.output_dir)) / "predictions.jsonl"),
            split=config.predict_split,
            task=config.task,
            categories=_candidates(config),
            describe=config.describe,
            flip=config.flip,
            predict_categories=config.predict_categories,
            system=config.system,
            batch_size=config.batch_size,
            allow_custom_categories=True,
        )
    )


def _candidates(config: LlavaPoseSystemConfig) -> list[str] | None:
    """Of the joint task, what the other systems choose from, too: the categories that are trained on."""
    if config.task != "joint":
        return None
    records = select_records(cast(str, config.data), "train", config.train_categories, "train_categories")
    return sorted({category_of(record).name for record in records})


def _prepare_training(config: LlavaPoseSystemConfig) -> None:
    """The base and the samples, where they are not there yet."""
    if config.train_json is not None:
        _require_no_other_category(config)
    made = config.assemble_config
    if made is not None and not (Path(made.out) / ASSEMBLED).exists():  # which is written last
        assemble(made)
    if config.train_json is None and not config.made_train_json.exists():  # which is written whole or not at all
        make_samples(config)


def _require_no_other_category(config: LlavaPoseSystemConfig) -> None:
    """Ready samples hold nothing of categories that the task keeps from training."""
    if config.train_categories is None:
        return
    allowed = set(config.train_categories)
    for sample in read_samples(Path(cast(str, config.train_json))):
        name = sample.get("category")
        if name is None or categories.get(name, allow_custom=True).name not in allowed:
            raise InputError(
                f"{config.system}: train_json {config.train_json}: the sample {sample.get('id')!r} is of the category "
                f"{name!r}, which the task keeps from training; make it with llava-pose instruct --categories, or leave "
                "train_json out"
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
