"""ImageNet3D's processed layout, which its published loaders read: one picture and one flat npz an object.

::

    <split>/images/<category>/<name>.JPEG
    <split>/annotations/<category>/<name>.npz     plain arrays, no pickles: numpy.load(path) reads it
    <split>/lists/<category>/mesh01.txt           the names, one a line

The published fields have their published names and meaning; what they have no place for stands beside them under names of
our own, so that nothing of a record is lost and :func:`read_processed` and :func:`raw_annotation` give all of it back.
Files that the published code wrote are read as well.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from data_prep.raw.imagenet3d import MAX_COUNT, read_list
from data_prep.raw.safe_npz import read_npz, shown
from llava_pose.data.images import DECODING_ERRORS, open_image
from llava_pose.data.jsonl import parse_json
from llava_pose.data.records import ObjectRecord, Pose
from llava_pose.errors import InputError
from llava_pose.pose import categories
from llava_pose.pose.geometry import crop_principal
from llava_pose.utils.files import is_plain_name

LIST_NAME = "mesh01.txt"  # the published layout has one list for each mesh of a category, and one mesh
_SOURCE_DEFAULTS: dict[str, Any] = {
    **{"image": "", "annotation": "", "object_index": 0, "width": 0, "height": 0, "exif_transposed": False},
    **{"class": "", "cad_index": 0, "dense": "", "source": "", "instance": "", "extra": "{}", "absent": ""},
}


@dataclass(frozen=True)
class ProcessedLayout:
    """The paths in one split of a processed folder."""

    root: Path
    split: str

    def image(self, category: str, name: str) -> Path:
        return self.root / self.split / "images" / category / f"{name}.JPEG"

    def annotation(self, category: str, name: str) -> Path:
        return self.root / self.split / "annotations" / category / f"{name}.npz"

    def list_file(self, category: str) -> Path:
        return self.root / self.split / "lists" / category / LIST_NAME

    def categories(self) -> list[str]:
        return sorted(path.parent.name for path in (self.root / self.split / "lists").glob(f"*/{LIST_NAME}"))


def filed_under(record: ObjectRecord) -> str:
    """Return the category folder of a record: the raw data's own, by its own spelling, if the object is of that category."""
    folder = record.id.split("/")[0]
    same = _canonical(folder) == _canonical(record.category)
    return folder if same else record.category


def _canonical(name: str) -> str:
    return categories.get(name, allow_custom=True).name


def flat_annotation(record: ObjectRecord, name: str, *, published_distance: bool) -> dict[str, np.ndarray]:
    """Return a record as the arrays of a flat npz.

    Args:
        name: of the object's files, without suffix.
        published_distance: write ``distance`` as the published preprocessing does, divided by the resize rate, and
            ``viewport`` as it was before; the projection is then off by up to 32 pixels for near objects
            (docs/POSE.md). Otherwise the distance is the object's and the viewport that of the picture.
    """
    raw = raw_annotation(record, absent_too=True)
    pose, source, crop = record.pose, {**_SOURCE_DEFAULTS, **record.source}, record.crop
    left, top, scale = crop["left"], crop["top"], crop["scale"]
    width, height = source["width"] * scale, source["height"] * scale
    shift_x, shift_y = left * scale, top * scale
    # (top, bottom, left, right, 0, 0); whole pixels in the published code, which rounds its crops
    padding = (-shift_y, shift_y + record.height - height, -shift_x, shift_x + record.width - width, 0, 0)
    values: dict[str, Any] = {
        "name": name,
        "class": record.category,
        "bbox": record.bbox,
        "bbox_original": raw["bbox"],
        "principal": (pose.px, pose.py),
        "principal_original": raw["principal"] if np.shape(raw["principal"]) == (2,) else (raw["px"], raw["py"]),
        "px": pose.px,
        "py": pose.py,
        "px_original": raw["px"],
        "py_original": raw["py"],
        "distance": raw["distance"] / scale if published_distance else pose.distance,
        "distance_original": raw["distance"],
        "azimuth": pose.azimuth,
        "elevation": pose.elevation,
        "theta": pose.theta,
        "cad_index": source["cad_index"],
        "focal": record.focal,
        "viewport": raw["viewport"] if published_distance else record.viewport,
        "padding_params": np.maximum(padding, 0.0),
        "cropping_params": np.maximum(np.negative(padding), 0.0),
        "resize_rate": scale,
        # ours
        "viewport_original": raw["viewport"],
        "object_status": record.object_status,
        **{f"{field}_original": source[field] for field in ("width", "height", "class", "image", "annotation")},
        **{field: source[field] for field in ("object_index", "exif_transposed", "dense", "source", "instance")},
        **{field: source[field] for field in ("extra", "absent")},
        "id": record.id,
        "crop": (left, top, scale),
    }
    return {field: np.asarray(value) for field, value in values.items()}


