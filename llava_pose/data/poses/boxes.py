"""Formats of 3D boxes in a picture: vision_msgs of ROS, Omni3D and Qwen3-VL."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llava_pose.data.jsonl import parse_json, write_jsonl
from llava_pose.errors import InputError
from llava_pose.pose.conventions import CONVENTIONS, qwen_angles, qwen_rotation
from llava_pose.pose.quaternions import matrix_to_quaternion, quaternion_to_matrix
from llava_pose.utils.files import read_text, write_atomic, write_json

from .posed_object import (
    Faults,
    PosedObject,
    camera_fields,
    each_item,
    from_camera,
    in_camera,
    json_items,
    line_fields,
    number_list,
    optional_number,
    read_json,
    rows_of,
    text_of,
    without_none,
)

# ROS


def read_ros(path: Path, camera: tuple[float, ...] | None, faults: Faults) -> Iterator[PosedObject]:
    def one(where: str, value: Mapping[str, Any]) -> PosedObject:
        results, box = value.get("results"), _part(value, "bbox")
        result = results[0] if isinstance(results, list) and results and isinstance(results[0], dict) else {}
        hypothesis = _part(result, "hypothesis")
        pose = _part(_part(result, "pose"), "pose") or _part(box, "center")
        place, turn, extent = _part(pose, "position"), _part(pose, "orientation"), _part(box, "size")
        quaternion = number_list([turn.get(axis) for axis in "xyzw"], 4, "'orientation'")
        if not any(quaternion):
            raise InputError("'orientation' is zero, which is no rotation")
        size = [extent.get(axis) for axis in "xyz"]
        return from_camera(
            CONVENTIONS["ros"],
            quaternion_to_matrix(quaternion, "xyzw"),
            [place.get(axis) for axis in "xyz"],
            camera,
            id_=text_of(value.get("id")),
            picture=text_of(_part(value, "header").get("frame_id")),
            category=text_of(hypothesis.get("class_id")),
            size=size if any(size) else None,  # type: ignore[arg-type]
            confidence=optional_number(hypothesis.get("score")),
            where=where,
        )

    return each_item(_detections(path, faults), faults, one)


def _part(value: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A field that holds fields; empty where it is none."""
    inner = value.get(name)
    return inner if isinstance(inner, dict) else {}


def _detections(path: Path, faults: Faults) -> Iterator[tuple[str, Any]]:
    for where, message in json_items(path, faults):
        detections = message.get("detections") if isinstance(message, dict) else None
        if not isinstance(detections, list):
            faults.append(InputError(f"{where}: there are no 'detections' in it; give Detection3DArray messages"))
            continue
        yield from ((f"{where}, detection {index}", detection) for index, detection in enumerate(detections))


def write_ros(path: Path, items: Sequence[PosedObject]) -> list[Path]:
    """One Detection3DArray a picture, as rosidl_runtime_py's message_to_ordereddict; frame_id is the picture's name."""
    messages: dict[str, dict[str, Any]] = {}
    for item in items:
        rotation, translation = in_camera(item, CONVENTIONS["ros"], item.picture_camera())
        header = {"stamp": {"sec": 0, "nanosec": 0}, "frame_id": item.picture}
        pose = {
            "position": dict(zip("xyz", translation.tolist(), strict=True)),
            "orientation": dict(zip("xyzw", matrix_to_quaternion(rotation, "xyzw").tolist(), strict=True)),
        }
        size = [0.0, 0.0, 0.0] if item.size is None else CONVENTIONS["ros"].size_from_ours(item.size).tolist()
        hypothesis = {"class_id": item.category, "score": 1.0 if item.confidence is None else item.confidence}
        detection = {
            "header": header,
            "results": [{"hypothesis": hypothesis, "pose": {"pose": pose, "covariance": [0.0] * 36}}],
            "bbox": {"center": pose, "size": dict(zip("xyz", size, strict=True))},
            "id": item.id,
        }
        messages.setdefault(item.picture, {"header": header, "detections": []})["detections"].append(detection)
    write_jsonl(path, messages.values())
    return [path]


# Omni3D


def read_omni3d(path: Path, camera: tuple[float, ...] | None, faults: Faults) -> Iterator[PosedObject]:
    return omni3d_boxes(read_json(path), path, camera, faults)


def omni3d_boxes(data: Any, path: Path, camera: tuple[float, ...] | None, faults: Faults) -> Iterator[PosedObject]:
    """The boxes of an Omni3D file that has been read; ``path`` names it in messages."""
    if not isinstance(data, dict) or not all(isinstance(data.get(n), list) for n in ("images", "annotations")):
        raise InputError(f"{path}: there are no 'images' and 'annotations' in it; give an Omni3D JSON file")
    images = {repr(image.get("id")): image for image in data["images"] if isinstance(image, dict)}

    def one(where: str, value: Mapping[str, Any]) -> PosedObject:
        image = images.get(repr(value.get("image_id")))
        if image is None:
            raise InputError(f"{where}: there is no image {value.get('image_id')!r}; mend or drop it")
        if value.get("valid3D") is False:
            raise InputError(f"{where}: it has no reliable 3D box (valid3D is false); drop it")
        k = number_list(image.get("K"), 9, "'K' of its image")
        return from_camera(
            CONVENTIONS["omni3d"],
            np.reshape(number_list(value.get("R_cam"), 9, "'R_cam'"), (3, 3)),
            value.get("center_cam"),
            camera or (k[0], k[4], k[2], k[5]),
            id_=text_of(value.get("id")),
            picture=text_of(image.get("file_path")),
            category=text_of(value.get("category_name")),
            size=value.get("dimensions"),
            width=optional_number(image.get("width")),
            height=optional_number(image.get("height")),
            confidence=optional_number(value.get("score")),
            where=where,
        )

    places = ((f"{path}, annotation {index}", value) for index, value in enumerate(data["annotations"]))
    return each_item(places, faults, one)


