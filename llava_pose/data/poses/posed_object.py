"""One object of one picture with its pose, and what the readers of all formats share."""

from __future__ import annotations

import csv
import io
import math
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llava_pose.data.jsonl import parse_json, read_jsonl
from llava_pose.data.records import MAX_NUMBER, Pose, is_size
from llava_pose.errors import InputError
from llava_pose.pose.conventions import Convention, box_corners, camera_of_pose, pose_of_camera
from llava_pose.pose.quaternions import nearest_rotation
from llava_pose.utils.files import holds_controls, read_text, shortened

Faults = list[InputError]
MOST_JSON = 1 << 32  # bytes: the annotations of a large data set are one file


@dataclass(frozen=True)
class PosedObject:
    """One object of one picture with its pose, whatever file it came from.

    Attributes:
        id: of the object; "" where the file has none.
        picture: the file name of its picture, as the file gives it.
        category: its name in the file.
        pose: ours, in the picture's pixels; distance in metres where the format has metres.
        viewport: pixels per unit focal length, times the focal length; None if unknown.
        camera: fx, fy, cx, cy of the camera that took the picture, pixels; None if unknown.
        width, height: of the picture, pixels; None if unknown.
        size: of its box along our object axes: left to right, front to back, height; None if unknown.
        confidence: in [0, 1]; None if there is none.
        box: left, top, right, bottom of what the picture shows of it, pixels; None if unknown. Only lines of JSON have it.
    """

    id: str
    picture: str
    category: str
    pose: Pose
    viewport: float | None = None
    camera: tuple[float, float, float, float] | None = None
    width: float | None = None
    height: float | None = None
    size: tuple[float, float, float] | None = None
    confidence: float | None = None
    box: tuple[float, float, float, float] | None = None

    def __post_init__(self) -> None:
        """Raise InputError where numbers that are divided by are no sizes, or a name would not stay on its line of a file."""
        for field, text in (("id", self.id), ("picture", self.picture), ("category", self.category)):
            if holds_controls(text):
                raise InputError(f"its {field} {shortened(text)} holds control characters")
        sizes = {"viewport": self.viewport, "width": self.width, "height": self.height}
        sizes |= {} if self.camera is None else {"the camera's fx": self.camera[0], "the camera's fy": self.camera[1]}
        for name, value in sizes.items():
            if value is not None and not is_size(value):
                raise InputError(f"{name} is {value:g} and must be a positive number of pixels")

    def picture_camera(self) -> tuple[float, float, float, float]:
        """fx, fy, cx, cy of the picture's camera; one that was not given looks at the picture's middle.

        Raises:
            InputError: it was not given, and viewport, width or height is unknown too.
        """
        if self.camera is not None:
            return self.camera
        if self.viewport is None or self.width is None or self.height is None:
            raise InputError("the camera is unknown; give --intrinsics FX FY CX CY")
        return self.viewport, self.viewport, self.width / 2, self.height / 2

    def own_camera(self) -> tuple[float, float, float, float] | None:
        """fx, fy, cx, cy of the camera that was given, else of one that looks straight at the object; None if unknown."""
        if self.camera is not None or None in (self.viewport, self.pose.px, self.pose.py):
            return self.camera
        return self.viewport, self.viewport, self.pose.px, self.pose.py  # type: ignore[return-value]


# Between a pose and a camera


