"""ImageNet3D's raw layout on disk, read safely and written the way the published tools read it (docs/DATA.md).

::

    images/<category>/<name>.JPEG
    annotations/<category>/<name>.npz         key 'annotations': an object array of dicts, one an object
    lists/<category>_imagenet_<split>.txt     names, one a line; an empty file is an empty list
    CAD/<category>/NN.off

Any field of an annotation can be missing; :func:`parse_object` says what follows from it.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from data_prep.raw.safe_npz import read_npz, shown
from llava_pose.data.records import MAX_ANGLE
from llava_pose.errors import InputError
from llava_pose.utils.files import is_plain_name, is_regular, read_text, write_atomic

ANNOTATIONS_KEY = "annotations"
IMAGE_SUFFIXES = (".JPEG", ".jpg", ".jpeg", ".JPG", ".png", ".PNG", ".webp", ".tif", ".tiff")
DEFAULT_VIEWPORT = 2000.0  # what ImageNet3D was annotated with
DEFAULT_FOCAL = 1.0
GOOD_STATUSES = ("status_good", "status_partially", "status_barely")
BAD_STATUS = "status_bad"
MAX_NUMBER = 1e9  # of pixels and of lengths: beyond it, and beyond its inverse, arithmetic loses its meaning
MAX_COUNT = 2**53

_MOST_BITS = 10_000  # Python refuses to write longer integers in decimal
_LIST_NAME = re.compile(r"(?P<category>.+)_imagenet_(?P<split>.+)\.txt")
_PARSED_FIELDS = (
    *("azimuth", "elevation", "theta", "distance", "focal", "viewport", "px", "py", "principal", "cad_index"),
    *("height", "width", "bbox", "class", "object_status", "dense", "source", "instance"),
)


class AnnotationError(InputError):
    """An object that cannot be used. ``reason`` is the short name it is counted by, the message the sentence."""

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.reason, str(self))


@dataclass(frozen=True)
class AnnotatedObject:
    """One object of a raw annotation, in plain Python types. Angles in radians, pixels of the raw image.

    Attributes:
        category: the annotation's ``class``; "" where it has none.
        bbox: (x1, y1, x2, y2), x1 < x2 and y1 < y2; it may reach over the image's edge.
        height, width: of the image that was annotated; 0 where the annotation does not say.
        cad_index: counts from 1; 0 where the annotation has none.
        extra: raw fields that have no place of their own.
        absent: the standard fields that the raw annotation has not.
        faults: why it would be refused, had it not been asked for what the published preprocessing keeps.
    """

    azimuth: float
    elevation: float
    theta: float
    distance: float
    px: float
    py: float
    bbox: tuple[float, float, float, float]
    category: str
    focal: float
    viewport: float
    height: int
    width: int
    object_status: str
    cad_index: int
    dense: str
    source: str
    instance: str
    extra: dict[str, Any]
    absent: tuple[str, ...]
    faults: tuple[str, ...] = ()


@dataclass(frozen=True)
class RawLayout:
    """The paths under the root of a raw dataset."""

    root: Path

    def image(self, category: str, name: str) -> Path:
        """Return the image; its suffix is .JPEG in ImageNet3D, and may be another in people's own data."""
        folder = self.root / "images" / category
        candidates = (folder / f"{name}{suffix}" for suffix in IMAGE_SUFFIXES)
        return next((path for path in candidates if is_regular(path)), folder / f"{name}{IMAGE_SUFFIXES[0]}")

    def annotation(self, category: str, name: str) -> Path:
        return self.root / "annotations" / category / f"{name}.npz"

    def list_file(self, category: str, split: str) -> Path:
        return self.root / "lists" / f"{category}_imagenet_{split}.txt"

    def cad(self, category: str, cad_index: int) -> Path:
        return self.root / "CAD" / category / f"{cad_index:02d}.off"

    def list_files(self) -> dict[str, dict[str, Path]]:
        """Return split -> category -> list file, in alphabetical order of both."""
        found: dict[str, dict[str, Path]] = {}
        for path in sorted((self.root / "lists").glob("*.txt")):
            match = _LIST_NAME.fullmatch(path.name)
            if match:
                found.setdefault(match["split"], {})[match["category"]] = path
        return dict(sorted(found.items()))


def read_list(path: str | os.PathLike[str]) -> list[str]:
    """Return the names of a list file, one a line; blank lines count for nothing, an empty file is an empty list.

    Raises:
        InputError: it cannot be read as text.
    """
    text = read_text(path, remedy="it must be names, one a line")
    return [line.strip() for line in text.splitlines() if line.strip()]


