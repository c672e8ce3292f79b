"""Triangle meshes with colours: what every source of shapes gives and the ray caster draws."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

CREASE_ANGLE = np.radians(40.0)  # edges sharper than this stay visible as edges


@dataclass(frozen=True)
class Mesh:
    """Triangles with one colour a face.

    Attributes:
        vertices: (V, 3) float64, object frame (z up, front towards -y).
        faces: (F, 3) int32 vertex indices, anticlockwise seen from outside.
        colors: (F, 3) float32 sRGB in [0, 1].
        gloss: (F,) float32 in [0, 1]: strength of the highlight.
    """

    vertices: np.ndarray
    faces: np.ndarray
    colors: np.ndarray
    gloss: np.ndarray

    def transformed(self, matrix: np.ndarray, offset: Iterable[float] = (0.0, 0.0, 0.0)) -> Mesh:
        """The mesh under ``x -> matrix @ x + offset``; a matrix that mirrors also turns the faces round."""
        matrix = np.asarray(matrix, dtype=np.float64)
        vertices = self.vertices @ matrix.T + np.asarray(tuple(offset), dtype=np.float64)
        faces = self.faces[:, ::-1].copy() if np.linalg.det(matrix) < 0 else self.faces
        return replace(self, vertices=vertices, faces=faces)

    def translated(self, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> Mesh:
        """The mesh moved by (x, y, z)."""
        return replace(self, vertices=self.vertices + np.array([x, y, z]))

    def rotated(self, axis: str, angle: float) -> Mesh:
        """The mesh turned about the axis "x", "y" or "z" through the origin by ``angle`` radians (right-handed)."""
        return self.transformed(axis_rotation(axis, angle))

    def mirrored(self) -> Mesh:
        """The mirror image in the plane x = 0."""
        return self.transformed(np.diag([-1.0, 1.0, 1.0]))

    def normalized(self) -> Mesh:
        """Centred on its bounding box and scaled to a bounding-box diagonal of 1: the scale of ImageNet3D's CADs."""
        low, high = self.vertices.min(axis=0), self.vertices.max(axis=0)
        return replace(self, vertices=(self.vertices - (low + high) / 2) / np.linalg.norm(high - low))


def axis_rotation(axis: str, angle: float) -> np.ndarray:
    """(3, 3) right-handed rotation by ``angle`` radians about "x", "y" or "z"."""
    i = "xyz".index(axis)
    j, k = (i + 1) % 3, (i + 2) % 3
    matrix = np.eye(3)
    matrix[j, j] = matrix[k, k] = np.cos(angle)
    matrix[k, j] = np.sin(angle)
    matrix[j, k] = -matrix[k, j]
    return matrix


def join(parts: Iterable[Mesh]) -> Mesh:
    """One mesh of several parts, which stay separate surfaces."""
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
    """A part and its mirror image in the plane x = 0."""
    return join([part, part.mirrored()])


def face_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """(F, 3) normals, as long as twice the face's area, outward for anticlockwise faces."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    return np.cross(b - a, c - a)


def corner_normals(vertices: np.ndarray, faces: np.ndarray, crease_angle: float = CREASE_ANGLE) -> np.ndarray:
    """(F, 3, 3) unit normals at the corners of each face, float32.

    The area-weighted mean over those faces at the vertex which make less than ``crease_angle`` radians with the face:
    round surfaces look round and edges stay sharp.
    """
    weighted = face_normals(vertices, faces)
    unit = weighted / np.maximum(np.linalg.norm(weighted, axis=1, keepdims=True), 1e-20)

    corner_vertex = faces.ravel()
    order = np.argsort(corner_vertex, kind="stable")  # corners grouped by vertex
    counts = np.bincount(corner_vertex, minlength=len(vertices))
    starts = np.cumsum(counts) - counts
    group_size = counts[corner_vertex[order]]
    corner = np.repeat(order, group_size)  # every pair of corners at the same vertex
    pair_start = np.cumsum(group_size) - group_size
    rank = np.arange(len(corner)) - np.repeat(pair_start, group_size)
    other = order[np.repeat(starts[corner_vertex[order]], group_size) + rank]

    face, other_face = corner // 3, other // 3
    alike = np.einsum("ij,ij->i", unit[face], unit[other_face]) > np.cos(crease_angle)
    summed = np.stack(
        [np.bincount(corner[alike], weighted[other_face[alike], axis], minlength=3 * len(faces)) for axis in range(3)],
        -1,
    )
    length = np.linalg.norm(summed, axis=1, keepdims=True)
    normals = np.where(length > 1e-20, summed / np.maximum(length, 1e-20), np.repeat(unit, 3, axis=0))
    return normals.reshape(-1, 3, 3).astype(np.float32)


def off_text(mesh: Mesh) -> str:
    """The geometry (not the colours) as the text of an OFF file."""
    lines = ["OFF", f"{len(mesh.vertices)} {len(mesh.faces)} 0"]
    lines += [f"{x:.6f} {y:.6f} {z:.6f}" for x, y, z in mesh.vertices]
    lines += [f"3 {a} {b} {c}" for a, b, c in mesh.faces]
    return "\n".join(lines) + "\n"
