"""`llava-pose classifier`: train a pose classifier on prepared data, and predict a split with it.

The defaults of rotation, pooling and heads are those of the published "General" networks, whose schedules are
``scripts/recipes/resnet50_general.yaml`` and ``swin_t_general.yaml``. Several processes (``torchrun --nproc_per_node 2 -m
eval.systems.classifier.command …``) train together and take turns at predicting.

The backbone is saved by itself as well, in ``OUTPUT_DIR/backbone``: a tower that ``llava-pose assemble --vision`` takes. The
recipe of the quickstart's is ``scripts/recipes/quickstart_tower.yaml``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from transformers import AutoConfig, PreTrainedConfig, ViTImageProcessor
from transformers.trainer_utils import set_seed

from eval.systems.classifier.model import PoseClassifier, PoseClassifierConfig
from eval.systems.classifier.trainer import ClassifierTrainer
from eval.systems.network import TINY, fit, load_backbone, load_network, start_from, write_answers
from eval.systems.record_choice import category_of, select_records
from eval.systems.record_images import RecordImages
from llava_pose.backbones.tiny import TINY_IMAGE_SIZE, tiny_vision_config
from llava_pose.data.records import METADATA_FILE, ObjectRecord, Pose, Prediction
from llava_pose.errors import InputError
from llava_pose.model.checkpoint_files import loading
from llava_pose.model.processing import input_size, keep_borders, set_input_size
from llava_pose.pose import categories
from llava_pose.pose.geometry import angles_from_rotation
from llava_pose.train.arguments import Name, Positive, Rate
from llava_pose.train.run_folder import RunFolder, own_run
from llava_pose.train.training_arguments import RunArguments
from llava_pose.utils.config import command, require_folder
from llava_pose.utils.distributed import is_first_process

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class ClassifierConfig(RunArguments):
    """A run: transformers' TrainingArguments, with our defaults, and what a pose classifier adds."""

    data: Name = field(metadata={"help": "The prepared folder."})
    backbone: str | None = field(
        default=None,
        metadata={
            "help": "The network: a hub id or folder that AutoModel can load, or tiny, the random tower of --preset tiny."
        },
    )
    backbone_config: dict | str | None = field(
        default=None,
        metadata={"help": "Random weights in place of a backbone: the model_type and fields of a transformers config."},
    )
    rotation: Literal["svd9d", "rot6d", "bins", "bins+residual", "matrix-fisher"] = field(
        default="bins", metadata={"help": "The representation of rotations; bins are the published one."}
    )
    pooling: Literal["mean", "flatten"] = field(
        default="mean", metadata={"help": "How the feature map becomes one vector; mean is the published way."}
    )
    head_hidden_size: NonNegativeInt = field(
        default=0, metadata={"help": "The units of the heads' hidden layer; 0 makes linear heads, as published."}
    )
    image_size: PositiveInt | None = field(
        default=None, metadata={"help": "The side of the input in pixels; by default the backbone's."}
    )
    flip: bool = field(default=True, metadata={"help": "Train on mirror images as well, of categories that allow it."})
    augment: NonNegativeInt = field(
        default=0,
        metadata={
            "help": "Train on so many changed pictures of each object (and of its mirror image), as llava-pose train does. "
            "0 leaves them as they are, as published."
        },
    )
    train_categories: list[str] | None = field(
        default=None, metadata={"help": "Train on these categories alone; by default on all of the train split."}
    )
    predict_split: str = field(default="val", metadata={"help": "The split to predict at the end."})
    predict_categories: list[str] | None = field(
        default=None, metadata={"help": "Predict objects of these categories alone; by default all of the split."}
    )
    system: str = field(default="pose-classifier", metadata={"help": "The name in the tables."})

    per_device_train_batch_size: PositiveInt = field(
        default=64, metadata={"help": "The samples of a step on each device."}
    )
    learning_rate: Rate = field(default=1e-3, metadata={"help": "The learning rate at its height."})
    lr_step_epochs: Rate = field(
        default=0.0,
        metadata={
            "help": "Let the learning rate fall every so many epochs, instead of by --lr-scheduler-type; 0 does not."
        },
    )
    lr_step_factor: Annotated[float, Field(gt=0, le=1)] = field(
        default=0.1, metadata={"help": "What the learning rate is then multiplied by."}
    )
    decay_all: bool = field(default=False, metadata={"help": "Let biases and norms decay as well, as published."})
    num_train_epochs: Positive = field(
        default=10.0, metadata={"help": "The passes over the samples, mirror images included."}
    )
    logging_steps: Positive = field(default=20, metadata={"help": "The steps between two lines of the log."})
    save_steps: Positive = field(default=500, metadata={"help": "The steps between two checkpoints."})

    def __post_init__(self) -> None:
        if isinstance(self.backbone_config, str):
            self.backbone_config = _parse_backbone_config(self.backbone_config)
        if (self.backbone is None) == (self.backbone_config is None):
            raise InputError("the option --backbone is needed, or --backbone-config in its place; see --help")
        if self.deepspeed:
            raise InputError("--deepspeed: a pose classifier is small; train on several devices with torchrun")
        if self.lr_step_epochs and self.warmup_steps:
            raise InputError("--lr-step-epochs: the rate begins at its height; set --warmup-steps to 0")
        super().__post_init__()


