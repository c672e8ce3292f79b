"""Casting camera rays at a mesh with embree: the only module that knows the ray-casting library."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene

from .mesh import Mesh, corner_normals, face_normals


class Hits(NamedTuple):
    """First hits of N rays, for the K rays that hit anything."""

    ray: np.ndarray  # (K,) int index of the ray
    face: np.ndarray  # (K,) int32 index of the face
    depth: np.ndarray  # (K,) float32 in lengths of the ray's direction vector
    barycentric: np.ndarray  # (K, 2) float32 weights of the face's second and third corner


class RayCaster:
    """A mesh with its acceleration structure and its shading normals, built once and cast at many times.

    Attributes:
        mesh: the mesh.
        face_normals: (F, 3) float32 unit normals.
        corner_normals: (F, 3, 3) float32 unit shading normals at each face's corners.
    """

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        normals = face_normals(mesh.vertices, mesh.faces)
        self.face_normals = (normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-20)).astype(
            np.float32
        )
        self.corner_normals = corner_normals(mesh.vertices, mesh.faces)
        self._scene = EmbreeScene(robust=True)  # no ray slips through an edge between two faces
        TriangleMesh(self._scene, mesh.vertices.astype(np.float32), mesh.faces.astype(np.int32))

    def first_hits(self, origin: np.ndarray, directions: np.ndarray) -> Hits:
        """First face along each ray from ``origin`` (3,) along ``directions`` (N, 3), both in the object frame."""
        directions = np.ascontiguousarray(directions, dtype=np.float32)
        origins = np.empty_like(directions)
        origins[:] = origin
        found = self._scene.run(origins, directions, query="INTERSECT", output=True)
        ray = np.flatnonzero(found["primID"] >= 0)
        barycentric = np.stack([found["u"][ray], found["v"][ray]], axis=-1)
        return Hits(ray, found["primID"][ray], found["tfar"][ray], barycentric)
