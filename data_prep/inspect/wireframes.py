"""The wireframes of a dataset's objects: each CAD model is read and prepared once, and a bad one is said once."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from data_prep.inspect.entries import Entry
from data_prep.inspect.wireframe import Wireframe
from data_prep.render.raycast import require_embree
from llava_pose.errors import InputError
from llava_pose.pose import categories
from llava_pose.pose.meshes import read_off
from llava_pose.utils.files import is_plain_name, is_regular

logger = logging.getLogger(__name__)


class Wireframes:
    """CAD models under a folder <category>/NN.off.

    Raises:
        InputError: the render extra is not installed.
    """

    def __init__(self, cad: Path) -> None:
        try:
            require_embree()
        except InputError as error:
            raise InputError(f"{error}, or leave the CAD models out with --no-wireframes") from error
        self._cad = cad
        self._made: dict[Path, Wireframe | None] = {}

    def lines(self, entry: Entry) -> np.ndarray | None:
        """(N, 2, 2) pixels of the entry's picture; None where there is no CAD model, camera or single pose."""
        if len(entry.poses) != 1 or entry.viewport is None:
            return None
        pose = entry.poses[0]
        if not np.isfinite(pose.angles).all() or None in (pose.distance, pose.px, pose.py):
            return None
        wireframe = self._wireframe(entry)
        return None if wireframe is None else wireframe.lines(pose, entry.viewport)

    def _wireframe(self, entry: Entry) -> Wireframe | None:
        path = self._path(entry)
        if path is None:
            return None
        if path not in self._made:
            try:
                self._made[path] = Wireframe(read_off(path))
            except InputError as error:
                logger.warning("%s", error)
                self._made[path] = None
        return self._made[path]

    def _path(self, entry: Entry) -> Path | None:
        """The file of the object's CAD model; the first of its category where the annotation names none."""
        category = categories.find(entry.category)
        names = [entry.category] if category is None else [entry.category, category.name, *category.aliases]
        paths = (self._cad / name / f"{entry.cad_index or 1:02d}.off" for name in names if is_plain_name(name))
        return next((path for path in paths if is_regular(path)), None)