def _parse_backbone_config(text: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise InputError(f"--backbone-config {text}: not valid JSON ({error}); see --help") from error
    if not isinstance(values, dict):
        raise InputError(f"--backbone-config {text}: must be a JSON object with a model_type")
    return values


def run(config: ClassifierConfig) -> Path:
    """Train (or go on), save the model and its backbone, and write ``predictions.jsonl``; returns its path.

    Raises:
        InputError: bad data or settings.
    """
    samples = Path(config.data) / "train" / METADATA_FILE
    with own_run("classifier", config, samples=samples) as folder:
        return _run(config, folder)


def _run(config: ClassifierConfig, folder: RunFolder) -> Path:
    output = folder.folder
    require_folder(config.data, "--data", "make it with llava-pose prepare")
    records = select_records(config.data, config.predict_split, config.predict_categories, "--predict-categories")
    if folder.is_done:
        folder.write_settings()  # it predicts again, perhaps another split
    else:
        train(config, folder)
    predictions = output / "predictions.jsonl"
    predict(
        output,
        records,
        Path(config.data) / config.predict_split,
        predictions,
        system=config.system,
        device=config.device,
    )
    if is_first_process():
        logger.info(f"{predictions}; next: llava-pose score {predictions} --out {output / 'scores.json'}")
    return predictions


def train(config: ClassifierConfig, folder: RunFolder) -> None:
    """Train, and save model, processor and backbone to the output folder."""
    records = select_records(config.data, "train", config.train_categories, "--train-categories")
    names = sorted({category_of(record).name for record in records})
    set_seed(config.seed)
    model, image_processor = build_classifier(config, names)
    dataset = RecordImages(
        records, Path(config.data) / "train", image_processor, names, flip=config.flip, augment=config.augment
    )
    logger.info(
        f"{len(dataset)} samples (mirror images and changed ones included) of {len(names)} categories, "
        f"{model.num_parameters() / 1e6:.2f} M parameters"
    )
    trainer = fit(ClassifierTrainer, model, config, dataset, image_processor, folder)
    backbone = folder.folder / "backbone"
    if trainer.is_world_process_zero():
        model.backbone.save_pretrained(backbone)
        image_processor.save_pretrained(backbone)
        logger.info(f"the classifier is in {folder.folder}, its backbone in {backbone}")
    folder.finish(trainer)


def build_classifier(config: ClassifierConfig, names: Sequence[str]) -> tuple[PoseClassifier, Any]:
    """A new classifier on the backbone's own weights, and the backbone's image processor.

    Raises:
        InputError: the backbone cannot be loaded whole, or its config is none.
    """
    if config.backbone_config is not None or config.backbone == TINY:
        backbone, backbone_config = None, _new_backbone_config(cast(dict[str, Any] | None, config.backbone_config))
        size = config.image_size or getattr(backbone_config, "image_size", TINY_IMAGE_SIZE)
        image_processor = ViTImageProcessor(size={"height": size, "width": size})
    else:
        backbone, image_processor = load_backbone(cast(str, config.backbone))
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
    )
    with loading(f"--backbone {config.backbone or backbone_config.model_type}: cannot be used"):
        model = PoseClassifier(settings, image_size=input_size(image_processor))
    start_from(model, backbone)
    return model, image_processor


def _new_backbone_config(values: dict[str, Any] | None) -> PreTrainedConfig:
    """Of a backbone with random weights; without values that of the tiny tower."""
    if values is None:
        return tiny_vision_config()
    what = f"--backbone-config {values}: no transformers config can be made of it; give a model_type and its fields"
    with loading(what):
        options = dict(values)
        return AutoConfig.for_model(options.pop("model_type"), **options)


def load_classifier(folder: Path) -> tuple[PoseClassifier, Any]:
    """A trained classifier in evaluation mode, and its image processor.

    Raises:
        InputError: the folder holds none, or not a whole one.
    """
    return load_network(folder, PoseClassifier, what="pose classifier", remedy="make one with llava-pose classifier")


@torch.inference_mode()
def predict(
    folder: Path,
    records: Sequence[ObjectRecord],
    pictures: Path,
    out: Path,
    *,
    system: str,
    device: torch.device | str = "cpu",
    batch_size: int = 64,
    flip: bool = False,
    given: bool = False,
) -> None:
    """Write a prediction for each record, whole or not at all.

    The category is the one that the category head prefers; angles depend on it only with ``flip``.

    Args:
        folder: of the trained classifier.
        pictures: the folder that the records' files are in.
        flip: answer with the means of what the heads put out for the picture and for its mirror image: of the rotation where
            the plane of symmetry of the category is x = 0, as LLaVA-pose's predictor has it.
        given: that category is the record's, as where LLaVA-pose is told it; else the one that is found.
    """
    model, image_processor = load_classifier(folder)
    model.to(device)  # type: ignore[arg-type]  # transformers wraps it without its self
    names = model.config.categories
    dataset = RecordImages(records, pictures, image_processor, names)

    def answer(batch: range) -> list[dict[str, Any]]:
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
            ).to_dict()
            for index, row, chances in zip(batch, angles.tolist(), probabilities, strict=True)
        ]

    write_answers(answer, len(records), batch_size, out, description=f"predict {pictures.name}")


main = command(
    ClassifierConfig,
    run,
    prog="llava-pose classifier",
    description="Train a pose classifier (ResNet, Swin, any AutoModel backbone) on prepared data and predict a split.",
    example="llava-pose classifier --backbone microsoft/resnet-50 --data prepared --output-dir runs/resnet50",
)

if __name__ == "__main__":
    raise SystemExit(main())
