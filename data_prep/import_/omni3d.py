"""Omni3D's JSON files (Brazil et al., CVPR 2023; github.com/facebookresearch/omni3d, DATA.md, at 778bd02).

A box with ``valid3D`` false, or behind the camera, is left out. Distances are given in diagonals of the box. The heading of a
driving scene's boxes is the object's front; boxes of indoor scenes may face any way, and ``llava-pose orient-boxes`` finds
their front.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_prep.import_.bop import pose_fields
from data_prep.import_.items import ImportedObject, LeftOut, picture_in, status_of
from llava_pose.data.poses.boxes import omni3d_boxes
from llava_pose.data.poses.posed_object import PosedObject, number_list, project_box, read_json
from llava_pose.errors import InputError


def read_omni3d(file: Path, images: Path, split: str) -> Iterator[ImportedObject | LeftOut]:
    """The objects of an Omni3D file.

    Args:
        images: the folder that ``file_path`` is relative to.

    Raises:
        InputError: it cannot be read, or is something else.
    """
    faults: list[InputError] = []
    data = read_json(file)
    listed = data.get("annotations") if isinstance(data, dict) else None
    raw = (
        {str(item.get("id")): item for item in listed or () if isinstance(item, dict)}
        if isinstance(listed, list)
        else {}
    )
    for posed in omni3d_boxes(data, file, None, faults):
        where = f"{file}, annotation id {posed.id}"
        picture = picture_in(images, posed.picture, where)
        if isinstance(picture, LeftOut):
            yield picture
            continue
        try:
            yield _object(where, raw.get(posed.id, {}), posed, picture, split)
        except InputError as error:
            yield LeftOut(where, "box malformed", f"{where}: {error}")
    for fault in faults:
        yield LeftOut(str(fault).split(": ", 1)[0], "box malformed", str(fault))


def _object(where: str, raw: Mapping[str, Any], posed: PosedObject, picture: Path, split: str) -> ImportedObject:
    bbox: tuple[float, ...] = ()
    for name in ("bbox2D_tight", "bbox2D_proj"):
        try:
            bbox = tuple(number_list(raw.get(name), 4, name))
        except InputError:
            continue
        if bbox[2] > bbox[0] and bbox[3] > bbox[1]:  # -1 where it is not known
            break
        bbox = ()
    bbox = bbox or project_box(posed)
    visible, cut = (raw.get(name) for name in ("visibility", "truncation"))
    seen = float(visible) if isinstance(visible, int | float) and 0 <= visible <= 1 else 1.0
    seen *= 1 - float(cut) if isinstance(cut, int | float) and 0 <= cut <= 1 else 1.0
    fields = {**pose_fields(posed, bbox), "bbox": bbox, "object_status": status_of(seen), "source": "omni3d"}
    whole = None if posed.width is None or posed.height is None else (int(posed.width), int(posed.height))
    return ImportedObject(where, picture, posed.picture, posed.category, split, fields, whole)
