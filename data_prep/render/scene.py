"""One image: a mesh before a pinhole camera, lit, occluded, antialiased and laid over a background.

The camera is docs/POSE.md's: see :mod:`llava_pose.geometry`. The mesh stands still in its canonical frame, which is the
frame of everything here: lights and occluders are given in it too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llava_pose.geometry import camera_center, project_points, rotation_matrix

from .raycast import Hits, RayCaster

HIGHLIGHT_EXPONENT = 40.0
_TARGET, _OCCLUDER = 1, 2  # who is seen in a sample; 0 is the background


@dataclass(frozen=True)
class Camera:
    """A pinhole camera looking at the object frame's origin.

    Attributes:
        azimuth, elevation, theta: radians.
        distance: from the origin, in object units.
        px, py: pixel on which the origin projects (edge coordinates), anywhere inside or outside the image.
        width, height: of the image, pixels.
        viewport: pixels per unit focal length.
        focal: focal length.
    """

    azimuth: float
    elevation: float
    theta: float
    distance: float
    px: float
    py: float
    width: int
    height: int
    viewport: float = 2000.0
    focal: float = 1.0

    @property
    def center(self) -> np.ndarray:
        """(3,) position in the object frame."""
        return camera_center(self.azimuth, self.elevation, self.distance)

    @property
    def rotation(self) -> np.ndarray:
        """(3, 3) object frame to camera frame."""
        return rotation_matrix(self.azimuth, self.elevation, self.theta)

    def project(self, points: np.ndarray) -> np.ndarray:
        """Pixels (N, 2) of points (N, 3) in the object frame; NaN for a point behind the camera."""
        return project_points(
            points,
            azimuth=self.azimuth,
            elevation=self.elevation,
            theta=self.theta,
            distance=self.distance,
            px=self.px,
            py=self.py,
            viewport=self.viewport,
            focal=self.focal,
        )

    def directions(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Rays (H * W, 3) float32 through the pixel grid of columns ``u`` (W,) and rows ``v`` (H,), row by row.

        In the object frame, as long as one unit of depth: a hit at ray parameter t lies at depth t.
        """
        right, up, backward = self.rotation.astype(np.float32)
        scale = self.viewport * self.focal
        x = ((u - self.px) / scale).astype(np.float32)
        y = (-(v - self.py) / scale).astype(np.float32)
        return (x[None, :, None] * right + (y[:, None] * up - backward)[:, None, :]).reshape(-1, 3)


@dataclass(frozen=True)
class Light:
    """One distant lamp, a sky that is brighter above than below, and a weak lamp at the camera.

    Attributes:
        direction: (3,) towards the lamp, object frame; any length.
        key: (3,) linear RGB strength of the lamp.
        ambient: (3,) linear RGB strength of the sky.
        fill: strength of the lamp at the camera.
    """

    direction: np.ndarray
    key: np.ndarray
    ambient: np.ndarray
    fill: float = 0.15


@dataclass(frozen=True)
class Rendering:
    """What :func:`render` gives.

    Attributes:
        image: (H, W, 3) uint8 sRGB.
        coverage: (H, W) float32, the share of each pixel in which the target is seen.
        silhouette: (H, W) bool, the pixels that the target touches, occluders taken away.
        bbox: (4,) float64 x1, y1, x2, y2 of the silhouette inside the image; all zero where nothing of it is inside.
        visible_fraction: seen share of the target's projected area, the part outside the image included; 0 if it
            projects to nothing.
    """

    image: np.ndarray
    coverage: np.ndarray
    silhouette: np.ndarray
    bbox: np.ndarray
    visible_fraction: float


