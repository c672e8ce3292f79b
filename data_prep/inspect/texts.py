"""Captions and conversations as entries: texts with ``<pose6D>``, and the poses that belong to the tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_prep.caption.lines import OK, CaptionLine
from data_prep.inspect.entries import Entry, Problem
from llava_pose.data.conversation import POSE_TOKEN
from llava_pose.data.records import Pose, is_size
from llava_pose.errors import InputError
from llava_pose.utils.files import inside, is_regular, of_split


def picture_of(folder: Path, name: str, where: str, problems: list[Problem]) -> Path | None:
    """The picture that a line names; what is wrong with it goes to ``problems``, and one outside of its folder is none."""
    try:
        picture = inside(folder, name)
    except InputError as error:
        problems.append(Problem("image outside", f"{where}: {error}"))
        return None
    if not is_regular(picture):
        problems.append(Problem("image missing", f"{where}: the image {picture} is not there"))
    return picture


def instruction_entry(value: Mapping[str, Any], where: str, folder: Path, problems: list[Problem]) -> Entry:
    """An item of train.json; what is wrong with it goes to ``problems``."""
    turns = value.get("conversations")
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        problems.append(Problem("conversations malformed", f"{where}: 'conversations' must be a list of turns"))
        turns = []
    texts = tuple(str(turn.get("value", "")) for turn in turns)
    kinds = value.get("kinds") or ([value["kind"]] if value.get("kind") else [])
    kinds = kinds if isinstance(kinds, list) else [kinds]
    return _entry(value, where, folder, problems, texts, tuple(map(str, kinds)))


def caption_entry(
    value: Mapping[str, Any], where: str, folder: Path, problems: list[Problem], records: Mapping[str, Entry]
) -> Entry:
    """A line of captions.jsonl; one that failed has no text, and its reason goes to ``problems``.

    Args:
        records: of the prepared folder, by id: a caption names its objects and leaves their poses to them. Empty where
            the file lies beside no prepared folder.
    """
    try:
        line = CaptionLine.from_dict(value, where=where)
    except InputError as error:
        problems.append(Problem("caption malformed", str(error)))
        return Entry(str(value.get("image") or where), fields=value)
    picture = picture_of(*of_split(folder, line.image), where, problems)
    if line.status != OK:
        problems.append(Problem("caption failed", f"{where}: {line.reason or 'no reason is given'}"))
    tokens = line.caption.count(POSE_TOKEN)
    if line.status == OK and tokens != len(line.objects):
        problems.append(
            Problem("tokens and objects differ", f"{where}: {tokens} {POSE_TOKEN} in it, {len(line.objects)} objects")
        )
    objects = [records[name] for name in line.objects if name in records]
    if records and len(objects) < len(line.objects):
        unknown = next(name for name in line.objects if name not in records)
        problems.append(Problem("object unknown", f"{where}: there is no record {unknown!r} in {folder}"))
    first = objects[0] if objects else Entry("")
    return Entry(
        line.image,
        first.category if len({entry.category for entry in objects}) == 1 else "",
        line.image.split("/")[0],
        line.status,
        poses=tuple(pose for entry in objects for pose in entry.poses),
        viewport=first.viewport,
        size=first.size,
        bbox=first.bbox if len(objects) == 1 else None,
        picture=picture,
        cad_index=first.cad_index if len(objects) == 1 else 0,
        source=line.writer,
        texts=(line.caption,) if line.caption else (),
        fields=value,
    )


def _entry(
    value: Mapping[str, Any],
    where: str,
    folder: Path,
    problems: list[Problem],
    texts: tuple[str, ...],
    kinds: tuple[str, ...],
) -> Entry:
    poses = _poses(value.get("poses"), where, problems)
    tokens = sum(text.count(POSE_TOKEN) for text in texts)
    count = len(value["poses"]) if isinstance(value.get("poses"), list) else 0
    if texts and tokens != count:
        problems.append(
            Problem("tokens and poses differ", f"{where}: {tokens} {POSE_TOKEN} in the text, {count} poses")
        )
    image = value.get("image") or value.get("file_name")
    picture = picture_of(*of_split(folder, image), where, problems) if isinstance(image, str) and image else None
    size = value.get("width"), value.get("height")
    viewport = value.get("viewport")
    missing = [name for name in ("id", "image", "category") if not value.get(name)]
    if poses:
        missing += [name for name in ("width", "height", "viewport") if not value.get(name)]
    return Entry(
        str(value.get("id") or value.get("record") or where),
        str(value.get("category") or ""),
        # the picture's first folder is the split, as instruct writes it
        image.split("/")[0] if isinstance(image, str) and image.count("/") > 1 else "",
        str(value.get("object_status") or ""),
        poses=poses,
        viewport=float(viewport) if is_size(viewport) else None,
        size=(int(size[0]), int(size[1])) if is_size(size[0]) and is_size(size[1]) else None,
        picture=picture,
        texts=texts,
        kinds=kinds,
        missing=tuple(missing),
        fields=value,
    )


def _poses(value: Any, where: str, problems: list[Problem]) -> tuple[Pose, ...]:
    if value is None:
        return ()
    if not isinstance(value, Sequence) or isinstance(value, str):
        problems.append(Problem("poses malformed", f"{where}: 'poses' must be a list"))
        return ()
    poses = []
    for item in value:
        try:
            poses.append(Pose.annotated(item, where=where))
        except InputError as error:
            problems.append(Problem("poses malformed", str(error)))
    return tuple(poses)