def published_annotation(record: ObjectRecord, name: str) -> dict[str, np.ndarray]:
    """Return a record of ``prepare --profile published`` as the published preprocessing writes it, its y2 of boxes included.

    The published fields have the published values: whole pixels of padding and cropping, the origin in the middle of the
    picture, the distance divided by the resize rate and the raw viewport. Our own stand beside them as in
    :func:`flat_annotation`.
    """
    values = flat_annotation(record, name, published_distance=True)
    rate, middle = float(values["resize_rate"]), record.width // 2
    sizes = [int(float(values[f"{side}_original"]) * rate) for side in ("height", "width")]
    centres = [round(float(record.crop[edge]) * rate) + middle for edge in ("top", "left")]
    padding = [(max(middle - c, 0), max(middle + c - size, 0)) for c, size in zip(centres, sizes, strict=True)]
    padded = [size + sum(pads) for size, pads in zip(sizes, padding, strict=True)]
    cropping = [(max(c - middle, 0), max(side - c - middle, 0)) for c, side in zip(centres, padded, strict=True)]
    (above, below), (before, _) = padding
    x1, y1, x2, y2 = np.asarray(values["bbox_original"], dtype=float) * rate
    right, down = before - cropping[1][0], -cropping[0][0]
    published: dict[str, Any] = {
        "class": filed_under(record),
        # y2 is moved by what is padded below, in the published code
        "bbox": (x1 + right, y1 + above + down, x2 + right, y2 + below + down),
        "principal": (record.width / 2, record.height / 2),
        "px": record.width / 2,
        "py": record.height / 2,
        "padding_params": [*padding[0], *padding[1], 0, 0],
        "cropping_params": [*cropping[0], *cropping[1], 0, 0],
    }
    return {**values, **{field: np.asarray(value) for field, value in published.items()}}


