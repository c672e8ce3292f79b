"""COCO boxes with a table of angles.

The JSON file is that of cocodataset.org (Lin et al., ECCV 2014): images, annotations with bbox as x, y, width, height,
categories. COCO has no poses; they stand in a CSV file with the columns annotation_id (or id), azimuth, elevation and theta
(or in_plane), in degrees or radians, and, where they are known, distance, px and py.
"""

from __future__ import annotations

import csv
import io
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.import_.items import ImportedObject, LeftOut, key, picture_in, rough_place
from llava_pose.data.poses.posed_object import number_list, read_json
from llava_pose.data.records import MAX_ANGLE
from llava_pose.errors import InputError
from llava_pose.utils.files import read_text

logger = logging.getLogger(__name__)
_NAMES = {
    "id": ("annotation_id", "id"),
    "azimuth": ("azimuth",),
    "elevation": ("elevation",),
    "theta": ("theta", "in_plane", "inplane"),
}
_MORE = ("distance", "px", "py")


def read_coco(file: Path, images: Path, table: Path, unit: str, split: str) -> Iterator[ImportedObject | LeftOut]:
    """The objects of a COCO file whose angles stand in a table.

    Args:
        unit: "degrees" or "radians".

    Raises:
        InputError: one of the files cannot be read, or is something else.
    """
    data = read_json(file)
    found = data if isinstance(data, dict) else {}
    parts: list[list[Any]] = [v for n in ("images", "annotations", "categories") if isinstance(v := found.get(n), list)]
    if len(parts) < 3:
        raise InputError(f"{file}: there are no lists 'images', 'annotations' and 'categories' in it; give a COCO file")
    pictures, categories = ({key(p.get("id")): p for p in part if isinstance(p, dict)} for part in (parts[0], parts[2]))
    angles = read_angles(table, unit)
    used = set()
    for index, annotation in enumerate(parts[1]):
        where = f"{file}, annotation {index}"
        if not isinstance(annotation, dict):
            yield LeftOut(where, "annotation malformed", f"{where}: must be a JSON object; mend it")
            continue
        id_ = key(annotation.get("id"))
        where = f"{file}, annotation id {id_}"
        used.add(id_)
        yield _object(where, annotation, pictures, categories, angles.get(id_), images, split)
    for id_, (line, _) in angles.items():
        if id_ not in used:
            where = f"{table}:{line}"
            yield LeftOut(where, "annotation missing", f"{where}: there is no annotation with the id {id_} in {file}")


def _object(
    where: str,
    annotation: Mapping[str, Any],
    pictures: Mapping[Any, Mapping[str, Any]],
    categories: Mapping[Any, Mapping[str, Any]],
    row: tuple[int, dict[str, float]] | None,
    images: Path,
    split: str,
) -> ImportedObject | LeftOut:
    image, category = pictures.get(key(annotation.get("image_id"))), categories.get(key(annotation.get("category_id")))
    if image is None:
        return LeftOut(where, "picture missing", f"{where}: there is no image {annotation.get('image_id')!r}; mend it")
    if category is None or not isinstance(category.get("name"), str):
        return LeftOut(where, "category missing", f"{where}: no category {annotation.get('category_id')!r}; mend it")
    if annotation.get("iscrowd"):
        return LeftOut(where, "crowd", f"{where}: it is a crowd, which has no pose")
    if row is None:
        return LeftOut(where, "angles missing", f"{where}: the table has no line for it; add its angles")
    box = annotation.get("bbox")
    try:
        x, y, width, height = number_list(box, 4, "'bbox', which is x, y, width, height,")
    except InputError as error:
        return LeftOut(where, "bbox malformed", f"{where}: {error}; mend it")
    path = picture_in(images, image.get("file_name"), where)
    if isinstance(path, LeftOut):
        return path
    bbox = (x, y, x + width, y + height)
    size = (image.get("width"), image.get("height"))
    known = {name: value for name, value in row[1].items() if not math.isnan(value)}
    return ImportedObject(
        where,
        path,
        str(image["file_name"]),
        category["name"],
        split,
        {**rough_place(bbox), **known, "bbox": bbox, "source": "coco"},
        size if all(isinstance(n, int) and n > 0 for n in size) else None,  # type: ignore[arg-type]
    )


