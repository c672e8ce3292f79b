"""The turns by which each category's CAD models stand in one frame with all others.

The table (alignment.json beside this module, or a file of your own) holds what is turned; a category that it does not
name stays as it is. It follows three rules, in this order: *semantic parts* (toe, blade, seat, handle: what means the
same points the same way), *similar shapes* (what looks alike lies alike), *common knowledge* (what people call the
front, and how a thing stands when nobody touches it). docs/results/alignment.md says what was looked at and found.

With A the rotation of a model, ``X_new = A @ X`` and ``R_new = R @ A.T``: the picture of the turned model under the
turned pose is the picture that was. The origin is the axis of every turn, so that distance, px and py stay.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any, cast

import numpy as np

from llava_pose.data.jsonl import parse_json
from llava_pose.errors import InputError
from llava_pose.pose import categories
from llava_pose.pose.categories import Category
from llava_pose.pose.geometry import angles_from_rotation, rotation_matrix
from llava_pose.utils.files import read_text

RULES = ("semantic parts", "similar shapes", "common knowledge")
_FIELDS = ("turns", "rule", "reason", "front", "up", "cads")
_CAD_FIELDS = ("turns", "reason")


@dataclass(frozen=True)
class CategoryAlignment:
    """The turns of the models of one category.

    Attributes:
        rotation: (3, 3) of the whole category.
        cads: cad_index -> (3, 3), first of all, for a single model that stands otherwise than its category.
        rule: one of RULES; "" where only single models are turned.
        reason: in words, for people.
        front, up: what looks to -y and to +z after the turn; "" where the category's own words still hold.
    """

    rotation: np.ndarray
    cads: Mapping[int, np.ndarray]
    rule: str = ""
    reason: str = ""
    front: str = ""
    up: str = ""

    def of_cad(self, cad_index: int) -> np.ndarray:
        """Return the (3, 3) rotation of one model; ``cad_index`` 0 stands for a model that nobody knows."""
        single = self.cads.get(cad_index)
        return self.rotation if single is None else self.rotation @ single


@dataclass(frozen=True)
class AlignmentTable:
    """The rotations of all categories that are turned.

    Attributes:
        entries: canonical name (or the folder's, outside the taxonomy) -> how it is turned.
        source: the table as JSON holds it, to be written beside what was turned with it.
    """

    entries: Mapping[str, CategoryAlignment]
    source: Mapping[str, Any]

    def names(self, category: str) -> bool:
        """Return whether the table has an entry for a category, by any of its names."""
        return _canonical(category) in self.entries

    def rotation(self, category: str, cad_index: int = 0) -> np.ndarray | None:
        """Return the (3, 3) of a model of a category (any of its names), or None if it stays as it is."""
        entry = self.entries.get(_canonical(category))
        if entry is None:
            return None
        rotation = entry.of_cad(cad_index)
        return None if np.array_equal(rotation, np.eye(3)) else rotation

    def inverted(self) -> AlignmentTable:
        """Return the table that takes everything back; front and up are the category's own again."""
        entries = {
            name: CategoryAlignment(entry.rotation.T, {i: entry.rotation @ entry.of_cad(i).T for i in entry.cads})
            for name, entry in self.entries.items()
        }
        return AlignmentTable(entries, self.source)

    def in_common_frame(self, category: Category) -> Category:
        """Return the category as it is once it is turned: mirror plane, symmetries and the words for front and up.

        Raises:
            ValueError: it is turned by other than right angles, so that its symmetries have no place on the axes.
        """
        entry = self.entries.get(category.name)
        if entry is None or np.array_equal(entry.rotation, np.eye(3)):
            return category
        places = np.abs(entry.rotation)
        if not np.array_equal(places, places.round()):
            raise ValueError(f"{category.name} is turned by other than right angles")
        moved_to = places.argmax(axis=0)  # old axis -> new axis
        symmetry = tuple(category.symmetry[int(np.flatnonzero(moved_to == axis)[0])] for axis in range(3))
        mirror_axis = None if category.mirror_axis is None else "xyz"[moved_to["xyz".index(category.mirror_axis)]]
        front, up = entry.front or category.front, entry.up or category.up
        words = category.description.replace(
            f"the front is {category.front}, and up points to {category.up}.",
            f"the front is {front}, and up points to {up}.",
        )
        return replace(
            category,
            symmetry=cast(tuple[str, str, str], symmetry),
            # a mirror plane that lies level leaves no rule for flipping pictures
            mirror_axis=None if mirror_axis == "z" else mirror_axis,
            front=front,
            up=up,
            description=words,
        )


def builtin_table() -> AlignmentTable:
    """Return the project's own table, for CAD models in ImageNet3D's frame."""
    text = resources.files("data_prep.raw").joinpath("alignment.json").read_text(encoding="utf-8")
    return parse_table(json.loads(text), where="data_prep/alignment.json")


def read_table(path: str | os.PathLike[str]) -> AlignmentTable:
    """Return a table from a JSON file.

    Raises:
        InputError: it cannot be read, is not JSON, or an entry is wrong; the message names the field.
    """
    text = read_text(path)
    try:
        value = parse_json(text)
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error}); mend the alignment table") from error
    return parse_table(value, where=str(path))


