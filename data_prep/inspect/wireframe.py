"""The lines of a CAD model that a person would draw: outline and sharp edges, where nothing of the model is before them.

Hidden lines are found by casting a ray from the camera to each piece of an edge (embree). What remains is thinned: an
outline is kept whole, of the inner edges the longest.
"""

from __future__ import annotations

import math

import numpy as np

from data_prep.render.mesh import Mesh
from data_prep.render.raycast import RayCaster
from llava_pose.data.records import Pose
from llava_pose.pose.geometry import camera_center, project_points
from llava_pose.pose.meshes import OffMesh

_SHARP = math.cos(math.radians(32))  # edges whose faces meet at more than this are drawn
_SAME_PLACE = 1e-5  # of the bounding-box diagonal: vertices nearer than that are one
_BEHIND = 0.012  # of the diagonal: how far behind a surface a line must lie to be hidden by it
_PIECE = 6.0  # pixels of an edge that are hidden or seen as one
_MOST_PIECES = 64
_MOST_INNER = 260  # stretches of inner edges that are drawn


class Wireframe:
    """A CAD model prepared to be drawn as lines, from anywhere.

    Attributes:
        vertices: (V, 3) float64, those at the same place joined.
    """

    def __init__(self, mesh: OffMesh) -> None:
        diagonal = float(np.linalg.norm(np.ptp(mesh.vertices, axis=0))) or 1.0
        self._tolerance = _BEHIND * diagonal
        self.vertices, faces = _joined(mesh, _SAME_PLACE * diagonal)
        self._normals = _unit_normals(self.vertices, faces)
        self._centres = self.vertices[faces].mean(axis=1)
        self._edges, self._first, self._second, self._turned = _edges(faces)
        count = len(faces)
        grey = np.full((count, 3), 0.5, dtype=np.float32)
        gloss = np.zeros(count, dtype=np.float32)
        self._caster = RayCaster(Mesh(self.vertices, faces, grey, gloss, oriented=False))

    def lines(self, pose: Pose, viewport: float) -> np.ndarray:
        """The visible lines in the picture, (N, 2, 2) pixels: start and end, x and y.

        Args:
            pose: with distance, px and py.
            viewport: pixels per unit focal length times the focal length.

        Raises:
            ValueError: the pose has no distance, px or py.
        """
        if pose.distance is None or pose.px is None or pose.py is None:
            raise ValueError("a wireframe needs a pose with distance, px and py")
        centre = camera_center(pose.azimuth, pose.elevation, pose.distance)
        drawn = self._drawn(centre)  # outline, inner
        found = []
        for edges, most in zip(drawn, (None, _MOST_INNER), strict=True):
            edge, starts, ends = self._pieces(self._edges[edges], pose, viewport)
            first, last = _runs(edge, self._visible((starts + ends) / 2, centre))
            lines = np.stack([_project(starts[first], pose, viewport), _project(ends[last], pose, viewport)], axis=1)
            lines = lines[np.isfinite(lines).all(axis=(1, 2))]
            if most is not None and len(lines) > most:
                lengths = np.linalg.norm(lines[:, 1] - lines[:, 0], axis=1)
                lines = lines[np.sort(np.argsort(-lengths, kind="stable")[:most])]
            found.append(lines)
        return np.concatenate(found)

    def _drawn(self, centre: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Edges of the outline and inner edges, as indices."""
        facing = np.einsum("ij,ij->i", self._normals, centre - self._centres)
        first, second = self._first, self._second
        paired = second >= 0
        open_edge = ~paired
        # of two faces wound against each other one is seen from behind although both look the same way
        outline = paired & (facing[first] * facing[second] * self._turned <= 0)
        bend = np.einsum("ij,ij->i", self._normals[first], self._normals[second]) * self._turned
        sharp = open_edge | (paired & (bend < _SHARP))
        return np.flatnonzero(outline), np.flatnonzero(sharp & ~outline)

    def _pieces(self, edges: np.ndarray, pose: Pose, viewport: float) -> tuple[np.ndarray, ...]:
        """Edges cut into pieces of a few pixels: the edge's place in ``edges``, starts and ends, (N, 3) each."""
        a, b = self.vertices[edges[:, 0]], self.vertices[edges[:, 1]]
        length = np.linalg.norm(_project(b, pose, viewport) - _project(a, pose, viewport), axis=1)
        count = np.clip(np.ceil(np.nan_to_num(length) / _PIECE), 1, _MOST_PIECES).astype(int)
        edge = np.repeat(np.arange(len(edges)), count)
        place = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count)
        along = (b - a)[edge]
        share = 1 / count[edge][:, None]
        starts = a[edge] + along * place[:, None] * share
        return edge, starts, starts + along * share

    def _visible(self, points: np.ndarray, centre: np.ndarray) -> np.ndarray:
        """Whether nothing of the model lies before each point, seen from the camera."""
        if not len(points):
            return np.zeros(0, dtype=bool)
        rays = points - centre
        distance = np.linalg.norm(rays, axis=1)
        hits = self._caster.first_hits(centre, rays / distance[:, None])
        return (hits.face < 0) | (hits.depth > distance - self._tolerance)


def _runs(edge: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and last piece of every stretch of an edge that is seen without a break."""
    following = seen[1:] & seen[:-1] & (edge[1:] == edge[:-1])
    no = np.zeros(1, dtype=bool)
    return np.flatnonzero(seen & ~np.concatenate([no, following])), np.flatnonzero(
        seen & ~np.concatenate([following, no])
    )


def _project(points: np.ndarray, pose: Pose, viewport: float) -> np.ndarray:
    return project_points(
        points,
        azimuth=pose.azimuth,
        elevation=pose.elevation,
        theta=pose.theta,
        distance=pose.distance,
        px=pose.px,
        py=pose.py,
        viewport=viewport,
    )


def _joined(mesh: OffMesh, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """Vertices at the same place as one, and the faces that are left: seams and doubled faces draw no lines."""
    places = np.round(mesh.vertices / tolerance).astype(np.int64)
    _, first, name = np.unique(places, axis=0, return_index=True, return_inverse=True)
    faces = name.reshape(-1)[mesh.faces]
    whole = (faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])
    faces = faces[whole]
    _, once = np.unique(np.sort(faces, axis=1), axis=0, return_index=True)
    return mesh.vertices[first], np.ascontiguousarray(faces[np.sort(once)], dtype=np.int32)


def _unit_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    a, b, c = (vertices[faces[:, corner]] for corner in range(3))
    normals = np.cross(b - a, c - a)
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-20)


def _edges(faces: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Every edge once.

    Returns:
        (E, 2) vertices; the faces on both sides, -1 for a second one that is not there; and 1 where the two are wound
        alike, -1 where they are not. Of an edge of three faces or more, two stand for all.
    """
    directed = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    owner = np.tile(np.arange(len(faces)), 3)
    forward = directed[:, 0] < directed[:, 1]
    pairs = np.sort(directed, axis=1)
    order = np.lexsort((owner, pairs[:, 1], pairs[:, 0]))
    pairs, owner, forward = pairs[order], owner[order], forward[order]
    new = np.ones(len(pairs), dtype=bool)
    new[1:] = (pairs[1:] != pairs[:-1]).any(axis=1)
    start = np.flatnonzero(new)
    several = np.diff(np.append(start, len(pairs))) > 1
    other = np.where(several, np.minimum(start + 1, len(pairs) - 1), start)
    second = np.where(several, owner[other], -1)
    turned = np.where(several & (forward[start] == forward[other]), -1, 1)
    return pairs[start], owner[start], second, turned
