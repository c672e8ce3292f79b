"""Formats that are a line an object: ours, matrices and quaternions, Objectron and Orient Anything."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llava_pose.data.jsonl import write_jsonl
from llava_pose.data.records import Pose
from llava_pose.errors import InputError
from llava_pose.pose.conventions import CONVENTIONS, Convention, orient_anything_from_pose, pose_from_orient_anything
from llava_pose.pose.quaternions import matrix_to_quaternion, quaternion_to_matrix
from llava_pose.utils.files import write_atomic

from .posed_object import (
    Faults,
    PosedObject,
    box_of,
    camera_fields,
    common_fields,
    csv_items,
    each_item,
    from_camera,
    in_camera,
    json_items,
    line_fields,
    number_list,
    optional_number,
    rows_of,
    text_of,
    without_none,
)

# Ours


_CSV_FIELDS = ("id", "file_name", "category", "azimuth", "elevation", "theta", "distance", "px", "py", "viewport")
_MORE_CSV_FIELDS = ("width", "height", "confidence")


def read_ours(path: Path, camera: tuple[float, ...] | None, faults: Faults) -> Iterator[PosedObject]:
    items = csv_items(path) if path.suffix.lower() == ".csv" else json_items(path, faults)

    def read(where: str, value: Mapping[str, Any]) -> PosedObject | None:
        if "pose" in value and value["pose"] is None:  # an answer without a pose
            raise InputError(f"{where}: there is no pose; nothing is written for it")
        pose = Pose.from_dict(value.get("pose", value), where=where)
        fault = pose.fault()
        if fault is not None:
            raise InputError(f"{where}: {fault}; mend or drop it")
        viewport, given = optional_number(value.get("viewport")), value.get("camera")
        return PosedObject(
            id=text_of(value.get("id")),
            picture=text_of(value.get("file_name") or value.get("path") or value.get("picture")),
            category=text_of(value.get("pred_category") or value.get("category")),
            pose=pose,
            viewport=None if viewport is None else viewport * (optional_number(value.get("focal")) or 1.0),
            camera=camera or (tuple(number_list(given, 4, "'camera'")) if given is not None else None),  # type: ignore[arg-type]
            width=optional_number(value.get("width")),
            height=optional_number(value.get("height")),
            size=tuple(number_list(value["size"], 3, "'size'")) if value.get("size") is not None else None,  # type: ignore[arg-type]
            confidence=optional_number(value.get("confidence")),
            box=box_of(value),
        )

    return each_item(items, faults, read)


def write_ours(path: Path, items: Sequence[PosedObject]) -> list[Path]:
    lines = [
        without_none(
            {
                **common_fields(item),
                "pose": item.pose.to_dict(),
                **{name: getattr(item, name) for name in ("viewport", "width", "height", "camera", "size")},
            }
        )
        for item in items
    ]
    if path.suffix.lower() != ".csv":
        write_jsonl(path, lines)
        return [path]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, [*_CSV_FIELDS, *_MORE_CSV_FIELDS], extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({**line, **line["pose"]} for line in lines)
    write_atomic(path, stream.getvalue())
    return [path]


# Matrices and quaternions


def read_matrices(
    path: Path, camera: tuple[float, ...] | None, faults: Faults, *, convention: Convention
) -> Iterator[PosedObject]:
    def one(where: str, value: Mapping[str, Any]) -> PosedObject:
        if value.get("matrix") is not None:
            matrix = np.reshape(number_list(value["matrix"], 16, "'matrix'"), (4, 4))
            rotation, translation = matrix[:3, :3], matrix[:3, 3]
        else:
            quaternion = number_list(value.get("quaternion"), 4, "'matrix', or else 'quaternion',")
            if not any(quaternion):
                raise InputError("'quaternion' is zero, which is no rotation")
            rotation = quaternion_to_matrix(quaternion, convention.quaternion)
            translation = np.array(number_list(value.get("position"), 3, "'position'"))
        return from_camera(convention, rotation, translation.tolist(), **line_fields(value, camera), where=where)

    return each_item(json_items(path, faults), faults, one)


def write_matrices(path: Path, items: Sequence[PosedObject], *, convention: Convention) -> list[Path]:
    lines = []
    for item in items:
        camera = item.own_camera()
        rotation, translation = in_camera(item, convention, camera)
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = rotation, translation
        own = {
            "matrix": rows_of(matrix),
            "position": translation.tolist(),
            "quaternion": matrix_to_quaternion(rotation, convention.quaternion).tolist(),
        }
        lines.append(without_none({**common_fields(item), **own, **camera_fields(item, convention, camera)}))
    write_jsonl(path, lines)
    return [path]


def read_objectron(path: Path, camera: tuple[float, ...] | None, faults: Faults) -> Iterator[PosedObject]:
    def one(where: str, value: Mapping[str, Any]) -> PosedObject:
        rotation = np.reshape(number_list(value.get("rotation"), 9, "'rotation'"), (3, 3))
        known = line_fields({**value, "size": value.get("scale")}, camera)
        return from_camera(CONVENTIONS["objectron"], rotation, value.get("translation"), **known, where=where)

    return each_item(json_items(path, faults), faults, one)


def write_objectron(path: Path, items: Sequence[PosedObject]) -> list[Path]:
    """One line an object with the fields of Objectron's Object message, in the frame of the camera."""
    lines = []
    for item in items:
        camera = item.own_camera()
        rotation, translation = in_camera(item, CONVENTIONS["objectron"], camera)
        known = camera_fields(item, CONVENTIONS["objectron"], camera)
        own = {
            "rotation": rotation.ravel().tolist(),
            "translation": translation.tolist(),
            "scale": known.pop("size"),
            "type": "BOUNDING_BOX",
        }
        lines.append(without_none({**common_fields(item), **own, **known}))
    write_jsonl(path, lines)
    return [path]


# Orient Anything


def read_orient_anything(path: Path, camera: tuple[float, ...] | None, faults: Faults) -> Iterator[PosedObject]:
    def one(where: str, value: Mapping[str, Any]) -> PosedObject:
        angles = number_list([value.get(n) for n in ("azimuth", "polar", "rotation")], 3, "azimuth, polar and rotation")
        known = line_fields(value, None)
        known["id"] = known.pop("id_")
        known.pop("size")
        known["camera"] = camera
        return PosedObject(pose=Pose(*map(float, pose_from_orient_anything(*angles))), **known)

    items = csv_items(path) if path.suffix.lower() == ".csv" else json_items(path, faults)
    return each_item(items, faults, one)


def write_orient_anything(path: Path, items: Sequence[PosedObject]) -> list[Path]:
    lines = []
    for item in items:
        azimuth, polar, rotation = map(float, orient_anything_from_pose(*item.pose.angles))
        lines.append(without_none({**common_fields(item), "azimuth": azimuth, "polar": polar, "rotation": rotation}))
    write_jsonl(path, lines)
    return [path]
