"""BOP data sets in the scene-wise layout (github.com/thodan/bop_toolkit, docs/bop_datasets_format.md, at cea62d6).

::

    models/models_info.json                       size_x, size_y, size_z, diameter of each object, in mm
    <split>/<scene>/scene_gt.json                 obj_id, cam_R_m2c, cam_t_m2c (mm) of each object of each image
    <split>/<scene>/scene_camera.json             cam_K of each image
    <split>/<scene>/scene_gt_info.json            bbox_obj (x, y, width, height), visib_fract
    <split>/<scene>/rgb/<image>.png               or gray/, or .jpg

Folders train… become the split train, val… and test… the split val. Distances are given in diagonals of the model's box. BOP
fixes no front: if the models do not face -y, ``llava-pose align --turn annotations`` turns the labels afterwards.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.import_.items import ImportedObject, LeftOut, rough_place, status_of
from llava_pose.data.poses.posed_object import PosedObject, from_camera, number_list, project_box, read_json
from llava_pose.errors import InputError
from llava_pose.pose.conventions import CONVENTIONS

_FOLDERS = ("rgb", "gray")
_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif")


def read_bop(root: Path) -> Iterator[ImportedObject | LeftOut]:
    """The objects of a BOP data set; categories are ``obj_000001`` and so on, which the settings can rename.

    Raises:
        InputError: there is no scene in it.
    """
    scenes = sorted(path.parent for path in [*root.glob("*/*/scene_gt.json"), *root.glob("*/scene_gt.json")])
    if not scenes:
        raise InputError(f"{root}: there is no <split>/<scene>/scene_gt.json in it; give the folder of a BOP data set")
    models = _models(root)
    for scene in scenes:
        try:
            tables = {name: _table(scene / f"{name}.json") for name in ("scene_gt", "scene_camera")}
            info = _table(scene / "scene_gt_info.json") if (scene / "scene_gt_info.json").is_file() else {}
        except InputError as error:
            yield LeftOut(str(scene), "scene unreadable", str(error))
            continue
        for image, objects in tables["scene_gt"].items():
            yield from _image(root, scene, image, objects, tables["scene_camera"].get(image), info.get(image), models)


def _table(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise InputError(f"{path}: must hold a JSON object; download it again")
    return value


def _models(root: Path) -> dict[str, list[float]]:
    """Object -> extents along the model's x, y and z in mm; models without them are not there."""
    sizes: dict[str, list[float]] = {}
    for path in sorted(root.glob("models*/models_info.json"), key=lambda path: path.parent.name != "models"):
        for number, model in _table(path).items():
            try:
                size = number_list([model.get(f"size_{axis}") for axis in "xyz"], 3, "the size")
            except (InputError, AttributeError):
                continue
            if min(size) >= 0 and max(size) > 0:
                sizes.setdefault(str(number), size)
    return sizes


def _image(
    root: Path,
    scene: Path,
    image: str,
    objects: Any,
    camera: Any,
    info: Any,
    models: Mapping[str, list[float]],
) -> Iterator[ImportedObject | LeftOut]:
    where = f"{scene}, image {image}"
    number = f"{int(image):06d}" if re.fullmatch("[0-9]{1,9}", image) else "?"
    candidates = [scene / folder / f"{number}{suffix}" for folder in _FOLDERS for suffix in _SUFFIXES]
    picture = next((path for path in candidates if path.is_file()), None)
    if picture is None:
        yield LeftOut(
            where, "picture missing", f"{where}: there is no rgb/{number}.png or gray/{number}.png; download it"
        )
        return
    try:
        k = number_list(camera.get("cam_K") if isinstance(camera, dict) else None, 9, "'cam_K'")
    except InputError as error:
        yield LeftOut(where, "camera missing", f"{where}: {error}; mend scene_camera.json")
        return
    infos = info if isinstance(info, list) else []
    for index, thing in enumerate(objects if isinstance(objects, list) else []):
        place = f"{where}, object {index}"
        try:
            yield _object(
                place,
                thing if isinstance(thing, dict) else {},
                infos[index] if index < len(infos) and isinstance(infos[index], dict) else {},
                (k[0], k[4], k[2], k[5]),
                models,
                picture,
                picture.relative_to(root).as_posix(),
            )
        except InputError as error:
            yield LeftOut(place, "pose malformed", f"{error}" if place in str(error) else f"{place}: {error}")


def _object(
    where: str,
    thing: Mapping[str, Any],
    info: Mapping[str, Any],
    camera: tuple[float, float, float, float],
    models: Mapping[str, list[float]],
    picture: Path,
    name: str,
) -> ImportedObject | LeftOut:
    number = thing.get("obj_id")
    if not isinstance(number, int):
        raise InputError("'obj_id' must be a number; mend scene_gt.json")
    posed = from_camera(
        CONVENTIONS["bop"],
        np.reshape(number_list(thing.get("cam_R_m2c"), 9, "'cam_R_m2c'"), (3, 3)),
        thing.get("cam_t_m2c"),
        camera,
        size=models.get(str(number)),
        where=where,
    )
    bbox = _bbox(info.get("bbox_obj"), posed)
    if bbox is None:
        return LeftOut(where, "bbox missing", f"{where}: there is neither bbox_obj nor a size of its model; add one")
    visible = info.get("visib_fract")
    seen = float(visible) if isinstance(visible, int | float) and 0 <= visible <= 1 else 1.0
    fields = {
        **pose_fields(posed, bbox),
        "bbox": bbox,
        "cad_index": number,
        "object_status": status_of(seen),
        "source": "bop",
        "instance": f"obj_{number:06d}",
    }
    split = "train" if name.startswith("train") else "val"
    return ImportedObject(where, picture, name, f"obj_{number:06d}", split, fields)


def _bbox(written: Any, posed: PosedObject) -> tuple[float, ...] | None:
    try:
        x, y, width, height = number_list(written, 4, "'bbox_obj'")
    except InputError:
        return project_box(posed) if posed.size is not None else None
    if width > 0 and height > 0:
        return x, y, x + width, y + height
    return project_box(posed) if posed.size is not None else None


def pose_fields(posed: PosedObject, bbox: tuple[float, ...]) -> dict[str, Any]:
    """Pose and viewport as the raw layout has them: the distance in diagonals of the box, or a rough one without a size."""
    pose = posed.pose
    fields: dict[str, Any] = {"azimuth": pose.azimuth, "elevation": pose.elevation, "theta": pose.theta}
    diagonal = 0.0 if posed.size is None else math.hypot(*posed.size)
    rough = rough_place(bbox, posed.viewport or rough_place(bbox)["viewport"])
    if diagonal <= 0 or pose.distance is None:
        return {**fields, **rough, "px": pose.px, "py": pose.py}
    return {**fields, **rough, "distance": pose.distance / diagonal, "px": pose.px, "py": pose.py}
