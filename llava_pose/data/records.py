"""The two types that every stage passes on: :class:`ObjectRecord` (one annotated object) and :class:`Prediction` (one
system's answer for one object), with their JSON Lines readers and writers.

Angles are radians. Pixels are edge coordinates of the image the line names: the left edge is 0, the right its width.
"""

from __future__ import annotations

import json
import math
import numbers
import os
import re
import reprlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeGuard

from llava_pose.data.jsonl import read_jsonl, write_jsonl
from llava_pose.errors import InputError, joined
from llava_pose.pose import categories
from llava_pose.pose.geometry import canonicalize
from llava_pose.utils.files import is_plain_name, is_regular, shortened, unsafe_name

METADATA_FILE = "metadata.jsonl"

MAX_ANGLE = 4 * math.pi  # radians are written in [0, 2 pi) or (-pi, pi]; what is far outside is in degrees

MAX_NUMBER = 1e30  # of pixels and lengths in prepared data: beyond it, and beyond its inverse, float32 loses them

MAX_ORDER = 360  # turns of a symmetry that a prediction may claim

_MOST_ROTATIONS = 100  # of a prediction set

_ANGLES, _PLACE = ("azimuth", "elevation", "theta"), ("distance", "px", "py")

_INDEX = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True)
class Pose:
    """A 6D pose (docs/POSE.md). Distance, px and py may be unknown (None) in the answer of a system that has only angles.

    azimuth, elevation, theta: radians. distance: object units. px, py: pixels, where the object's origin projects.
    """

    azimuth: float
    elevation: float
    theta: float
    distance: float | None = None
    px: float | None = None
    py: float | None = None

    @property
    def angles(self) -> tuple[float, float, float]:
        return self.azimuth, self.elevation, self.theta

    def degrees(self) -> tuple[float, float, float]:
        """Azimuth in [0, 360), elevation in [-90, 90] and in-plane rotation in [-180, 180]."""
        azimuth, elevation, theta = (math.degrees(float(angle)) for angle in canonicalize(*self.angles))
        return azimuth % 360.0, elevation, theta

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], *, where: str) -> Pose:
        """A pose from JSON. An angle that is null or not a number becomes NaN (and scores as an error of pi).

        Raises:
            InputError: not a mapping, an angle is missing, or a value cannot be a number; ``where`` names the place.
        """
        if not isinstance(value, Mapping):
            raise InputError(f"{where}: a pose must be an object with azimuth, elevation and theta in radians")
        values: dict[str, float | None] = {}
        for name in (*_ANGLES, *_PLACE):
            number = value.get(name)
            if type(number) is float:  # as nearly always, of a million lines
                values[name] = number
                continue
            required = name in _ANGLES
            if required and name not in value:
                raise InputError(f"{where}: the pose has no '{name}'; give azimuth, elevation and theta in radians")
            if isinstance(number, bool):  # which Python takes for 0 and 1
                raise InputError(f"{where}: '{name}' must be a number, not {number}")
            try:
                values[name] = (math.nan if required else None) if number is None else float(number)
            except (TypeError, ValueError, OverflowError) as error:
                raise InputError(f"{where}: '{name}' must be a number, not {_shorten(number)}") from error
        return cls(**values)  # type: ignore[arg-type]

    @classmethod
    def annotated(cls, value: Mapping[str, Any], *, where: str) -> Pose:
        """An annotated pose from JSON: one that can be learned from and measured against.

        Raises:
            InputError: as :meth:`from_dict`, or :meth:`fault` finds something, or a number is text.
        """
        pose = cls.from_dict(value, where=where)
        text = next((name for name in vars(pose) if isinstance(value.get(name), str)), None)
        fault = pose.fault() if text is None else f"'{text}' must be a number, not {_shorten(value[text])}"
        if fault is not None:
            raise InputError(f"{where}: {fault}; mend or drop it")
        return pose

    def to_dict(self) -> dict[str, float | None]:
        """JSON-ready: what is not finite becomes null."""
        return {name: float(value) if _is_number(value) else None for name, value in vars(self).items()}

    def fault(self) -> str | None:
        """Return why nothing can be learned from an annotated pose, in words, or None if it can. What is unknown may be."""
        for name in _ANGLES:
            angle = getattr(self, name)
            if not math.isfinite(angle):
                return "an angle of its pose is not finite"
            if abs(angle) > MAX_ANGLE:
                return f"'{name}' is {angle:g}, which cannot be radians"
        if self.distance is not None and not is_size(self.distance):
            return f"'distance' is {self.distance:g} and must be positive, and in units of the object's size"
        for name in ("px", "py"):
            pixels = getattr(self, name)
            if pixels is not None and not abs(pixels) <= MAX_NUMBER:
                return f"'{name}' is {pixels:g}, a place in no picture"
        return None


