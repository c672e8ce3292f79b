"""Mesh files of any make as :class:`~.mesh.Mesh`: read with trimesh, checked, cleaned, and brought into the canonical frame.

Files that people have are open, doubled, wound both ways, split at every texture seam, and now and then broken. What can
be drawn comes through; what cannot is a :class:`MeshError` that names the file, which a run lists and goes on without.
"""

from __future__ import annotations

import io
import json
import logging
import struct
import warnings
import zlib
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import numpy as np

from llava_pose.data.images import DECODING_ERRORS, FORMATS, MAX_PIXELS, has_too_many_scans, to_rgb
from llava_pose.errors import InputError
from llava_pose.utils.apart import TooMuchError, apart
from llava_pose.utils.files import inside, is_regular, read_bytes, unsafe_name

from .mesh import Mesh
from .skins import LARGEST_TEXTURE, PictureSkin

MESH_SUFFIXES = (".glb", ".obj", ".off", ".ply")
AXES = ("x", "y", "z", "minus-x", "minus-y", "minus-z")
UNPAINTED = (0.6, 0.6, 0.6)  # sRGB of faces whose file says nothing
MATT = 0.1  # gloss where the file says nothing
_MOST_BYTES = 1 << 30  # of a mesh file
_MOST_VERTICES = 1 << 26  # of all that it places, a part that stands in several places counted each time
_BYTES, _BYTES_A_BYTE = 2 << 30, 64  # of memory to read a mesh file, and those for each of its own bytes
_SECONDS, _BYTES_A_SECOND = 60, 1 << 20  # of computing, and what is read in each further one
_INVISIBLE = 0.05  # opacity below which a face is left out; glass is drawn opaque
_SAME_PLACE = 2.0**-20  # of the longest side of the bounding box: vertices nearer than this are one
_READING_ERRORS = (  # what trimesh raises for files that are damaged or no meshes
    *(OSError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError, AssertionError, OverflowError),
    *(ZeroDivisionError, NameError, NotImplementedError, RecursionError, MemoryError, struct.error, zlib.error),
)


class MeshError(InputError):
    """A mesh that cannot be used; the message names its file."""


def require_trimesh() -> ModuleType:
    """Return the library that reads mesh files.

    Raises:
        InputError: it is not installed.
    """
    try:
        import trimesh
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "trimesh":
            raise
        raise InputError(
            "reading mesh files needs trimesh; install it with: pip install 'llava-pose[render]'"
        ) from error
    return trimesh


def axes_to_canonical(up: str, front: str) -> np.ndarray:
    """Return the (3, 3) rotation into the canonical frame (z up, front to -y) from a file's axes, each one of :data:`AXES`.

    Raises:
        InputError: the two axes are not at a right angle.
    """
    upward, forward = _axis(up), _axis(front)
    if upward @ forward:
        raise InputError(f"--up {up} and --front {front} lie along one line: give two axes at a right angle.")
    return np.stack([np.cross(upward, forward), -forward, upward])


def _axis(name: str) -> np.ndarray:
    if name not in AXES:
        raise InputError(f"there is no axis {name!r}: choose from {', '.join(AXES)}.")
    return np.eye(3)["xyz".index(name[-1])] * (-1 if name.startswith("minus") else 1)


def read_mesh(file: Path | IO[bytes], *, name: str, file_type: str, resolver: Any = None) -> Mesh:
    """Return a mesh file in its own frame and scale, with its colours and textures.

    Args:
        file: a path, or an open file; it is read in a process of its own.
        name: what a person calls it, for messages.
        file_type: its suffix without the dot.
        resolver: trimesh's resolver of the files that it refers to (materials, textures), where that is no folder.

    Raises:
        MeshError: it cannot be read, takes more memory or time than a file of its size may, holds no triangle, or has
            vertices that are not finite.
        InputError: trimesh is not installed.
    """
    trimesh = require_trimesh()
    try:
        size = file.stat().st_size if isinstance(file, Path) else file.seek(0, io.SEEK_END)
        if not isinstance(file, Path):
            file.seek(0)
        return apart(
            partial(_read, trimesh, file, name, file_type, resolver),
            memory=_BYTES + _BYTES_A_BYTE * size,
            seconds=_SECONDS + size // _BYTES_A_SECOND,
        )
    except OSError as error:
        raise _cannot_read(name, error) from error
    except TooMuchError as error:
        raise MeshError(f"{name}: {error}; make it simpler or remove it") from error


