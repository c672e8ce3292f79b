"""A pose as one line of JSON or CSV, as ``predict`` writes it and ``convert`` reads it."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llava_pose.pose.conventions import CONVENTIONS

if TYPE_CHECKING:
    from llava_pose.inference.answers import PoseAnswer

BOX_COLUMNS = ("x1", "y1", "x2", "y2")
_ANGLES = ("azimuth", "elevation", "theta")


def pose_line(
    identity: str,
    file_name: str,
    size: tuple[int, int],
    box: Sequence[float] | None,
    answer: PoseAnswer,
    convention: str = "opencv",
) -> dict[str, Any]:
    """Return an answer with the picture that it is about, of so many pixels, and the box that it was asked about."""
    return {
        "id": identity,
        "file_name": file_name,
        "width": size[0],
        "height": size[1],
        "box": None if box is None else list(box),
        **answer.to_dict(convention),
    }


def csv_text(lines: Sequence[Mapping[str, Any]], *, header: bool = True) -> str:
    """Return lines of :func:`pose_line` as CSV."""
    rows = [_row(line) for line in lines]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]) if rows else [], lineterminator="\n")
    if rows and header:
        writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _row(line: Mapping[str, Any]) -> dict[str, Any]:
    """Return a line as the cells of a CSV file: angles in degrees and in radians, matrix row by row."""
    pose, order = line["pose"], CONVENTIONS[line["convention"]].quaternion
    box = line["box"] or (None,) * 4
    return {
        **{name: line[name] for name in ("id", "file_name", "category", "confidence")},
        **dict(zip(BOX_COLUMNS, box, strict=True)),
        **{f"{name}_degrees": line["degrees"][name] for name in _ANGLES},
        **{name: pose.get(name) for name in (*_ANGLES, "distance", "px", "py")},
        "convention": line["convention"],
        **{f"r{row}{column}": line["matrix"][row - 1][column - 1] for row in (1, 2, 3) for column in (1, 2, 3)},
        **{f"q{letter}": part for letter, part in zip(order, line["quaternion"], strict=True)},
        **{name: line[name] for name in ("viewport", "width", "height")},
    }