def npz_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Return the bytes of an npz file; the same arrays give the same bytes."""
    stream = io.BytesIO()
    np.savez(stream, **cast(Mapping[str, Any], arrays))
    return stream.getvalue()


def raw_annotation(record: ObjectRecord, *, absent_too: bool = False) -> dict[str, Any]:
    """Return the raw annotation that a record was prepared from, to float precision, as
    :func:`data_prep.raw.imagenet3d.write_annotation` takes it.

    Args:
        absent_too: with fields that the raw annotation had not, as they were made up for.

    Raises:
        InputError: the record does not say how it was cropped, or what its picture was before.
    """
    pose, source = record.pose, {**_SOURCE_DEFAULTS, **record.source}
    try:
        left, top, scale = (float(record.crop[name]) for name in ("left", "top", "scale"))
    except KeyError as error:
        raise InputError(f"record {record.id!r}: 'crop' has no {error}; run llava-pose prepare again") from error
    extra = _checked_extra(record, source)
    px, py = cast(float, pose.px) / scale + left, cast(float, pose.py) / scale + top
    x1, y1, x2, y2 = record.bbox
    values: dict[str, Any] = {
        "azimuth": pose.azimuth,
        "elevation": pose.elevation,
        "theta": pose.theta,
        "distance": pose.distance,
        "focal": record.focal,
        "viewport": record.viewport / scale,
        "px": px,
        "py": py,
        "principal": extra.pop("principal", (px, py)),
        "cad_index": source["cad_index"],
        "height": _size(source["height"]),
        "width": _size(source["width"]),
        "bbox": extra.pop("bbox", (x1 / scale + left, y1 / scale + top, x2 / scale + left, y2 / scale + top)),
        "class": source["class"],
        "object_status": record.object_status,
        "dense": source["dense"],
        "source": source["source"],
        "instance": source["instance"],
    }
    for name in ("principal", "bbox"):
        if np.shape(values[name]) == (len(values[name]),):
            values[name] = np.asarray(values[name], dtype=float)
    absent = () if absent_too else source["absent"].split()
    return {**{name: value for name, value in values.items() if name not in absent}, **extra}


def _checked_extra(record: ObjectRecord, source: Mapping[str, Any]) -> dict[str, Any]:
    """Return the raw fields that have no place of their own, of a record that has all that an annotation needs."""
    remedy = "run llava-pose prepare again"
    for name in ("distance", "px", "py"):
        if getattr(record.pose, name) is None:
            raise InputError(f"record {record.id!r}: its pose has no '{name}'; {remedy}")
    for name, default in _SOURCE_DEFAULTS.items():
        value = source[name]
        if not isinstance(value, type(default)) or (isinstance(value, int) and not 0 <= value <= MAX_COUNT):
            raise InputError(f"record {record.id!r}: '{name}' of its source is {shown(value)!r}; {remedy}")
    try:
        extra = parse_json(source["extra"])
    except ValueError as error:
        raise InputError(f"record {record.id!r}: 'extra' of its source is no JSON ({error}); {remedy}") from error
    if not isinstance(extra, dict):
        raise InputError(f"record {record.id!r}: 'extra' of its source is no JSON object; {remedy}")
    return extra


def _size(pixels: int) -> int | np.uint16:
    """Return a size as ImageNet3D writes it, if it fits."""
    return np.uint16(pixels) if pixels <= np.iinfo(np.uint16).max else pixels


def read_processed(root: str | Path, split: str) -> Iterator[ObjectRecord]:
    """Yield the records of one split of a processed folder, in the order of its lists.

    ``file_name`` starts from the split's folder. Of files that the published code wrote, which rounds its crops and leaves
    out status and source, the exact fields are taken: the raw ones and the mapping.

    Raises:
        InputError: there is no such split, or a file is missing, damaged or has no such field; the sentence names it.
    """
    layout = ProcessedLayout(Path(root), split)
    names = layout.categories()
    if not names:
        lists = layout.root / split / "lists"
        raise InputError(f"{lists}: no <category>/{LIST_NAME} in it; make it with llava-pose export")
    for category in names:
        for name in read_list(layout.list_file(category)):
            if not is_plain_name(name):
                raise InputError(f"{layout.list_file(category)}: {name!r} is no plain file name; mend the list")
            yield read_object(layout, category, name)


def read_object(layout: ProcessedLayout, category: str, name: str) -> ObjectRecord:
    """One object of a processed folder.

    Raises:
        InputError: as :func:`read_processed`.
    """
    path = layout.annotation(category, name)
    fields = _Fields(path, read_npz(path))
    image = layout.image(category, name)
    try:
        with open_image(image) as picture:
            width, height = picture.size
    except DECODING_ERRORS as error:
        raise InputError(f"{image}: cannot read the picture; export it again") from error
    if "crop" in fields:
        left, top, scale = fields.numbers("crop", 3)
    else:
        scale = fields.number("resize_rate")
        padding, cropping = fields.numbers("padding_params", 6), fields.numbers("cropping_params", 6)
        left, top = (cropping[2] - padding[2]) / scale, (cropping[0] - padding[0]) / scale
    raw_viewport = fields.number("viewport_original" if "viewport_original" in fields else "viewport")
    px, py, viewport = crop_principal(
        *(fields.number("px_original"), fields.number("py_original"), raw_viewport), left=left, top=top, scale=scale
    )
    x1, y1, x2, y2 = fields.numbers("bbox_original", 4)
    source = dict(_SOURCE_DEFAULTS)
    for field in ("width", "height", "class", "image", "annotation"):
        if f"{field}_original" in fields:
            source[field] = fields.plain(f"{field}_original")
    for field in ("object_index", "exif_transposed", "cad_index", "dense", "source", "instance", "extra", "absent"):
        if field in fields:
            source[field] = fields.plain(field)
    return ObjectRecord(
        file_name=image.relative_to(layout.root / layout.split).as_posix(),
        id=str(fields.plain("id")) if "id" in fields else f"{category}/{name}/0",
        category=str(fields.plain("class")),
        pose=Pose(
            fields.number("azimuth"),
            fields.number("elevation"),
            fields.number("theta"),
            distance=fields.number("distance_original"),
            px=float(px),
            py=float(py),
        ),
        viewport=float(viewport),
        width=width,
        height=height,
        bbox=((x1 - left) * scale, (y1 - top) * scale, (x2 - left) * scale, (y2 - top) * scale),
        focal=fields.number("focal"),
        object_status=str(fields.plain("object_status")) if "object_status" in fields else "status_good",
        crop={"left": left, "top": top, "scale": scale},
        source=source,
    )


class _Fields:
    """The arrays of a flat npz by name, with errors that name file and field."""

    def __init__(self, path: Path, arrays: Mapping[str, np.ndarray]) -> None:
        self._path = path
        self._arrays = arrays

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def plain(self, name: str) -> Any:
        if name not in self._arrays:
            raise InputError(f"{self._path}: has no '{name}'; export it again")
        return self._arrays[name].tolist()

    def numbers(self, name: str, count: int) -> list[float]:
        values = np.ravel(self.plain(name)).tolist()
        if len(values) != count or not all(isinstance(value, (int, float)) for value in values):
            raise InputError(f"{self._path}: '{name}' must be {count} numbers, not {str(values)[:60]}; export it again")
        return [float(value) for value in values]

    def number(self, name: str) -> float:
        return self.numbers(name, 1)[0]
