"""`llava-pose classifier`: train a pose classifier on prepared data, and predict a split with it.

The defaults of rotation, pooling and heads are those of the published "General" networks, whose schedules are
``scripts/recipes/resnet50_general.yaml`` and ``swin_t_general.yaml``. Several processes (``torchrun --nproc_per_node 2 -m
eval.systems.classifier.command …``) train together and take turns at predicting.

The backbone is saved by itself as well, in ``OUTPUT_DIR/backbone``: a tower that ``llava-pose assemble --vision`` takes. The
recipe of the quickstart's is ``scripts/recipes/quickstart_tower.yaml``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from eval.systems.options import BACKBONE_HELP, NetworkOptions, training_command
from llava_pose.utils.values import Rate

Rotation = Literal["svd9d", "rot6d", "bins", "bins+residual", "matrix-fisher", "laplace-mixture"]


@dataclass(kw_only=True)
class ClassifierOptions(NetworkOptions):
    """The options of a pose classifier."""

    backbone: str | None = field(default=None, metadata={"help": BACKBONE_HELP})
    backbone_config: dict | str | None = field(
        default=None,
        metadata={"help": "Random weights in place of a backbone: the model_type and fields of a transformers config."},
    )
    rotation: Rotation = field(
        default="bins", metadata={"help": "The representation of rotations; bins are the published one."}
    )
    pooling: Literal["mean", "flatten"] = field(
        default="mean", metadata={"help": "How the feature map becomes one vector; mean is the published way."}
    )
    head_hidden_size: NonNegativeInt = field(
        default=0, metadata={"help": "The units of the heads' hidden layer; 0 makes linear heads, as published."}
    )
    pose_weight: Rate | None = field(
        default=None,
        metadata={
            "help": "The weight of the rotation's loss, by default 1. Published is the mean of the three angles' "
            "cross-entropies, a third of their sum, which bins have."
        },
    )
    class_weight: Rate | None = field(
        default=None,
        metadata={
            "help": "The weight of the category's loss, by default 1; 0 leaves the pose head alone, as published in Table 2."
        },
    )
    random_flip: bool = field(
        default=False,
        metadata={
            "help": "Train on each picture, of whatever category, or with p = 0.5 on its mirror image, drawn anew in each "
            "epoch, as published; it takes the place of --flip."
        },
    )
    augment: NonNegativeInt = field(
        default=0,
        metadata={
            "help": "Train on so many changed pictures of each object (and of its mirror image), as llava-pose train does. "
            "0 leaves them as they are, as published."
        },
    )
    system: str = field(default="pose-classifier", metadata={"help": "The name in the tables."})

    per_device_train_batch_size: PositiveInt = field(
        default=64, metadata={"help": "The samples of a step on each device."}
    )
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


def _load() -> tuple[type, Callable[[Any], Any]]:
    from eval.systems.classifier.system import ClassifierConfig, run

    return ClassifierConfig, run


main = training_command(
    ClassifierOptions,
    _load,
    prog="llava-pose classifier",
    description="Train a pose classifier (ResNet, Swin, any AutoModel backbone) on prepared data and predict a split.",
    example="llava-pose classifier --backbone microsoft/resnet-50 --data prepared --output-dir runs/resnet50",
)

if __name__ == "__main__":
    raise SystemExit(main())