def pose_targets_of(pose: Pose, *, width: float, height: float, viewport: float) -> list[float]:
    """The six numbers the model learns of a pose: three angles in radians and the normalised location (NaN if unknown)."""
    known = [value for value in (pose.distance, pose.px, pose.py) if value is not None and math.isfinite(value)]
    if len(known) < 3 or known[0] <= 0:
        return [*pose.angles, math.nan, math.nan, math.nan]
    distance, px, py = known
    side = max(width, height)
    return [*pose.angles, math.log(viewport / (distance * side)), px / width - 0.5, py / height - 0.5]


@dataclass(frozen=True)
class ObjectRecord:
    """One annotated object and the prepared image that shows it: one line of ``prepared/<split>/metadata.jsonl``.

    Attributes:
        file_name: the image, relative to the folder of the metadata file.
        id: unique over the dataset: ``<category>/<name>/<index of the object in its annotation file>``.
        category: as in the source (``llava_pose.pose.categories`` resolves aliases).
        pose: in the prepared image.
        viewport: pixels of the prepared image per unit focal length.
        focal: focal length (1 in ImageNet3D).
        width, height: of the prepared image, pixels.
        bbox: (x1, y1, x2, y2) in the prepared image, not clipped to it.
        object_status: ``status_good``, ``status_partially``, ``status_barely`` or ``status_bad``.
        crop: how the raw image became the prepared one: prepared = (raw - (left, top)) * scale.
        source: where it came from, with every raw field that has no place above, so that nothing is lost.

    Raises:
        InputError: file_name leads out of its folder, or id or category cannot name files: other commands make paths of them.
    """

    file_name: str
    id: str
    category: str
    pose: Pose
    viewport: float
    width: int
    height: int
    bbox: tuple[float, float, float, float]
    focal: float = 1.0
    object_status: str = "status_good"
    crop: dict[str, float] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        reason = unsafe_name(self.file_name)
        if reason is not None:
            raise InputError(f"'file_name' {shortened(self.file_name)} {reason}; mend the data set")
        *names, index = self.id.split("/")
        if len(names) != 2 or not all(map(is_plain_name, names)) or not _INDEX.fullmatch(index):
            raise InputError(
                f"'id' must be <category>/<name>/<number of the object>, not {shortened(self.id)}; mend it"
            )
        if not is_plain_name(self.category):
            raise InputError(f"'category' {shortened(self.category)} cannot name a category; mend it")

    @property
    def occluded(self) -> bool:
        return self.object_status != "status_good"

    def to_dict(self) -> dict[str, Any]:
        own = {**vars(self), "crop": dict(self.crop), "source": dict(self.source)}
        return {**own, "pose": self.pose.to_dict(), "bbox": list(self.bbox)}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], *, where: str) -> ObjectRecord:
        """A record from JSON.

        Raises:
            InputError: a field is missing, unknown or malformed, or a true angle is not finite; ``where`` names the place.
        """
        known = {f.name for f in fields(cls)}
        missing = {"file_name", "id", "category", "pose", "viewport", "width", "height", "bbox"} - value.keys()
        if missing:
            raise InputError(f"{where}: the record has no '{sorted(missing)[0]}'; run llava-pose prepare again")
        unknown = value.keys() - known
        if unknown:
            raise InputError(f"{where}: unknown field '{sorted(unknown)[0]}'; run llava-pose prepare again")
        pose = Pose.annotated(value["pose"], where=where)
        for name in ("file_name", "id", "category", "object_status"):
            if name in value and not isinstance(value[name], str):
                raise InputError(f"{where}: '{name}' must be text, not {_shorten(value[name])}")
        for name in ("width", "height", "viewport", "focal"):
            if name in value and not is_size(value[name]):
                raise InputError(f"{where}: '{name}' must be a positive number, not {_shorten(value[name])}")
        for name in ("crop", "source"):
            if name in value and not isinstance(value[name], dict):
                raise InputError(f"{where}: '{name}' must be a JSON object, not {_shorten(value[name])}")
        crop = value.get("crop", {})
        if not all(map(_is_place, crop.values())) or not is_size(crop.get("scale", 1)):
            raise InputError(f"{where}: 'crop' must hold numbers, 'scale' a positive one, not {_shorten(crop)}")
        try:
            json.dumps(value.get("source"), allow_nan=False)
        except ValueError as error:
            raise InputError(f"{where}: 'source' holds a number that is not finite; mend or drop it") from error
        if not isinstance(value.get("source", {}).get("image", ""), str):
            raise InputError(f"{where}: 'image' of 'source' must be text, not {_shorten(value['source']['image'])}")
        bbox = value["bbox"]
        if not isinstance(bbox, list | tuple) or len(bbox) != 4 or not all(map(_is_place, bbox)):
            raise InputError(f"{where}: 'bbox' must be four numbers x1, y1, x2, y2, not {_shorten(bbox)}")
        try:
            return cls(**{**value, "pose": pose, "bbox": tuple(bbox)})
        except InputError as error:
            raise InputError(f"{where}: {error}") from error


