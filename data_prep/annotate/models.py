"""CAD models as wires: the lines that a page draws over a photograph."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from llava_pose.data.records import MAX_NUMBER
from llava_pose.errors import InputError
from llava_pose.pose import categories
from llava_pose.pose.meshes import read_off
from llava_pose.utils.files import is_plain_name

_SHARP = np.cos(np.radians(25))  # faces that meet at more than this have a line between them
_MOST_EDGES = 4000  # of a model; of more, the longest


def list_models(folder: Path | None) -> dict[str, dict[int, Path]]:
    """Return canonical category -> number -> file of ``<category>/NN.off``."""
    found: dict[str, dict[int, Path]] = {}
    for path in sorted(folder.glob("*/*.off")) if folder is not None else ():
        if re.fullmatch("[0-9]{1,4}", path.stem) and is_plain_name(path.parent.name):
            known = categories.find(path.parent.name)
            found.setdefault(path.parent.name if known is None else known.name, {})[int(path.stem)] = path
    return found


def wires_of(path: Path) -> dict[str, Any]:
    """Return a model's sharp edges and borders.

    Returns:
        ``vertices`` (V, 3) in the object frame and ``edges`` (E, 2), as lists.

    Raises:
        InputError: it is no OFF file that can be read, or its numbers are none that can be drawn.
    """
    mesh = read_off(path)
    if (np.abs(mesh.vertices) > MAX_NUMBER).any():
        raise InputError(f"{path}: a vertex is farther out than {MAX_NUMBER:g}; scale the model down")
    places, same = np.unique(
        np.round(mesh.vertices, 6), axis=0, return_inverse=True
    )  # faces may have corners of their own
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
    return {"vertices": np.round(places, 4).tolist(), "edges": sharp[longest].tolist()}
