"""Pose classifiers as systems: one that trains, and one that is trained already and may be asked about mirror images too."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import PartialState
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import AutoConfig, PreTrainedConfig, ViTImageProcessor
from transformers.trainer_utils import set_seed

from eval.systems.classifier.command import ClassifierOptions
from eval.systems.classifier.model import PoseClassifier, PoseClassifierConfig
from eval.systems.network import (
    TINY,
    TrainedNetwork,
    answer_in_batches,
    fit,
    load_network,
    load_vision_backbone,
    start_from,
)
from eval.systems.options import SystemOptions, Task
from eval.systems.record_choice import select_records
from eval.systems.record_images import RecordImages
from eval.systems.system import run_system
from llava_pose.backbones.tiny import TINY_IMAGE_SIZE, tiny_vision_config
from llava_pose.data.jsonl import parse_json
from llava_pose.data.records import ObjectRecord, Pose, Prediction, category_of
from llava_pose.errors import InputError
from llava_pose.model.checkpoint_files import blaming
from llava_pose.model.processing import input_size, keep_borders, set_input_size
from llava_pose.pose import categories
from llava_pose.pose.geometry import angles_from_rotation
from llava_pose.train.run_folder import RunFolder
from llava_pose.train.trainer import ResumableTrainer, TellEpoch
from llava_pose.train.training_arguments import RunArguments
from llava_pose.utils.config import check_fields, require_folder
from llava_pose.utils.values import Name

logger = logging.getLogger(__name__)
_BATCH = 64


@dataclass(kw_only=True)
class ClassifierConfig(ClassifierOptions, RunArguments):  # type: ignore[misc]  # its fields replace those of that name
    """The options of a pose classifier, and transformers' TrainingArguments."""

    def __post_init__(self) -> None:
        if isinstance(self.backbone_config, str):
            self.backbone_config = _parse_backbone_config(self.backbone_config)
        if (self.backbone is None) == (self.backbone_config is None):
            raise InputError("the option --backbone is needed, or --backbone-config in its place; see --help")
        if self.deepspeed:
            raise InputError("--deepspeed: a pose classifier is small; train on several devices with torchrun")
        if self.pose_weight == 0:
            raise InputError("--pose-weight 0: a pose classifier learns poses; give it a weight")
        if self.random_flip and self.dataloader_persistent_workers:
            raise InputError(
                "--dataloader-persistent-workers: workers that stay do not hear of an epoch, whose mirror images --random-flip "
                "draws; leave one of them out"
            )
        if self.lr_step_epochs and self.warmup_steps:
            raise InputError("--lr-step-epochs: the rate begins at its height; set --warmup-steps to 0")
        super().__post_init__()


def _parse_backbone_config(text: str) -> dict[str, Any]:
    try:
        values = parse_json(text)
    except ValueError as error:
        raise InputError(f"--backbone-config {text}: not valid JSON ({error}); see --help") from error
    if not isinstance(values, dict):
        raise InputError(f"--backbone-config {text}: must be a JSON object with a model_type")
    return values


class Classifier(TrainedNetwork):
    """A pose classifier that trains, and saves its backbone by itself as well."""

    kind = "classifier"

    def train(self, folder: RunFolder) -> None:
        """Train, or go on, and save model, processor and backbone."""
        config: ClassifierConfig = self.config
        records = select_records(config.data, "train", config.train_categories, "--train-categories")
        names = sorted({category_of(record).name for record in records})
        set_seed(config.seed)
        model, image_processor = build_classifier(config, names)
        dataset = RecordImages(
            records,
            Path(config.data) / "train",
            image_processor,
            names,
            flip=config.flip and not config.random_flip,
            augment=config.augment,
            flip_seed=config.seed if config.random_flip else None,
        )
        logger.info(
            f"{len(dataset)} samples (mirror images and changed ones included) of {len(names)} categories, "
            f"{model.num_parameters() / 1e6:.2f} M parameters"
        )
        trainer = fit(ClassifierTrainer, model, config, dataset, image_processor, folder, [TellEpoch(dataset)])
        backbone = folder.folder / "backbone"
        if trainer.is_world_process_zero():
            model.backbone.save_pretrained(backbone)
            image_processor.save_pretrained(backbone)
            logger.info(f"the classifier is in {folder.folder}, its backbone in {backbone}")
        folder.finish(trainer)

    def predict(self, folder: Path, records: Sequence[ObjectRecord]) -> list[Prediction]:
        """Predict pose and category."""
        pictures = Path(self.config.data) / self.config.split
        return predict(folder, records, pictures, system=self.config.system, device=self.config.device)


