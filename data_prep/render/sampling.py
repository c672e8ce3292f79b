"""What varies from image to image: the camera, the light, what stands in front, and the sensor's noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from llava_pose.geometry import TWO_PI, camera_center

from .mesh import Mesh
from .parametric.palette import paint
from .primitives import cylinder, ellipsoid, rounded_box
from .scene import Camera, Light

OBJECT_RADIUS = 0.5  # of a normalised mesh: half its bounding-box diagonal
NEAREST = 1.5  # camera distance in bounding-box diagonals: the lens never touches the object

# least visible fraction of each object_status; below the last the object is status_bad
STATUS_THRESHOLDS = (("status_good", 0.85), ("status_partially", 0.5), ("status_barely", 0.15))


@dataclass(frozen=True)
class ViewDistribution:
    """How cameras are drawn. Angles in degrees.

    Attributes:
        elevation: least, most likely and greatest elevation of a triangular distribution. Azimuth is uniform.
        tilt: standard deviation of theta, which is cut at three times that.
        extent: least and greatest share of the image's width or height, whichever is tighter, that the object fills.
        truncation: probability that the object is moved over an edge of the image, by 5 to 25% of its size.
        aspect: the image's width over height lies between 1 / aspect and aspect.
    """

    elevation: tuple[float, float, float] = (-10.0, 15.0, 50.0)
    tilt: float = 4.0
    extent: tuple[float, float] = (0.55, 0.92)
    truncation: float = 0.08
    aspect: float = 1.33


def object_status(visible_fraction: float) -> str:
    """ImageNet3D's ``object_status`` for a visible fraction in [0, 1]."""
    for status, least in STATUS_THRESHOLDS:
        if visible_fraction >= least:
            return status
    return "status_bad"


def draw_image_size(rng: np.random.Generator, size: int, views: ViewDistribution) -> tuple[int, int]:
    """Width and height in pixels, the longer of them ``size``."""
    ratio = float(np.exp(rng.uniform(-1, 1) * np.log(views.aspect)))
    return (size, max(1, round(size / ratio))) if ratio >= 1 else (max(1, round(size * ratio)), size)


def draw_camera(rng: np.random.Generator, mesh: Mesh, width: int, height: int, views: ViewDistribution) -> Camera:
    """A camera that sees the mesh at the size and place that ``views`` says. Angles lie in [0, 2 pi)."""
    azimuth = rng.uniform(0, TWO_PI)
    elevation = np.radians(rng.triangular(*views.elevation)) % TWO_PI
    theta = np.radians(np.clip(rng.normal(0, views.tilt), -3 * views.tilt, 3 * views.tilt)) % TWO_PI
    share = rng.uniform(*views.extent)

    def looking_from(distance: float, px: float = 0.0, py: float = 0.0) -> Camera:
        return Camera(
            float(azimuth), float(elevation), float(theta), float(distance), float(px), float(py), width, height
        )

    distance = 10.0
    for _ in range(2):  # the projected size goes nearly as one over the distance: twice is enough
        low, high = _extent(looking_from(distance), mesh)
        distance = max(distance * float(np.max((high - low) / (width, height))) / share, NEAREST)
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


def draw_light(rng: np.random.Generator, camera: Camera) -> Light:
    """A lamp above and on the camera's side of the object, white to slightly warm or cold."""
    direction = camera_center(camera.azimuth + np.radians(rng.uniform(-75, 75)), np.radians(rng.uniform(20, 75)), 1.0)
    warmth = rng.normal(0, 0.05)
    tint = np.array([1 + warmth, 1.0, 1 - warmth])
    return Light(
        direction=direction,
        key=rng.uniform(0.55, 1.0) * tint,
        ambient=rng.uniform(0.22, 0.42) / tint,
        fill=rng.uniform(0.05, 0.25),
    )


def draw_occluders(rng: np.random.Generator, camera: Camera, mesh: Mesh) -> list[Mesh]:
    """One or two plain solids between the camera and the mesh, each before some point of it."""
    points = camera.project(mesh.vertices)
    size = np.linalg.norm(points.max(axis=0) - points.min(axis=0))
    occluders = []
    for _ in range(int(rng.integers(1, 3))):
        u, v = points[rng.integers(len(points))] + rng.normal(0, 0.15, 2) * size
        depth = camera.distance - rng.uniform(1.4, 2.0) * OBJECT_RADIUS
        position = camera.center + depth * camera.directions(np.array([u]), np.array([v]))[0, 0]
        solid = _plain_solid(rng)
        turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        scale = rng.uniform(0.15, 0.4) * size * depth / (camera.viewport * camera.focal)
        occluders.append(solid.transformed(turn * scale, position))
    return occluders


def _plain_solid(rng: np.random.Generator) -> Mesh:
    """A box, ellipsoid or bar about the origin, of size about 1."""
    color = paint(rng)
    kind = rng.choice(["box", "ellipsoid", "bar"])
    if kind == "box":
        return rounded_box((0, 0, 0), rng.uniform(0.4, 1.3, 3), color, radius=rng.uniform(0.01, 0.2))
    if kind == "ellipsoid":
        return ellipsoid((0, 0, 0), rng.uniform(0.25, 0.7, 3), color)
    return cylinder((0, 0, -2.5), (0, 0, 2.5), rng.uniform(0.08, 0.25), color)


def photograph(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """The image (H, W, 3) uint8 as a camera takes it: a little out of focus, exposure and white balance off, noise."""
    blurred = Image.fromarray(image).filter(ImageFilter.BoxBlur(rng.uniform(0, 0.6)))
    gain = np.float32(rng.uniform(0.88, 1.12)) * (1 + rng.normal(0, 0.02, 3)).astype(np.float32)
    noise = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(rng.uniform(0, 5))
    return np.clip(np.asarray(blurred, dtype=np.float32) * gain + noise + 0.5, 0, 255).astype(np.uint8)
