"""Captions and conversations as entries: texts with `<pose6D>`, and the poses that belong to the tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_prep.caption.lines import OK, CaptionLine
from data_prep.inspect.entries import Entry, Problem
from llava_pose.data.conversation import POSE_TOKEN
from llava_pose.data.records import Pose, is_size
from llava_pose.errors import InputError
from llava_pose.utils.files import inside, is_regular, of_split


def picture_of(folder: Path, name: str, where: str, problems: list[Problem]) -> Path | None:
    """Return the picture that a line names; what is wrong with it goes to ``problems``. One outside its folder is none."""
    try:
        picture = inside(folder, name)
    except InputError as error:
        problems.append(Problem("image outside", f"{where}: {error}"))
        return None
    if not is_regular(picture):
        problems.append(Problem("image missing", f"{where}: the image {picture} is not there"))
    return picture


def caption_entry(
    value: Mapping[str, Any], where: str, folder: Path, problems: list[Problem], records: Mapping[str, Entry]
) -> Entry:
    """Return a line of captions.jsonl; one that failed has no text, and its reason goes to ``problems``.

    Args:
        records: those of the prepared folder, by id, which know the poses of the objects that a caption names. Empty where
            the file lies beside no prepared folder.
    """
    try:
        line = CaptionLine.from_dict(value, where=where)
    except InputError as error:
        problems.append(Problem("caption malformed", str(error)))
        return Entry(str(value.get("image") or where))
    picture = picture_of(*of_split(folder, line.image), where, problems)
    tokens = line.caption.count(POSE_TOKEN)
    if line.status != OK:
        problems.append(Problem("caption failed", f"{where}: {line.reason or 'no reason is given'}"))
    elif tokens != len(line.objects):
        what = f"{where}: {tokens} {POSE_TOKEN} in it, {len(line.objects)} objects"
        problems.append(Problem("tokens and objects differ", what))
    objects = [records[name] for name in line.objects if name in records]
    if records and len(objects) < len(line.objects):
        unknown = next(name for name in line.objects if name not in records)
        problems.append(Problem("object unknown", f"{where}: there is no record {unknown!r} in {folder}"))
    first, alone = objects[0] if objects else Entry(""), len(objects) == 1
    return Entry(
        line.image,
        first.category if len({entry.category for entry in objects}) == 1 else "",
        line.image.split("/")[0],
        line.status,
        tuple(pose for entry in objects for pose in entry.poses),
        viewport=first.viewport,
        size=first.size,
        bbox=first.bbox if alone else None,
        picture=picture,
        cad_index=first.cad_index if alone else 0,
        source=line.writer,
        texts=(line.caption,) if line.caption else (),
    )


def conversation_entry(value: Mapping[str, Any], where: str, folder: Path, problems: list[Problem]) -> Entry:
    """Return an item of train.json; what is wrong with it goes to ``problems``."""
    turns = value.get("conversations")
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        problems.append(Problem("conversations malformed", f"{where}: 'conversations' must be a list of turns"))
        turns = []
    texts = tuple(str(turn.get("value", "")) for turn in turns)
    poses = _poses(value.get("poses"), where, problems)
    tokens = sum(text.count(POSE_TOKEN) for text in texts)
    count = len(value["poses"]) if isinstance(value.get("poses"), list) else 0
    if texts and tokens != count:
        problems.append(
            Problem("tokens and poses differ", f"{where}: {tokens} {POSE_TOKEN} in the text, {count} poses")
        )
    kinds = value.get("kinds") or value.get("kind") or []
    image, width, height, viewport = (value.get(name) for name in ("image", "width", "height", "viewport"))
    names = [name for name in (image if isinstance(image, list) else [image]) if isinstance(name, str) and name]
    pictures = [picture_of(*of_split(folder, name), where, problems) for name in names]
    needed = ("id", "image", "category", *(("width", "height", "viewport") if poses else ()))
    return Entry(
        str(value.get("id") or value.get("record") or where),
        str(value.get("category") or ""),
        # the picture's first folder is the split, as instruct writes it
        names[0].split("/")[0] if names and names[0].count("/") > 1 else "",
        str(value.get("object_status") or ""),
        poses,
        viewport=float(viewport) if is_size(viewport) else None,
        size=(int(width), int(height)) if is_size(width) and is_size(height) else None,
        picture=pictures[0] if len(pictures) == 1 else None,  # poses of several pictures are drawn on none
        texts=texts,
        kinds=tuple(map(str, kinds)) if isinstance(kinds, list) else (str(kinds),),
        missing=tuple(name for name in needed if not value.get(name)),
        record=str(value.get("record") or ""),
    )


def _poses(value: Any, where: str, problems: list[Problem]) -> tuple[Pose, ...]:
    if value is not None and not isinstance(value, list):
        problems.append(Problem("poses malformed", f"{where}: 'poses' must be a list"))
        value = None
    poses = []
    for item in value or []:
        try:
            poses.append(Pose.annotated(item, where=where))
        except InputError as error:
            problems.append(Problem("poses malformed", str(error)))
    return tuple(poses)