def is_size(value: Any) -> TypeGuard[float]:
    """Return whether it is a positive number that pixels and lengths can have."""
    return _is_number(value) and 1 / MAX_NUMBER <= value <= MAX_NUMBER


def _is_place(value: Any) -> bool:
    return _is_number(value) and abs(value) <= MAX_NUMBER


def _is_number(value: Any) -> TypeGuard[float]:
    """Say whether it is a finite number, Python's or numpy's."""
    try:
        return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False


def _shared(value: Any) -> str:
    """The text of a value, one object for all lines that say the same."""
    return sys.intern(str(value))


def _shorten(value: Any) -> str:
    return reprlib.repr(value)


@dataclass(frozen=True)
class Prediction:
    """One system's answer for one object: one line of predictions.jsonl, the same for every system there is.

    Attributes:
        id: the object's id: the same for every system that is compared.
        system: the system's name.
        category: the true category.
        pred_category: the predicted category; None if the system was given it or does not predict it.
        pose: the predicted pose; None if the system gave none (counts as a failure, with an error of pi).
        true: the annotated pose.
        confidence: the system's own, in [0, 1]; None if it has none.
        object_status: of the annotation, so that scores can tell occluded objects apart.
        source: the subset of the data the object is from, for grouping; "" if there is one only.
        instance: the thing that the picture shows, where several pictures may show it: a car, a CAD model; "" if unknown.
        dense: of the annotation, ``dense_yes`` where others of its kind stand close by, else ``dense_no``; "" if unknown.
        symmetry_order: how many turns about the vertical axis the system itself calls the same pose, where it finds that.
        prediction_set: azimuth, elevation and theta, radians, of the rotations that the system holds possible, the pose's
            first; None of a system that gives no such set.
    """

    id: str
    system: str
    category: str
    pred_category: str | None
    pose: Pose | None
    true: Pose
    confidence: float | None = None
    object_status: str = "status_good"
    source: str = ""
    instance: str = ""
    dense: str = ""
    symmetry_order: int | None = None
    prediction_set: Sequence[Sequence[float]] | None = None

    def to_dict(self) -> dict[str, Any]:
        pose = None if self.pose is None else self.pose.to_dict()
        confidence = float(self.confidence) if _is_number(self.confidence) else None
        rotations = self.prediction_set
        if rotations is not None and not all(_is_number(angle) for angles in rotations for angle in angles):
            rotations = None
        own = {**asdict(self), "pose": pose, "true": self.true.to_dict(), "confidence": confidence}
        return {**own, "prediction_set": rotations}

    @classmethod
    def of(
        cls,
        record: ObjectRecord,
        *,
        system: str,
        pose: Pose | None,
        pred_category: str | None,
        confidence: float | None,
        symmetry_order: int | None = None,
        prediction_set: Sequence[Sequence[float]] | None = None,
    ) -> Prediction:
        """A system's answer for an annotated object."""
        return cls(
            id=record.id,
            system=system,
            category=record.category,
            pred_category=pred_category,
            pose=pose,
            true=record.pose,
            confidence=confidence,
            object_status=record.object_status,
            source=str(record.source.get("source") or ""),
            instance=str(record.source.get("instance") or ""),
            dense=str(record.source.get("dense") or ""),
            symmetry_order=symmetry_order,
            prediction_set=prediction_set,
        )

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], *, where: str) -> Prediction:
        """A prediction from JSON; fields that this type has not are left alone, since other people write these files.

        Raises:
            InputError: a field is missing or malformed, or the true pose is not finite; ``where`` names the place.
        """
        if not isinstance(value, Mapping):
            raise InputError(f"{where}: expected a JSON object")
        for name in ("id", "category", "true"):
            if value.get(name) is None:
                raise InputError(f"{where}: the prediction has no '{name}'")
        true = Pose.from_dict(value["true"], where=f"{where}, 'true'")
        if not all(math.isfinite(angle) for angle in true.angles):
            raise InputError(f"{where}: an angle of the true pose is not finite; drop the line")
        raw_pose = value.get("pose")
        pose = None if raw_pose is None else Pose.from_dict(raw_pose, where=f"{where}, 'pose'")
        confidence = value.get("confidence")
        if _is_number(confidence) and not _is_place(confidence):  # sums and shares of it would be no numbers
            raise InputError(f"{where}: 'confidence' must be null or from 0 to 1, not {_shorten(confidence)}")
        order = value.get("symmetry_order")
        if order is not None and (not isinstance(order, int) or isinstance(order, bool) or not 0 <= order <= MAX_ORDER):
            raise InputError(
                f"{where}: 'symmetry_order' must be null or a whole number to {MAX_ORDER}, not {_shorten(order)}"
            )
        return cls(
            id=str(value["id"]),
            system=_shared(value.get("system") or "unnamed"),
            category=_shared(value["category"]),
            pred_category=None if value.get("pred_category") is None else _shared(value["pred_category"]),
            pose=pose,
            true=true,
            confidence=float(confidence) if _is_number(confidence) else None,
            object_status=_shared(value.get("object_status") or "status_good"),
            source=_shared(value.get("source") or ""),
            instance=_shared(value.get("instance") or ""),
            dense=_shared(value.get("dense") or ""),
            symmetry_order=order,
            prediction_set=_rotations(value.get("prediction_set"), where),
        )


