"""One object before the camera: what is built once for it, and one image after another."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from . import sampling
from .backgrounds import photo_background, procedural_background
from .materials import one_color, paint_groups, random_paint
from .mesh import Mesh
from .mesh_files import MeshError
from .options import RenderConfig
from .raycast import RayCaster
from .scene import Camera, Rendering
from .scene import render as render_scene
from .sources import Instance
from .surroundings import draw_distractors, draw_occluders

JPEG_QUALITY = 92
TRIES = 3  # drawings of surroundings that hide too much before an image goes without


@dataclass(frozen=True)
class Shot:
    """One image and what is known of it.

    Attributes:
        jpeg: the file's bytes.
        annotation: its one object in ImageNet3D's fields, with ``source``, ``instance``, ``mesh`` and
            ``visible_fraction`` beside them.
    """

    jpeg: bytes
    annotation: dict[str, Any]


class Studio:
    """An instance with its acceleration structure; casters of its companions are built when one is first needed.

    Args:
        instance, mesh: what is photographed.
        companions: instances that may stand beside it; the first whose mesh can be used does.
        mesh_of: gives an instance's mesh, or raises MeshError.
        config, views, photos: of the run.
    """

    def __init__(
        self,
        instance: Instance,
        mesh: Mesh,
        companions: Sequence[Instance],
        mesh_of: Callable[[Instance], Mesh],
        config: RenderConfig,
        views: sampling.ViewDistribution,
        photos: Sequence[Path],
    ) -> None:
        self._instance = instance
        self._caster = RayCaster(mesh)
        self._candidates = companions
        self._mesh_of = mesh_of
        self._config = config
        self._views = views
        self._photos = photos

    def shoot(self, view: int) -> Shot:
        """Image number ``view``: the same for the same seed, instance and number, whatever was shot before.

        Raises:
            InputError: a background photograph cannot be read.
        """
        config, mesh = self._config, self._caster.mesh
        rng = np.random.default_rng(np.random.SeedSequence([config.seed, *self._instance.key, view]))
        width, height = sampling.draw_image_size(rng, config.size, self._views)
        camera = sampling.draw_camera(rng, mesh, width, height, self._views, self._instance.category)
        light = sampling.draw_light(rng, camera, varied=config.lights == "varied")
        if self._photos:
            background = photo_background(self._photos[int(rng.integers(len(self._photos)))], width, height, rng)
        else:
            background = procedural_background(width, height, rng)
        target = self._painted(self._caster, self._groups, rng)

        occluded = rng.random() < config.occlusion
        accompanied = config.distractors > 0 and rng.random() < config.distractors
        for remaining in range(TRIES if occluded or accompanied else 0, -1, -1):
            others: list[RayCaster] = []
            if remaining and occluded:
                others += [RayCaster(solid) for solid in draw_occluders(rng, camera, mesh)]
            if remaining and accompanied:
                others += draw_distractors(rng, camera, mesh, self._companions(rng))
            rendering = render_scene(target, camera, light, background, occluders=others, samples=config.samples)
            if rendering.visible_fraction >= config.min_visible:
                break
        pixels = sampling.photograph(rng, rendering.image)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="JPEG", quality=JPEG_QUALITY)
        return Shot(buffer.getvalue(), self._annotation(camera, rendering))

    @cached_property
    def _groups(self) -> np.ndarray:
        return paint_groups(self._caster.mesh)

    @cached_property
    def _companion(self) -> tuple[RayCaster, np.ndarray] | None:
        for candidate in self._candidates:
            try:
                caster = RayCaster(self._mesh_of(candidate))
            except MeshError:  # it is listed where it is its own turn
                continue
            return caster, paint_groups(caster.mesh)
        return None

    def _companions(self, rng: np.random.Generator) -> list[RayCaster]:
        return [] if self._companion is None else [self._painted(self._companion[0], self._companion[1], rng)]

    def _painted(self, caster: RayCaster, groups: np.ndarray, rng: np.random.Generator) -> RayCaster:
        """Return the caster in the materials that the run asks for."""
        mesh = caster.mesh
        if self._config.materials == "random" or (self._config.materials == "own" and not mesh.painted):
            return caster.painted(random_paint(rng, mesh, groups))
        return caster if mesh.painted else caster.painted(one_color(rng, mesh))

    def _annotation(self, camera: Camera, rendering: Rendering) -> dict[str, Any]:
        return {
            "azimuth": camera.azimuth,
            "elevation": camera.elevation,
            "theta": camera.theta,
            "distance": camera.distance,
            "focal": camera.focal,
            "viewport": camera.viewport,
            "px": camera.px,
            "py": camera.py,
            "principal": np.array([camera.px, camera.py]),
            "cad_index": self._instance.cad_index,
            "height": np.uint16(camera.height),
            "width": np.uint16(camera.width),
            "bbox": rendering.bbox,
            "class": self._instance.category,
            "object_status": sampling.object_status(rendering.visible_fraction),
            "dense": "dense_no",
            "source": self._instance.source,
            "instance": self._instance.name,
            "mesh": self._instance.file,
            "visible_fraction": rendering.visible_fraction,
        }