class ClassifierTrainer(ResumableTrainer):
    """Trainer with what the published recipes have: a rate that falls by epochs, and decay of all weights.

    It reads ``lr_step_epochs``, ``lr_step_factor`` and ``decay_all`` of its ClassifierConfig.
    """

    args: Any
    _steps_an_epoch = 0

    def set_initial_training_values(self, args: Any, dataloader: Any) -> tuple[Any, ...]:
        """Do what Trainer does, and note the optimiser steps of an epoch for the schedule."""
        values = super().set_initial_training_values(args, dataloader)
        self._steps_an_epoch = values[1]
        return values

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        """Make Trainer's schedule, or one that multiplies the rate by ``lr_step_factor`` every ``lr_step_epochs`` epochs."""
        if self.lr_scheduler is None and self.args.lr_step_epochs:
            if not self._steps_an_epoch:
                self.set_initial_training_values(self.args, self.get_train_dataloader())
            steps, factor = self.args.lr_step_epochs * self._steps_an_epoch, self.args.lr_step_factor

            def share(step: int) -> float:
                # a thousandth of a step: 2.5 epochs of 4 steps are 10, and not 9.999…
                return factor ** int((step + 1e-3) / steps)

            self.lr_scheduler = LambdaLR(
                cast(torch.optim.Optimizer, self.optimizer if optimizer is None else optimizer), share
            )
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        """Return what Trainer does, and with ``decay_all`` biases and the weights of norms too."""
        if self.args.decay_all:
            return [name for name, _ in model.named_parameters()]
        return super().get_decay_parameter_names(model)


def build_classifier(config: ClassifierConfig, names: Sequence[str]) -> tuple[PoseClassifier, Any]:
    """Make a new classifier on the backbone's own weights, and the backbone's image processor.

    Raises:
        InputError: the backbone cannot be loaded whole, or its config is none.
    """
    if config.backbone_config is not None or config.backbone == TINY:
        backbone, backbone_config = None, _new_backbone_config(cast(dict[str, Any] | None, config.backbone_config))
        size = config.image_size or getattr(backbone_config, "image_size", TINY_IMAGE_SIZE)
        image_processor = ViTImageProcessor(size={"height": size, "width": size})
    else:
        backbone, image_processor = load_vision_backbone(cast(str, config.backbone))
        backbone_config = backbone.config
        keep_borders(image_processor)
        if config.image_size is not None:
            set_input_size(image_processor, config.image_size)
    settings = PoseClassifierConfig(
        backbone_config=backbone_config,
        categories=names,
        rotation=config.rotation,
        pooling=config.pooling,
        head_hidden_size=config.head_hidden_size,
        pose_weight=1.0 if config.pose_weight is None else config.pose_weight,
        class_weight=1.0 if config.class_weight is None else config.class_weight,
    )
    with blaming(f"--backbone {config.backbone or backbone_config.model_type}: cannot be used"):
        model = PoseClassifier(settings, image_size=input_size(image_processor))
    start_from(model, backbone)
    return model, image_processor


def _new_backbone_config(values: dict[str, Any] | None) -> PreTrainedConfig:
    """Make the config of a backbone with random weights; without values that of the tiny tower."""
    if values is None:
        return tiny_vision_config()
    what = f"--backbone-config {values}: no transformers config can be made of it; give a model_type and its fields"
    with blaming(what):
        options = dict(values)
        return AutoConfig.for_model(options.pop("model_type"), **options)


