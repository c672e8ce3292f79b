"""A recording for the viewer of rerun: each photograph before its camera, and its objects as boxes with their axes in space.

The viewer's timeline is called "picture", and steps from one to the next. Space is that of OpenCV's camera: x right, y down, z
ahead.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from llava_pose.data.images import load_rgb
from llava_pose.errors import InputError
from llava_pose.pose.conventions import CONVENTIONS
from llava_pose.utils.files import atomic_file

from .posed_object import Faults, PosedObject, in_camera

logger = logging.getLogger(__name__)
_CUBE = (
    3**-0.5
)  # the edge of a cube whose diagonal is 1: the size that distances are counted in, where no other is known
_AXES = np.array([[0.0, -1, 0], [0, 0, 1], [1, 0, 0]])  # the object's front, up and left
_COLOURS = [[60, 200, 60], [60, 90, 240], [230, 60, 60]]  # as in overlays


def write_recording(path: Path, items: Sequence[PosedObject]) -> tuple[list[Path], Faults]:
    """Write a .rrd file, and return it and what is wrong with the objects that are left out.

    A photograph that cannot be read where the poses' file has it is left out of its scene, which the log says.

    Raises:
        InputError: rerun is not installed, no object has a camera and a pose, or the file cannot be written.
    """
    try:
        import rerun
    except ModuleNotFoundError as error:
        raise InputError("--to-format rerun needs rerun-sdk: pip install 'llava-pose[rerun]'") from error
    faults: Faults = []
    scenes = [(name, _placed(objects, faults)) for name, objects in groupby(items, key=lambda item: item.picture)]
    scenes = [(name, placed) for name, placed in scenes if placed]
    if not scenes:
        raise InputError(f"{path}: nothing could be written as a recording; the first: {faults[0]}")
    recording = rerun.RecordingStream("llava-pose")
    absent = 0
    with atomic_file(path, "wb") as file:
        recording.save(file.name)
        recording.log("world", rerun.ViewCoordinates.RDF, static=True)
        for number, (name, placed) in enumerate(scenes):
            recording.set_time("picture", sequence=number)
            recording.log("world/objects", rerun.Clear(recursive=True))  # those of the picture before
            absent += not _log_camera(rerun, recording, name, placed[0][0])
            for index, (item, rotation, translation) in enumerate(placed):
                _log_object(rerun, recording, f"world/objects/{index}", item, rotation, translation)
        recording.disconnect()  # which writes what is left, and the end of the file
    if absent:
        logger.warning(
            "%d of %d photographs are not where the file says, and not in the recording", absent, len(scenes)
        )
    return [path], faults


def _placed(objects: Any, faults: Faults) -> list[tuple[PosedObject, np.ndarray, np.ndarray]]:
    """Return each object with its rotation and translation in the camera of its picture."""
    placed = []
    for item in objects:
        try:
            placed.append((item, *in_camera(item, CONVENTIONS["opencv"], item.picture_camera())))
        except InputError as error:
            faults.append(InputError(f"{item.id}: {error}"))
    return placed


def _log_camera(rerun: Any, recording: Any, name: str, item: PosedObject) -> bool:
    """Log the camera and what it saw; return whether the photograph is there."""
    fx, fy, cx, cy = item.picture_camera()
    size = (item.width or 2 * cx, item.height or 2 * cy)
    recording.log("world/camera", rerun.Clear(recursive=False))  # the photograph before, should this one be missing
    recording.log("world/camera", rerun.Pinhole(focal_length=(fx, fy), principal_point=(cx, cy), resolution=size))
    recording.log("world/camera/name", rerun.TextDocument(name))
    try:
        picture = load_rgb(name)
    except InputError as error:
        logger.warning("%s", error)
        return False
    recording.log("world/camera", rerun.Image(np.asarray(picture)).compress(jpeg_quality=90))
    return True


def _log_object(
    rerun: Any, recording: Any, entity: str, item: PosedObject, rotation: np.ndarray, translation: np.ndarray
) -> None:
    size = np.array(item.size or (_CUBE,) * 3)
    sure = "" if item.confidence is None else f" {item.confidence:.0%}"
    recording.log(entity, rerun.Transform3D(translation=translation, mat3x3=rotation))
    recording.log(f"{entity}/box", rerun.Boxes3D(sizes=[size], labels=[f"{item.category}{sure}"]))
    recording.log(f"{entity}/axes", rerun.Arrows3D(vectors=_AXES * size.max(), colors=_COLOURS))
