"""`llava-pose neural-mesh`: train a neural mesh model (NMM-Sphere or NOVUM) on prepared data, and predict a split with it.

``--mesh sphere`` is NMM-Sphere: one sphere whose features all categories share, or for ``--task joint`` one set of features
a category, which then names the category too. ``--mesh cuboid`` is NOVUM: the mean bounding box of each
category's CAD models; categories are voted for, and the pose is searched with the predicted one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from eval.systems.options import BACKBONE_HELP, NetworkOptions, Task, training_command
from llava_pose.utils.values import Name, Positive, Rate


@dataclass(kw_only=True)
class NeuralMeshOptions(NetworkOptions):
    """The options of a neural mesh model."""

    backbone: Name = field(metadata={"help": BACKBONE_HELP})
    mesh: Literal["sphere", "cuboid"] = field(
        default="sphere", metadata={"help": "The meshes: spheres are NMM-Sphere, cuboids NOVUM."}
    )
    task: Task = field(
        default="pose",
        metadata={"help": "Find the pose alone, or the category as well; a sphere then has one's features."},
    )
    cad: str | None = field(default=None, metadata={"help": "The folder of <category>/NN.off, for --mesh cuboid."})
    vertices: Annotated[int, Field(ge=12)] = field(default=1000, metadata={"help": "The vertices of a mesh."})
    sphere_radius: Positive = field(
        default=0.4, metadata={"help": "The radius of a sphere, in object units; CAD models have a diagonal of 1."}
    )
    stride: PositiveInt = field(default=8, metadata={"help": "The input pixels to a position of the feature map."})
    samples_per_image: PositiveInt = field(
        default=32, metadata={"help": "The vertices of an image that enter the loss."}
    )
    clutter_weight: Rate = field(default=0.1, metadata={"help": "The weight of the background's term in the loss."})
    grid: Literal["train", "uniform", "published"] = field(
        default="train",
        metadata={
            "help": "The rotations that a search starts from: a cover of the training rotations, --grid-size rotations over "
            "all there are, or the published 12 x 4 x 3."
        },
    )
    grid_radius: Positive = field(default=20.0, metadata={"help": "The radius of --grid train, in degrees."})
    grid_size: PositiveInt = field(default=1152, metadata={"help": "The rotations of --grid uniform."})
    score: Literal["ratio", "mean"] = field(
        default="ratio",
        metadata={"help": "The score of a pose: cosines over clutter by area, or their mean, as published."},
    )
    refine_steps: NonNegativeInt = field(
        default=30, metadata={"help": "The steps of gradient ascent; 0 answers with the best pose of the grid."}
    )
    refine_starts: PositiveInt = field(default=3, metadata={"help": "The poses of the grid that are refined."})
    search_classes: PositiveInt = field(
        default=1,
        metadata={
            "help": "The classes, most votes first, whose poses are searched; the best pose decides. 1 leaves it to the votes."
        },
    )

    per_device_train_batch_size: PositiveInt = field(
        default=32, metadata={"help": "The samples of a step on each device."}
    )


def _load() -> tuple[type, Callable[[Any], Any]]:
    from eval.systems.neural_mesh.system import NeuralMeshRunConfig, run

    return NeuralMeshRunConfig, run


main = training_command(
    NeuralMeshOptions,
    _load,
    prog="llava-pose neural-mesh",
    description="Train a neural mesh model (NMM-Sphere, NOVUM) on prepared data and predict a split.",
    example="llava-pose neural-mesh --mesh cuboid --cad CAD --backbone microsoft/resnet-50 --data prepared "
    "--output-dir runs/novum",
)

if __name__ == "__main__":
    raise SystemExit(main())