_OMNI3D_CORNERS = np.array(  # v0 … v7 of DATA.md, in halves of length (x), height (y) and width (z)
    [[-1, -1, -1], [1, -1, -1], [1, 1, -1], [-1, 1, -1], [-1, -1, 1], [1, -1, 1], [1, 1, 1], [-1, 1, 1]]
)


def write_omni3d(path: Path, items: Sequence[PosedObject]) -> list[Path]:
    convention = CONVENTIONS["omni3d"]
    names = sorted({item.category for item in items})
    images: dict[str, dict[str, Any]] = {}
    annotations = []
    for number, item in enumerate(items):
        fx, fy, cx, cy = item.picture_camera()
        rotation, translation = in_camera(item, convention, (fx, fy, cx, cy))
        image = images.setdefault(
            item.picture,
            {
                **{"id": len(images), "dataset_id": 0, "width": item.width, "height": item.height},
                **{"file_path": item.picture, "K": [[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]]},
                **{"src_90_rotate": 0, "src_flagged": False},
            },
        )
        size = [1.0, 1.0, 1.0] if item.size is None else convention.size_from_ours(item.size).tolist()
        corners = _OMNI3D_CORNERS * np.array(size[::-1]) / 2 @ rotation.T + translation
        annotations.append(
            {
                **{"id": number, "image_id": image["id"], "dataset_id": 0, "category_id": names.index(item.category)},
                **{"category_name": item.category, "valid3D": True, "bbox3D_cam": rows_of(corners)},
                **{"bbox2D_tight": [-1] * 4, "bbox2D_proj": [-1] * 4, "bbox2D_trunc": [-1] * 4},
                **{"center_cam": translation.tolist(), "dimensions": size, "R_cam": rows_of(rotation)},
                **{"behind_camera": bool((corners[:, 2] <= 0).any()), "visibility": -1, "truncation": -1},
                **{"segmentation_pts": -1, "lidar_pts": -1, "depth_error": -1, "score": item.confidence},
            }
        )
    categories = [{"id": index, "name": name, "supercategory": ""} for index, name in enumerate(names)]
    info = {"id": 0, "source": "llava-pose", "name": path.stem, "split": "", "version": "", "url": ""}
    data = {"info": info, "images": list(images.values()), "categories": categories, "annotations": annotations}
    write_json(path, data)
    return [path]


# Qwen3-VL


def read_qwen(path: Path, camera: tuple[float, ...] | None, faults: Faults) -> Iterator[PosedObject]:
    def one(where: str, value: Mapping[str, Any]) -> PosedObject:
        numbers = number_list(value.get("bbox_3d"), 9, "'bbox_3d'")
        if not all(abs(angle) <= 1.001 for angle in numbers[6:]):
            raise InputError("the angles of its 'bbox_3d' are beyond 1, though they are in half turns; divide them")
        known = line_fields({**value, "category": value.get("label"), "size": numbers[3:6]}, camera)
        known["picture"] = text_of(value.get("image"))
        return from_camera(CONVENTIONS["qwen3-vl"], qwen_rotation(numbers[6:]), numbers[:3], **known, where=where)

    if path.suffix.lower() == ".jsonl":
        return each_item(json_items(path, faults), faults, one)
    text = read_text(path).strip()
    inner = text.split("```json", 1)[-1].split("```", 1)[0] if "```json" in text else text  # as the model answers
    try:
        value = parse_json(inner)
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({getattr(error, 'msg', error)}); it may be cut off") from error
    boxes = value if isinstance(value, list) else [value]
    return each_item(((f"{path}[{index}]", box) for index, box in enumerate(boxes)), faults, one)


def write_qwen(path: Path, items: Sequence[PosedObject]) -> list[Path]:
    convention = CONVENTIONS["qwen3-vl"]
    boxes = []
    for item in items:
        camera = item.picture_camera()
        rotation, translation = in_camera(item, convention, camera)
        size = np.ones(3) if item.size is None else convention.size_from_ours(item.size)
        known = camera_fields(item, convention, camera)
        known.pop("size")
        box = {"bbox_3d": [*translation.tolist(), *size.tolist(), *qwen_angles(rotation).tolist()]}
        own = {"image": item.picture, "id": item.id, "confidence": item.confidence}
        boxes.append(without_none({**box, "label": item.category, **own, **known}))
    if path.suffix.lower() == ".jsonl":
        write_jsonl(path, boxes)
    else:
        write_atomic(path, json.dumps(boxes, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return [path]
