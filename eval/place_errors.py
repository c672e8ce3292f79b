"""Errors of where predicted objects are: distance, principal point, reprojected corners, and ADD on the CAD model.

A camera that looks at its object (docs/POSE.md) has the object's origin on its axis. Two poses of one picture whose principal
points differ are put into one camera by moving the predicted object sideways, by as much as its principal point is off at its
distance.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from eval.compared import Sample, require_annotation
from llava_pose.data.records import ObjectRecord, Pose, Prediction, read_records
from llava_pose.errors import InputError
from llava_pose.pose import categories
from llava_pose.pose.bootstrap import Figure, instance_codes
from llava_pose.pose.geometry import rotation_matrix
from llava_pose.pose.meshes import off_vertices
from llava_pose.utils.config import require_folder
from llava_pose.utils.yaml_files import read_yaml

logger = logging.getLogger(__name__)
WITHIN = 0.1  # of the distance, of the box, of the model's diagonal: below it an object counts as found
MOST = 10.0  # errors are no larger: what a failure, which has no number, counts
MEASURES = ("distance", "centre", "corners", "add")
_MOST_VERTICES = 1000  # of a CAD model; of more an even choice
_UNIT = 1 / math.sqrt(3)  # the side of a cube of unit diagonal, which stands for categories without a model


@dataclass(frozen=True)
class Shape:
    """The measurements of one object beside its pose: pixels are those of the prepared picture, lengths object units.

    Attributes:
        camera: viewport times focal length, pixels.
        box: the longer side of its bounding box, pixels.
        corners: (8, 3) of its category's cuboid.
        vertices: (n, 3) of its CAD model, and ``diagonal`` that of their bounding box; None where there is no model.
    """

    camera: float
    box: float
    corners: np.ndarray
    vertices: np.ndarray | None
    diagonal: float


def read_shapes(
    data: str | None,
    split: str,
    cad: str | None,
    samples: Sequence[Sample],
    answers: Mapping[str, Sequence[Prediction | None]],
) -> dict[str, Shape] | None:
    """Return the shape of each sample that a prepared folder holds, by id; None without one, or if no system predicts places.

    Args:
        cad: the folder with <category>/NN.off; by default that of the raw data set that the folder was prepared of.

    Raises:
        InputError: there is no such folder or split, it holds none of the samples, or it annotates one otherwise.
    """
    if data is None:
        if cad is not None:
            raise InputError("--cad: is for scores of places; give --data PREPARED, too")
        return None
    if not any(map(predicts_places, answers.values())):
        return None
    folder = require_folder(data, "--data", "give the prepared folder that was predicted")
    records = {record.id: record for record in read_records(folder, split, faults=[])}
    known = [sample for sample in samples if sample.id in records]
    if not known:
        raise InputError(
            f"--data {data}: {split} holds none of the objects that were predicted; give theirs, or another --split"
        )
    for sample in known:
        line = Prediction(sample.id, "", sample.category, None, None, sample.true)
        require_annotation(line, records[sample.id], f"--data {data}: {sample.id!r}, as it was predicted,")
    models = _Models(_cad_folder(folder, cad))
    return {sample.id: models.shape(records[sample.id]) for sample in known}


def predicts_places(answers: Sequence[Prediction | None]) -> bool:
    """Return whether a system predicts where objects are, and not their rotation alone."""
    return any(
        answer is not None and answer.pose is not None and answer.pose.distance is not None for answer in answers
    )


def place_errors(
    samples: Sequence[Sample], answers: Sequence[Prediction | None], shapes: Mapping[str, Shape] | None
) -> pd.DataFrame | None:
    """Return a system's errors of place, a row a sample; None where it predicts no places.

    Columns are :data:`MEASURES`: the distance's error as a share of the distance; the principal point's, and the mean of the
    eight reprojected corners of the category's cuboid, as shares of the longer side of the box; the mean distance of the
    model's vertices, as a share of its diagonal. NaN where it cannot be measured, :data:`MOST` where there is no usable answer.
    """
    if not predicts_places(answers):
        return None
    pred = _numbers([None if answer is None else answer.pose for answer in answers])
    true = _numbers([sample.true for sample in samples])
    usable, whole = (np.isfinite(numbers).all(axis=1) & (numbers[:, 3] > 0) for numbers in (pred, true))
    rows = np.full((len(samples), len(MEASURES)), math.nan)
    with np.errstate(over="ignore", invalid="ignore"):
        rows[whole, 0] = np.where(usable, abs(pred[:, 3] - true[:, 3]) / true[:, 3], MOST)[whole]
    for number in np.flatnonzero(whole).tolist() if shapes else ():
        sample, answer = samples[number], answers[number]
        shape = shapes.get(sample.id) if shapes else None
        if shape is None:
            continue
        measured = slice(1, 3 if shape.vertices is None else 4)
        rows[number, measured] = MOST
        if usable[number]:
            errors = _errors_of_shape(answer.pose, sample.true, shape)  # type: ignore[arg-type, union-attr]
            rows[number, measured] = np.nan_to_num(errors, nan=MOST, posinf=MOST)[: measured.stop - 1]
    return pd.DataFrame(np.minimum(rows, MOST), columns=list(MEASURES))


def _numbers(poses: Sequence[Pose | None]) -> np.ndarray:
    """Return (n, 6) angles, distance and principal point, NaN where there is none."""
    unknown = (None,) * 6
    return np.array([unknown if p is None else (*p.angles, p.distance, p.px, p.py) for p in poses], dtype=np.float64)


def place_figures(errors: pd.DataFrame, instances: np.ndarray) -> dict[str, Any]:
    """Return each measure's n, and the Figures of its median and share of errors below :data:`WITHIN`; none of no objects."""
    figures: dict[str, Any] = {}
    for name in MEASURES:
        there = errors[name].notna().to_numpy()
        if there.any():
            values, codes = errors[name].to_numpy()[there], instance_codes(instances[there], int(there.sum()))
            within = Figure(values < WITHIN, codes=codes)
            figures[name] = {"n": len(values), "median": Figure(values, "median", codes), "within": within}
    return figures


