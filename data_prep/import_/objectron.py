"""Objectron's annotations as JSON (Ahmadyan et al., CVPR 2021; github.com/google-research-datasets/Objectron, at 46daaa0).

Objectron publishes protocol buffers. Its ``Sequence`` message becomes JSON by protobuf's own function, with the schema of its
repository::

    from google.protobuf.json_format import MessageToJson
    sequence = annotation_data_pb2.Sequence.FromString(open("annotation.pbdata", "rb").read())
    open("cup_1.json", "w").write(MessageToJson(sequence))

One file is one video; its frames are pictures in a folder of the file's name, ``<images>/cup_1/<frame id>.jpg``, upright as
the videos are. A frame's ``view_matrix`` and ``projection_matrix`` are those of the landscape sensor (see the convention
``objectron``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.import_.bop import pose_fields
from data_prep.import_.items import ImportedObject, LeftOut, key
from data_prep.raw.imagenet3d import IMAGE_SUFFIXES
from llava_pose.data.images import DECODING_ERRORS, open_image
from llava_pose.data.poses.posed_object import from_camera, number_list, project_box, read_json
from llava_pose.errors import InputError
from llava_pose.pose.conventions import CONVENTIONS


def read_objectron(source: Path, images: Path, split: str) -> Iterator[ImportedObject | LeftOut]:
    """The objects of each frame of one file, or of all files of a folder.

    Raises:
        InputError: there is no file.
    """
    files = sorted(source.glob("*.json")) if source.is_dir() else [source]
    if not files:
        raise InputError(f"{source}: there is no .json file in it; give Objectron's annotations as JSON")
    for file in files:
        try:
            data = read_json(file)
            if not isinstance(data, dict) or not isinstance(_field(data, "frame_annotations"), list):
                raise InputError(f"{file}: there is no 'frameAnnotations' in it; give a Sequence message as JSON")
        except InputError as error:
            yield LeftOut(str(file), "annotation unreadable", str(error))
            continue
        folder = images / file.stem if (images / file.stem).is_dir() else images
        frames = _frames(folder)
        for frame in _field(data, "frame_annotations"):
            if isinstance(frame, dict):
                yield from _frame(file, frame, _field(data, "objects") or [], frames, images, split)


def _field(value: Mapping[str, Any], name: str) -> Any:
    """A field by the name of the schema, or by the one that protobuf's JSON gives it."""
    camel = re.sub(r"_([a-z])", lambda match: match[1].upper(), name)
    return value.get(camel, value.get(name))


def _frames(folder: Path) -> dict[int, Path]:
    """Frame id -> picture; the id is the last number in the file's name."""
    found: dict[int, Path] = {}
    for path in sorted(folder.glob("*")):
        numbers = re.findall(r"\d{1,9}", path.stem)
        if path.suffix in IMAGE_SUFFIXES and numbers:
            found.setdefault(int(numbers[-1]), path)
    return found


def _frame(
    file: Path, frame: Mapping[str, Any], things: Any, frames: Mapping[int, Path], images: Path, split: str
) -> Iterator[ImportedObject | LeftOut]:
    number = _field(frame, "frame_id") or 0  # protobuf leaves a 0 out
    where = f"{file}, frame {number}"
    picture = frames.get(number) if isinstance(number, int) else None
    if picture is None:
        yield LeftOut(where, "picture missing", f"{where}: there is no picture of it in {images}; extract the frames")
        return
    by_id = {key(_field(t, "id") or 0): t for t in things if isinstance(t, dict)} if isinstance(things, list) else {}
    try:
        view, camera = _camera(_field(frame, "camera"), picture)
    except (InputError, *DECODING_ERRORS) as error:
        yield LeftOut(where, "camera missing", f"{where}: {error}")
        return
    annotations = _field(frame, "annotations")
    for annotation in annotations if isinstance(annotations, list) else []:
        id_ = key(_field(annotation, "object_id") or 0) if isinstance(annotation, dict) else ""
        thing = by_id.get(id_)
        place = f"{where}, object {id_}"
        if thing is None:
            yield LeftOut(place, "object missing", f"{place}: there is no object of that id in the file")
            continue
        try:
            yield _object(place, thing, view, camera, picture, images, split)
        except InputError as error:
            yield LeftOut(place, "box malformed", f"{error}" if place in str(error) else f"{place}: {error}")


def _camera(value: Any, picture: Path) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """The view matrix (4, 4), and fx, fy, cx, cy of the upright picture, whose x is the sensor's y and whose y its x."""
    camera = value if isinstance(value, dict) else {}
    view = np.reshape(number_list(_field(camera, "view_matrix"), 16, "'view_matrix'"), (4, 4))
    p = np.reshape(number_list(_field(camera, "projection_matrix"), 16, "'projection_matrix'"), (4, 4))
    with open_image(picture) as image:
        width, height = image.size
    return view, (p[1, 1] * width / 2, p[0, 0] * height / 2, (1 - p[1, 2]) * width / 2, (1 - p[0, 2]) * height / 2)


def _object(
    where: str,
    thing: Mapping[str, Any],
    view: np.ndarray,
    camera: tuple[float, float, float, float],
    picture: Path,
    images: Path,
    split: str,
) -> ImportedObject:
    rotation = np.reshape(number_list(thing.get("rotation"), 9, "'rotation'"), (3, 3))
    translation = np.array(number_list(thing.get("translation"), 3, "'translation'"))
    posed = from_camera(
        CONVENTIONS["objectron"],
        view[:3, :3] @ rotation,
        (view[:3, :3] @ translation + view[:3, 3]).tolist(),
        camera,
        size=thing.get("scale"),
        where=where,
    )
    bbox = project_box(posed)
    name = picture.relative_to(images).as_posix()
    fields = {**pose_fields(posed, bbox), "bbox": bbox, "source": "objectron", "instance": name.rpartition("/")[0]}
    return ImportedObject(where, picture, name, str(thing.get("category") or ""), split, fields)