def read_annotation(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return the raw dicts of an annotation file, one an object, as they were written (see :func:`parse_object`).

    Raises:
        InputError: the file is missing, damaged, carries code, or does not hold a list of dicts under 'annotations'.
    """
    arrays = read_npz(path)
    if ANNOTATIONS_KEY not in arrays:
        found = shown(", ".join(sorted(arrays))) or "nothing"
        raise InputError(f"{path}: there is no array '{ANNOTATIONS_KEY}' in it (found: {found}); write the file again")
    value = arrays[ANNOTATIONS_KEY]
    objects = value.reshape(-1).tolist()
    if value.ndim == 0 and isinstance(objects[0], list):  # a list saved as it is becomes an array of no dimension
        objects = objects[0]
    if not all(isinstance(item, dict) and all(isinstance(key, str) for key in item) for item in objects):
        raise InputError(f"{path}: '{ANNOTATIONS_KEY}' must hold one dict an object; write the file again")
    return objects


def write_annotation(path: str | os.PathLike[str], objects: Iterable[Mapping[str, Any]]) -> None:
    """Write an annotation file as ImageNet3D does, atomically: an object array of plain dicts under 'annotations'.

    Values are written as they are given: height and width are numpy.uint16 in ImageNet3D, the rest Python numbers and
    text, principal and bbox float arrays.
    """
    dicts = [dict(item) for item in objects]
    array = np.empty(len(dicts), dtype=object)
    array[:] = dicts
    stream = io.BytesIO()
    np.savez(stream, **cast(dict[str, Any], {ANNOTATIONS_KEY: array}))
    write_atomic(path, stream.getvalue())


def write_list(path: str | os.PathLike[str], names: Sequence[str]) -> None:
    """Write a list file atomically; no names give an empty file.

    Raises:
        InputError: a name would not be read back as it is.
    """
    for name in names:
        if not is_plain_name(name) or name != name.strip() or len(name.splitlines()) != 1:
            raise InputError(f"{path}: the name {name!r} cannot stand in a list; use a plain file name without suffix")
    write_atomic(path, "".join(f"{name}\n" for name in names))


def object_status(raw: Mapping[str, Any]) -> str | None:
    """Return the status of an object, or None where it says none: `object_status`, or what follows from the older `ignore`."""
    status = plain(raw.get("object_status"))
    if status is None and raw.get("ignore") is not None:
        return BAD_STATUS if plain(raw["ignore"]) else GOOD_STATUSES[0]
    return None if status is None else str(status)


def filter_reason(raw: Mapping[str, Any], *, published: bool = False) -> str | None:
    """Return why an object is left out, or None if it is used: by our reading of the published protocol, or exactly by the
    published preprocessing's own two lines, which know of no ``ignore`` and take every status but one.
    """
    if published:
        if "object_status" not in raw:
            return "object_status missing"
        if plain(raw["object_status"]) == BAD_STATUS:
            return BAD_STATUS
        return "distance not positive" if _number(raw, "distance") <= 0 else None
    status = object_status(raw)
    if status is None:
        return "object_status missing"
    return None if status in GOOD_STATUSES else str(status)


def parse_object(raw: Mapping[str, Any], *, published: bool = False) -> AnnotatedObject:
    """Return a raw dict in plain types, checked.

    Args:
        published: take a box whose corners are swapped or that is empty, as the published preprocessing does, which looks at
            no box: the corners are put in order, the raw box stays in ``extra``, and ``faults`` says so.

    `px` and `py` fall back on `principal`, `focal` on 1 and `viewport` on 2000, ImageNet3D's constants; a missing
    `class`, `cad_index`, `dense`, `source`, `instance`, `height` or `width` is left empty. Everything else is needed.

    Raises:
        AnnotationError: a needed field is missing, not a number, not finite or beyond all measure, the distance or viewport
            is not positive, or the bbox is malformed.
    """
    values = dict(raw)
    principal = _numbers(values.get("principal"), 2)
    for axis, name in enumerate(("px", "py")):
        if values.get(name) is None and principal is not None:
            values[name] = principal[axis]
    azimuth, elevation, theta = (_angle(values, name) for name in ("azimuth", "elevation", "theta"))
    px, py = _pixels(values, "px"), _pixels(values, "py")
    extra, faults = _extra(raw, (px, py)), []
    bbox = _bbox(values)
    if min(bbox[2] - bbox[0], bbox[3] - bbox[1]) < 1 / MAX_NUMBER:
        if not published:
            raise AnnotationError(
                "bbox malformed",
                f"'bbox' {list(bbox)} is empty; it must be (x1, y1, x2, y2) with x1 < x2, y1 < y2",
            )
        faults.append("bbox malformed")
        extra["bbox"] = list(bbox)
        x1, y1, x2, y2 = bbox
        bbox = min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)
    return AnnotatedObject(
        azimuth,
        elevation,
        theta,
        distance=_positive(values, "distance"),
        px=px,
        py=py,
        bbox=bbox,
        category=_text(values, "class"),
        focal=_positive(values, "focal", DEFAULT_FOCAL),
        viewport=_positive(values, "viewport", DEFAULT_VIEWPORT),
        height=_count(values, "height"),
        width=_count(values, "width"),
        object_status=object_status(raw) or "",
        cad_index=_count(values, "cad_index"),
        dense=_text(values, "dense"),
        source=_text(values, "source"),
        instance=_text(values, "instance"),
        extra=extra,
        absent=tuple(name for name in _PARSED_FIELDS if raw.get(name) is None),
        faults=tuple(faults),
    )


def plain(value: Any) -> Any:
    """Numpy values as Python's, through containers: int(numpy.uint16) does not overflow in arithmetic.

    What JSON or UTF-8 could not hold, lone surrogates and integers of thousands of digits, becomes text that says it.
    """
    if isinstance(value, np.generic):
        item = value.item()  # of long double it is itself
        return (
            float(item) if isinstance(item, np.floating) else str(item) if isinstance(item, np.generic) else plain(item)
        )
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        return hex(value)
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(plain(key)): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((plain(item) for item in value), key=repr)
    if isinstance(value, (bytes, bytearray)):
        return value.decode("utf-8", errors="replace")
    if isinstance(value, complex):
        return [value.real, value.imag]
    return value


def _extra(raw: Mapping[str, Any], center: tuple[float, float]) -> dict[str, Any]:
    extra = {plain(name): plain(value) for name, value in raw.items() if name not in _PARSED_FIELDS}
    # principal repeats px and py; where it does not, it is kept
    principal = plain(raw.get("principal"))
    if principal is not None and _numbers(principal, 2) != list(center):
        extra["principal"] = principal
    return extra


def _number(values: Mapping[str, Any], name: str, default: float | None = None) -> float:
    value = plain(values.get(name))
    if isinstance(value, list) and len(value) == 1:  # older files wrap numbers in arrays of one
        value = value[0]
    if value is None:
        if default is None:
            raise AnnotationError(f"{name} missing", f"'{name}' is missing; annotate it or take the object out")
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise AnnotationError(f"{name} malformed", f"'{name}' must be a number, not {str(value)[:40]!r}; mend it")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise AnnotationError(f"{name} not finite", f"'{name}' is {number}; annotate it or take the object out")
    return number


def _angle(values: Mapping[str, Any], name: str) -> float:
    angle = _number(values, name)
    if abs(angle) > MAX_ANGLE:
        raise AnnotationError(f"{name} out of range", f"'{name}' is {angle:g}, which cannot be radians; convert it")
    return angle


def _pixels(values: Mapping[str, Any], name: str) -> float:
    number = _number(values, name)
    if abs(number) > MAX_NUMBER:
        raise AnnotationError(f"{name} out of range", f"'{name}' is {number:g}, a place in no image; annotate it again")
    return number


def _positive(values: Mapping[str, Any], name: str, default: float | None = None) -> float:
    number = _number(values, name, default)
    if number <= 0:
        raise AnnotationError(f"{name} not positive", f"'{name}' is {number:g} and must be positive; annotate it again")
    if not 1 / MAX_NUMBER <= number <= MAX_NUMBER:
        raise AnnotationError(f"{name} out of range", f"'{name}' is {number:g}, beyond all measure; annotate it again")
    return number


def _count(values: Mapping[str, Any], name: str) -> int:
    number = _number(values, name, 0.0)
    if not 0 <= number <= MAX_COUNT or number != int(number):
        raise AnnotationError(f"{name} malformed", f"'{name}' is {number:g} and must be a whole number; mend it")
    return int(number)


def _text(values: Mapping[str, Any], name: str) -> str:
    value = plain(values.get(name))
    return "" if value is None else value if isinstance(value, str) else json.dumps(value, default=str)


def _numbers(value: Any, count: int) -> list[float] | None:
    value = plain(value)
    if not isinstance(value, list) or len(value) != count:
        return None
    if not all(isinstance(n, (int, float)) and not isinstance(n, bool) for n in value):
        return None
    try:
        numbers = [float(n) for n in value]
    except OverflowError:
        return None
    return numbers if all(map(math.isfinite, numbers)) else None


def _bbox(values: Mapping[str, Any]) -> tuple[float, float, float, float]:
    if values.get("bbox") is None:
        raise AnnotationError("bbox missing", "'bbox' is missing; annotate it or take the object out")
    box = _numbers(values["bbox"], 4)
    if box is None:
        raise AnnotationError("bbox malformed", "'bbox' must be four finite numbers (x1, y1, x2, y2); mend it")
    if max(map(abs, box)) > MAX_NUMBER:
        raise AnnotationError("bbox malformed", f"'bbox' {box} is a place in no image; annotate it again")
    return tuple(box)  # type: ignore[return-value]
