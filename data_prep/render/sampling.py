"""The drawing of what varies from image to image: the camera, the light and the sensor's noise."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image, ImageFilter

from llava_pose.pose.geometry import TWO_PI, camera_center

from .mesh import Mesh
from .poses import NaturalPoses, PoseDistribution
from .scene import Camera, Light

FAR, NEAREST = 20.0, 3.0  # camera distances in reaches of the mesh: where sizing starts; the lens never touches it
LEVEL = (np.radians(-15.0), np.radians(45.0))  # least elevation, greatest tilt at which an object seems to stand

# least visible fraction of each object_status; below the last the object is status_bad
STATUS_THRESHOLDS = (("status_good", 0.85), ("status_partially", 0.5), ("status_barely", 0.15))


@dataclass(frozen=True)
class ViewDistribution:
    """The distribution that cameras are drawn from.

    Attributes:
        poses: where rotations are drawn from.
        extent: least and greatest share of the image's width or height, whichever is tighter, that the object fills.
        truncation: probability that the object is moved over an edge of the image, by 5 to 25% of its size.
        aspect: the image's width over height lies between 1 / aspect and aspect.
    """

    poses: PoseDistribution = field(default_factory=NaturalPoses)
    extent: tuple[float, float] = (0.55, 0.92)
    truncation: float = 0.08
    aspect: float = 1.33


def object_status(visible_fraction: float) -> str:
    """Return ImageNet3D's ``object_status`` for a visible fraction in [0, 1]."""
    for status, least in STATUS_THRESHOLDS:
        if visible_fraction >= least:
            return status
    return "status_bad"


def draw_image_size(rng: np.random.Generator, size: int, views: ViewDistribution) -> tuple[int, int]:
    """Width and height in pixels, the longer of them ``size``."""
    ratio = float(np.exp(rng.uniform(-1, 1) * np.log(views.aspect)))
    return (size, max(1, round(size / ratio))) if ratio >= 1 else (max(1, round(size * ratio)), size)


def draw_camera(
    rng: np.random.Generator, mesh: Mesh, width: int, height: int, views: ViewDistribution, category: str = ""
) -> Camera:
    """Return a camera that sees the mesh at the size and place that ``views`` says. Angles lie in [0, 2 pi)."""
    azimuth, elevation, theta = (angle % TWO_PI for angle in views.poses.draw(rng, category))
    share = rng.uniform(*views.extent)

    def looking_from(distance: float, px: float = 0.0, py: float = 0.0) -> Camera:
        return Camera(
            float(azimuth), float(elevation), float(theta), float(distance), float(px), float(py), width, height
        )

    reach = mesh.reach
    distance = FAR * reach
    for _ in range(2):  # the projected size goes nearly as one over the distance: twice is enough
        low, high = _extent(looking_from(distance), mesh)
        distance = max(distance * float(np.max((high - low) / (width, height))) / share, NEAREST * reach)
    low, high = _extent(looking_from(distance), mesh)
    spare = np.array([width, height]) - (high - low)
    principal = spare * rng.uniform(0, 1, 2) - low  # anywhere where the whole object is inside
    if rng.random() < views.truncation:
        axis = int(rng.integers(2))
        cut = rng.uniform(0.05, 0.25) * (high - low)[axis]
        principal[axis] = (-cut if rng.random() < 0.5 else spare[axis] + cut) - low[axis]
    return looking_from(distance, *principal)


def _extent(camera: Camera, mesh: Mesh) -> tuple[np.ndarray, np.ndarray]:
    points = camera.project(mesh.vertices)
    return points.min(axis=0), points.max(axis=0)


def draw_light(rng: np.random.Generator, camera: Camera, *, varied: bool = False) -> Light:
    """Return a lamp above and on the camera's side of the object, white to slightly warm or cold.

    An object that lies or tumbles in the image is lit from above the camera, since it is not the world that is turned.

    Args:
        varied: stronger and weaker, more coloured light, and up to two further lamps anywhere.
    """
    turn, height = np.radians(rng.uniform(-75, 75)), np.radians(rng.uniform(20, 75))
    if stands(camera):
        up = np.array([0.0, 0.0, 1.0])
        direction = camera_center(camera.azimuth + turn, height, 1.0)
    else:
        right, above, toward = camera.rotation
        up = np.cos(np.radians(20)) * above + np.sin(np.radians(20)) * toward
        front = np.cross(right, up)
        direction = np.cos(height) * (np.cos(turn) * front + np.sin(turn) * right) + np.sin(height) * up
    warmth = rng.normal(0, 0.12 if varied else 0.05)
    tint = np.array([1 + warmth, 1.0, 1 - warmth])
    light = Light(
        direction=direction,
        key=rng.uniform(*((0.35, 1.3) if varied else (0.55, 1.0))) * tint,
        ambient=rng.uniform(*((0.14, 0.55) if varied else (0.22, 0.42))) / tint,
        fill=rng.uniform(0.05, 0.25),
        up=up,
    )
    return replace(light, more=_further_lamps(rng)) if varied else light


def stands(camera: Camera) -> bool:
    """Return whether the object seems to stand in the image, so that its own up is the world's."""
    elevation, theta = ((angle + np.pi) % TWO_PI - np.pi for angle in (camera.elevation, camera.theta))
    return bool(elevation >= LEVEL[0] and elevation <= np.pi / 2 and abs(theta) <= LEVEL[1])


def _further_lamps(rng: np.random.Generator) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    lamps = []
    for _ in range(int(rng.integers(0, 3))):
        direction = rng.normal(size=3)
        color = np.array(colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0, 0.4), 1.0))
        lamps.append((direction / np.linalg.norm(direction), rng.uniform(0.1, 0.6) * color))
    return tuple(lamps)


def photograph(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Return the image (H, W, 3) uint8 as a camera takes it: a little out of focus, exposure and white balance off, noise."""
    blurred = Image.fromarray(image).filter(ImageFilter.BoxBlur(rng.uniform(0, 0.6)))
    gain = np.float32(rng.uniform(0.88, 1.12)) * (1 + rng.normal(0, 0.02, 3)).astype(np.float32)
    noise = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(rng.uniform(0, 5))
    return np.clip(np.asarray(blurred, dtype=np.float32) * gain + noise + 0.5, 0, 255).astype(np.uint8)
