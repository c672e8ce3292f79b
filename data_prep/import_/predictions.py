"""Our own predictions, with the prepared data that they were made of: predicted poses become labels of the same pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from data_prep.import_.items import ImportedObject, LeftOut, picture_in, rough_place
from llava_pose.data.records import read_predictions, read_records


def read_own(file: Path, prepared: Path, split: str, least: float) -> Iterator[ImportedObject | LeftOut]:
    """The objects of a predictions.jsonl.

    Args:
        prepared: the folder whose split was predicted.
        split: of the records, and of the lists that are written.
        least: the confidence from which on a prediction is taken.

    Raises:
        InputError: predictions or records cannot be read.
    """
    records = {record.id: record for record in read_records(prepared, split)}
    for prediction in read_predictions(file):
        where = f"{file}, id {prediction.id}"
        record = records.get(prediction.id)
        if record is None:
            yield LeftOut(
                where, "record missing", f"{where}: there is no such object in {prepared / split}; check --split"
            )
            continue
        pose = prediction.pose
        if pose is None or not all(map(math.isfinite, pose.angles)):
            yield LeftOut(where, "pose missing", f"{where}: the system gave no pose")
            continue
        if least > 0 and (prediction.confidence is None or prediction.confidence < least):
            yield LeftOut(where, "confidence too low", f"{where}: its confidence is not at least {least:g}")
            continue
        picture = picture_in(prepared / split, record.file_name, where)
        if isinstance(picture, LeftOut):
            yield picture
            continue
        place = rough_place(record.bbox, record.viewport * record.focal)
        place |= {n: v for n in ("distance", "px", "py") if (v := getattr(pose, n)) is not None and math.isfinite(v)}
        fields = {
            **place,
            **{"azimuth": pose.azimuth, "elevation": pose.elevation, "theta": pose.theta, "bbox": record.bbox},
            **{"object_status": record.object_status, "source": prediction.system, "instance": prediction.instance},
        }
        category = prediction.pred_category or record.category
        yield ImportedObject(where, picture, record.file_name, category, split, fields)
