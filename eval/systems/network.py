"""What baselines that train a network have in common: a backbone to start from, the training run, a trained network again, and
its answers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch.utils.data import Dataset
from transformers import AutoImageProcessor, AutoModel, PreTrainedConfig, PreTrainedModel

from llava_pose.data.records import write_jsonl
from llava_pose.model.checkpoint_files import NO_CODE, SAFE, building, loading, read_config, require_finite
from llava_pose.model.loading import require_complete, require_model_type
from llava_pose.train.run_folder import LOG, RunFolder
from llava_pose.train.trainer import LossHistory, ResumableTrainer
from llava_pose.train.training_arguments import RunArguments
from llava_pose.utils.distributed import is_first_process, map_over_processes

TINY = "tiny"
# what checkpoints hold beside a backbone: heads, decoders, text models
_OTHER_PARTS = (
    *("classifier.", "cls_classifier.", "distillation_classifier.", "decoder.", "neck.", "head."),
    *("text_model.", "text_projection.", "visual_projection.", "logit_scale", "logit_bias"),
)
NetworkT = TypeVar("NetworkT", bound=PreTrainedModel)


def load_backbone(path: str) -> tuple[PreTrainedModel, Any]:
    """A backbone with all its weights, and its image processor.

    Raises:
        InputError: it cannot be loaded whole.
    """
    with loading(f"--backbone {path}: cannot be loaded"):
        read_config(path)
        with building(path):
            backbone, info = AutoModel.from_pretrained(path, output_loading_info=True, dtype=torch.float32, **SAFE)
        image_processor = AutoImageProcessor.from_pretrained(path, **NO_CODE)
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
) -> ResumableTrainer:
    """Train or go on, and save model and image processor; the caller finishes the folder."""
    trainer = trainer_class(
        model=model, args=config, train_dataset=dataset, callbacks=[LossHistory(folder.folder / LOG)]
    )
    trainer.train(resume_from_checkpoint=folder.begin(trainer))
    trainer.save_model()
    if trainer.is_world_process_zero():
        image_processor.save_pretrained(folder.folder)
    return trainer


def load_network(folder: Path, network_class: type[NetworkT], *, what: str, remedy: str) -> tuple[NetworkT, Any]:
    """A trained network in evaluation mode, and its image processor.

    Args:
        what, remedy: the network's kind, and how to make one, for messages.

    Raises:
        InputError: the folder holds none, or not a whole one.
    """
    require_model_type(folder, cast(type[PreTrainedConfig], network_class.config_class).model_type, remedy)
    with loading(f"{folder}: no {what} can be loaded"), building(folder):
        loaded: Any = network_class.from_pretrained(folder, output_loading_info=True, dtype=torch.float32, **SAFE)
        image_processor = AutoImageProcessor.from_pretrained(folder, **NO_CODE)
    model, info = loaded
    require_complete(info, folder)
    require_finite(model, folder)
    model.backbone.to(memory_format=torch.channels_last)
    return model.eval(), image_processor


def write_answers(
    answer: Callable[[range], list[dict[str, Any]]], count: int, batch_size: int, out: Path, *, description: str
) -> None:
    """The prediction lines of ``count`` records, whole or not at all; the processes of a run take turns at the batches.

    Args:
        answer: from the indices of a batch to its lines.
        description: of the progress bar.
    """
    batches = [range(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]
    answered = map_over_processes(answer, batches, description=description)
    if is_first_process():
        write_jsonl(out, (line for lines in answered for line in lines))