@dataclass(frozen=True)
class _Grid:
    """A rectangle of sample points, in samples (``samples`` to a pixel), in image coordinates; may leave the image."""

    left: int
    top: int
    right: int
    bottom: int
    samples: int

    def directions(self, camera: Camera) -> np.ndarray:
        u = (np.arange(self.left, self.right) + 0.5) / self.samples
        v = (np.arange(self.top, self.bottom) + 0.5) / self.samples
        return camera.directions(u, v)

    def columns_rows(self, ray: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        row, column = np.divmod(ray, max(self.right - self.left, 1))
        return column + self.left, row + self.top


def render(
    target: RayCaster,
    camera: Camera,
    light: Light,
    background: np.ndarray,
    *,
    occluders: Sequence[RayCaster] = (),
    samples: int = 2,
) -> Rendering:
    """Draw ``target`` over ``background`` with ``samples`` x ``samples`` rays a pixel.

    Args:
        target: the object whose pose the camera tells.
        camera: where from.
        light: the lighting of target and occluders.
        background: (H, W, 3) float32 sRGB in [0, 1] of the camera's size.
        occluders: other meshes in the target's frame. Depth decides what is seen.
        samples: rays a pixel along each axis; box-filtered.

    Returns:
        The image with what was measured on it.
    """
    columns, rows = camera.width * samples, camera.height * samples
    color = np.zeros((rows * columns, 3), dtype=np.float32)
    depth = np.full(rows * columns, np.inf, dtype=np.float32)
    owner = np.zeros(rows * columns, dtype=np.uint8)

    silhouette = np.zeros(rows * columns, dtype=bool)
    projected_area = 0
    for caster, who in [(target, _TARGET), *((occluder, _OCCLUDER) for occluder in occluders)]:
        grid = _grid_around(caster, camera, samples, beyond_image=who == _TARGET)
        directions = grid.directions(camera)
        hits = caster.first_hits(camera.center, directions)
        column, row = grid.columns_rows(hits.ray)
        inside = (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
        place = row * columns + column
        if who == _TARGET:
            projected_area = len(place)
            silhouette[place[inside]] = True
        nearest = inside.copy()
        nearest[inside] = hits.depth[inside] < depth[place[inside]]
        hits, place = Hits(*(part[nearest] for part in hits)), place[nearest]
        color[place] = _shade(caster, hits, directions[hits.ray], light)
        depth[place] = hits.depth
        owner[place] = who

    visible_area = int(np.count_nonzero(owner == _TARGET))
    alpha = _box_filter((owner > 0).astype(np.float32).reshape(rows, columns, 1), samples)
    drawn = _box_filter(color.reshape(rows, columns, 3), samples) / np.maximum(alpha, 1e-6)
    image = alpha * linear_to_srgb(drawn) + (1 - alpha) * background
    coverage = _box_filter((owner == _TARGET).astype(np.float32).reshape(rows, columns, 1), samples)[..., 0]
    silhouette = silhouette.reshape(rows, columns)
    return Rendering(
        image=to_uint8(image),
        coverage=coverage,
        silhouette=_box_filter(silhouette.astype(np.float32)[..., None], samples)[..., 0] > 0,
        bbox=_bounding_box(silhouette) / samples,
        visible_fraction=visible_area / projected_area if projected_area else 0.0,
    )


def linear_to_srgb(linear: np.ndarray) -> np.ndarray:
    """Linear light to sRGB values (IEC 61966-2-1), clipped to [0, 1]."""
    linear = np.clip(linear, 0.0, 1.0)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.power(linear, np.float32(1 / 2.4)) - 0.055)


def srgb_to_linear(srgb: np.ndarray) -> np.ndarray:
    """sRGB values in [0, 1] to linear light (IEC 61966-2-1)."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def to_uint8(image: np.ndarray) -> np.ndarray:
    """[0, 1] to 0 ... 255, rounded."""
    return (np.clip(image, 0.0, 1.0) * 255 + 0.5).astype(np.uint8)


def _grid_around(caster: RayCaster, camera: Camera, samples: int, *, beyond_image: bool) -> _Grid:
    """The sample points that can hit the mesh: inside the image, or up to one image size beyond it on each side."""
    points = camera.project(caster.mesh.vertices)
    width, height = camera.width, camera.height
    reach_x, reach_y = (width, height) if beyond_image else (0, 0)
    if np.isnan(points).any():  # some of the mesh is behind the camera: no bounding rectangle
        low, high = np.array([-reach_x, -reach_y]), np.array([width + reach_x, height + reach_y])
    else:
        low, high = points.min(axis=0), points.max(axis=0)
    left, top = np.floor(low * samples).astype(int)
    right, bottom = np.ceil(high * samples).astype(int)
    return _Grid(
        left=int(np.clip(left, -reach_x * samples, (width + reach_x) * samples)),
        top=int(np.clip(top, -reach_y * samples, (height + reach_y) * samples)),
        right=int(np.clip(right, -reach_x * samples, (width + reach_x) * samples)),
        bottom=int(np.clip(bottom, -reach_y * samples, (height + reach_y) * samples)),
        samples=samples,
    )


def _shade(caster: RayCaster, hits: Hits, directions: np.ndarray, light: Light) -> np.ndarray:
    """(K, 3) linear colours of hits: Lambert under lamp, sky and camera lamp, with a Blinn-Phong highlight."""
    view = -directions / np.linalg.norm(directions, axis=1, keepdims=True)
    normal = _shading_normals(caster, hits, view)
    toward = (np.asarray(light.direction) / np.linalg.norm(light.direction)).astype(np.float32)

    lamp = np.maximum(normal @ toward, 0)[:, None] * light.key.astype(np.float32)
    sky = (0.7 + 0.3 * normal[:, 2:]) * light.ambient.astype(np.float32)
    camera_lamp = np.float32(light.fill) * np.maximum(np.einsum("ij,ij->i", normal, view), 0)[:, None]
    color = srgb_to_linear(caster.mesh.colors)[hits.face] * (lamp + sky + camera_lamp)

    halfway = view + toward
    halfway /= np.maximum(np.linalg.norm(halfway, axis=1, keepdims=True), 1e-6)
    shine = np.maximum(np.einsum("ij,ij->i", normal, halfway), 0) ** np.float32(HIGHLIGHT_EXPONENT)
    return color + (caster.mesh.gloss[hits.face] * shine)[:, None] * light.key.astype(np.float32)


def _shading_normals(caster: RayCaster, hits: Hits, view: np.ndarray) -> np.ndarray:
    """(K, 3) interpolated normals, turned towards the viewer where the mesh shows its back."""
    corners = caster.corner_normals[hits.face]
    second, third = hits.barycentric[:, :1], hits.barycentric[:, 1:]
    normal = corners[:, 0] * (1 - second - third) + corners[:, 1] * second + corners[:, 2] * third
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-6)
    from_behind = np.einsum("ij,ij->i", caster.face_normals[hits.face], view) < 0
    normal[from_behind] *= -1
    return normal


def _box_filter(samples_image: np.ndarray, samples: int) -> np.ndarray:
    """(H * s, W * s, C) to (H, W, C): the mean of each s x s block."""
    total = sum(samples_image[i::samples, j::samples] for i in range(samples) for j in range(samples))
    return total / np.float32(samples * samples)


def _bounding_box(mask: np.ndarray) -> np.ndarray:
    """(4,) float64 x1, y1, x2, y2 (edges) of the true cells of a mask; zeros for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return np.zeros(4)
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.float64)
