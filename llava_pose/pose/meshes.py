"""OFF files, the format of ImageNet3D's CAD models: read, and turned without touching anything but the vertices."""

from __future__ import annotations

import os
from typing import NamedTuple

import numpy as np

from llava_pose.errors import InputError
from llava_pose.utils.files import read_text

_REMEDY = "save the model as an ASCII OFF file"
_WITH_NORMALS = "N"


class OffMesh(NamedTuple):
    """The geometry of an OFF file."""

    vertices: np.ndarray  # (V, 3) float64
    faces: np.ndarray  # (F, 3) int32; a polygon of n corners is n - 2 triangles that fan out from its first corner


class _Lines(NamedTuple):
    """An OFF file's lines, blank ones and comments included, and where its vertices and faces stand in them."""

    lines: list[str]
    vertices: list[int]  # line numbers, from 0
    faces: list[int]


def read_off(path: str | os.PathLike[str]) -> OffMesh:
    """The triangles of an ASCII OFF file; colours are passed over.

    Raises:
        InputError: it cannot be read, is no OFF file, is cut off, names a vertex that is not there, or holds no face.
    """
    text = _split(_read(path), path)
    vertices = _vertices(text, path)
    triangles = [triangle for number in text.faces for triangle in _fan(text.lines[number], number, path)]
    if not triangles:
        raise InputError(f"{path}: there is no face in it; {_REMEDY}")
    strays = [corner for triangle in triangles for corner in triangle if not 0 <= corner < len(vertices)]
    if strays:
        raise InputError(f"{path}: a face names vertex {max(strays)}, there are {len(vertices)}; {_REMEDY}")
    return OffMesh(vertices, np.array(triangles, dtype=np.int32))


def off_vertices(path: str | os.PathLike[str]) -> np.ndarray:
    """The (V, 3) float64 vertices of an ASCII OFF file, without a look at its faces, which in large files are most of it.

    Raises:
        InputError: it cannot be read, is no OFF file, is cut off, or holds no vertex.
    """
    vertices = _vertices(_split(_read(path), path), path)
    if not len(vertices):
        raise InputError(f"{path}: there is no vertex in it; {_REMEDY}")
    return vertices


def turned_off(path: str | os.PathLike[str], rotation: np.ndarray) -> str:
    """The text of an OFF file with every vertex ``v`` as ``rotation @ v``; all else stays as it is written.

    Numbers are written in full: a rotation by right angles changes places and signs and nothing else.

    Args:
        rotation: (3, 3).

    Raises:
        InputError: as :func:`read_off`, or the file has normals, which would have to be turned too.
    """
    text = _split(_read(path), path)
    if _WITH_NORMALS in text.lines[_first_word(text.lines)].split()[0].upper().removesuffix("OFF"):
        raise InputError(f"{path}: it has normals beside its vertices, which are not turned; save it without")
    turned = _vertices(text, path) @ np.asarray(rotation, dtype=np.float64).T + 0.0  # no negative zeros
    lines = list(text.lines)
    for number, vertex in zip(text.vertices, turned.tolist(), strict=True):
        lines[number] = " ".join([*map(repr, vertex), *lines[number].split()[3:]])
    return "\n".join(lines) + "\n"


def _read(path: str | os.PathLike[str]) -> list[str]:
    return read_text(path, remedy=_REMEDY).splitlines()


def _first_word(lines: list[str]) -> int:
    return next(number for number, line in enumerate(lines) if _content(line))


def _content(line: str) -> str:
    return line.partition("#")[0].strip()


def _split(lines: list[str], path: str | os.PathLike[str]) -> _Lines:
    filled = [number for number, line in enumerate(lines) if _content(line)]
    words = _content(lines[filled[0]]).split() if filled else []
    # some writers put the counts behind the word OFF, with no space between
    marker, end = words[0].upper() if words else "", words[0].upper().find("OFF") + 3 if words else 0
    if end < 3:
        raise InputError(f"{path}: it does not begin with OFF; {_REMEDY}")
    if marker[end:]:
        words = [marker[:end], marker[end:], *words[1:]]
    counts, rest = (
        (words[1:], filled[1:])
        if len(words) > 1
        else (_content(lines[filled[1]]).split(), filled[2:])
        if (len(filled) > 1)
        else ([], [])
    )
    try:
        n_vertices, n_faces = (int(word) for word in counts[:2])
    except ValueError as error:
        raise InputError(f"{path}: the numbers of vertices and faces are missing; {_REMEDY}") from error
    if n_vertices < 0 or n_faces < 0 or len(rest) < n_vertices + n_faces:
        raise InputError(
            f"{path}: it is cut off, {n_vertices} vertices and {n_faces} faces are announced and {len(rest)} lines"
            " follow; copy the file again"
        )
    return _Lines(lines, rest[:n_vertices], rest[n_vertices : n_vertices + n_faces])


def _vertices(text: _Lines, path: str | os.PathLike[str]) -> np.ndarray:
    try:
        rows = [[float(word) for word in _content(text.lines[number]).split()[:3]] for number in text.vertices]
        vertices = np.array(rows, dtype=np.float64).reshape(-1, 3)
    except ValueError as error:
        raise InputError(f"{path}: a vertex is not three numbers on a line of its own; {_REMEDY}") from error
    if len(vertices) != len(text.vertices) or not np.isfinite(vertices).all():
        raise InputError(f"{path}: a vertex is not three finite numbers; {_REMEDY}")
    return vertices


def _fan(line: str, number: int, path: str | os.PathLike[str]) -> list[tuple[int, int, int]]:
    try:
        count, *corners = (int(word) for word in _content(line).split()[: int(line.split()[0]) + 1])
    except ValueError as error:
        raise InputError(f"{path}:{number + 1}: a face is not 'count index index index …'; {_REMEDY}") from error
    if len(corners) != count:
        raise InputError(f"{path}:{number + 1}: a face of {count} corners names {len(corners)}; {_REMEDY}")
    return [(corners[0], corners[i], corners[i + 1]) for i in range(1, count - 1)]
