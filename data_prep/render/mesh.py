"""Triangle meshes with colours: what every source of shapes gives and the ray caster draws."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from .skins import Skin

CREASE_ANGLE = np.radians(40.0)  # edges sharper than this stay visible as edges
MOST_FACES_SMOOTHED = 500_000  # beyond, a face is smaller than a pixel and its own normal does
MOST_FACES_AT_A_VERTEX = 200  # the tip of a fan: its corners keep their faces' normals, and the work stays linear


@dataclass(frozen=True)
class Mesh:
    """Triangles with one colour a face, and textures or patterns on them if there is a skin.

    Attributes:
        vertices: (V, 3) float64, object frame (z up, front towards -y).
        faces: (F, 3) int32 vertex indices, anticlockwise seen from outside if ``oriented``.
        colors: (F, 3) float32 sRGB in [0, 1].
        gloss: (F,) float32 in [0, 1]: strength of the highlight.
        skin: what gives a point of a face its colour instead of ``colors``; None for plain faces.
        oriented: whether the faces are known to be anticlockwise from outside. People's files often have some of both.
        painted: whether colours or textures came with the shape; if not, ``colors`` are grey and mean nothing.
    """

    vertices: np.ndarray
    faces: np.ndarray
    colors: np.ndarray
    gloss: np.ndarray
    skin: Skin | None = None
    oriented: bool = True
    painted: bool = True

    @property
    def reach(self) -> float:
        """Distance from the origin to the farthest corner of the bounding box; 0.5 for a normalised mesh."""
        return float(np.linalg.norm(np.maximum(np.abs(self.vertices.min(axis=0)), np.abs(self.vertices.max(axis=0)))))

    def transformed(self, matrix: np.ndarray, offset: Iterable[float] = (0.0, 0.0, 0.0)) -> Mesh:
        """Return the mesh under ``x -> matrix @ x + offset``; a matrix that mirrors also turns the faces round."""
        matrix = np.asarray(matrix, dtype=np.float64)
        vertices = self.vertices @ matrix.T + np.asarray(tuple(offset), dtype=np.float64)
        if np.linalg.det(matrix) >= 0:
            return replace(self, vertices=vertices)
        skin = None if self.skin is None else self.skin.reversed()
        return replace(self, vertices=vertices, faces=self.faces[:, ::-1].copy(), skin=skin)

    def translated(self, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> Mesh:
        """Return the mesh moved by (x, y, z)."""
        return replace(self, vertices=self.vertices + np.array([x, y, z]))

    def rotated(self, axis: str, angle: float) -> Mesh:
        """Return the mesh turned about the axis "x", "y" or "z" through the origin by ``angle`` radians (right-handed)."""
        return self.transformed(axis_rotation(axis, angle))

    def mirrored(self) -> Mesh:
        """Return the mirror image in the plane x = 0."""
        return self.transformed(np.diag([-1.0, 1.0, 1.0]))

    def normalized(self) -> Mesh:
        """Centred on its bounding box and scaled to a bounding-box diagonal of 1: the scale of ImageNet3D's CADs."""
        low, high = self.vertices.min(axis=0), self.vertices.max(axis=0)
        return replace(self, vertices=(self.vertices - (low + high) / 2) / np.linalg.norm(high - low))


def axis_rotation(axis: str, angle: float) -> np.ndarray:
    """Return the (3, 3) right-handed rotation by ``angle`` radians about "x", "y" or "z"."""
    i = "xyz".index(axis)
    j, k = (i + 1) % 3, (i + 2) % 3
    matrix = np.eye(3)
    matrix[j, j] = matrix[k, k] = np.cos(angle)
    matrix[k, j] = np.sin(angle)
    matrix[j, k] = -matrix[k, j]
    return matrix


def join(parts: Iterable[Mesh]) -> Mesh:
    """One mesh of several parts without skins, which stay separate surfaces."""
    parts = list(parts)
    offsets = np.cumsum([0, *(len(part.vertices) for part in parts[:-1])])
    return Mesh(
        vertices=np.concatenate([part.vertices for part in parts]),
        faces=np.concatenate([part.faces + offset for part, offset in zip(parts, offsets, strict=True)]).astype(
            np.int32
        ),
        colors=np.concatenate([part.colors for part in parts]),
        gloss=np.concatenate([part.gloss for part in parts]),
    )


def both_sides(part: Mesh) -> Mesh:
    """Return a part and its mirror image in the plane x = 0."""
    return join([part, part.mirrored()])


def face_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Return (F, 3) normals, as long as twice the face's area, outward for anticlockwise faces."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    return np.cross(b - a, c - a)


def corner_normals(
    vertices: np.ndarray, faces: np.ndarray, crease_angle: float = CREASE_ANGLE, *, oriented: bool = True
) -> np.ndarray:
    """Return (F, 3, 3) unit normals at the corners of each face, float32.

    The area-weighted mean over those faces at the vertex which make less than ``crease_angle`` radians with the face:
    round surfaces look round and edges stay sharp. Faces of enormous meshes and corners where very many faces meet
    keep the face's own normal.

    Args:
        oriented: False where neighbours may be wound either way round: they count as turned the face's way.
    """
    weighted = face_normals(vertices, faces)
    unit = weighted / np.maximum(np.linalg.norm(weighted, axis=1, keepdims=True), 1e-20)
    if len(faces) > MOST_FACES_SMOOTHED:
        return np.repeat(unit, 3, axis=0).reshape(-1, 3, 3).astype(np.float32)

    corner_vertex = faces.ravel()
    grouped = np.argsort(corner_vertex, kind="stable")  # corners by vertex
    counts = np.bincount(corner_vertex, minlength=len(vertices))
    starts = np.cumsum(counts) - counts
    order = grouped[counts[corner_vertex[grouped]] <= MOST_FACES_AT_A_VERTEX]
    group_size = counts[corner_vertex[order]]
    corner = np.repeat(order, group_size)  # every pair of corners at the same vertex
    pair_start = np.cumsum(group_size) - group_size
    rank = np.arange(len(corner)) - np.repeat(pair_start, group_size)
    other = grouped[np.repeat(starts[corner_vertex[order]], group_size) + rank]

    face, other_face = corner // 3, other // 3
    cosine = np.einsum("ij,ij->i", unit[face], unit[other_face])
    alike = (cosine if oriented else np.abs(cosine)) > np.cos(crease_angle)
    neighbour = weighted[other_face[alike]]
    if not oriented:
        neighbour = neighbour * np.sign(cosine[alike])[:, None]
    summed = np.stack(
        [np.bincount(corner[alike], neighbour[:, axis], minlength=3 * len(faces)) for axis in range(3)], -1
    )
    length = np.linalg.norm(summed, axis=1, keepdims=True)
    normals = np.where(length > 1e-20, summed / np.maximum(length, 1e-20), np.repeat(unit, 3, axis=0))
    return normals.reshape(-1, 3, 3).astype(np.float32)


def off_text(mesh: Mesh) -> str:
    """Return the geometry (not the colours) as the text of an OFF file."""
    lines = ["OFF", f"{len(mesh.vertices)} {len(mesh.faces)} 0"]
    lines += [f"{x:.8g} {y:.8g} {z:.8g}" for x, y, z in mesh.vertices.tolist()]
    lines += [f"3 {a} {b} {c}" for a, b, c in mesh.faces.tolist()]
    return "\n".join(lines) + "\n"
