"""The items that every reader of a data set gives: an object that can be taken, or why one cannot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.raw.imagenet3d import DEFAULT_VIEWPORT
from llava_pose.utils.files import shortened, unsafe_name

STATUSES = ((0.85, "status_good"), (0.5, "status_partially"), (0.15, "status_barely"), (-math.inf, "status_bad"))


@dataclass(frozen=True)
class ImportedObject:
    """One object that the raw layout can hold.

    Attributes:
        where: its place in the data set, for messages.
        picture: the file.
        picture_name: the file's name in the data set, of which the name in the raw layout is made.
        category: as the data set calls it.
        split: the list that its picture goes on.
        fields: of the annotation but for class, width and height (docs/DATA.md, "The raw layout"); angles in radians.
        size: (width, height) that the data set says the picture has; None if it does not.
    """

    where: str
    picture: Path
    picture_name: str
    category: str
    split: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class LeftOut:
    """One object, or one file, that cannot be taken; ``reason`` is the short name that it is counted by."""

    where: str
    reason: str
    sentence: str


def picture_in(folder: Path, name: Any, where: str) -> Path | LeftOut:
    """The file of a picture that a data set names, or why it is not used.

    Names stay in the folder; links are followed, since people link pictures from other disks, as Omni3D tells them to.
    """
    if not isinstance(name, str):
        return LeftOut(where, "picture malformed", f"{where}: its picture must be a file name, not {name!r}; mend it")
    reason = unsafe_name(name)
    if reason is not None:
        return LeftOut(
            where, "picture leads out", f"{where}: the file name {shortened(name)} {reason}; mend the data set"
        )
    path = folder / name
    if not path.is_file():
        return LeftOut(where, "picture missing", f"{where}: {path} is not there; add it, or give another --images")
    return path


def key(value: Any) -> str:
    """An id of a data set, a number or text, as what it is looked up by; anything else is looked up by how it is written."""
    return value if isinstance(value, str) else repr(value)


def status_of(visible: float) -> str:
    """The object_status that goes with the share of an object that is seen, as in ``llava-pose render``."""
    return next(status for least, status in STATUSES if visible >= least)


def rough_place(bbox: Sequence[float], viewport: float = DEFAULT_VIEWPORT) -> dict[str, float]:
    """Distance, px, py and viewport of an object of which only the box is known: one unit across, in the box's middle."""
    x1, y1, x2, y2 = bbox
    longest = max(x2 - x1, y2 - y1)
    return {
        "distance": viewport / longest if longest > 0 else math.nan,
        "viewport": viewport,
        "px": (x1 + x2) / 2,
        "py": (y1 + y2) / 2,
    }
