"""The options of a linear probe. Nothing heavy is imported here, so that ``--help`` is there at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field, PositiveInt

from eval.compared import Seed
from eval.systems.options import SystemOptions
from llava_pose.errors import InputError
from llava_pose.utils.config import check_fields
from llava_pose.utils.values import Name, Positive

LEARNING_RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
GRID_FILE = "probe_grid.json"


@dataclass(kw_only=True)
class ProbeOptions(SystemOptions):
    """The options that hold for every backbone that is probed."""

    train_categories: list[str] | None = field(
        default=None, metadata={"help": "Train on these categories alone; by default on all of the train split."}
    )
    limit: PositiveInt | None = field(
        default=None, metadata={"help": "Train on so many objects, drawn by the seed; by default on all."}
    )
    image_size: PositiveInt | None = field(
        default=None, metadata={"help": "The side of the input in pixels; by default what each image processor says."}
    )
    center_crop: bool = field(
        default=False,
        metadata={
            "help": "Let the image processors cut the borders off as they do by themselves, as published of DINOv2 (the middle "
            "224 of 256 pixels); by default the whole picture is seen."
        },
    )
    final_norm: bool = field(
        default=True,
        metadata={
            "help": "Apply the backbone's final norm to the hidden state of every layer; published are raw states."
        },
    )
    mae_mask: Annotated[float, Field(ge=0, lt=1)] = field(
        default=0.0,
        metadata={
            "help": "The share of its patches that MAE is not shown, by a lot of each picture; published is 0.75."
        },
    )
    random_flip: bool = field(
        default=False,
        metadata={
            "help": "Train on each picture, of whatever category, or with p = 0.5 on its mirror image, drawn anew in each "
            "epoch, as published."
        },
    )
    features: list[str] | None = field(
        default=None,
        metadata={
            "help": "Probe these of the grid's features alone, written LAYERS:POOLING, such as uniform-4:cls; by default all."
        },
    )
    learning_rates: Annotated[list[Positive], Field(min_length=1)] = field(
        default_factory=lambda: list(LEARNING_RATES),
        metadata={"help": "The learning rates of the grid; by default the published ones."},
    )
    epochs: PositiveInt = field(
        default=5, metadata={"help": "The passes over the training objects; small data need more."}
    )
    batch_size: PositiveInt = field(default=128, metadata={"help": "The objects of a step."})
    holdout: Annotated[float, Field(gt=0, lt=1)] = field(
        default=0.2, metadata={"help": "The share of each category's train objects on which a cell is chosen."}
    )
    seed: Seed = field(
        default=0, metadata={"help": "The seed of the hold-out, of the order of objects, and of the limit."}
    )
    cache_dir: str | None = field(
        default=None, metadata={"help": "The folder of the features; by default OUTPUT_DIR/features."}
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if self.center_crop and self.image_size is not None:
            raise InputError("--center-crop: at an --image-size the whole picture is seen; leave one of them out")


@dataclass(kw_only=True)
class LinearProbeOptions(ProbeOptions):
    """The options of one backbone's probe."""

    backbone: Name = field(metadata={"help": "The hub id or folder of a vision model that AutoModel can load."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.system = self.system or Path(self.backbone).name