@np.errstate(over="ignore", invalid="ignore")  # of an answer that is far beyond the picture
def _errors_of_shape(pose: Pose, true: Pose, shape: Shape) -> tuple[float, float, float]:
    off = np.array([pose.px - true.px, true.py - pose.py])  # type: ignore[operator]  # right and up
    pixels = [_pixels(_in_camera(shape.corners, p), shape.camera) for p in (true, pose)]
    of_corners = np.linalg.norm(pixels[1] + off - pixels[0], axis=1).mean() / shape.box
    add = math.nan
    if shape.vertices is not None:
        # in the true pose's camera, on whose axis the predicted object does not stand
        aside = np.array([*off, 0.0]) * pose.distance / shape.camera
        apart = _in_camera(shape.vertices, pose) + aside - _in_camera(shape.vertices, true)
        add = float(np.linalg.norm(apart, axis=1).mean() / shape.diagonal)
    return float(np.linalg.norm(off) / shape.box), float(of_corners), add


def _in_camera(points: np.ndarray, pose: Pose) -> np.ndarray:
    return points @ rotation_matrix(*pose.angles).T - np.array([0.0, 0.0, pose.distance])


def _pixels(points: np.ndarray, camera: float) -> np.ndarray:
    """Return where points before a camera are seen, pixels right and up from the principal point; NaN for those behind it."""
    return camera * points[:, :2] / np.where(points[:, 2:] < 0, -points[:, 2:], math.nan)


def _cad_folder(prepared: Path, cad: str | None) -> Path | None:
    """Return the folder of CAD models: the one named, or that of the raw data set (or one folder deeper), if it is there."""
    if cad is not None:
        return require_folder(cad, "--cad", "give the folder with <category>/NN.off")
    settings = prepared / "prepare.yaml"
    if not settings.is_file():
        return None
    root = Path(str(read_yaml(settings).get("data_root", "")))
    return next((folder for folder in (root / "CAD", *sorted(root.glob("*/CAD"))) if folder.is_dir()), None)


class _Models:
    """The CAD models of a folder, each read once."""

    def __init__(self, cad: Path | None) -> None:
        folders = sorted(folder for folder in cad.iterdir() if folder.is_dir()) if cad is not None else []
        self._folders = {categories.get(folder.name, allow_custom=True).name: folder for folder in folders}
        self._corners: dict[str, np.ndarray] = {}
        self._vertices: dict[Path, tuple[np.ndarray, float] | None] = {}

    def shape(self, record: ObjectRecord) -> Shape:
        category = categories.get(record.category, allow_custom=True).name
        if category not in self._corners:
            self._corners[category] = self._cuboid(category)
        x1, y1, x2, y2 = record.bbox
        vertices, diagonal = self._model(category, record.source.get("cad_index"))
        box = max(abs(x2 - x1), abs(y2 - y1), 1.0)
        return Shape(record.viewport * record.focal, box, self._corners[category], vertices, diagonal)

    def _cuboid(self, category: str) -> np.ndarray:
        """Return the corners of the mean bounding box of a category's models; without any, of a cube of unit diagonal."""
        files = sorted(self._folders[category].glob("*.off")) if category in self._folders else []
        low, high = np.full(3, -_UNIT / 2), np.full(3, _UNIT / 2)
        models = [model for file in files if (model := self._read(file)) is not None]
        if models:
            low, high = np.mean([(v.min(0), v.max(0)) for v, _ in models], axis=0)
        return np.array([(x, y, z) for x in (low[0], high[0]) for y in (low[1], high[1]) for z in (low[2], high[2])])

    def _model(self, category: str, cad_index: Any) -> tuple[np.ndarray | None, float]:
        if category not in self._folders or not isinstance(cad_index, int):
            return None, 1.0
        file = self._folders[category] / f"{cad_index:02d}.off"
        model = self._read(file) if file.is_file() else None
        if model is None:
            return None, 1.0
        vertices, diagonal = model
        return vertices[:: math.ceil(len(vertices) / _MOST_VERTICES)], diagonal

    def _read(self, file: Path) -> tuple[np.ndarray, float] | None:
        """Return vertices and diagonal; None of a file that cannot be read, which the log names: it stops no score."""
        if file not in self._vertices:
            try:
                vertices = off_vertices(file)
                self._vertices[file] = vertices, float(np.linalg.norm(np.ptp(vertices, axis=0))) or 1.0
            except InputError as error:
                logger.warning("%s; nothing is scored on this model", error)
                self._vertices[file] = None
        return self._vertices[file]
