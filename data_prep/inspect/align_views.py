"""A CAD model standing on its floor, with its shadow and an arrow to its front: one tile of an alignment sheet."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

from data_prep.inspect.outline import caster_of
from data_prep.render.raycast import RayCaster
from data_prep.render.scene import Camera, Light, render
from llava_pose.inference.drawing import AXIS_COLOURS
from llava_pose.pose.meshes import OffMesh

FRONT_VIEW = (0.0, math.radians(12))  # azimuth and elevation: nearly level, so that the floor is seen
OBLIQUE_VIEW = (math.radians(45), math.radians(28))
VIEWS = (FRONT_VIEW, OBLIQUE_VIEW)

_DISTANCE = 6.0  # bounding-box diagonals: nearly parallel rays
_UNIT = 0.80  # what a diagonal takes of the tile's side
_SUPERSAMPLING = 2
_PAPER, _FLOOR, _SHADOW = (250, 250, 250), (232, 232, 226), (188, 188, 182)


def standing(mesh: OffMesh) -> RayCaster:
    """Return a model scaled to a bounding-box diagonal of 1, its origin left where it is, in the colour of the sheets."""
    return caster_of(mesh, scale=1 / (float(np.linalg.norm(np.ptp(mesh.vertices, axis=0))) or 1.0))


def draw_view(model: RayCaster, view: tuple[float, float], side: int) -> Image.Image:
    """Draw one view of a model on its floor.

    Args:
        model: the model, as :func:`standing` gives it.
        view: the azimuth and elevation of the camera, radians.
        side: the side of the square picture, pixels.
    """
    middle = (model.mesh.vertices.min(0) + model.mesh.vertices.max(0)) / 2
    camera = _camera(view, side, middle)
    floor = _paint_floor(model, camera, middle)
    drawn = render(model, camera, _light(view), np.asarray(floor, dtype=np.float32) / 255, samples=2)
    return Image.fromarray(drawn.image)


def _camera(view: tuple[float, float], side: int, middle: np.ndarray) -> Camera:
    viewport = _UNIT * side * _DISTANCE
    camera = Camera(*view, 0.0, _DISTANCE, 0.0, 0.0, side, side, viewport=viewport)
    u, v = camera.project(middle[None])[0]  # the box's middle comes to the tile's middle
    return Camera(*view, 0.0, _DISTANCE, side / 2 - u, 0.47 * side - v, side, side, viewport=viewport)


def _light(view: tuple[float, float]) -> Light:
    azimuth = view[0] - math.radians(50)  # from the viewer's upper left
    direction = np.array([math.sin(azimuth), -math.cos(azimuth), 1.3])
    return Light(direction, key=np.full(3, 0.75), ambient=np.full(3, 0.32), fill=0.2)


def _paint_floor(model: RayCaster, camera: Camera, middle: np.ndarray) -> Image.Image:
    """Draw the floor under the model, which hides nothing of it: camera and model are both above it."""
    vertices, faces = model.mesh.vertices, model.mesh.faces
    low, high = vertices.min(0), vertices.max(0)
    height = low[2] - 0.004
    size = (camera.width * _SUPERSAMPLING, camera.height * _SUPERSAMPLING)
    image = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(image)

    def on_floor(points: np.ndarray) -> np.ndarray:
        flat = np.column_stack([points[:, :2], np.full(len(points), height)])
        return camera.project(flat) * _SUPERSAMPLING

    half = max(0.30, 0.62 * max(high[0] - low[0], high[1] - low[1]))
    corners = middle[:2] + half * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
    draw.polygon([tuple(point) for point in on_floor(corners)], fill=_FLOOR)
    shadow = on_floor(vertices)
    for face in faces:
        draw.polygon([tuple(point) for point in shadow[face]], fill=_SHADOW)
    draw.polygon([tuple(point) for point in on_floor(_arrow(middle[0], low[1]))], fill=AXIS_COLOURS["front"])
    left = on_floor(np.array([(high[0] + 0.03, middle[1]), (high[0] + 0.15, middle[1])]))
    draw.line([tuple(point) for point in left], fill=AXIS_COLOURS["left"], width=2 * _SUPERSAMPLING)
    return image.resize((camera.width, camera.height), Image.Resampling.BOX)


def _arrow(x: float, front: float) -> np.ndarray:
    """Return the corners (7, 2) of an arrow on the floor that starts at the model's front and points to -y."""
    outline = [(-0.022, -0.03), (0.022, -0.03), (0.022, -0.14), (0.06, -0.14), (0.0, -0.24), (-0.06, -0.14)]
    return np.array([*outline, (-0.022, -0.14)]) + np.array([x, front])