def _read(trimesh: ModuleType, file: Path | IO[bytes], name: str, file_type: str, resolver: Any) -> Mesh:
    logging.getLogger("trimesh").setLevel(logging.CRITICAL)  # to which a texture that is not there is a traceback
    try:
        with warnings.catch_warnings():  # of numpy, about vertices that we check ourselves
            warnings.simplefilter("ignore")
            if isinstance(file, Path):
                resolver = _folder_resolver(trimesh, file.parent)
                file = io.BytesIO(read_bytes(file, most=_MOST_BYTES))
                if file_type == "glb":
                    _require_filled(file, name)
            scene = trimesh.load_scene(file, file_type=file_type, resolver=resolver, process=False)
            placed = [scene.geometry[scene.graph[node][1]] for node in scene.graph.nodes_geometry]
            if sum(len(getattr(part, "vertices", ())) for part in placed) > _MOST_VERTICES:
                raise MeshError(f"{name}: has more than {_MOST_VERTICES / 1e6:.0f} million vertices; make it simpler")
            parts = [_part(trimesh, scene, node, name) for node in scene.graph.nodes_geometry]
    except MeshError:
        raise
    except _READING_ERRORS as error:
        raise _cannot_read(name, error) from error
    return clean(_join([part for part in parts if part is not None], name), name)


def _cannot_read(name: str, error: Exception) -> MeshError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return MeshError(f"{name}: cannot read the mesh ({reason}); export it again or remove it")


def _require_filled(file: io.BytesIO, name: str) -> None:
    """Refuse a GLB that declares more numbers than it has bytes, which trimesh would fill with zeros."""
    content = file.getbuffer()
    header = json.loads(bytes(content[20 : 20 + int.from_bytes(content[12:16], "little")]))
    for accessor in header.get("accessors", []):
        if accessor["count"] > len(content):
            raise MeshError(f"{name}: declares {accessor['count']} vertices or corners, and has fewer bytes; remove it")


def _folder_resolver(trimesh: ModuleType, folder: Path) -> Any:
    """Materials and textures that a mesh file names, out of its folder alone."""

    resolver: Any = trimesh.resolvers.FilePathResolver

    class FolderResolver(resolver):
        def get(self, name: str) -> bytes:
            for candidate in (name.strip(), name.replace("\\", "/").rpartition("/")[2].strip()):
                if unsafe_name(candidate) is None and is_regular(inside(folder, candidate)):
                    return read_bytes(folder / candidate)
            raise FileNotFoundError(name)

    return FolderResolver(str(folder))


def clean(mesh: Mesh, name: str) -> Mesh:
    """Return the mesh without faces that have no area and vertices that no face has; vertices at one place are one.

    Raises:
        MeshError: no face is left, or a vertex of a face is not finite.
    """
    used = mesh.vertices[np.unique(mesh.faces)] if len(mesh.faces) else mesh.vertices[:0]
    if not np.isfinite(used).all():
        raise MeshError(
            f"{name}: {np.count_nonzero(~np.isfinite(used).all(axis=1))} vertices are not finite; repair it"
        )
    size = float(np.ptp(used, axis=0).max()) if len(used) else 0.0
    if not np.isfinite(size * size) or size <= 1e-30:
        what = "no faces" if not len(used) else "no extent" if size <= 1e-30 else "an extent beyond all measure"
        raise MeshError(f"{name}: the mesh has {what}; export it again or remove it")

    low = used.min(axis=0)
    cells = np.zeros(mesh.vertices.shape, dtype=np.int64)
    finite = np.isfinite(mesh.vertices).all(axis=1)  # those that no face has may be anything
    cells[finite] = np.clip((mesh.vertices[finite] - low) / (size * _SAME_PLACE) + 0.5, 0, 2**20 + 1)
    keys = (cells[:, 0] << 42) | (cells[:, 1] << 21) | cells[:, 2]
    faces = np.unique(keys, return_index=True, return_inverse=True)
    first, same = faces[1], faces[2].ravel()
    merged = first[same][mesh.faces]

    a, b, c = (mesh.vertices[merged[:, i]] for i in range(3))
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    kept = np.flatnonzero(area > 1e-14 * size * size)
    if not len(kept):
        raise MeshError(f"{name}: no face of the mesh has an area; export it again or remove it")
    vertices, corners = np.unique(merged[kept], return_inverse=True)
    skin = mesh.skin
    if isinstance(skin, PictureSkin):
        skin = replace(skin, coordinates=skin.coordinates[kept], picture=skin.picture[kept])
    return replace(
        mesh,
        vertices=mesh.vertices[vertices],
        faces=corners.reshape(-1, 3).astype(np.int32),
        colors=mesh.colors[kept],
        gloss=mesh.gloss[kept],
        skin=skin,
    )


def _part(trimesh: ModuleType, scene: Any, node: str, name: str) -> Mesh | None:
    """One geometry of a scene in the scene's frame; None for what is no surface."""
    transform, geometry_name = scene.graph[node]
    geometry = scene.geometry[geometry_name]
    if not isinstance(geometry, trimesh.Trimesh) or not len(geometry.faces):
        return None
    faces = np.asarray(geometry.faces, dtype=np.int64)
    vertices = np.asarray(geometry.vertices, dtype=np.float64) @ transform[:3, :3].T + transform[:3, 3]
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise MeshError(f"{name}: a face names a vertex that is not there; export it again or remove it")
    count = len(faces)
    plain = Mesh(
        vertices=vertices,
        faces=faces,
        colors=np.full((count, 3), UNPAINTED, dtype=np.float32),
        gloss=np.full(count, MATT, dtype=np.float32),
        oriented=False,
        painted=False,
    )
    visual = geometry.visual
    if visual.kind in ("face", "vertex"):
        if visual.kind == "face":
            colors = np.asarray(visual.face_colors)[:, :3]
        else:
            colors = np.asarray(visual.vertex_colors)[:, :3][faces].mean(axis=1)
        return replace(plain, colors=(colors / 255).astype(np.float32), painted=True)
    material = getattr(visual, "material", None)
    return plain if material is None else _with_material(plain, geometry, material, name)


