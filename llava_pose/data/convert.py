"""`llava-pose convert`: files of poses between our convention and those of other programs (docs/POSE.md, "Conventions")."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from llava_pose.data.poses.formats import FORMATS, SUFFIXES, read_poses, write_poses
from llava_pose.data.poses.posed_object import PosedObject
from llava_pose.data.poses.recording import write_recording
from llava_pose.errors import InputError, left_out
from llava_pose.utils.command import command
from llava_pose.utils.config import check_fields, require
from llava_pose.utils.output_folder import own_file, require_other, require_suffix, require_together

logger = logging.getLogger(__name__)
FormatName = Literal[
    "llava-pose",
    "opencv",
    "opengl",
    "blender",
    "unity",
    "threejs",
    "ros",
    "bop",
    "omni3d",
    "objectron",
    "orient-anything",
    "qwen3-vl",
    "colmap",
]


@dataclass
class ConvertConfig:
    """Options of ``llava-pose convert``."""

    poses: str | None = field(default=None, metadata={"help": "The file of poses to read."})
    to_format: Literal[FormatName, "rerun"] | None = field(
        default=None,
        metadata={"help": "The format to write; rerun is a recording for its viewer, which is only written."},
    )
    out: str | None = field(default=None, metadata={"help": "The file to write."})
    from_format: FormatName = field(default="llava-pose", metadata={"help": "The format of the file that is read."})
    intrinsics: list[float] | None = field(
        default=None,
        metadata={"help": "fx fy cx cy of the camera of all pictures, in pixels, where files do not hold it."},
    )
    metres: float = field(
        default=1.0, metadata={"help": "How many metres one unit of distance in our own files stands for."}
    )

    def __post_init__(self) -> None:
        check_fields(self)
        check_intrinsics(self.intrinsics)
        if not 1e-9 <= self.metres <= 1e9:
            raise InputError(f"--metres {self.metres:g}: must be a positive number of metres")


def check_intrinsics(intrinsics: list[float] | None) -> None:
    """Raise InputError for --intrinsics that no camera has."""
    if intrinsics is None:
        return
    if len(intrinsics) != 4 or not all(abs(number) < 1e9 for number in intrinsics) or min(intrinsics[:2]) <= 0:
        raise InputError("--intrinsics: give the four numbers fx fy cx cy, in pixels, fx and fy over 0")


def convert(config: ConvertConfig) -> list[Path]:
    """Write the poses of a file in another format, and return the files that were written.

    Raises:
        InputError: the file cannot be read or written; or single objects could not be taken, which are named at the end.
    """
    source, out = require(config.poses, "--poses"), require(config.out, "--out")
    to_format: str = require(config.to_format, "--to-format")
    records = to_format == "rerun"
    require_suffix("--out", out, *([".rrd"] if records else SUFFIXES))
    own_files, about = (
        ([Path(out)], "a recording") if records else (FORMATS[to_format].files(out), FORMATS[to_format].about)
    )
    items, faults = read_poses(source, config.from_format, intrinsics=config.intrinsics)
    if config.from_format == "llava-pose" != to_format:
        items = [_scaled(item, config.metres) for item in items]
    if to_format == "llava-pose" != config.from_format:
        items = [_scaled(item, 1 / config.metres) for item in items]
    require_other("--out", own_files, FORMATS[config.from_format].files(source))
    with own_file(out, "--out", "convert"):
        require_together("--out", out, own_files)
        files, unwritten = write_recording(Path(out), items) if records else write_poses(out, to_format, items)
    if to_format not in ("llava-pose", "orient-anything") and any(item.pose.distance is None for item in items):
        logger.warning("poses without a distance are written at a distance of 1")
    written = len(items) - len(unwritten)
    logger.info("%d poses are in %s, as %s", written, " and ".join(map(str, files)), about)
    faults += unwritten
    if faults:
        raise left_out(faults, f"{source}: {len(faults)} of {written + len(faults)} poses could not be converted")
    return files


def _scaled(item: PosedObject, factor: float) -> PosedObject:
    if factor == 1.0:
        return item
    distance = None if item.pose.distance is None else item.pose.distance * factor
    size = None if item.size is None else tuple(extent * factor for extent in item.size)
    return replace(item, pose=replace(item.pose, distance=distance), size=size)  # type: ignore[arg-type]


main = command(
    ConvertConfig,
    convert,
    prog="llava-pose convert",
    description="Bring poses from our convention into that of another program, or back; docs/POSE.md shows the axes of each.",
    example="llava-pose convert predictions.jsonl --to-format unity --out poses_unity.jsonl",
    positional="poses",
)

if __name__ == "__main__":
    raise SystemExit(main())
