"""The poses of objects as a task of lmms-eval: the words that ask, what an answer says, and its score by LLaVA-pose's own core.

A document is a line of ``prepared/val/metadata.jsonl`` with its picture, as ``datasets`` reads the folder. An answer may be the
JSON that was asked for, that JSON among words, the angles in words, a `<pose6D>` with its angles, or a ``bbox_3d`` of Qwen3-VL.
What cannot be read is a failure, an error of 180 degrees.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from eval.systems.vlm_prompt import first_messages
from llava_pose.data.poses.posed_object import from_camera, number_list
from llava_pose.data.records import ObjectRecord, Pose, Prediction
from llava_pose.errors import InputError
from llava_pose.pose import categories
from llava_pose.pose.conventions import CONVENTIONS, qwen_rotation
from llava_pose.pose.geometry import flip_pose
from llava_pose.pose.metrics import accuracy, pose_error

_GREY = (127, 127, 127)
_THOUGHTS = re.compile(r"\A.*</think(?:ing)?>", re.DOTALL)
_NUMBER = r"(-?\d+(?:\.\d+)?)"
# what models call an angle -> which of the three it is
_CALLED = {
    "azimuth": "azimuth",
    "elevation": "elevation",
    **dict.fromkeys(("rotation", "theta", "in-plane rotation", "in-plane", "in plane", "inplane", "roll"), "theta"),
}
_IN_WORDS = re.compile(
    rf"\b({'|'.join(sorted(_CALLED, key=len, reverse=True))})\b[^\d\n-]{{0,30}}?{_NUMBER}", re.IGNORECASE
)


# Documents


def with_mirror_images(docs: Any) -> Any:
    """Return each document, and after it the same to be shown as its mirror image, where the category has one."""
    rows = [
        (row, mirrored) for row, name in enumerate(docs["category"]) for mirrored in (False, *[True] * _mirrors(name))
    ]
    return docs.select([row for row, _ in rows]).add_column("mirrored", [mirrored for _, mirrored in rows])


def _mirrors(category: str) -> bool:
    return categories.get(category, allow_custom=True).flip_azimuth_offset is not None


def picture(doc: Mapping[str, Any]) -> list[Image.Image]:
    """Return the picture, or its mirror image."""
    image = doc["image"].convert("RGB")
    return [ImageOps.mirror(image) if doc.get("mirrored") else image]


def grey_picture(doc: Mapping[str, Any]) -> list[Image.Image]:
    """Return a picture of the same size that shows nothing."""
    return [Image.new("RGB", doc["image"].size, _GREY)]


def doc_to_text(doc: Mapping[str, Any], lmms_eval_specific_kwargs: Mapping[str, str] | None = None) -> str:
    """Return the convention in words and the question, as `llava-pose vlm-api` asks them."""
    record, more = record_of(doc), lmms_eval_specific_kwargs or {}
    system, question = first_messages(record, categories.get(record.category, allow_custom=True), None, None)
    text = f"{system['content']}\n\n{question['content'][0]['text']}"
    return f"{more.get('pre_prompt', '')}{text}{more.get('post_prompt', '')}"


def record_of(doc: Mapping[str, Any]) -> ObjectRecord:
    """Return the object of a document, mirrored where its picture is."""
    known = {field.name for field in fields(ObjectRecord)}
    values = {name: value for name, value in doc.items() if name in known}
    record = ObjectRecord.from_dict({"file_name": "picture", **values}, where=str(doc["id"]))
    if not doc.get("mirrored"):
        return record
    x1, y1, x2, y2 = record.bbox
    pose = Pose(*mirror_image(record.pose.angles, record.category))
    return replace(record, pose=pose, bbox=(record.width - x2, y1, record.width - x1, y2))


def mirror_image(angles: Sequence[float], category: str) -> tuple[float, float, float]:
    """Return azimuth, elevation and theta, radians, of an object in its picture's mirror image. Done twice, it is undone."""
    azimuth, elevation, theta, _ = map(float, flip_pose(*angles, 0.0, 0.0))
    return azimuth + (categories.get(category, allow_custom=True).flip_azimuth_offset or 0.0), elevation, theta


# Answers


def read_pose(text: str, record: ObjectRecord) -> Pose | None:
    """Return the pose that an answer gives, its last one if there are several; None where there is none."""
    text = _THOUGHTS.sub("", text).replace("−", "-")
    for value in reversed(list(_json_values(text))):
        pose = _pose_of(value, record)
        if pose is not None:
            return pose
    said = {_CALLED[name.lower()]: float(number) for name, number in _IN_WORDS.findall(text)}
    return _pose_of(said, record)


