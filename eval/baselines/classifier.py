"""`llava-pose classifier`: train a pose classifier on prepared data, and predict a split with it.

The defaults of rotation, pooling and heads are those of the published "General" networks. The recipe of the quickstart is
``scripts/recipes/quickstart_tower.yaml``. The backbone is saved by itself as well, in ``OUTPUT_DIR/backbone``: a tower that
``llava-pose assemble --vision`` takes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ImageOps
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import AutoImageProcessor, AutoModel, ViTImageProcessor
from transformers.trainer_utils import set_seed

from eval.baselines.classifier_model import POOLINGS, PoseClassifier, PoseClassifierConfig
from llava_pose import categories
from llava_pose.config import command, require_folder, save_config, write_json
from llava_pose.errors import InputError
from llava_pose.geometry import angles_from_rotation, flip_pose
from llava_pose.model.loading import LOADING_ERRORS, first_sentence, require_complete
from llava_pose.model.processing import input_size, set_input_size
from llava_pose.model.rotation import ROTATION_NAMES
from llava_pose.model.tiny import TINY_IMAGE_SIZE, tiny_vision_config
from llava_pose.pictures import load_rgb
from llava_pose.records import ObjectRecord, Pose, Prediction, read_records, write_jsonl
from llava_pose.run import RunConfig, require_same_recipe
from llava_pose.trainer import CompleteCheckpoints, LossHistory, ResumableTrainer
from llava_pose.training import find_checkpoint

logger = logging.getLogger(__name__)
DONE_MARK = "training_done.json"
TINY = "tiny"


@dataclass
class ClassifierConfig(RunConfig):
    """A run: transformers' TrainingArguments, with our defaults, and what a pose classifier adds."""

    data: str | None = field(default=None, metadata={"help": "the prepared folder"})
    backbone: str | None = field(
        default=None,
        metadata={"help": "hub id or folder that AutoModel can load, or tiny: the random tower of --preset tiny"},
    )
    rotation: str = field(default="bins", metadata={"help": f"one of {', '.join(ROTATION_NAMES)}; bins: as published"})
    pooling: str = field(default="mean", metadata={"help": f"one of {', '.join(POOLINGS)}; mean: as published"})
    head_hidden_size: int = field(
        default=0, metadata={"help": "units of a hidden layer; 0: linear heads, as published"}
    )
    image_size: int | None = field(
        default=None, metadata={"help": "side of the input, pixels; default: the backbone's"}
    )
    flip: bool = field(default=True, metadata={"help": "train on mirror images too, of categories that allow it"})
    train_categories: list[str] | None = field(
        default=None, metadata={"help": "train on these alone; default: every category of the train split"}
    )
    predict_split: str = field(default="val", metadata={"help": "split to predict at the end"})
    system: str = field(default="pose-classifier", metadata={"help": "name in the tables"})

    per_device_train_batch_size: int = field(default=64, metadata={"help": "samples a step and device"})
    learning_rate: float = field(default=1e-3, metadata={"help": "of everything"})
    num_train_epochs: float = field(default=10.0, metadata={"help": "passes over the samples, mirror images included"})
    logging_steps: float = field(default=20, metadata={"help": "steps between lines of the log"})
    save_steps: float = field(default=500, metadata={"help": "steps between checkpoints"})

    def __post_init__(self) -> None:
        self.require("data", "output-dir", "backbone")
        for option, known in (("rotation", ROTATION_NAMES), ("pooling", POOLINGS)):
            if getattr(self, option) not in known:
                raise InputError(f"--{option} {getattr(self, option)}: not known; choose one of {', '.join(known)}")
        if self.head_hidden_size < 0:
            raise InputError(f"--head-hidden-size {self.head_hidden_size}: must not be negative")
        super().__post_init__()