def in_camera(
    item: PosedObject, convention: Convention, camera: Sequence[float] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Rotation (3, 3) and translation (3,) of an object in a convention; without a camera it is straight ahead.

    Raises:
        InputError: the pose has no finite angles, or lacks a place in the picture that the camera needs.
    """
    pose = item.pose
    if not all(map(math.isfinite, pose.angles)):
        raise InputError("an angle of the pose is not finite")
    distance = 1.0 if pose.distance is None else pose.distance
    px, py, intrinsics = pose.px, pose.py, camera
    if intrinsics is None:
        px, py, intrinsics = 0.0, 0.0, (1.0, 1.0, 0.0, 0.0)
    elif px is None or py is None:
        raise InputError("the pose has no px and py, its place in the picture; add them")
    seen = camera_of_pose(
        azimuth=pose.azimuth,
        elevation=pose.elevation,
        theta=pose.theta,
        distance=distance,
        px=px,
        py=py,
        intrinsics=intrinsics,
    )
    return convention.from_opencv(seen.rotation, seen.translation)


def from_camera(
    convention: Convention,
    rotation: Any,
    translation: Any,
    camera: Sequence[float] | None,
    *,
    id_: str = "",
    picture: str = "",
    category: str = "",
    size: Sequence[float] | None = None,
    width: float | None = None,
    height: float | None = None,
    confidence: float | None = None,
    box: tuple[float, float, float, float] | None = None,
    where: str,
) -> PosedObject:
    """An object from its rotation and translation in a convention.

    Args:
        where: names the place in the file, for messages.

    Raises:
        InputError: they are no rotation and translation, or the object is not in front of the camera.
    """
    try:
        turned, moved = convention.to_opencv(nearest_rotation(rotation), number_list(translation, 3, "the translation"))
        values = pose_of_camera(turned, moved, camera)
        own_size = None if size is None else convention.size_to_ours(number_list(size, 3, "the size"))
    except ValueError as error:  # InputError is one
        raise InputError(f"{where}: {error}; mend or drop it") from error
    viewport = values.pop("viewport")
    return PosedObject(
        id=id_,
        picture=picture,
        category=category,
        pose=Pose(**values),  # type: ignore[arg-type]
        viewport=viewport,
        camera=None if camera is None else tuple(map(float, camera)),  # type: ignore[arg-type]
        width=width,
        height=height,
        size=None if own_size is None else tuple(own_size.tolist()),
        confidence=confidence,
        box=box,
    )


def project_box(item: PosedObject) -> tuple[float, float, float, float]:
    """The rectangle x1, y1, x2, y2 in pixels that the corners of a box span in its picture.

    Raises:
        InputError: a corner is not in front of the camera, or the camera is unknown.
    """
    pose = item.pose
    camera = item.picture_camera()
    seen = camera_of_pose(
        azimuth=pose.azimuth,
        elevation=pose.elevation,
        theta=pose.theta,
        distance=pose.distance or 1.0,
        px=pose.px or 0.0,
        py=pose.py or 0.0,
        intrinsics=camera,
    )
    corners = box_corners(item.size) @ seen.rotation.T + seen.translation
    if (corners[:, 2] <= 0).any():
        raise InputError("a corner of it is behind the camera")
    pixels = corners @ seen.intrinsics.T
    pixels = pixels[:, :2] / pixels[:, 2:]
    return (*map(float, pixels.min(0)), *map(float, pixels.max(0)))  # type: ignore[return-value]


# Reading with care


def number_list(value: Any, count: int, name: str) -> list[float]:
    flat = [n for part in value for n in (part if isinstance(part, list) else [part])] if _is_list(value) else []
    if len(flat) != count or not all(map(is_number, flat)):
        raise InputError(f"{name} must be {count} finite numbers, not {reprlib.repr(value)}")
    return [float(n) for n in flat]


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple | np.ndarray)


def is_number(value: Any) -> bool:
    """Return whether it is a number that pixels and lengths can have, or zero."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_NUMBER


def optional_number(value: Any) -> float | None:
    return float(value) if is_number(value) else None


def box_of(value: Mapping[str, Any]) -> tuple[float, float, float, float] | None:
    """The box of a line of ours: ``box``, or ``bbox`` of a record, or the columns x1, y1, x2, y2; None where there is none.

    Raises:
        InputError: it is none.
    """
    box = value.get("box", value.get("bbox"))
    if box is None and value.get("x1") is not None:
        box = [value.get(name) for name in ("x1", "y1", "x2", "y2")]
    if box is None:
        return None
    left, top, right, bottom = number_list(box, 4, "'box'")
    if right <= left or bottom <= top:
        raise InputError("'box' must be left, top, right and bottom, in pixels")
    return left, top, right, bottom


def text_of(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else str(value)


def mapping_of(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected a JSON object, found {reprlib.repr(value)}")
    return value


def each_item(
    places: Iterable[tuple[str, Any]], faults: Faults, read: Callable[[str, Mapping[str, Any]], PosedObject | None]
) -> Iterator[PosedObject]:
    """Objects of the items that can be read; what is wrong with the others is added to the faults."""
    for where, value in places:
        try:
            item = read(where, mapping_of(value, where))
        except InputError as error:
            faults.append(error if where in str(error) else InputError(f"{where}: {error}; mend or drop it"))
            continue
        if item is not None:
            yield item


def read_json(path: Path) -> Any:
    """A JSON file of somebody else's program.

    Raises:
        InputError: it cannot be read, or is no JSON.
    """
    text = read_text(path, most=MOST_JSON)
    try:
        return parse_json(text)
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({getattr(error, 'msg', error)}); the file may be cut off") from error


def json_items(path: Path, faults: Faults) -> Iterator[tuple[str, Any]]:
    """("file:line" or "file[index]", value) of JSON lines, or of a JSON list where the file begins with one."""
    if path.suffix.lower() != ".json":
        yield from read_jsonl(path, on_bad_line=faults.append)
        return
    value = read_json(path)
    for index, item in enumerate(value if isinstance(value, list) else [value]):
        yield f"{path}[{index}]", item


def rows_of(values: Any) -> list[list[float]]:
    return [[float(x) for x in row] for row in values]


def without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None and value != ""}


def common_fields(item: PosedObject) -> dict[str, Any]:
    return {
        **{"id": item.id, "file_name": item.picture, "category": item.category, "confidence": item.confidence},
        "box": None if item.box is None else list(item.box),
    }


def csv_items(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for where, row in csv_rows(path):
        yield where, {name: _cell(name, text) for name, text in row.items() if name}


def csv_rows(path: Path, names: Sequence[str] | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ("file:line", row) of a CSV file, all as it is written; without names of columns the first line has them.

    Raises:
        InputError: it cannot be read, or is no CSV file.
    """
    reader = csv.DictReader(io.StringIO(read_text(path)), names)
    try:
        for row in reader:
            yield f"{path}:{reader.line_num}", row
    except csv.Error as error:
        raise InputError(f"{path}: not a CSV file ({error}); give a header and one line an object") from error


_NAMES = ("id", "file_name", "path", "picture", "category", "pred_category", "system")  # columns that are no numbers


def _cell(name: str, text: Any) -> Any:
    if not isinstance(text, str) or not text.strip():
        return None
    if name in _NAMES:
        return text
    try:
        return float(text)
    except ValueError:
        return text


def line_fields(value: Mapping[str, Any], camera: tuple[float, ...] | None) -> dict[str, Any]:
    """Return the fields that a line of ours in another convention holds beside rotation and translation."""
    given = value.get("intrinsics")
    return {
        "camera": camera or (number_list(given, 4, "'intrinsics'") if given is not None else None),
        "id_": text_of(value.get("id")),
        "picture": text_of(value.get("file_name")),
        "category": text_of(value.get("category")),
        "size": value.get("size"),
        "width": optional_number(value.get("width")),
        "height": optional_number(value.get("height")),
        "confidence": optional_number(value.get("confidence")),
        "box": box_of(value),
    }


def camera_fields(item: PosedObject, convention: Convention, camera: Sequence[float] | None) -> dict[str, Any]:
    return {
        "intrinsics": None if camera is None else list(camera),
        "width": item.width,
        "height": item.height,
        "size": None if item.size is None else convention.size_from_ours(item.size).tolist(),
    }
