"""Casting camera rays at a mesh with embree: the only module that knows the ray-casting library."""

from __future__ import annotations

import copy
from types import ModuleType
from typing import NamedTuple

import numpy as np

from llava_pose.errors import InputError

from .mesh import Mesh, corner_normals, face_normals


def require_embree() -> tuple[ModuleType, ModuleType]:
    """Return embreex's modules of scenes and of meshes.

    Raises:
        InputError: it is not installed.
    """
    try:
        from embreex import mesh_construction, rtcore_scene
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "embreex":
            raise
        raise InputError("rendering needs embreex; install it with: pip install 'llava-pose[render]'") from error
    return rtcore_scene, mesh_construction


class Hits(NamedTuple):
    """The first hits of rays of any shape (...)."""

    face: np.ndarray  # (...) int32 index of the face, -1 for a ray that hits nothing
    depth: np.ndarray  # (...) float32 in lengths of the ray's direction vector
    second: np.ndarray  # (...) float32 barycentric weight of the face's second corner
    third: np.ndarray  # (...) float32 barycentric weight of its third corner


class RayCaster:
    """A mesh with its acceleration structure and its shading normals, built once and cast at many times.

    It may stand elsewhere in the scene than in its own frame (:meth:`placed`) and be painted anew (:meth:`painted`);
    both give another caster that shares what was built.

    Attributes:
        mesh: the mesh, in its own frame.
        face_normals: (F, 3) float32 unit normals, in the mesh's frame.
        corner_normals: (F, 3, 3) float32 unit shading normals at each face's corners, in the mesh's frame.
        texels: (F,) float32 texture pixels for each unit of length on a face; None without textures.
        rotation, scale, offset: the mesh's frame in the scene, ``x -> scale * rotation @ x + offset``.
    """

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        normals = face_normals(mesh.vertices, mesh.faces)
        self.face_normals = (normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-20)).astype(
            np.float32
        )
        self.corner_normals = corner_normals(mesh.vertices, mesh.faces, oriented=mesh.oriented)
        self.texels = _texels(mesh)
        self.rotation: np.ndarray = np.eye(3)
        self.scale = 1.0
        self.offset: np.ndarray = np.zeros(3)
        scenes, meshes = require_embree()
        self._scene = scenes.EmbreeScene(robust=True)  # no ray slips through an edge between two faces
        meshes.TriangleMesh(self._scene, mesh.vertices.astype(np.float32), mesh.faces.astype(np.int32))

    def placed(self, rotation: np.ndarray, scale: float, offset: np.ndarray) -> RayCaster:
        """Return the same mesh under ``x -> scale * rotation @ x + offset`` in the scene; ``rotation`` (3, 3) is proper."""
        other = copy.copy(self)
        other.rotation, other.scale, other.offset = np.asarray(rotation), float(scale), np.asarray(offset)
        return other

    def painted(self, mesh: Mesh) -> RayCaster:
        """Return the same shape with the colours, gloss and skin of ``mesh``, which has the same vertices and faces."""
        other = copy.copy(self)
        other.mesh = mesh
        other.texels = _texels(mesh)
        return other

    def vertices(self) -> np.ndarray:
        """Return (V, 3) in the scene."""
        return self.scale * (self.mesh.vertices @ self.rotation.T) + self.offset

    def to_own_frame(self, origin: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rays of the scene in the mesh's frame; a hit has the same ray parameter in both."""
        if np.array_equal(self.rotation, np.eye(3)) and self.scale == 1.0 and not self.offset.any():
            return origin, directions
        turn = self.rotation / self.scale
        return (origin - self.offset) @ turn, directions @ turn.astype(np.float32)

    def first_hits(self, origin: np.ndarray, directions: np.ndarray) -> Hits:
        """First face along each ray from ``origin`` (3,) along ``directions`` (..., 3), both in the mesh's frame."""
        shape = directions.shape[:-1]
        directions = np.ascontiguousarray(directions, dtype=np.float32).reshape(-1, 3)
        origins = np.empty_like(directions)
        origins[:] = origin
        found = self._scene.run(origins, directions, query="INTERSECT", output=True)
        return Hits(*(found[name].reshape(shape) for name in ("primID", "tfar", "u", "v")))


def _texels(mesh: Mesh) -> np.ndarray | None:
    return None if mesh.skin is None else mesh.skin.texels(mesh.vertices, mesh.faces)