def _json_values(text: str) -> Iterator[Mapping[str, Any]]:
    """The JSON objects of a text in their order; words around them are passed over."""
    place, decoder = 0, json.JSONDecoder()
    while (start := re.compile(r"[\[{]").search(text, place)) is not None:
        try:
            value, place = decoder.raw_decode(text, start.start())
        except (ValueError, RecursionError):
            place = start.start() + 1
            continue
        yield from _objects_in(value)


def _objects_in(value: Any) -> Iterator[Mapping[str, Any]]:
    """The JSON objects of a value, the outer ones first."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _objects_in(inner)


def _pose_of(value: Mapping[str, Any], record: ObjectRecord) -> Pose | None:
    """Return the pose of a JSON object: angles in degrees, poses that hold such, or a box of Qwen3-VL."""
    for inner in value.get("poses") or []:
        if isinstance(inner, dict) and (pose := _pose_of(inner.get("degrees", inner), record)) is not None:
            return pose
    if "bbox_3d" in value:
        return _pose_of_box(value["bbox_3d"], record)
    angles = {_CALLED[key.lower()]: number for key, number in value.items() if key.lower() in _CALLED}
    numbers = [
        angles.get("azimuth"),
        angles.get("elevation"),
        angles.get("theta", 0.0),
    ]  # upright, if nothing else is said
    if not all(isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n) for n in numbers):
        return None
    return Pose(*(math.radians(float(n)) for n in numbers))  # type: ignore[arg-type]


def _pose_of_box(numbers: Any, record: ObjectRecord) -> Pose | None:
    """Return the pose of a ``bbox_3d`` (centre, sizes, and angles in half turns), of a camera that looks straight at it."""
    focal = record.viewport * record.focal
    camera = (focal, focal, record.width / 2, record.height / 2)
    try:
        box = number_list(numbers, 9, "'bbox_3d'")
        seen = from_camera(CONVENTIONS["qwen3-vl"], qwen_rotation(box[6:]), box[:3], camera, where=record.id)
    except InputError:
        return None
    return Pose(*seen.pose.angles)


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return what the figures are made of: the line of predictions.jsonl of this document, under the name of each figure."""
    record = record_of(doc)
    told = {"pose": read_pose(results[0], record), "pred_category": None, "confidence": None}
    line = {
        "prediction": Prediction.of(record, system="lmms-eval", **told).to_dict(),
        "mirrored": bool(doc.get("mirrored")),
    }
    figures = ("flip_consistency_30",) if line["mirrored"] else tuple(FIGURES)
    return dict.fromkeys(figures, line)


# Figures


def _errors(lines: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Return the geodesic error of each line, radians."""
    read = [Prediction.from_dict(line["prediction"], where="a result") for line in lines]
    poses = [(math.nan,) * 3 if one.pose is None else one.pose.angles for one in read]
    return pose_error(np.array(poses).reshape(-1, 3), np.array([one.true.angles for one in read]).reshape(-1, 3))


def acc_30(lines: Sequence[Mapping[str, Any]]) -> float:
    """Return the share of answers with an error under 30 degrees."""
    return accuracy(_errors(lines), math.pi / 6)


def acc_10(lines: Sequence[Mapping[str, Any]]) -> float:
    """Return the share of answers with an error under 10 degrees."""
    return accuracy(_errors(lines), math.pi / 18)


def median_deg(lines: Sequence[Mapping[str, Any]]) -> float:
    """Return the median error in degrees."""
    return float(np.degrees(np.median(_errors(lines))))


def failed(lines: Sequence[Mapping[str, Any]]) -> float:
    """Return the share of answers in which no pose could be read."""
    return sum(line["prediction"]["pose"] is None for line in lines) / max(len(lines), 1)


def flip_consistency_30(lines: Sequence[Mapping[str, Any]]) -> float:
    """Return the share of pictures of whose mirror image a model says the mirrored pose, within 30 degrees, right or wrong.

    An answer that is missing agrees with none. NaN where there are no mirror images.
    """
    plain = {line["prediction"]["id"]: line["prediction"] for line in lines if not line["mirrored"]}
    agree = []
    for other in (line["prediction"] for line in lines if line["mirrored"]):
        one = plain.get(other["id"])
        if one is None:  # --limit has cut between the two
            continue
        if one["pose"] is None or other["pose"] is None:
            agree.append(False)
            continue
        one_, back = (Pose.from_dict(p["pose"], where=p["id"]).angles for p in (one, other))
        agree.append(float(pose_error(np.array(mirror_image(back, other["category"])), np.array(one_))) < math.pi / 6)
    return float(np.mean(agree)) if agree else math.nan


FIGURES = ("acc_30", "acc_10", "median_deg", "failed", "flip_consistency_30")