@dataclass(kw_only=True)
class TrainedClassifierOptions(SystemOptions):
    """The options of a pose classifier that is trained already."""

    checkpoint: Name = field(metadata={"help": "The folder of a trained classifier."})
    flip: bool = field(default=False, metadata={"help": "Ask about the mirror image too."})
    system: str = field(default="pose-classifier", metadata={"help": "The name in the tables."})
    task: Task = field(
        default="pose",
        metadata={"help": "Whether the category is given, as far as flip goes (pose), or found (joint)."},
    )

    def __post_init__(self) -> None:
        check_fields(self)


class TrainedClassifier:
    """A pose classifier that is trained already."""

    def __init__(self, options: TrainedClassifierOptions):
        self.options = options

    def answer(self, records: Sequence[ObjectRecord]) -> list[Prediction]:
        """Predict pose and category, of the picture alone or of its mirror image too."""
        options = self.options
        folder = require_folder(options.checkpoint, "checkpoint", "train one with llava-pose classifier")
        return predict(
            folder,
            records,
            Path(options.data) / options.split,
            system=options.system,
            device=PartialState().device,
            flip=options.flip,
            given=options.task == "pose",
        )


def load_classifier(folder: Path) -> tuple[PoseClassifier, Any]:
    """Load a trained classifier in evaluation mode, and its image processor.

    Raises:
        InputError: the folder holds none, or not a whole one.
    """
    return load_network(folder, PoseClassifier, what="pose classifier", remedy="make one with llava-pose classifier")


@torch.inference_mode()
def predict(
    folder: Path,
    records: Sequence[ObjectRecord],
    pictures: Path,
    *,
    system: str,
    device: torch.device | str = "cpu",
    flip: bool = False,
    given: bool = False,
) -> list[Prediction]:
    """Return a prediction for each record; the processes of one run take turns.

    The category is the one that the category head prefers; angles depend on it only with ``flip``.

    Args:
        folder: the folder of the trained classifier.
        pictures: the folder that the records' files are in.
        flip: answer with the means of what the heads put out for the picture and for its mirror image: of the rotation where
            the plane of symmetry of the category is x = 0, as LLaVA-pose's predictor has it.
        given: that category is the record's, as where LLaVA-pose is told it; else the one that is found.
    """
    model, image_processor = load_classifier(folder)
    model.to(device)  # type: ignore[arg-type]  # transformers wraps it without its self
    names = model.config.categories
    dataset = RecordImages(records, pictures, image_processor, names)

    def answer(batch: range) -> list[Prediction]:
        pixels = torch.stack([dataset[index]["pixel_values"] for index in batch]).to(device)
        output = model(pixels)
        raw, scores = output.raw_rotation, output.category_logits.log_softmax(-1)
        if flip:
            of_mirror = model(pixels.flip(-1))
            scores = (scores + of_mirror.category_logits.log_softmax(-1)) / 2
            if given:
                asked = [category_of(records[index]) for index in batch]
            else:
                asked = [categories.get(names[best], allow_custom=True) for best in scores.argmax(-1).tolist()]
            both = torch.tensor([category.mirror_axis == "x" for category in asked], device=device)
            raw = model.representation.with_mirror_images(raw, of_mirror.raw_rotation, both)
        angles = torch.stack(angles_from_rotation(model.rotations(raw).double().cpu()), -1)
        probabilities = scores.softmax(-1).cpu()
        return [
            Prediction.of(
                records[index],
                system=system,
                pose=Pose(*row),
                pred_category=names[int(chances.argmax())],
                confidence=float(chances.max()),
            )
            for index, row, chances in zip(batch, angles.tolist(), probabilities, strict=True)
        ]

    return answer_in_batches(answer, len(records), _BATCH, description=f"predict {pictures.name}")


def run(config: ClassifierConfig) -> Path:
    """Train (or go on), save the model and its backbone, and write ``predictions.jsonl``; return its path.

    Raises:
        InputError: bad data or settings.
    """
    return run_system(config, Classifier(config))
