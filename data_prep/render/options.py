"""The options of ``llava-pose render``, and what follows from them before anything is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from llava_pose.errors import InputError
from llava_pose.utils.config import require

from .mesh_files import axes_to_canonical, require_trimesh
from .mesh_folder import MeshFolderSource, category_of
from .poses import NaturalPoses, PoseDistribution, UniformPoses, fit_poses
from .sources import MeshSource, ParametricSource
from .sweethome3d import DEFAULT_FOLDER, SweetHome3DSource

PARAMETRIC, SWEETHOME3D = "parametric", "sweethome3d"
Axis = Literal["x", "y", "z", "minus-x", "minus-y", "minus-z"]


@dataclass
class RenderConfig:
    """What to render; see ``llava-pose render --help``."""

    out: str = field(
        default="", metadata={"help": "folder for images, annotations, lists and CAD (ImageNet3D's layout)"}
    )
    sources: list[str] = field(
        default_factory=lambda: [PARAMETRIC],
        metadata={
            "help": "where meshes come from, one or several: parametric, sweethome3d (Debian's package"
            " sweethome3d-furniture), or a folder of <category>/*.{glb,obj,off,ply}"
        },
    )
    categories: list[str] = field(default_factory=list, metadata={"help": "which categories; all if not given"})
    train_instances: int = field(
        default=20, metadata={"help": "different parametric objects of each category in the train split"}
    )
    val_instances: int = field(
        default=5, metadata={"help": "different parametric objects of each category in the val split"}
    )
    val_share: float = field(
        default=0.2,
        metadata={
            "help": "share of each category's mesh files whose images are all in val; at least one file is in either"
            " split where there are two, and a single one is in train"
        },
    )
    meshes_per_category: int = field(default=0, metadata={"help": "at most so many mesh files of a category; 0: all"})
    min_meshes: int = field(default=1, metadata={"help": "leave out categories with fewer meshes in all sources"})
    up: Axis = field(default="z", metadata={"help": "which axis points up in the mesh folders"})
    front: Axis = field(default="minus-y", metadata={"help": "which axis the objects' fronts look along there"})
    normalize: bool = field(
        default=False, metadata={"help": "centre the folders' meshes and scale their bounding-box diagonals to 1"}
    )
    sweethome3d_folder: str = field(default=DEFAULT_FOLDER, metadata={"help": "where the .sh3f libraries are"})
    views: int = field(default=8, metadata={"help": "images of each object"})
    poses: Literal["natural", "uniform", "fitted"] = field(
        default="natural",
        metadata={
            "help": "natural: standing, seen from the side or above; uniform over rotations; fitted to --poses-from"
        },
    )
    poses_from: str | None = field(
        default=None, metadata={"help": "raw-layout or prepared folder whose train poses --poses fitted draws from"}
    )
    size: int = field(default=256, metadata={"help": "longer side of the images in pixels; the aspect ratio varies"})
    samples: int = field(default=2, metadata={"help": "antialiasing: this many rays a pixel along each axis"})
    materials: Literal["own", "random", "plain"] = field(
        default="own",
        metadata={
            "help": "own: the mesh's colours and textures, random ones where it has none; random: for all meshes;"
            " plain: own, and one colour where it has none"
        },
    )
    lights: Literal["even", "varied"] = field(
        default="even", metadata={"help": "varied: stronger and weaker, coloured, up to three lamps"}
    )
    occlusion: float = field(default=0.2, metadata={"help": "probability that something stands before the object"})
    distractors: float = field(
        default=0.0, metadata={"help": "probability that objects of other categories stand beside or behind it"}
    )
    truncation: float = field(default=0.08, metadata={"help": "probability that the image's edge cuts the object"})
    min_visible: float = field(
        default=0.35, metadata={"help": "least visible fraction that occluders and distractors may leave"}
    )
    backgrounds: str | None = field(
        default=None,
        metadata={"help": "folder of photographs to put behind the objects; procedural pictures if not given"},
    )
    seed: int = field(default=0, metadata={"help": "of shapes, cameras, lights, materials and backgrounds"})
    workers: int = field(default=0, metadata={"help": "processes; 0: one a core. It does not change the result"})

    def validate(self) -> None:
        """Raise InputError for values that cannot work."""
        require(self.out, "--out")
        for name, least in (
            *(("train_instances", 0), ("val_instances", 0), ("views", 1), ("size", 16), ("samples", 1)),
            *(("workers", 0), ("seed", 0), ("meshes_per_category", 0), ("min_meshes", 1)),
        ):
            if getattr(self, name) < least:
                raise InputError(f"{_option(name)} {getattr(self, name)} is too small: give {least} or more.")
        for name in ("occlusion", "distractors", "truncation", "min_visible", "val_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{_option(name)} {getattr(self, name)} is no share: give a number from 0 to 1.")
        if not self.sources:
            raise InputError(f"--sources names nothing: give {PARAMETRIC}, {SWEETHOME3D} or a folder of meshes.")
        for name in ("sources", "categories"):
            if len(set(getattr(self, name))) != len(getattr(self, name)):
                raise InputError(f"{_option(name)} names one twice: name each once.")
        if PARAMETRIC in self.sources and self.train_instances + self.val_instances == 0:
            raise InputError(
                "--train-instances 0 and --val-instances 0 leave nothing to render: make one of them 1 or more,"
                f" or take {PARAMETRIC} out of --sources."
            )
        if self.size > np.iinfo(np.uint16).max:
            raise InputError(
                f"--size {self.size} is too large: the annotations hold at most {np.iinfo(np.uint16).max} pixels."
            )
        if (self.poses == "fitted") != (self.poses_from is not None):
            raise InputError("--poses fitted and --poses-from FOLDER go together: give both or neither.")
        axes_to_canonical(self.up, self.front)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def make_sources(config: RenderConfig) -> list[MeshSource]:
    """The sources that a config names, in its order.

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
            name = folder.resolve().name
            found.append(MeshFolderSource(folder, name, config.up, config.front, config.normalize))
    names = [source.name for source in found]
    for name in names:
        if names.count(name) > 1:
            raise InputError(
                f"--sources: two of them are called {name}; rename a folder, so that they can be told apart."
            )
    return found


def make_poses(config: RenderConfig) -> PoseDistribution:
    """The pose distribution that a config names; raises InputError as :func:`~.poses.fit_poses` does."""
    if config.poses == "fitted":
        return fit_poses(Path(str(config.poses_from)))
    return UniformPoses() if config.poses == "uniform" else NaturalPoses()


def canonical_categories(names: Sequence[str]) -> tuple[str, ...]:
    """The categories under the taxonomy's names, each once."""
    return tuple(dict.fromkeys(category_of(name) for name in names))
