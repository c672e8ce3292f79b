"""The options of ``llava-pose render``, and what follows from them before anything is drawn."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from llava_pose.errors import InputError
from llava_pose.utils.config import check_fields, require

from .mesh_files import axes_to_canonical, require_trimesh
from .mesh_folder import MeshFolderSource, category_of
from .poses import NaturalPoses, PoseDistribution, UniformPoses, fit_poses
from .sources import MeshSource, ParametricSource
from .sweethome3d import DEFAULT_FOLDER, SweetHome3DSource

PARAMETRIC, SWEETHOME3D = "parametric", "sweethome3d"
Axis = Literal["x", "y", "z", "minus-x", "minus-y", "minus-z"]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
_MOST_PIXELS = 2**16 - 1  # of a side, as annotations hold it


@dataclass
class RenderConfig:
    """The options of ``llava-pose render``: which objects, how they stand, and what is around them."""

    out: str = field(
        metadata={"help": "The folder for images, annotations, lists and CAD, in the layout of ImageNet3D."}
    )
    sources: list[str] = field(
        default_factory=lambda: [PARAMETRIC],
        metadata={
            "help": "The sources of meshes, one or several: parametric, sweethome3d (Debian's package"
            " sweethome3d-furniture), or a folder of <category>/*.{glb,obj,off,ply}."
        },
    )
    categories: list[str] = field(
        default_factory=list, metadata={"help": "Render these categories; all if they are not given."}
    )
    train_instances: NonNegativeInt = field(
        default=20, metadata={"help": "The different parametric objects of each category in the train split."}
    )
    val_instances: NonNegativeInt = field(
        default=5, metadata={"help": "The different parametric objects of each category in the val split."}
    )
    val_share: Share = field(
        default=0.2,
        metadata={
            "help": "The share of each category's mesh files whose images are all in val; at least one file is in either"
            " split where there are two, and a single one is in train."
        },
    )
    meshes_per_category: NonNegativeInt = field(
        default=0, metadata={"help": "Take at most so many mesh files of a category; 0 takes all."}
    )
    min_meshes: PositiveInt = field(
        default=1, metadata={"help": "Leave out categories with fewer meshes in all sources."}
    )
    up: Axis = field(default="z", metadata={"help": "The axis that points up in the mesh folders."})
    front: Axis = field(default="minus-y", metadata={"help": "The axis that the objects' fronts look along there."})
    normalize: bool = field(
        default=False, metadata={"help": "Centre the folders' meshes and scale their bounding-box diagonals to 1."}
    )
    sweethome3d_folder: str = field(default=DEFAULT_FOLDER, metadata={"help": "The folder of the .sh3f libraries."})
    views: PositiveInt = field(default=8, metadata={"help": "The images of each object."})
    poses: Literal["natural", "uniform", "fitted"] = field(
        default="natural",
        metadata={
            "help": "The poses: natural is standing, seen from the side or above; uniform is over rotations; fitted is as in "
            "--poses-from."
        },
    )
    elevation: list[float] = field(
        default_factory=lambda: [-10.0, 15.0, 50.0],
        metadata={"help": "The least, most likely and greatest elevation of natural poses, in degrees."},
    )
    tilt: Annotated[float, Field(ge=0, le=60)] = field(
        default=4.0,
        metadata={"help": "The standard deviation of the camera's tilt in natural poses, in degrees."},
    )
    poses_from: str | None = field(
        default=None,
        metadata={"help": "The raw-layout or prepared folder whose train poses --poses fitted draws from."},
    )
    size: Annotated[int, Field(ge=16, le=_MOST_PIXELS)] = field(
        default=256, metadata={"help": "The longer side of the images, in pixels; the aspect ratio varies."}
    )
    samples: PositiveInt = field(
        default=2, metadata={"help": "The rays a pixel along each axis, against jagged edges."}
    )
    materials: Literal["own", "random", "plain"] = field(
        default="own",
        metadata={
            "help": "The surfaces: own is the mesh's colours and textures, random ones where it has none; random is for all"
            " meshes; plain is own, and one colour where it has none."
        },
    )
    lights: Literal["even", "varied"] = field(
        default="even", metadata={"help": "The light: varied is stronger and weaker, coloured, from up to three lamps."}
    )
    occlusion: Share = field(default=0.2, metadata={"help": "The probability that something stands before the object."})
    distractors: Share = field(
        default=0.0, metadata={"help": "The probability that objects of other categories stand beside or behind it."}
    )
    truncation: Share = field(default=0.08, metadata={"help": "The probability that the image's edge cuts the object."})
    min_visible: Share = field(
        default=0.35, metadata={"help": "The least visible fraction that occluders and distractors may leave."}
    )
    backgrounds: str | None = field(
        default=None,
        metadata={"help": "The folder of photographs to put behind the objects; without it, pictures are made up."},
    )
    seed: NonNegativeInt = field(
        default=0, metadata={"help": "The seed of shapes, cameras, lights, materials and backgrounds."}
    )
    workers: NonNegativeInt = field(
        default=0, metadata={"help": "The processes; 0 is one a core. It does not change the result."}
    )

    def validate(self) -> None:
        """Raise InputError for values that cannot work."""
        check_fields(self)
        require(self.out, "--out")
        if not self.sources:
            raise InputError(f"--sources names nothing: give {PARAMETRIC}, {SWEETHOME3D} or a folder of meshes.")
        for name in ("sources", "categories"):
            if len(set(getattr(self, name))) != len(getattr(self, name)):
                raise InputError(f"--{name} names one twice: name each once.")
        if PARAMETRIC in self.sources and self.train_instances + self.val_instances == 0:
            raise InputError(
                "--train-instances 0 and --val-instances 0 leave nothing to render: make one of them 1 or more,"
                f" or take {PARAMETRIC} out of --sources."
            )
        if len(self.elevation) != 3 or not -90 <= self.elevation[0] <= self.elevation[1] <= self.elevation[2] <= 90:
            raise InputError(
                f"--elevation {' '.join(f'{angle:g}' for angle in self.elevation)}: give three angles from -90 to 90,"
                " the least, the most likely and the greatest."
            )
        if (self.poses == "fitted") != (self.poses_from is not None):
            raise InputError("--poses fitted and --poses-from FOLDER go together: give both or neither.")
        axes_to_canonical(self.up, self.front)


def make_sources(config: RenderConfig) -> list[MeshSource]:
    """Return the sources that a config names, in its order.

    Raises:
        InputError: two folders have one name, or trimesh is not installed and needed.
    """
    found: list[MeshSource] = []
    for word in config.sources:
        if word == PARAMETRIC:
            found.append(ParametricSource((), config.train_instances, config.val_instances, config.seed))
            continue
        require_trimesh()
        if word == SWEETHOME3D:
            found.append(SweetHome3DSource(Path(config.sweethome3d_folder)))
        else:
            folder = Path(word)
            name = os.path.basename(os.path.realpath(folder))
            found.append(MeshFolderSource(folder, name, config.up, config.front, config.normalize))
    names = [source.name for source in found]
    for name in names:
        if names.count(name) > 1:
            raise InputError(
                f"--sources: two of them are called {name}; rename a folder, so that they can be told apart."
            )
    return found


def make_poses(config: RenderConfig) -> PoseDistribution:
    """Return the pose distribution that a config names; raises InputError as :func:`~.poses.fit_poses` does."""
    if config.poses == "fitted":
        return fit_poses(Path(str(config.poses_from)))
    if config.poses == "uniform":
        return UniformPoses()
    least, likely, most = config.elevation
    return NaturalPoses((least, likely, most), config.tilt)


def canonical_categories(names: Sequence[str]) -> tuple[str, ...]:
    """Return the categories under the taxonomy's names, each once."""
    return tuple(dict.fromkeys(category_of(name) for name in names))