def read_angles(table: Path, unit: str) -> dict[str, tuple[int, dict[str, float]]]:
    """Annotation id -> (line, azimuth, elevation, theta in radians and what else is known; NaN where a cell is empty).

    Numbers that do not look like the unit are doubted in the log.

    Raises:
        InputError: a column is missing, a cell is no number, or an id stands there twice.
    """
    text = read_text(table)
    header = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=header.count)
    reader = csv.DictReader(io.StringIO(text), delimiter=delimiter)
    rows: dict[str, tuple[int, dict[str, float]]] = {}
    try:
        found = _columns(table, reader.fieldnames or ())
        for row in reader:
            where = f"{table}:{reader.line_num}"
            id_ = (row.get(found["id"] or "") or "").strip()
            if id_ in rows:
                raise InputError(f"{where}: the id {id_} stands on two lines; delete one of them")
            values = {
                name: _number(row.get(column or ""), where, name, delimiter)
                for name, column in found.items()
                if name != "id"
            }
            rows[id_] = reader.line_num, values
    except csv.Error as error:
        raise InputError(f"{table}: not a CSV file ({error}); give a header and one line an object") from error
    written = np.array([[values[name] for name in ("azimuth", "elevation", "theta")] for _, values in rows.values()])
    doubt_unit(table, written.reshape(-1, 3), unit)
    if unit == "degrees":
        for _, values in rows.values():
            values |= {name: math.radians(values[name]) for name in ("azimuth", "elevation", "theta")}
    return rows


def _columns(table: Path, names: Sequence[str]) -> dict[str, str | None]:
    """Return the name in the table of each field that is known here."""
    columns = {(name or "").strip().lower(): name for name in names}
    found = {field: next((columns[n] for n in known if n in columns), None) for field, known in _NAMES.items()}
    missing = [known[0] for field, known in _NAMES.items() if found[field] is None]
    if missing:
        raise InputError(
            f"{table}: there is no column {missing[0]!r}; give annotation_id, azimuth, elevation and theta in its first line"
        )
    return found | {name: columns[name] for name in _MORE if name in columns}


def _number(text: str | None, where: str, name: str, delimiter: str) -> float:
    word = (text or "").strip()
    if not word:
        return math.nan
    try:
        return float(word.replace(",", ".") if delimiter != "," else word)
    except ValueError as error:
        raise InputError(f"{where}: {name!r} must be a number, not {word[:40]!r}; mend it") from error


def doubt_unit(table: Path, angles: np.ndarray, unit: str) -> bool:
    """Say in the log that angles do not look like the unit that was named, all or some; return whether they do not."""
    azimuths = angles[np.isfinite(angles[:, 0]) & (angles[:, 0] != 0), 0]
    large = int((np.abs(angles) > MAX_ANGLE).any(axis=1).sum())
    if unit == "radians" and large:
        logger.warning(
            "%s: %d of %d lines hold angles beyond %.1f, which cannot be radians: the table is in degrees, or mixes both. "
            "Look at it before anything learns from it; these lines are left out",
            *(table, large, len(angles), MAX_ANGLE),
        )
        return True
    small = int((np.abs(azimuths) <= 2 * math.pi).sum())
    if unit == "degrees" and len(azimuths) >= 8 and small > 0.25 * len(azimuths):
        which = "all" if small == len(azimuths) else f"{small} of {len(azimuths)}"
        logger.warning(
            "%s: %s azimuths lie within 6.3 degrees of 0, so that the table seems to be in radians%s. Look at it before "
            "anything learns from it; it was read as degrees",
            *(table, which, "" if small == len(azimuths) else ", or to mix both"),
        )
        return True
    return False