def _rotations(value: Any, where: str) -> list[list[float]] | None:
    """Return a prediction set as it stands in somebody's line."""
    if value is None:
        return None
    if not isinstance(value, list) or not 0 < len(value) <= _MOST_ROTATIONS:
        raise InputError(f"{where}: 'prediction_set' must be null or a list of 1 to {_MOST_ROTATIONS} rotations")
    for angles in value:
        if not isinstance(angles, list) or len(angles) != 3 or not all(map(_is_number, angles)):
            raise InputError(
                f"{where}: each of 'prediction_set' must be three angles in radians, not {_shorten(angles)}"
            )
    return [[float(angle) for angle in angles] for angles in value]


def read_records(
    prepared: str | os.PathLike[str], split: str, *, faults: list[InputError] | None = None
) -> list[ObjectRecord]:
    """The records of one split of a prepared folder.

    Args:
        faults: gets what is wrong with lines that cannot be used, for callers that go on with the others; by default they
            are raised together.

    Raises:
        InputError: there is no such split, or a line is malformed or has the id of another.
    """
    path = Path(prepared) / split / METADATA_FILE
    if not is_regular(path):
        others = sorted(file.parent.name for file in Path(prepared).glob(f"*/{METADATA_FILE}"))
        if others:
            raise InputError(
                f"{prepared}: there is no split {split} in it, but {', '.join(others)}; give one that is there, or make it "
                f"with: llava-pose prepare --data-root … --out {prepared}"
            )
        raise InputError(
            f"{path}: there is no such file; make it with: llava-pose prepare --data-root … --out {prepared}"
        )
    found: list[InputError] = []
    records: dict[str, ObjectRecord] = {}
    for where, value in read_jsonl(path, on_bad_line=found.append):
        try:
            record = ObjectRecord.from_dict(value, where=where)
        except InputError as error:
            found.append(error.with_traceback(None))
            continue
        if record.id in records:
            found.append(InputError(f"{where}: the id {record.id!r} stands on two lines; ids must be unique"))
        records.setdefault(record.id, record)
    if faults is not None:
        faults += found
    elif found:
        raise joined(found, f"{path}: {len(found)} lines cannot be used; mend or drop them")
    return list(records.values())


def category_of(record: ObjectRecord) -> categories.Category:
    """Return a record's category as the taxonomy has it, whatever alias it was filed under, or one of the user's own."""
    return categories.get(record.category, allow_custom=True, source=record.id)


def write_records(prepared: str | os.PathLike[str], split: str, records: Iterable[ObjectRecord]) -> Path:
    """Write one split's metadata.jsonl and return its path."""
    path = Path(prepared) / split / METADATA_FILE
    write_jsonl(path, (record.to_dict() for record in records))
    return path


def read_predictions(path: str | os.PathLike[str], *, whole_lines_only: bool = False) -> list[Prediction]:
    """The predictions of one file; other people's systems may have written it.

    Args:
        whole_lines_only: as :func:`read_jsonl`.

    Raises:
        InputError: the file cannot be read or holds nothing, a line is malformed, or a system answers an id twice.
    """
    lines = read_jsonl(path, whole_lines_only=whole_lines_only)
    predictions = [Prediction.from_dict(value, where=where) for where, value in lines]
    if not predictions:
        raise InputError(f"{path}: there is no prediction in it")
    answered: dict[str, set[str]] = {}
    for prediction in predictions:
        ids = answered.setdefault(prediction.system, set())
        if prediction.id in ids:
            key = (prediction.system, prediction.id)
            raise InputError(f"{path}: the id {key!r} stands on two lines; ids must be unique")
        ids.add(prediction.id)
    return predictions
