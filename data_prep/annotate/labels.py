"""The labels of a folder of photographs, kept in the raw layout as they are made.

::

    images/, annotations/, lists/     as docs/DATA.md, "The raw layout"
    annotated.json                    photograph -> its name and category there, and the count of its objects; null for the
                                      category says that it was looked at and left out
    annotate.yaml                     the settings

A save writes picture and annotation, then annotated.json, then the lists, which follow from it: a save that was stopped
leaves the labels before it or after it, and the lists are made right as the folder is opened.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from PIL import ExifTags, Image
from pydantic import BaseModel, ConfigDict, Field

from data_prep.import_.write import carry, free_name
from data_prep.raw.imagenet3d import (
    IMAGE_SUFFIXES,
    RawLayout,
    parse_object,
    read_annotation,
    write_annotation,
    write_list,
)
from llava_pose.data.images import open_image, open_picture
from llava_pose.data.jsonl import parse_json
from llava_pose.errors import InputError
from llava_pose.inference.photos import find_photos
from llava_pose.pose import categories
from llava_pose.pose.geometry import canonicalize
from llava_pose.utils.files import is_plain_name, read_text, replacing, shortened, write_json

logger = logging.getLogger(__name__)
INDEX_FILE = "annotated.json"
_LONGEST_SIDE = 65_500  # pixels of a JPEG, as which the page gets it; the raw layout has 16 bits for them
_PLAIN_FORMATS = {"JPEG": (".jpg", ".jpeg"), "PNG": (".png",), "WEBP": (".webp",), "TIFF": (".tif", ".tiff")}
Number = Annotated[float, Field(allow_inf_nan=False)]
Angle = Annotated[Number, Field(gt=-1e4, lt=1e4)]  # the page counts turns on


class Label(BaseModel):
    """One object as the page holds it. Angles in radians, pixels of the photograph as it is seen, upright."""

    model_config = ConfigDict(extra="forbid")
    category: str
    bbox: tuple[Number, Number, Number, Number]
    azimuth: Angle
    elevation: Angle
    theta: Angle
    distance: Number
    px: Number
    py: Number
    viewport: Number
    cad_index: Annotated[int, Field(ge=0, lt=10_000)] = 0
    object_status: Literal["status_good", "status_partially", "status_barely", "status_bad"] = "status_good"
    dense: Literal["dense_no", "dense_yes"] = "dense_no"


@dataclass
class _Entry:
    name: str
    category: str | None
    count: int


class Labels:
    """The photographs of a folder in order, and what is labelled of them. The caller owns the output folder.

    Args:
        images: the folder of the photographs; nothing in it is changed.
        out: the folder of the raw layout.
        split: the list that pictures go on.

    Raises:
        InputError: there is no photograph, or annotated.json is damaged.
    """

    def __init__(self, images: Path, out: Path, *, split: str, allow_custom_categories: bool = False) -> None:
        self._layout = RawLayout(out)
        self._split = split
        self._allow_custom = allow_custom_categories
        self._photos = [photo for photo in find_photos([str(images)]) if _is_text(photo)]
        self.names = [path.relative_to(images).as_posix() for path in self._photos]
        self._lock = threading.Lock()
        self._entries = self._read_index()
        for category in {entry.category for entry in self._entries.values() if entry.category}:
            self._write_list(category)

    def picture(self, index: int) -> Image.Image:
        """Return a photograph as it is seen: 8-bit RGB, upright.

        Raises:
            InputError: it cannot be read, or is too long for the page and for the layout.
        """
        picture = open_picture(self._photos[index])
        if max(picture.size) > _LONGEST_SIDE:
            width, height = picture.size
            raise InputError(
                f"{self.names[index]}: has {width}x{height} pixels, a side {_LONGEST_SIDE} at most; shrink it"
            )
        return picture

    def counts(self) -> list[int | None]:
        """Return how many objects are labelled on each photograph; None where it has not been looked at."""
        entries = (self._entries.get(name) for name in self.names)
        return [entry.count if entry is not None and self._is_there(entry) else None for entry in entries]

    def _is_there(self, entry: _Entry) -> bool:
        return entry.category is None or self._layout.annotation(entry.category, entry.name).is_file()

    def objects(self, index: int) -> list[dict[str, Any]]:
        """Return the labels of a photograph as the page holds them."""
        entry = self._entries.get(self.names[index])
        path = None if entry is None or entry.category is None else self._layout.annotation(entry.category, entry.name)
        if path is None or not path.is_file():
            return []
        labels = []
        for raw in read_annotation(path):
            values = vars(parse_object(raw))
            labels.append({name: values[name] for name in Label.model_fields})
        return labels

    def save(self, index: int, labels: Sequence[Label]) -> int:
        """Write the labels of a photograph in place of those that it had, and return how many they are.

        Raises:
            InputError: a label is none that ``prepare`` takes, or a file cannot be written.
        """
        photo, key = self._photos[index], self.names[index]
        size = self.picture(index).size
        objects = [self._annotation(label, number, size) for number, label in enumerate(labels, start=1)]
        with self._lock:
            before = self._entries.get(key)
            taken = {entry.name for other, entry in self._entries.items() if other != key}
            name = before.name if before is not None else free_name(key, taken)
            if not is_plain_name(name):
                name = free_name("picture", taken)
            now = _Entry(name, objects[0]["class"] if objects else None, len(objects))
            if now.category is not None:
                self._write_picture(photo, now.category, name)
                write_annotation(self._layout.annotation(now.category, name), objects)
            entries = {**self._entries, key: now}
            write_json(self._layout.root / INDEX_FILE, {other: vars(entry) for other, entry in entries.items()})
            self._entries = entries
            for category in {now.category, before.category if before else None} - {None}:
                self._write_list(str(category))
            if before is not None and before.category not in (None, now.category):
                self._layout.annotation(str(before.category), name).unlink(missing_ok=True)
                with suppress(OSError):
                    self._layout.image(str(before.category), name).unlink()
        return len(objects)

    def _annotation(self, label: Label, number: int, size: tuple[int, int]) -> dict[str, Any]:
        try:
            category = categories.get(label.category, allow_custom=self._allow_custom, source="the category").name
            if not is_plain_name(category):
                raise InputError(f"the category {shortened(category)} cannot name a folder; rename it")
            angles = canonicalize(label.azimuth, label.elevation, label.theta)
            values = {
                **label.model_dump(exclude={"category"}),
                **dict(zip(("azimuth", "elevation", "theta"), map(float, angles), strict=True)),
                **{"class": category, "focal": 1.0, "bbox": np.array(label.bbox)},
                **{"principal": np.array([label.px, label.py])},
                **dict(zip(("width", "height"), map(np.uint16, size), strict=True)),
            }
            parse_object(values)  # as prepare will
        except InputError as error:
            raise InputError(f"object {number}: {error}") from error
        return values

    def _write_picture(self, photo: Path, category: str, name: str) -> None:
        """Bring a photograph into the layout: the file itself where everybody sees it alike, else an upright copy."""
        target = self._layout.image(category, name)
        if target.is_file():
            return
        with open_image(photo) as image:
            suffix, turned = photo.suffix, image.getexif().get(ExifTags.Base.Orientation, 1) not in (0, 1)
            is_plain = suffix in IMAGE_SUFFIXES and suffix.lower() in _PLAIN_FORMATS.get(str(image.format), ())
        if is_plain and not turned:
            carry(photo, target.with_name(f"{name}{suffix}"), copy=False)
            return
        with replacing(target.with_name(f"{name}.png")) as temporary:
            open_picture(photo).save(temporary, "PNG")

    def _write_list(self, category: str) -> None:
        entries = [entry for entry in self._entries.values() if entry.category == category]
        write_list(self._layout.list_file(category, self._split), [e.name for e in entries if self._is_there(e)])

    def _read_index(self) -> dict[str, _Entry]:
        path = self._layout.root / INDEX_FILE
        if not path.is_file():
            return {}
        try:
            value = parse_json(read_text(path))
            entries = {str(key): _Entry(str(of["name"]), of["category"], int(of["count"])) for key, of in value.items()}
        except (ValueError, AttributeError, LookupError, TypeError, OverflowError) as error:
            raise InputError(f"{path}: is damaged ({json.dumps(str(error))}); begin in another folder") from error
        if len({entry.name for entry in entries.values()}) < len(entries):
            raise InputError(f"{path}: two photographs have one name; begin in another folder")
        for entry in entries.values():
            if not is_plain_name(entry.name) or not (entry.category is None or _is_name(entry.category)):
                raise InputError(f"{path}: {shortened(str(entry))} cannot name files; begin in another folder")
        return entries


def _is_text(photo: Path) -> bool:
    """Return whether the name of a photograph can be written down; one that cannot is left out, and said so."""
    try:
        str(photo).encode()
    except UnicodeEncodeError:
        logger.warning("%s: its name is no UTF-8; rename it to label it", os.fsencode(photo).decode(errors="replace"))
        return False
    return True


def _is_name(value: object) -> bool:
    return isinstance(value, str) and is_plain_name(value)
