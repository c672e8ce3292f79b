"""CAD models as wires: the lines that are drawn over a photograph."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np

from llava_pose.data.records import MAX_NUMBER
from llava_pose.errors import InputError
from llava_pose.pose import categories
from llava_pose.pose.meshes import read_off
from llava_pose.utils.files import is_plain_name

_SHARP = np.cos(np.radians(25))  # faces that meet at more than this have a line between them
_MOST_EDGES = 4000  # of a model; of more, the longest


class Wires(NamedTuple):
    """The lines of a model, in the object frame."""

    vertices: np.ndarray  # (V, 3) float64
    edges: np.ndarray  # (E, 2) places in the vertices


def list_models(folder: Path | None) -> dict[str, dict[int, Path]]:
    """Return canonical category -> number -> file of ``<category>/NN.off``."""
    found: dict[str, dict[int, Path]] = {}
    for path in sorted(folder.glob("*/*.off")) if folder is not None else ():
        if re.fullmatch("[0-9]{1,4}", path.stem) and is_plain_name(path.parent.name):
            known = categories.find(path.parent.name)
            found.setdefault(path.parent.name if known is None else known.name, {})[int(path.stem)] = path
    return found


def first_models(folder: Path, known: Collection[str]) -> dict[str, Wires]:
    """Return the first model of each category that is known, or of every category where none is said to be known.

    Raises:
        InputError: there is no model of any of them, or one cannot be read.
    """
    models = list_models(folder)
    wanted = {name: models[name] for name in models if not known or name in known}
    if not wanted:
        raise InputError(f"{folder}: there is no <category>/NN.off of a category that the checkpoint was taught")
    return {name: wires_of(files[min(files)]) for name, files in wanted.items()}


def wires_of(path: Path) -> Wires:
    """Return a model's sharp edges and borders.

    Raises:
        InputError: it is no OFF file that can be read, or its numbers are none that can be drawn.
    """
    mesh = read_off(path)
    if (np.abs(mesh.vertices) > MAX_NUMBER).any():
        raise InputError(f"{path}: a vertex is farther out than {MAX_NUMBER:g}; scale the model down")
    # faces may have corners of their own
    places, same = np.unique(np.round(mesh.vertices, 6), axis=0, return_inverse=True)
    faces = same.reshape(-1)[mesh.faces]
    normals = np.cross(places[faces[:, 1]] - places[faces[:, 0]], places[faces[:, 2]] - places[faces[:, 0]])
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    normals = normals / np.where(lengths > 0, lengths, 1)
    edges = np.sort(faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1)
    kinds, of = np.unique(edges, axis=0, return_inverse=True)
    count = np.bincount(of.reshape(-1))
    # a side of a face is number 3 * face + side: the first and the last that are one edge say how sharp it is
    order = np.argsort(of.reshape(-1), kind="stable")
    first = order[np.cumsum(count) - count]
    last = order[np.cumsum(count) - 1]
    bend = np.abs((normals[first // 3] * normals[last // 3]).sum(axis=1))
    sharp = kinds[(count == 1) | (bend < _SHARP)]
    reach = np.linalg.norm(places[sharp[:, 0]] - places[sharp[:, 1]], axis=1)
    longest = np.sort(np.argsort(-reach, kind="stable")[:_MOST_EDGES])
    return Wires(np.round(places, 4), sharp[longest])
