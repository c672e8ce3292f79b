"""Baselines that train a network share this: a backbone to start from, the training run, a trained network, its answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

import torch
from torch.utils.data import Dataset
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel, TrainerCallback

from llava_pose.data.records import METADATA_FILE, ObjectRecord, Prediction
from llava_pose.model.checkpoint_files import (
    CONFIG_FILE,
    SAFE,
    blaming,
    bounded_by_weights,
    read_config,
    require_finite,
)
from llava_pose.model.loading import require_complete, require_model_type
from llava_pose.model.processors import load_image_processor
from llava_pose.model.trial import on_meta, try_apart
from llava_pose.train.run_folder import LOG, RunFolder, own_run
from llava_pose.train.trainer import LossHistory, ResumableTrainer
from llava_pose.train.training_arguments import RunArguments
from llava_pose.utils.distributed import map_over_processes

TINY = "tiny"
# what checkpoints hold beside a backbone: heads, decoders, text models
_OTHER_PARTS = (
    *("classifier.", "cls_classifier.", "distillation_classifier.", "decoder.", "neck.", "head."),
    *("text_model.", "text_projection.", "visual_projection.", "logit_scale", "logit_bias"),
)
NetworkT = TypeVar("NetworkT", bound=PreTrainedModel)


class TrainedNetwork(ABC):
    """A system that trains a network in its output folder, goes on where it was, and answers with it once it is done.

    Attributes:
        kind: the kind of run, by which its settings are found in the folder.
        may_differ: settings that only decide the answers, with which an ended run may answer again.
    """

    kind: ClassVar[str]
    may_differ: ClassVar[tuple[str, ...]] = ("split", "categories")

    def __init__(self, config: Any):
        self.config = config

    def answer(self, records: Sequence[ObjectRecord]) -> list[Prediction]:
        """Train unless that is done, and predict; the processes of a run do both together."""
        samples = Path(self.config.data) / "train" / METADATA_FILE
        base = self.config.backbone
        with own_run(self.kind, self.config, samples=samples, base=base, may_differ=self.may_differ) as folder:
            self.check(records)
            if folder.is_done:
                folder.write_settings()  # it answers again, perhaps about another split
            else:
                self.train(folder)
            return self.predict(folder.folder, records)

    def check(self, records: Sequence[ObjectRecord]) -> None:  # noqa: B027 (some need none)
        """Refuse records that cannot be answered, before anything is trained."""

    @abstractmethod
    def train(self, folder: RunFolder) -> None:
        """Train, or go on, and save the network and its image processor to the folder."""

    @abstractmethod
    def predict(self, folder: Path, records: Sequence[ObjectRecord]) -> list[Prediction]:
        """Predict with the network that is in the folder."""


def load_vision_backbone(path: str) -> tuple[PreTrainedModel, Any]:
    """Load a backbone with all its weights, and its image processor.

    Raises:
        InputError: it cannot be loaded whole.
    """
    with blaming(f"--backbone {path}: cannot be loaded"):
        try_apart(path, CONFIG_FILE, lambda: on_meta(path, AutoModel))
        read_config(path)
        with bounded_by_weights(path):
            backbone, info = AutoModel.from_pretrained(path, output_loading_info=True, dtype=torch.float32, **SAFE)
        image_processor = load_image_processor(path)
    require_backbone(info, path)
    require_finite(backbone, path)
    return backbone, image_processor


def require_backbone(info: dict[str, Any], path: str | Path) -> None:
    """Refuse a checkpoint from which a part of the backbone could not be loaded. What it holds beside one (a head, a decoder,
    a text model) may be left over, and a pooler may be missing, since nothing here reads it.

    Args:
        info: transformers' loading info.

    Raises:
        InputError: naming what is missing or left over.
    """
    left_over = [key for key in info["unexpected_keys"] if not key.startswith(_OTHER_PARTS)]
    require_complete({**info, "unexpected_keys": left_over}, path, may_miss=("pooler.",))


def start_from(model: Any, backbone: PreTrainedModel | None) -> None:
    """Give a new model its backbone's weights (None: it keeps random ones), laid out as convolutions are fastest."""
    if backbone is not None:
        model.backbone.load_state_dict(backbone.state_dict())
    model.backbone.to(memory_format=torch.channels_last)  # convolutions are up to twice as fast


def fit(
    trainer_class: type[ResumableTrainer],
    model: PreTrainedModel,
    config: RunArguments,
    dataset: Dataset,
    image_processor: Any,
    folder: RunFolder,
    callbacks: Sequence[TrainerCallback] = (),
) -> ResumableTrainer:
    """Train or go on, and save model and image processor; the caller finishes the folder."""
    trainer = trainer_class(
        model=model, args=config, train_dataset=dataset, callbacks=[LossHistory(folder.folder / LOG), *callbacks]
    )
    trainer.train(resume_from_checkpoint=folder.begin(trainer))
    trainer.save_model()
    if trainer.is_world_process_zero():
        image_processor.save_pretrained(folder.folder)
    return trainer


def load_network(folder: Path, network_class: type[NetworkT], *, what: str, remedy: str) -> tuple[NetworkT, Any]:
    """Load a trained network in evaluation mode, and its image processor.

    Args:
        what, remedy: the network's kind, and how to make one, for messages.

    Raises:
        InputError: the folder holds none, or not a whole one.
    """
    model_type = cast(type[PreTrainedConfig], network_class.config_class).model_type

    def attempt() -> None:
        require_model_type(folder, model_type, remedy)
        on_meta(folder, network_class)

    try_apart(folder, CONFIG_FILE, attempt)
    require_model_type(folder, model_type, remedy)
    with blaming(f"{folder}: no {what} can be loaded"), bounded_by_weights(folder):
        loaded: Any = network_class.from_pretrained(folder, output_loading_info=True, dtype=torch.float32, **SAFE)
        image_processor = load_image_processor(folder)
    model, info = loaded
    require_complete(info, folder)
    require_finite(model, folder)
    model.backbone.to(memory_format=torch.channels_last)
    return model.eval(), image_processor


def answer_in_batches(
    answer: Callable[[range], list[Prediction]], count: int, batch_size: int, *, description: str
) -> list[Prediction]:
    """Return the predictions of ``count`` records; the processes of a run take turns at the batches.

    Args:
        answer: from the indices of a batch to its predictions.
        description: what the progress bar says.
    """
    batches = [range(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]
    answered = map_over_processes(answer, batches, description=description)
    return [prediction for predictions in answered for prediction in predictions]
