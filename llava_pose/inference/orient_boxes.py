"""`llava-pose orient-boxes`: boxes that have no front, and their pictures, to the same boxes with the front resolved.

A 3D box of Qwen3-VL or Omni3D says where an object is, how large it is and which way its edges run, but any of its faces may be
the front. Of the rotations that bring the box's axes onto its axes, 4 about up or all 24, the one is taken that is nearest to
the rotation that a checkpoint sees in the picture (:func:`nearest_orientation`). The box itself stays where it is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import PositiveInt
from tqdm import tqdm

from llava_pose.data.conversation import object_words
from llava_pose.data.convert import FormatName, check_intrinsics
from llava_pose.data.images import BOX_MARGIN, MAX_SQUARE, shrink
from llava_pose.data.poses.formats import FORMATS, SUFFIXES, read_poses, write_poses
from llava_pose.data.poses.posed_object import PosedObject, project_box
from llava_pose.errors import InputError, left_out
from llava_pose.pose import categories
from llava_pose.pose.conventions import box_orientations
from llava_pose.pose.geometry import angles_from_rotation, geodesic_angle, rotation_matrix
from llava_pose.utils.command import command
from llava_pose.utils.config import check_fields, require, require_folder
from llava_pose.utils.files import shortened, unsafe_name
from llava_pose.utils.output_folder import own_file, require_other, require_suffix, require_together

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)


@dataclass
class OrientBoxesConfig:
    """Options of ``llava-pose orient-boxes``."""

    boxes: str | None = field(default=None, metadata={"help": "The file of boxes to read."})
    pictures: str | None = field(default=None, metadata={"help": "The folder that its picture names are relative to."})
    checkpoint: str | None = field(default=None, metadata={"help": "The checkpoint that looks at the pictures."})
    out: str | None = field(default=None, metadata={"help": "The file to write, in the format of the boxes."})
    format: FormatName = field(default="qwen3-vl", metadata={"help": "The format of the boxes."})
    picture: str | None = field(
        default=None, metadata={"help": "The name of the one picture of all boxes, where the file does not name it."}
    )
    orientations: Literal["upright", "all"] = field(
        default="upright",
        metadata={
            "help": "upright chooses among the 4 turns about the box's vertical; all, among 24: any face may be up."
        },
    )
    intrinsics: list[float] | None = field(
        default=None,
        metadata={"help": "fx fy cx cy of the camera of all pictures, in pixels, where the file does not hold it."},
    )
    batch_size: PositiveInt = field(default=16, metadata={"help": "How many boxes are looked at at once."})
    base: str | None = field(default=None, metadata={"help": "The base of an adapter, if it has moved."})
    device: str | None = field(default=None, metadata={"help": "The device; by default a GPU if there is one."})

    def __post_init__(self) -> None:
        check_fields(self)
        check_intrinsics(self.intrinsics)


def nearest_orientation(item: PosedObject, rotation: np.ndarray, which: str = "upright") -> tuple[PosedObject, float]:
    """The same box with its front, and with "all" its top, where they are nearest to a rotation of the object.

    Args:
        rotation: (3, 3), of the object into the frame of a camera that looks at it (``geometry.rotation_matrix``).
        which: as :func:`llava_pose.pose.conventions.box_orientations`.

    Returns:
        The box, and the angle in radians that is left between it and the rotation.
    """
    turns = box_orientations(which)
    candidates = rotation_matrix(*item.pose.angles) @ turns
    left = geodesic_angle(candidates, rotation)
    best = int(left.argmin())
    azimuth, elevation, theta = map(float, angles_from_rotation(candidates[best]))
    # along its new axes the box is as long as along the old ones that they lie on
    size = None if item.size is None else tuple((np.abs(turns[best]).T @ np.array(item.size)).tolist())
    pose = replace(item.pose, azimuth=azimuth, elevation=elevation, theta=theta)
    return replace(item, pose=pose, size=size), float(left[best])  # type: ignore[arg-type]


def orient_boxes(config: OrientBoxesConfig) -> list[Path]:
    """Write the boxes of a file with their fronts resolved, and return the files that were written.

    Raises:
        InputError: boxes, pictures or the checkpoint cannot be read, or nothing can be written; or single boxes could not be
            taken, which are named at the end.
    """
    source, out = require(config.boxes, "--boxes"), require(config.out, "--out")
    require_suffix("--out", out, *SUFFIXES)
    checkpoint = require(config.checkpoint, "--checkpoint")
    pictures = require_folder(require(config.pictures, "--pictures"), "--pictures", "give the folder of the pictures")
    items, faults = read_poses(source, config.format, intrinsics=config.intrinsics)
    require_other("--out", FORMATS[config.format].files(out), FORMATS[config.format].files(source))
    if config.picture is not None:
        items = [replace(item, picture=item.picture or config.picture) for item in items]

    from llava_pose.inference.predictor import PosePredictor

    predictor = PosePredictor.from_checkpoint(checkpoint, base=config.base, device=config.device)
    with own_file(out, "--out", "orient-boxes"):
        require_together("--out", out, FORMATS[config.format].files(out))
        oriented: list[PosedObject] = []
        turned, angles = 0, []
        load = lru_cache(maxsize=1)(partial(_load, pictures))  # boxes of one picture mostly stand together
        starts = range(0, len(items), config.batch_size)
        for start in tqdm(starts, desc="orient-boxes", unit="batch", delay=2, disable=None):
            seen = []
            for item in items[start : start + config.batch_size]:
                try:
                    seen.append((item, _crop(item, load)))
                except InputError as error:
                    faults.append(InputError(f"box {item.id}: {error}"))
            for item, answer in zip((item for item, _ in seen), _ask(predictor, seen), strict=True):
                found, left = nearest_orientation(item, rotation_matrix(*answer.pose.angles), config.orientations)
                turned += float(geodesic_angle(*(rotation_matrix(*i.pose.angles) for i in (item, found)))) > 1e-3
                angles.append(left)
                oriented.append(replace(found, confidence=answer.confidence))
        if not oriented:
            raise InputError(f"{source}: none of the boxes could be seen; the first: {faults[0]}")
        files, unwritten = write_poses(out, config.format, oriented)
    logger.info(
        "%d boxes are in %s; %d have another front than before, and %.0f degrees are left to what was seen, in the median",
        *(len(oriented), files[0], turned, float(np.degrees(np.median(angles)))),
    )
    faults += unwritten
    if faults:
        raise left_out(faults, f"{source}: {len(faults)} of {len(faults) + len(oriented)} boxes could not be taken")
    return files


def _ask(predictor: Any, seen: Sequence[tuple[PosedObject, Image.Image]]) -> list[Any]:
    if not seen:
        return []
    known = [categories.get(item.category.strip() or "object", allow_custom=True) for item, _ in seen]
    names = [object_words(category)["object"] for category in known]
    return predictor.predict([picture for _, picture in seen], names)


def _load(pictures: Path, name: str) -> Image.Image:
    from llava_pose.data.images import load_rgb

    reason = unsafe_name(name)  # links are followed: people link pictures from other disks
    if reason is not None:
        raise InputError(f"the file name {shortened(name)} {reason}; mend the file")
    return load_rgb(pictures / name, remedy="check --pictures")


def _crop(item: PosedObject, load: Callable[[str], Image.Image]) -> Image.Image:
    """Cut out what the picture shows of a box, with a margin.

    Raises:
        InputError: the box has no size, or lies outside of its picture, or the picture cannot be read.
    """
    if not item.picture:
        raise InputError("the file does not say which picture it is in; give --picture")
    if item.size is None:
        raise InputError("it has no size; give boxes with their extents")
    if "<" in item.category:
        raise InputError(f"its label {shortened(item.category)} cannot name an object; write it without marks")
    image = load(item.picture)
    left, top, right, bottom = project_box(item)
    margin = BOX_MARGIN * max(right - left, bottom - top)
    left, top = max(0, round(left - margin)), max(0, round(top - margin))
    right, bottom = min(image.width, round(right + margin)), min(image.height, round(bottom + margin))
    if right - left < 2 or bottom - top < 2:
        raise InputError(f"it lies outside of its picture {item.picture}; check --intrinsics")
    return shrink(image.crop((left, top, right, bottom)), MAX_SQUARE)  # a batch of them is held


main = command(
    OrientBoxesConfig,
    orient_boxes,
    prog="llava-pose orient-boxes",
    description="Find the front of 3D boxes that have none (Qwen3-VL, Omni3D), by what a checkpoint sees in their pictures.",
    example="llava-pose orient-boxes boxes.json --pictures photos --picture office.jpg --intrinsics 610 610 320 240 "
    "--checkpoint checkpoints/everyday --out oriented.json",
    positional="boxes",
)

if __name__ == "__main__":
    raise SystemExit(main())