def _with_material(plain: Mesh, geometry: Any, material: Any, name: str) -> Mesh | None:
    """Return a part with the one material that trimesh gives each; None if it cannot be seen."""
    color: np.ndarray | None
    if hasattr(material, "baseColorFactor"):
        factor, picture = material.baseColorFactor, material.baseColorTexture
        color = None if factor is None else np.asarray(factor, dtype=np.float32).ravel() / 255
        opacity = 1.0 if color is None or len(color) < 4 or material.alphaMode != "BLEND" else float(color[3])
        roughness = 1.0 if material.roughnessFactor is None else float(material.roughnessFactor)
        gloss = MATT + 0.5 * (1 - float(np.clip(roughness, 0, 1)))
    else:
        words = material.kwargs or {}
        picture = material.image
        color = np.asarray(words["kd"], dtype=np.float32).ravel() if "kd" in words else None
        opacity = float(words["d"][0]) if "d" in words else 1.0
        gloss = _phong_gloss(words)
    if opacity < _INVISIBLE:
        return None
    count = len(plain.faces)
    if color is not None and len(color) >= 3 and np.isfinite(color[:3]).all():
        colors = np.tile(np.clip(color[:3], 0, 1), (count, 1)).astype(np.float32)
        plain = replace(plain, colors=colors, gloss=np.full(count, gloss, dtype=np.float32), painted=True)
    coordinates = getattr(geometry.visual, "uv", None)
    if picture is None or coordinates is None or len(coordinates) != len(plain.vertices):
        return plain
    corners = np.nan_to_num(np.asarray(coordinates, dtype=np.float32)[plain.faces], nan=0.0, posinf=0.0, neginf=0.0)
    skin = PictureSkin(corners, np.zeros(count, dtype=np.int32), (_pixels(picture, name),))
    return replace(plain, skin=skin, gloss=np.full(count, gloss, dtype=np.float32), painted=True)


def _phong_gloss(words: dict[str, Any]) -> float:
    """Return the gloss of an MTL's specular colour, as far as its highlight is narrow."""
    try:
        strength = float(np.mean(np.clip(np.asarray(words["ks"], dtype=float), 0, 1)))
        exponent = float(np.ravel(words["ns"])[0])
    except (KeyError, ValueError, IndexError, TypeError):
        return MATT
    return 0.6 * strength * float(np.clip(exponent / 60, 0, 1)) if np.isfinite(strength * exponent) else MATT


def _pixels(picture: Any, name: str) -> np.ndarray:
    # of a picture that trimesh has opened nothing is decoded yet: what Pillow hands to other programs stays closed
    too_large = picture.width * picture.height > MAX_PIXELS or has_too_many_scans(picture)
    if picture.format not in (None, "MPO", *FORMATS) or too_large:
        raise MeshError(f"{name}: a texture is of no known format, or too large; replace it or remove the mesh")
    try:
        image = to_rgb(picture)
    except DECODING_ERRORS as error:
        raise MeshError(f"{name}: a texture cannot be read ({error}); replace it or remove the mesh") from error
    if max(image.size) > LARGEST_TEXTURE:
        image = image.copy()
        image.thumbnail((LARGEST_TEXTURE, LARGEST_TEXTURE))
    return np.asarray(image)


def _join(parts: list[Mesh], name: str) -> Mesh:
    """One mesh of the parts of a file."""
    if not parts:
        raise MeshError(f"{name}: the mesh has no faces; export it again or remove it")
    offsets = np.cumsum([0, *(len(part.vertices) for part in parts[:-1])])
    skins = [part.skin for part in parts]
    skin = None
    if any(skins):
        pictures: list[np.ndarray] = []
        coordinates, picture = [], []
        for part, own in zip(parts, skins, strict=True):
            if isinstance(own, PictureSkin):
                coordinates.append(own.coordinates)
                picture.append(own.picture + len(pictures))
                pictures += own.pictures
            else:
                coordinates.append(np.zeros((len(part.faces), 3, 2), dtype=np.float32))
                picture.append(np.full(len(part.faces), -1, dtype=np.int32))
        skin = PictureSkin(np.concatenate(coordinates), np.concatenate(picture), tuple(pictures))
    return Mesh(
        vertices=np.concatenate([part.vertices for part in parts]),
        faces=np.concatenate([part.faces + offset for part, offset in zip(parts, offsets, strict=True)]),
        colors=np.concatenate([part.colors for part in parts]),
        gloss=np.concatenate([part.gloss for part in parts]),
        skin=skin,
        oriented=False,
        painted=any(part.painted for part in parts),
    )
