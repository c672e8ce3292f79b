"""Formats that are text tables with numbers for names: BOP results and COLMAP images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llava_pose.errors import InputError
from llava_pose.pose.conventions import CONVENTIONS
from llava_pose.pose.quaternions import matrix_to_quaternion, quaternion_to_matrix
from llava_pose.utils.files import read_text, write_atomic, write_json

from .posed_object import Faults, PosedObject, csv_rows, each_item, from_camera, in_camera, number_list, read_json

# BOP


BOP_HEADER = "scene_id,im_id,obj_id,score,R,t,time"


def read_bop(path: Path, camera: tuple[float, ...] | None, faults: Faults) -> Iterator[PosedObject]:
    names = _read_bop_names(bop_names(path))

    def one(where: str, value: Mapping[str, Any]) -> PosedObject:
        try:
            rotation, translation = ([float(n) for n in value[name].split()] for name in ("R", "t"))
            score = float(value["score"])
            scene, image, thing = (int(value[name]) for name in ("scene_id", "im_id", "obj_id"))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"the line is not of the form {BOP_HEADER}") from error
        return from_camera(
            CONVENTIONS["bop"],
            np.reshape(number_list(rotation, 9, "'R'"), (3, 3)),
            translation,
            camera,
            id_=f"{scene}/{image}/{thing}",
            picture=names["pictures"].get(f"{scene}/{image}", f"{scene:06d}/{image:06d}"),
            category=names["categories"].get(str(thing), f"obj_{thing:06d}"),
            confidence=score if 0 <= score <= 1 else None,
            where=where,
        )

    rows = csv_rows(path, BOP_HEADER.split(","))
    lines = ((where, row) for where, row in rows if row["scene_id"] != "scene_id")
    return each_item(lines, faults, one)


def bop_names(path: Path) -> Path:
    """Return the file that names the numbers of a results file."""
    return path.with_name(f"{path.stem}_names.json")


def _read_bop_names(path: Path) -> dict[str, dict[str, str]]:
    """Return the names of the numbers of a results file, where a file beside it says them."""
    value = read_json(path) if path.is_file() else {}
    tables = (value.get(name) if isinstance(value, dict) else None for name in ("pictures", "categories"))
    pictures, categories = (
        {str(k): str(v) for k, v in table.items()} if isinstance(table, dict) else {} for table in tables
    )
    return {"pictures": pictures, "categories": categories}


def write_bop(path: Path, items: Sequence[PosedObject]) -> list[Path]:
    """Results as bop_toolkit reads them, scene 1, pictures and objects numbered from 1; the names stand in a file beside."""
    pictures = {name: index for index, name in enumerate(dict.fromkeys(item.picture for item in items), start=1)}
    things = {name: index for index, name in enumerate(sorted({item.category for item in items}), start=1)}
    lines = [BOP_HEADER]
    for item in items:
        rotation, translation = in_camera(item, CONVENTIONS["bop"], item.picture_camera())
        score = 1.0 if item.confidence is None else item.confidence
        numbers = (" ".join(map(repr, map(float, values))) for values in (rotation.ravel(), translation))
        lines.append(",".join(map(str, (1, pictures[item.picture], things[item.category], score, *numbers, -1))))
    write_atomic(path, "\n".join(lines) + "\n")
    names = {
        "pictures": {f"1/{index}": name for name, index in pictures.items()},
        "categories": {str(index): name for name, index in things.items()},
    }
    write_json(bop_names(path), names)
    return [path, bop_names(path)]


# COLMAP


def read_colmap(path: Path, camera: tuple[float, ...] | None, faults: Faults) -> Iterator[PosedObject]:
    lines = [line.strip() for line in read_text(path).splitlines() if not line.startswith("#")]
    cameras = _read_colmap_cameras(colmap_cameras(path))
    # two lines an image; the second, its points, may be empty
    for number, line in enumerate(lines[::2]):
        words, where = line.split(maxsplit=9), f"{path}, image {number + 1}"
        if not words:
            continue
        try:
            quaternion, translation = [float(w) for w in words[1:5]], [float(w) for w in words[5:8]]
            name = words[9]
        except (ValueError, IndexError):
            faults.append(InputError(f"{where}: the line is not of the form of COLMAP's images.txt; mend or drop it"))
            continue
        size = cameras.get(words[8], {})
        try:
            if not any(number_list(quaternion, 4, "the quaternion")):
                raise InputError(f"{where}: its quaternion is zero, which is no rotation; mend or drop it")
            rotation = quaternion_to_matrix(quaternion, "wxyz")
            known: dict[str, Any] = {"camera": camera or size.get("camera"), "id_": words[0], "picture": name}
            known |= {"width": size.get("width"), "height": size.get("height"), "where": where}
            yield from_camera(CONVENTIONS["colmap"], rotation, translation, **known)
        except InputError as error:
            faults.append(error)


def colmap_cameras(path: Path) -> Path:
    """Return the file with the cameras of an images.txt."""
    return path.with_name("cameras.txt")


def _read_colmap_cameras(path: Path) -> dict[str, dict[str, Any]]:
    """Pinhole cameras of the file beside images.txt, by their number; others are passed over, for they bend straight lines."""
    cameras: dict[str, dict[str, Any]] = {}
    if not path.is_file():
        return cameras
    for line in read_text(path).splitlines():
        words = line.split()
        try:
            number, model, width, height, *parameters = words[0], words[1], *map(float, words[2:])
        except (ValueError, IndexError):
            continue
        if model == "SIMPLE_PINHOLE" and len(parameters) == 3:
            parameters = [parameters[0], *parameters]
        if model in ("PINHOLE", "SIMPLE_PINHOLE") and len(parameters) == 4:
            cameras[number] = {"camera": tuple(parameters), "width": width, "height": height}
    return cameras


def write_colmap(path: Path, items: Sequence[PosedObject]) -> list[Path]:
    """images.txt, with a camera for each object in cameras.txt beside it."""
    images = ["# IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME", "# (the points: none)"]
    cameras = ["# CAMERA_ID MODEL WIDTH HEIGHT PARAMS[]"]
    for number, item in enumerate(items, start=1):
        camera = item.own_camera()
        rotation, translation = in_camera(item, CONVENTIONS["colmap"], camera)
        if camera is None or item.width is None or item.height is None:
            raise InputError(f"object {number}: its camera, or its picture's width and height, are unknown")
        numbers = map(repr, map(float, (*matrix_to_quaternion(rotation, "wxyz"), *translation)))
        images += [f"{number} {' '.join(numbers)} {number} {item.picture or item.id}", ""]
        parameters = " ".join(map(repr, map(float, camera)))
        cameras.append(f"{number} PINHOLE {item.width:.0f} {item.height:.0f} {parameters}")
    beside = colmap_cameras(path)
    write_atomic(path, "\n".join(images) + "\n")
    write_atomic(beside, "\n".join(cameras) + "\n")
    return [path, beside]
