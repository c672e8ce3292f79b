"""The lines of a CAD model that a person would draw, over a picture: its outline and its sharp edges, hidden ones left out.

A ray is cast through each pixel (embree). A line is drawn between two neighbours where the surface bends sharply, or where
the second lies off the plane of the first: there one thing stands before another, or before nothing.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path

import numpy as np
from scipy.ndimage import uniform_filter

from data_prep.inspect.entries import Entry
from data_prep.render.mesh import Mesh
from data_prep.render.raycast import RayCaster, require_embree
from data_prep.render.scene import Camera
from llava_pose.errors import InputError
from llava_pose.pose import categories
from llava_pose.pose.meshes import OffMesh, read_off
from llava_pose.utils.files import is_plain_name, is_regular

logger = logging.getLogger(__name__)
_SHARP = math.cos(math.radians(32))  # faces that meet at more than this have a line between them
_OFF_PLANE = 0.012  # of the bounding-box diagonal
_FINE = 2  # rays a pixel, along each axis
_MOST_LINES = 0.45  # of the rays about one: more bends than that are a rough surface, not edges
GREY = (0.62, 0.66, 0.72)


def caster_of(mesh: OffMesh, *, scale: float = 1.0) -> RayCaster:
    """Return a model in plain grey, ready for rays; its faces may be wound either way."""
    count = len(mesh.faces)
    colors = np.tile(np.array(GREY, dtype=np.float32), (count, 1))
    gloss = np.full(count, 0.15, dtype=np.float32)
    return RayCaster(Mesh(mesh.vertices * scale, mesh.faces, colors, gloss, oriented=False))


def outline(model: RayCaster, camera: Camera) -> np.ndarray:
    """Return how much of each pixel is a line, (height, width) float32 from 0 to 1."""
    side = np.arange(_FINE * max(camera.width, camera.height)) / _FINE + 0.5 / _FINE
    rays = camera.directions(side[: _FINE * camera.width], side[: _FINE * camera.height])
    hits = model.first_hits(camera.center, rays)
    is_hit = hits.face >= 0
    normals = np.where(is_hit[..., None], model.face_normals[hits.face], 0.0)
    points = np.where(is_hit, hits.depth, 0.0)[..., None] * rays
    near = _OFF_PLANE * float(np.linalg.norm(np.ptp(model.mesh.vertices, axis=0)))
    steps, bends = np.zeros_like(is_hit), np.zeros_like(is_hit)
    for one, other in (((slice(None), slice(0, -1)), (slice(None), slice(1, None))),
                       ((slice(0, -1), slice(None)), (slice(1, None), slice(None)))):  # fmt: skip
        both = is_hit[one] & is_hit[other]
        off = np.abs(np.einsum("hwi,hwi->hw", normals[one], points[other] - points[one]))
        back = np.abs(np.einsum("hwi,hwi->hw", normals[other], points[other] - points[one]))
        steps[one] |= (is_hit[one] != is_hit[other]) | (both & (np.minimum(off, back) > near))
        bends[one] |= both & (np.abs(np.einsum("hwi,hwi->hw", normals[one], normals[other])) < _SHARP)
    bends &= uniform_filter(bends.astype(np.float32), 9 * _FINE) < _MOST_LINES
    lines = (steps | bends).reshape(camera.height, _FINE, camera.width, _FINE).mean(axis=(1, 3), dtype=np.float32)
    return np.minimum(1.0, 1.5 * _FINE * lines)  # one ray of four is a thin line


class Models:
    """The CAD models of a dataset, <category>/NN.off: each is read once, and a bad one is said once.

    Raises:
        InputError: the render extra is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            require_embree()
        except InputError as error:
            raise InputError(f"{error}, or leave the CAD models out with --no-wireframes") from error
        self._folder = folder
        self._read: dict[Path, RayCaster | None] = {}

    def outline(self, entry: Entry, size: tuple[int, int], scale: float) -> np.ndarray | None:
        """Return :func:`outline` over the picture of an entry; None where there is no model, camera or single pose.

        Args:
            size: (width, height) of the picture as it is shown, pixels.
            scale: those pixels for each pixel of the picture.
        """
        if len(entry.poses) != 1 or entry.viewport is None:
            return None
        pose = entry.poses[0]
        if pose.distance is None or pose.px is None or pose.py is None or not all(map(math.isfinite, pose.angles)):
            return None
        model = self._model(entry)
        if model is None:
            return None
        place = (pose.distance, pose.px * scale, pose.py * scale)
        return outline(model, Camera(*pose.angles, *place, *size, viewport=entry.viewport * scale))

    def _model(self, entry: Entry) -> RayCaster | None:
        """Return the model that the annotation names, or the first of its category."""
        category = categories.find(entry.category)
        names = [entry.category] if category is None else [entry.category, category.name, *category.aliases]
        paths = (self._folder / name / f"{entry.cad_index or 1:02d}.off" for name in names if is_plain_name(name))
        path = next((path for path in paths if is_regular(path)), None)
        if path is not None and path not in self._read:
            try:
                self._read[path] = caster_of(read_off(path))
            except InputError as error:
                logger.warning("%s", error)
                self._read[path] = None
        return None if path is None else self._read[path]