class RecordImages(Dataset):
    """Prepared records as inputs of a pose classifier; with ``flip``, mirror-symmetric ones a second time mirrored."""

    def __init__(
        self,
        records: Sequence[ObjectRecord],
        folder: Path,
        image_processor: Any,
        names: Sequence[str],
        *,
        flip: bool = False,
    ):
        """
        Args:
            folder: of the split; file names are relative to it.
            names: of the categories, in the order of the outputs.
        """
        self.records = records
        self.folder = folder
        self.image_processor = image_processor
        self._index = {name: index for index, name in enumerate(names)}
        self.items = [(index, False) for index in range(len(records))]
        if flip:
            self.items += [
                (index, True) for index, record in enumerate(records) if category_of(record).mirror_axis == "x"
            ]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, item: int) -> dict[str, Any]:
        index, mirrored = self.items[item]
        record = self.records[index]
        picture = load_rgb(self.folder / record.file_name)
        angles = record.pose.angles
        if mirrored:
            picture = ImageOps.mirror(picture)
            angles = tuple(float(angle) for angle in flip_pose(*angles, 0.0, 0.0)[:3])
        pixels = self.image_processor(picture, return_tensors="np")["pixel_values"][0]
        return {
            "pixel_values": torch.from_numpy(np.asarray(pixels, dtype=np.float32)),
            "angles": torch.tensor(angles, dtype=torch.float32),
            "category": torch.tensor(self._index.get(category_of(record).name, 0)),
        }


def category_of(record: ObjectRecord) -> categories.Category:
    """As the taxonomy has it, whatever alias it was filed under."""
    return categories.get(record.category, allow_custom=True, source=record.id)


def run(config: ClassifierConfig) -> Path:
    """Train (or go on), save the model and its backbone, and write ``predictions.jsonl``; returns its path.

    Raises:
        InputError: bad data or settings.
    """
    output = Path(config.output_dir)
    require_same_recipe(config, output / "classifier.yaml")
    require_folder(config.data, "--data", "make it with llava-pose prepare")
    if (output / DONE_MARK).is_file() and config.resume:
        logger.info(f"{output}: this run has ended; delete {output / DONE_MARK} to run again")
    else:
        train(config)
    predictions = output / "predictions.jsonl"
    if config.process_index == 0:
        predict(output, config.data, config.predict_split, predictions, system=config.system)
        logger.info(f"{predictions}; next: llava-pose score {predictions} --out {output / 'scores.json'}")
    return predictions


def train(config: ClassifierConfig) -> None:
    """Train, and save model, processor and backbone to the output folder."""
    output = Path(config.output_dir)
    records = _training_records(config)
    names = sorted({category_of(record).name for record in records})
    set_seed(config.seed)
    model, image_processor = build_classifier(config, names)
    dataset = RecordImages(records, Path(config.data) / "train", image_processor, names, flip=config.flip)
    logger.info(
        f"{len(dataset)} samples (mirror images included) of {len(names)} categories, "
        f"{model.num_parameters() / 1e6:.2f} M parameters"
    )
    history = LossHistory(output / "log.jsonl")
    trainer = ResumableTrainer(model=model, args=config, train_dataset=dataset, callbacks=[history])
    trainer.add_callback(CompleteCheckpoints(trainer.accelerator))
    checkpoint = find_checkpoint(config)
    if trainer.is_world_process_zero():
        save_config(config.resolved(), output / "classifier.yaml")
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    trainer.save_model(str(output))
    if trainer.is_world_process_zero():
        image_processor.save_pretrained(output)
        model.backbone.save_pretrained(output / "backbone")
        image_processor.save_pretrained(output / "backbone")
        write_json(output / DONE_MARK, {"steps": trainer.state.global_step, "loss": history.last_loss()})
        logger.info(f"the classifier is in {output}, its backbone in {output / 'backbone'}")


def _training_records(config: ClassifierConfig) -> list[ObjectRecord]:
    records = read_records(config.data, "train")
    if config.train_categories:
        wanted = {categories.get(name, allow_custom=True).name for name in config.train_categories}
        absent = wanted - {category_of(record).name for record in records}
        if absent:
            raise InputError(f"--train-categories {sorted(absent)[0]}: no object of it in {config.data}/train")
        records = [record for record in records if category_of(record).name in wanted]
    if not records:
        raise InputError(f"{config.data}/train: there is no object in it; run llava-pose prepare")
    return records