def parse_table(value: Any, *, where: str) -> AlignmentTable:
    """Return a table from what JSON holds: category -> {"turns": [["x", -90], …], "rule", "reason", "front", "up", "cads"}.

    "turns" are made one after the other, about the axes of the frame, right-handed, in degrees. "cads" is
    {"3": {"turns": …, "reason": …}} for single models.

    Raises:
        InputError: an entry is wrong; the message names the field.
    """
    if not isinstance(value, dict):
        raise InputError(f"{where}: the table must be an object, category -> turns; see data_prep/alignment.json")
    entries: dict[str, CategoryAlignment] = {}
    for name, entry in value.items():
        key, place = _canonical(name), f"{where}: {name}"
        if key in entries:
            raise InputError(f"{place}: the category {key} stands in the table twice; join the entries")
        entries[key] = _parse_entry(entry, place)
    return AlignmentTable(entries, value)


def turned_angles(
    angles: Sequence[float], rotation: np.ndarray, *, inverse: bool = False
) -> tuple[float, float, float]:
    """Return azimuth, elevation and theta (radians, canonical) of the pose under which the turned model looks as before.

    Args:
        angles: azimuth, elevation, theta of the model as it was.
        rotation: (3, 3), A in ``X_new = A @ X``.
        inverse: of the model as it is, from the turned one.
    """
    turned = rotation_matrix(*angles) @ (rotation if inverse else rotation.T)
    azimuth, elevation, theta = angles_from_rotation(turned)
    return float(azimuth), float(elevation), float(theta)


def rotation_of_turns(turns: Sequence[tuple[str, float]]) -> np.ndarray:
    """Return the (3, 3) of turns, one after the other: [("x", 90), ("z", 180)] is Rz(180°) Rx(90°). Right angles are exact."""
    rotation = np.eye(3)
    for axis, degrees in turns:
        rotation = _turn("xyz".index(axis), degrees) @ rotation
    return rotation + 0.0  # no negative zeros


def _turn(axis: int, degrees: float) -> np.ndarray:
    quarter, rest = divmod(degrees, 90)
    if rest == 0:
        cos, sin = ((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0))[int(quarter) % 4]
    else:
        cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    i, j = (axis + 1) % 3, (axis + 2) % 3
    rotation = np.eye(3)
    rotation[i, i], rotation[i, j], rotation[j, i], rotation[j, j] = cos, -sin, sin, cos
    return rotation


def _canonical(name: str) -> str:
    category = categories.find(name)
    return name if category is None else category.name


def _parse_entry(entry: Any, where: str) -> CategoryAlignment:
    _check_fields(entry, _FIELDS, where)
    cads = entry.get("cads", {})
    if not isinstance(cads, dict) or not all(re.fullmatch(r"[1-9]\d*", key) for key in cads):
        raise InputError(f"{where}: 'cads' must be an object whose keys are numbers of CAD models, from \"1\"")
    if not cads and "turns" not in entry:
        raise InputError(f"{where}: there are neither 'turns' nor 'cads'; take the category out of the table")
    for number, single in cads.items():
        _check_fields(single, _CAD_FIELDS, f"{where}, cads {number}")
    for name in ("rule", "reason", "front", "up"):
        if not isinstance(entry.get(name, ""), str):
            raise InputError(f"{where}: '{name}' must be text")
    if entry.get("rule", RULES[0]) not in RULES:
        raise InputError(f"{where}: 'rule' must be one of {', '.join(RULES)}, not {entry['rule']!r}")
    return CategoryAlignment(
        _parse_turns(entry.get("turns", []), where),
        {int(key): _parse_turns(single.get("turns"), f"{where}, cads {key}") for key, single in cads.items()},
        *(entry.get(name, "") for name in ("rule", "reason", "front", "up")),
    )


def _check_fields(entry: Any, known: Sequence[str], where: str) -> None:
    if not isinstance(entry, dict):
        raise InputError(f"{where}: expected an object with {', '.join(known)}")
    for name in entry:
        if name not in known:
            raise InputError(f"{where}: there is no field '{name}'; known fields: {', '.join(known)}")


def _parse_turns(turns: Any, where: str) -> np.ndarray:
    if not isinstance(turns, list) or not all(map(_is_turn, turns)):
        raise InputError(f'{where}: \'turns\' must be a list such as [["x", -90], ["z", 180]], axis and degrees')
    return rotation_of_turns([(axis, degrees) for axis, degrees in turns])


def _is_turn(turn: Any) -> bool:
    return (
        isinstance(turn, list)
        and len(turn) == 2
        and turn[0] in ("x", "y", "z")
        and isinstance(turn[1], (int, float))
        and not isinstance(turn[1], bool)
        and bool(np.isfinite(turn[1]))
    )
