"""The formats of pose files by name, and how files are read and written by it.

A format is a pair of functions over the table :data:`llava_pose.pose.conventions.CONVENTIONS`: the functions know the names and
the order of numbers in the file, the table knows where axes point.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from llava_pose.errors import InputError
from llava_pose.pose.conventions import CONVENTIONS

from .boxes import read_omni3d, read_qwen, read_ros, write_omni3d, write_qwen, write_ros
from .lines import (
    read_matrices,
    read_objectron,
    read_orient_anything,
    read_ours,
    write_matrices,
    write_objectron,
    write_orient_anything,
    write_ours,
)
from .posed_object import Faults, PosedObject, in_camera
from .tables import BOP_HEADER, bop_names, colmap_cameras, read_bop, read_colmap, write_bop, write_colmap

Reader = Callable[[Path, "tuple[float, ...] | None", Faults], Iterator[PosedObject]]
Writer = Callable[[Path, Sequence[PosedObject]], list[Path]]


@dataclass(frozen=True)
class Format:
    """A format of files of poses, with its reader and its writer.

    Attributes:
        read: (path, intrinsics of all pictures or None, a list that gets what is wrong with single objects) -> objects.
        write: (path, objects) -> the files that were written.
        about: the file, in a few words.
        beside: the name of a second file that belongs to it, in its folder, for the name of the first.
    """

    read: Reader
    write: Writer
    about: str
    beside: Callable[[Path], Path] | None = None

    def files(self, path: str | os.PathLike[str]) -> list[Path]:
        """All files of a file of this format."""
        return [Path(path)] if self.beside is None else [Path(path), self.beside(Path(path))]


FORMATS: dict[str, Format] = {
    "llava-pose": Format(
        read_ours, write_ours, "JSON lines (predictions.jsonl, metadata.jsonl), or a .csv with a header"
    ),
    **{
        name: Format(
            partial(read_matrices, convention=CONVENTIONS[name]),
            partial(write_matrices, convention=CONVENTIONS[name]),
            f"JSON lines: matrix (4×4, rows), position, quaternion ({CONVENTIONS[name].quaternion}), intrinsics",
        )
        for name in ("opencv", "opengl", "blender", "unity", "threejs")
    },
    "ros": Format(read_ros, write_ros, "JSON lines: a vision_msgs/Detection3DArray a picture"),
    "bop": Format(read_bop, write_bop, f"CSV of results: {BOP_HEADER}", bop_names),
    "omni3d": Format(read_omni3d, write_omni3d, "JSON: images, categories, annotations"),
    "objectron": Format(
        read_objectron, write_objectron, "JSON lines: rotation, translation and scale of its Object message"
    ),
    "orient-anything": Format(
        read_orient_anything, write_orient_anything, "JSON lines or CSV: azimuth, polar, rotation in degrees"
    ),
    "qwen3-vl": Format(read_qwen, write_qwen, "JSON list of bbox_3d and label, as the model answers, or JSON lines"),
    "colmap": Format(read_colmap, write_colmap, "images.txt, with cameras.txt beside it", colmap_cameras),
}

SUFFIXES = (".json", ".jsonl", ".csv", ".txt")  # of the files that are written


def read_poses(
    path: str | os.PathLike[str], format_name: str, *, intrinsics: Sequence[float] | None = None
) -> tuple[list[PosedObject], Faults]:
    """The objects of a file, and what is wrong with those that could not be taken.

    Args:
        intrinsics: fx, fy, cx, cy of the camera of all pictures; they win over those of the file.

    Raises:
        InputError: the file cannot be read at all, or nothing in it.
    """
    faults: Faults = []
    camera = None if intrinsics is None else tuple(float(n) for n in intrinsics)
    items = list(FORMATS[format_name].read(Path(path), camera, faults))
    if not items:
        why = f"; the first: {faults[0]}" if faults else ""
        raise InputError(f"{os.fspath(path)}: no pose of the format {format_name} could be read{why}")
    return [replace(item, id=item.id or str(index)) for index, item in enumerate(items)], faults


def write_poses(
    path: str | os.PathLike[str], format_name: str, items: Sequence[PosedObject]
) -> tuple[list[Path], Faults]:
    """Write objects, and return the files and what is wrong with the objects that the format cannot hold.

    Raises:
        InputError: none of them can be written, or the file cannot be.
    """
    faults: Faults = []
    usable = []
    for item in items:
        try:
            _require_writable(item, format_name)
            usable.append(item)
        except InputError as error:
            faults.append(InputError(f"{item.id}: {error}"))
    if not usable:
        raise InputError(f"{os.fspath(path)}: nothing could be written as {format_name}; the first: {faults[0]}")
    return FORMATS[format_name].write(Path(path), usable), faults


_PICTURE_CAMERA = ("ros", "bop", "omni3d", "qwen3-vl")  # formats with one camera for all objects of a picture


def _require_writable(item: PosedObject, format_name: str) -> None:
    if format_name in ("llava-pose", "orient-anything"):
        return
    camera = item.picture_camera() if format_name in _PICTURE_CAMERA else item.own_camera()
    in_camera(item, CONVENTIONS[format_name], camera)
    if format_name == "colmap" and None in (camera, item.width, item.height):
        raise InputError("its camera, or its picture's width and height, are unknown, which cameras.txt needs")
