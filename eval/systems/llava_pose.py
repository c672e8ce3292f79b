"""LLaVA-pose as a system: assemble, instruct, train and predict, or predict with a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import PositiveInt

from eval.predict import PredictConfig, predict
from eval.systems.options import SystemOptions, Task
from eval.systems.record_choice import select_records
from eval.systems.system import PREDICTIONS
from llava_pose import cli
from llava_pose.backbones.assemble import AssembleConfig, assemble
from llava_pose.data.dataset import read_samples
from llava_pose.data.records import ObjectRecord, Prediction, category_of, read_predictions
from llava_pose.errors import InputError
from llava_pose.pose import categories
from llava_pose.train.arguments import DataArguments, ModelArguments
from llava_pose.train.command import train
from llava_pose.train.training_arguments import PoseTrainingArguments, require_compatible
from llava_pose.utils.config import check_fields, fill_configs
from llava_pose.utils.distributed import from_first_process, is_first_process

ASSEMBLED = "assemble.yaml"


@dataclass(kw_only=True)
class LlavaPoseOptions(SystemOptions):
    """The options of LLaVA-pose as a system: what it is trained on and how, and what it is asked."""

    system: str = field(default="llava-pose", metadata={"help": "The name in the tables."})
    model: str | None = field(default=None, metadata={"help": "The base to fine-tune."})
    assemble: dict | None = field(
        default=None, metadata={"help": "The options of llava-pose assemble, in place of a base that is there."}
    )
    checkpoint: str | None = field(
        default=None, metadata={"help": "A checkpoint that is trained already, in place of a base."}
    )
    train_json: str | None = field(
        default=None, metadata={"help": "The samples; by default llava-pose instruct makes them of the train split."}
    )
    instruct: dict | None = field(default=None, metadata={"help": "The options of llava-pose instruct."})
    train: dict | None = field(default=None, metadata={"help": "The options of llava-pose train."})
    train_categories: list[str] | None = field(
        default=None, metadata={"help": "Train on these categories alone; by default on all of the train split."}
    )
    task: Task = field(default="pose", metadata={"help": "The task, as of llava-pose predict."})
    describe: bool = field(
        default=False, metadata={"help": "Ask for an object by its category's description, not by its name."}
    )
    descriptions: str | None = field(
        default=None, metadata={"help": "With describe, a JSON file of descriptions in place of the taxonomy's."}
    )
    flip: bool = field(default=False, metadata={"help": "Ask about the mirror image too, in predicting."})
    batch_size: PositiveInt = field(default=32, metadata={"help": "The objects of a forward pass, in predicting."})

    def __post_init__(self) -> None:
        check_fields(self)
        if sum(way is not None for way in (self.model, self.assemble, self.checkpoint)) != 1:
            raise InputError(
                f"{self.system}: give one of model, a base to fine-tune; assemble, to make one; checkpoint, trained already"
            )
        if self.checkpoint is not None:
            told = [name for name in ("train_json", "instruct", "train") if getattr(self, name) is not None]
            if told:
                raise InputError(f"{self.system}: {told[0]} has no effect on a checkpoint that is trained already")
        if self.descriptions is not None and not self.describe:
            raise InputError(f"{self.system}: descriptions are asked with under describe alone; add it")
        if self.train_json is not None and self.instruct is not None:
            raise InputError(f"{self.system}: instruct has no effect on a train_json that is there")


class LlavaPose:
    """A LLaVA-pose checkpoint, trained in the output folder or there already."""

    def __init__(self, options: LlavaPoseOptions):
        """
        Raises:
            InputError: options of a stage make no sense, or two of them do not go together.
        """
        self.options = options
        folder = Path(options.output_dir)
        self._base: AssembleConfig | None = None
        self._instruct: Any = None
        self._training: tuple[ModelArguments, DataArguments, PoseTrainingArguments] | None = None
        if options.assemble is not None:
            (self._base,) = self._filled("assemble", (AssembleConfig,), {"out": str(folder / "base")})
        if options.checkpoint is not None:
            return
        train_json = options.train_json
        if train_json is None:
            train_json = str(folder / "train.json")
            given = {"data": options.data, "out": train_json, "categories": options.train_categories}
            (self._instruct,) = self._filled("instruct", (cli.command_of("instruct").config_class,), given)
        given = {"data": options.data, "train_json": train_json, "output_dir": options.output_dir}
        given["model"] = options.model if self._base is None else self._base.out
        self._training = self._filled("train", (ModelArguments, DataArguments, PoseTrainingArguments), given)
        require_compatible(*self._training)

    def _filled(self, stage: str, config_classes: Sequence[type], given: Mapping[str, Any]) -> Any:
        """Return the configs of a stage, of the system's options for it and of what the system decides itself."""
        where, options = f"{self.options.system}: {stage}", getattr(self.options, stage) or {}
        twice = sorted(given.keys() & options.keys())
        if twice:
            raise InputError(f"{where}: '{twice[0]}' is set by the system; take it out")
        return fill_configs(config_classes, {**options, **given}, source=where)

    def answer(self, records: Sequence[ObjectRecord]) -> list[Prediction]:
        """Make base and samples, train (or go on), and predict; each answer is kept as it comes."""
        options = self.options
        checkpoint = options.checkpoint
        if self._training is not None:
            from_first_process(self._prepare)  # the others wait for what the first has made, or end with it
            checkpoint = str(train(*self._training))
        out = predict(
            PredictConfig(
                checkpoint=str(checkpoint),
                data=options.data,
                out=str(Path(options.output_dir) / PREDICTIONS),
                split=options.split,
                task=options.task,
                candidates=self._candidates(),
                describe=options.describe,
                descriptions=options.descriptions,
                flip=options.flip,
                categories=options.categories,
                system=options.system,
                batch_size=options.batch_size,
                allow_custom_categories=True,
            )
        )
        if not is_first_process():
            return []
        answers = {prediction.id: prediction for prediction in read_predictions(out)}
        return [answers[record.id] for record in records]

    def _candidates(self) -> list[str] | None:
        """Return what the other systems of the joint task choose from, too: the categories that are trained on."""
        if self.options.task != "joint":
            return None
        records = select_records(self.options.data, "train", self.options.train_categories, "train_categories")
        return sorted({category_of(record).name for record in records})

    def _prepare(self) -> None:
        """Make the base and the samples, where they are not there yet."""
        if self.options.train_json is not None:
            self._require_no_other_category(self.options.train_json)
        if self._base is not None and not (Path(self._base.out) / ASSEMBLED).exists():  # which is written last
            assemble(self._base)
        if self._instruct is not None and not Path(self._instruct.out).exists():  # which is written whole or not at all
            Path(self._instruct.out).parent.mkdir(parents=True, exist_ok=True)
            cli.command_of("instruct").run(self._instruct)

    def _require_no_other_category(self, train_json: str) -> None:
        """Refuse ready samples of categories that are kept from training."""
        if self.options.train_categories is None:
            return
        allowed = set(self.options.train_categories)
        for sample in read_samples(Path(train_json)):
            name = sample.get("category")
            if name is None or categories.get(name, allow_custom=True).name not in allowed:
                raise InputError(
                    f"{self.options.system}: train_json {train_json}: the sample {sample.get('id')!r} is of the category "
                    f"{name!r}, which the task keeps from training; make it with llava-pose instruct --categories, or leave "
                    "train_json out"
                )