def build_classifier(config: ClassifierConfig, names: Sequence[str]) -> tuple[PoseClassifier, Any]:
    """A new classifier on the backbone's own weights, and the backbone's image processor.

    Raises:
        InputError: the backbone cannot be loaded whole.
    """
    if config.backbone == TINY:
        backbone, size = None, config.image_size or TINY_IMAGE_SIZE
        backbone_config = tiny_vision_config()
        image_processor = ViTImageProcessor(size={"height": size, "width": size})
    else:
        backbone, image_processor = _load_backbone(config.backbone)
        backbone_config = backbone.config
        if config.image_size is not None:
            set_input_size(image_processor, config.image_size)
    settings = PoseClassifierConfig(
        backbone_config=backbone_config,
        categories=names,
        rotation=config.rotation,
        pooling=config.pooling,
        head_hidden_size=config.head_hidden_size,
    )
    model = PoseClassifier(settings, image_size=input_size(image_processor))
    if backbone is not None:
        model.backbone.load_state_dict(backbone.state_dict())
    if not config.deepspeed:  # which takes weights for rows of bytes
        model.backbone.to(memory_format=torch.channels_last)  # convolutions are up to twice as fast
    return model, image_processor


def _load_backbone(path: str) -> tuple[Any, Any]:
    try:
        backbone, info = AutoModel.from_pretrained(path, output_loading_info=True, dtype=torch.float32)
        image_processor = AutoImageProcessor.from_pretrained(path)
    except LOADING_ERRORS as error:
        raise InputError(f"--backbone {path}: cannot be loaded ({first_sentence(error)})") from error
    # a checkpoint of an image classifier has a classifier that a backbone has not
    require_complete(
        {**info, "unexpected_keys": [k for k in info["unexpected_keys"] if not k.startswith("classifier.")]}, path
    )
    return backbone, image_processor


def load_classifier(folder: Path) -> tuple[PoseClassifier, Any]:
    """A trained classifier in evaluation mode, and its image processor.

    Raises:
        InputError: the folder holds none, or not a whole one.
    """
    try:
        config = PoseClassifierConfig.from_pretrained(folder)
        if config.backbone_config is None:
            raise InputError(f"{folder}: not a pose classifier; make one with llava-pose classifier")
        model, info = PoseClassifier.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
        image_processor = AutoImageProcessor.from_pretrained(folder)
    except LOADING_ERRORS as error:
        raise InputError(f"{folder}: no pose classifier can be loaded ({first_sentence(error)})") from error
    require_complete(info, folder)
    model.backbone.to(memory_format=torch.channels_last)
    return model.eval(), image_processor


@torch.inference_mode()
def predict(folder: Path, data: str | Path, split: str, out: Path, *, system: str, batch_size: int = 64) -> None:
    """Write a prediction for each object of a split, whole or not at all.

    The category is the one that the category head prefers; angles do not depend on it.
    """
    records = read_records(data, split)
    if not records:
        raise InputError(f"{data}/{split}: there is no object in it; choose another split")
    model, image_processor = load_classifier(folder)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    model.to(device)
    names = model.config.categories
    dataset = RecordImages(records, Path(data) / split, image_processor, names)
    lines: list[dict[str, Any]] = []
    for start in tqdm(range(0, len(records), batch_size), desc=f"predict {split}", unit="batch"):
        items = [dataset[index] for index in range(start, min(start + batch_size, len(records)))]
        output = model(torch.stack([item["pixel_values"] for item in items]).to(device))
        angles = torch.stack(angles_from_rotation(model.rotations(output.raw_rotation).double().cpu()), -1)
        probabilities = output.category_logits.softmax(-1).cpu()
        for record, row, chances in zip(records[start:], angles.tolist(), probabilities, strict=False):
            prediction = Prediction.of(
                record,
                system=system,
                pose=Pose(*row),
                pred_category=names[int(chances.argmax())],
                confidence=float(chances.max()),
            )
            lines.append(prediction.to_dict())
    write_jsonl(out, lines)


main = command(
    ClassifierConfig,
    run,
    prog="llava-pose classifier",
    description="Train a pose classifier (ResNet, Swin, any AutoModel backbone) on prepared data and predict a split.",
    example="llava-pose classifier --backbone microsoft/resnet-50 --data prepared --output-dir runs/resnet50",
)

if __name__ == "__main__":
    raise SystemExit(main())
