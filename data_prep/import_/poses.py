"""Files of poses that ``llava-pose convert`` reads, with their pictures: matrices of OpenCV, detections of ROS, …"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from data_prep.import_.bop import pose_fields
from data_prep.import_.items import ImportedObject, LeftOut, picture_in
from llava_pose.data.poses.formats import read_poses
from llava_pose.data.poses.posed_object import PosedObject, project_box
from llava_pose.errors import InputError


def read_posed(
    file: Path, format_name: str, images: Path, split: str, *, intrinsics: Sequence[float] | None, least: float
) -> Iterator[ImportedObject | LeftOut]:
    """The objects of a file of poses.

    Args:
        format_name: one of ``llava_pose.data.poses.formats.FORMATS``.
        images: the folder that the names of pictures are relative to.
        intrinsics: fx, fy, cx, cy of the camera of all pictures, where the file does not hold it.
        least: the confidence from which on a pose is taken.

    Raises:
        InputError: the file cannot be read, or nothing in it.
    """
    items, faults = read_poses(file, format_name, intrinsics=intrinsics)
    for posed in items:
        where = f"{file}, id {posed.id}"
        picture = picture_in(images, posed.picture, where)
        if isinstance(picture, LeftOut):
            yield picture
        elif not posed.category:
            yield LeftOut(where, "category missing", f"{where}: it names no category; add one")
        elif least > 0 and (posed.confidence is None or posed.confidence < least):
            yield LeftOut(where, "confidence too low", f"{where}: its confidence is not at least {least:g}")
        else:
            try:
                yield _object(where, posed, picture, split, format_name)
            except InputError as error:
                yield LeftOut(where, "box malformed", f"{where}: {error}")
    for fault in faults:
        yield LeftOut(str(fault).split(": ", 1)[0], "pose malformed", str(fault))


def _object(where: str, posed: PosedObject, picture: Path, split: str, format_name: str) -> ImportedObject | LeftOut:
    size = None if None in (posed.width, posed.height) else (round(posed.width or 0), round(posed.height or 0))
    box = posed.box
    if box is None and posed.size is not None:
        box = project_box(posed)
    if box is None and size is not None and format_name == "llava-pose":  # predict asked about the whole photograph
        box = (0.0, 0.0, float(size[0]), float(size[1]))
    if box is None:
        sentence = (
            f"{where}: it has neither a box in the picture ('box': left, top, right, bottom) nor a 'size'; add one"
        )
        return LeftOut(where, "box missing", sentence)
    fields = {name: value for name, value in pose_fields(posed, box).items() if value is not None}
    if format_name == "llava-pose" and posed.pose.distance is not None and posed.viewport is not None:
        fields["distance"] = posed.pose.distance  # in sizes of the object, as labels have it
    fields |= {"bbox": box, "source": format_name}
    return ImportedObject(where, picture, posed.picture, posed.category, split, fields, size)
