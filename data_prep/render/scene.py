"""One image: a mesh before a pinhole camera, lit, occluded, antialiased and laid over a background.

The camera is docs/POSE.md's: see :mod:`llava_pose.pose.geometry`. The mesh stands still in its canonical frame, which is the
frame of everything here: lights and occluders are given in it too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from llava_pose.pose.geometry import camera_center, project_points, rotation_matrix

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
        """Return the (3,) position in the object frame."""
        return camera_center(self.azimuth, self.elevation, self.distance)

    @property
    def rotation(self) -> np.ndarray:
        """Return the (3, 3) from object frame to camera frame."""
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
        """Rays (H, W, 3) float32 through the grid of pixel columns ``u`` (W,) and rows ``v`` (H,), object frame.

        As long as one unit of depth: a hit at ray parameter t lies at depth t.
        """
        right, up, backward = self.rotation.astype(np.float32)
        scale = self.viewport * self.focal
        x = ((u - self.px) / scale).astype(np.float32)
        y = (-(v - self.py) / scale).astype(np.float32)
        return (x[:, None] * right)[None] + (y[:, None] * up - backward)[:, None]


@dataclass(frozen=True)
class Light:
    """One distant lamp or more, a sky that is brighter above than below, and a weak lamp at the camera.

    Attributes:
        direction: (3,) towards the lamp, object frame; any length.
        key: (3,) linear RGB strength of the lamp.
        ambient: (3,) linear RGB strength of the sky.
        fill: strength of the lamp at the camera.
        up: (3,) unit vector to the sky's zenith: the object's own up unless it lies or tumbles.
        more: direction and strength of further lamps; they make no highlights.
    """

    direction: np.ndarray
    key: np.ndarray
    ambient: np.ndarray
    fill: float = 0.15
    up: np.ndarray = field(default_factory=lambda: np.array([0.0, 0.0, 1.0]))
    more: tuple[tuple[np.ndarray, np.ndarray], ...] = ()

    def seen_from(self, rotation: np.ndarray) -> Light:
        """Return the light in the frame of a mesh that stands in the scene turned by ``rotation`` (3, 3)."""
        return replace(
            self,
            direction=np.asarray(self.direction) @ rotation,
            up=self.up @ rotation,
            more=tuple((direction @ rotation, strength) for direction, strength in self.more),
        )


@dataclass(frozen=True)
class Rendering:
    """The images that :func:`render` gives.

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
        occluders: other meshes in the target's frame, before, beside or behind it. Depth decides what is seen.
        samples: rays a pixel along each axis; box-filtered.

    Returns:
        The image with what was measured on it.
    """
    frame = _Frame.empty(camera, samples)
    touched, projected_area = frame.draw(target, light, _TARGET)
    for occluder in occluders:
        frame.draw(occluder, light, _OCCLUDER)

    seen = frame.owner == _TARGET
    alpha = (frame.owner > 0).mean(axis=0, dtype=np.float32)[:, None]
    drawn = linear_to_srgb(frame.color.mean(axis=0) / np.maximum(alpha, 1e-6))
    size = (camera.height, camera.width)
    return Rendering(
        image=to_uint8((alpha * drawn).reshape(*size, 3) + (1 - alpha).reshape(*size, 1) * background),
        coverage=seen.mean(axis=0, dtype=np.float32).reshape(size),
        silhouette=touched.any(axis=0).reshape(size),
        bbox=_bounding_box(_as_picture(touched, camera, samples)) / samples,
        visible_fraction=int(np.count_nonzero(seen)) / projected_area if projected_area else 0.0,
    )


@dataclass(frozen=True)
class _Frame:
    """The image while it is drawn: samples^2 layers of H * W pixels, each a little aside from the last.

    The layers are the samples x samples grid within a pixel, row by row. The sample axis comes first because sums over
    a short last axis are slow.
    """

    camera: Camera
    samples: int
    color: np.ndarray  # (samples^2, H * W, 3) float32 linear
    depth: np.ndarray  # (samples^2, H * W) float32
    owner: np.ndarray  # (samples^2, H * W) uint8: who is seen

    @classmethod
    def empty(cls, camera: Camera, samples: int) -> _Frame:
        shape = (samples * samples, camera.height * camera.width)
        return cls(
            camera=camera,
            samples=samples,
            color=np.zeros((*shape, 3), dtype=np.float32),
            depth=np.full(shape, np.inf, dtype=np.float32),
            owner=np.zeros(shape, dtype=np.uint8),
        )

    def draw(self, caster: RayCaster, light: Light, who: int) -> tuple[np.ndarray, int]:
        """Draw a mesh where it is nearer than what is there.

        Returns:
            Which samples it projects to, hidden or not (samples^2, H * W), and their number with those up to one image
            size outside the image.
        """
        columns, rows = _pixels_around(caster, self.camera)
        offsets = (np.arange(self.samples) + 0.5) / self.samples
        layers = [self.camera.directions(columns + x, rows + y) for y in offsets for x in offsets]
        directions = np.stack(layers).reshape(len(layers), -1, 3)
        origin, directions = caster.to_own_frame(self.camera.center, directions)
        light = light.seen_from(caster.rotation)
        hits = caster.first_hits(origin, directions)
        hit = hits.face >= 0
        projected_area = int(np.count_nonzero(hit))

        row, column = (index.ravel() for index in np.meshgrid(rows, columns, indexing="ij"))
        inside = (
            (column >= 0) & (column < self.camera.width) & (row >= 0) & (row < self.camera.height) & hit.any(axis=0)
        )
        pixel = row[inside] * self.camera.width + column[inside]
        hits, hit, directions = Hits(*(part[:, inside] for part in hits)), hit[:, inside], directions[:, inside]
        touched = np.zeros(self.owner.shape, dtype=bool)
        touched[:, pixel] = hit

        nearer = hit & (hits.depth < self.depth[:, pixel])
        # most pixels show a single face: it is shaded once, in the middle
        uniform = nearer.all(axis=0) & (hits.face == hits.face[0]).all(axis=0)
        middle = Hits(hits.face[0, uniform], *(part[:, uniform].mean(axis=0) for part in hits[1:]))
        shader = _Shader(caster, origin, light, caster.scale * self.camera.viewport * self.camera.focal)
        self.color[:, pixel[uniform]] = shader.colors(middle, directions[:, uniform].mean(axis=0))
        mixed = nearer & ~uniform
        layer, which = np.nonzero(mixed)
        self.color[layer, pixel[which]] = shader.colors(Hits(*(part[mixed] for part in hits)), directions[mixed])

        layer, which = np.nonzero(nearer)
        self.depth[layer, pixel[which]] = hits.depth[nearer]
        self.owner[layer, pixel[which]] = who
        return touched, projected_area


def linear_to_srgb(linear: np.ndarray) -> np.ndarray:
    """Linear light to sRGB values (IEC 61966-2-1), clipped to [0, 1]."""
    linear = np.clip(linear, 0.0, 1.0)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.power(linear, np.float32(1 / 2.4)) - 0.055)


def srgb_to_linear(srgb: np.ndarray) -> np.ndarray:
    """Return sRGB values in [0, 1] as linear light (IEC 61966-2-1)."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Return values in [0, 1] as 0 ... 255, rounded."""
    return (np.clip(image, 0.0, 1.0) * 255 + 0.5).astype(np.uint8)


def _pixels_around(caster: RayCaster, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Columns and rows of the pixels that can see the mesh, up to one image size beyond the image on each side."""
    points = camera.project(caster.vertices())
    size = np.array([camera.width, camera.height])
    if np.isnan(points).any():  # some of the mesh is behind the camera: there is no bounding rectangle
        low, high = -size, 2 * size
    else:
        low = np.clip(np.floor(points.min(axis=0)).astype(int), -size, 2 * size)
        high = np.clip(np.ceil(points.max(axis=0)).astype(int), -size, 2 * size)
    return np.arange(low[0], high[0]), np.arange(low[1], high[1])


@dataclass(frozen=True)
class _Shader:
    """The colours of a mesh's hits, all in the mesh's own frame.

    Attributes:
        origin: (3,) of the rays.
        pixels: that one unit of length at one unit of depth takes in the image.
    """

    caster: RayCaster
    origin: np.ndarray
    light: Light
    pixels: float

    def colors(self, hits: Hits, directions: np.ndarray) -> np.ndarray:
        """Return (K, 3) linear light: Lambert under lamps, sky and camera lamp, with a Blinn-Phong highlight."""
        light = self.light
        view = -directions / np.linalg.norm(directions, axis=1, keepdims=True)
        normal = _shading_normals(self.caster, hits, view)
        toward = (np.asarray(light.direction) / np.linalg.norm(light.direction)).astype(np.float32)
        key = light.key.astype(np.float32)

        lit = np.maximum(normal @ toward, 0)[:, None] * key
        lit = lit + (0.7 + 0.3 * (normal @ light.up.astype(np.float32))[:, None]) * light.ambient.astype(np.float32)
        lit = lit + np.float32(light.fill) * np.maximum(np.einsum("ij,ij->i", normal, view), 0)[:, None]
        for direction, strength in light.more:
            lamp = normal @ (direction / np.linalg.norm(direction)).astype(np.float32)
            lit = lit + np.maximum(lamp, 0)[:, None] * strength.astype(np.float32)
        color = srgb_to_linear(self._surface(hits, directions)) * lit

        halfway = view + toward
        halfway /= np.maximum(np.linalg.norm(halfway, axis=1, keepdims=True), 1e-6)
        shine = np.maximum(np.einsum("ij,ij->i", normal, halfway), 0) ** np.float32(HIGHLIGHT_EXPONENT)
        return color + (self.caster.mesh.gloss[hits.face] * shine)[:, None] * key

    def _surface(self, hits: Hits, directions: np.ndarray) -> np.ndarray:
        """Return (K, 3) sRGB colours of the surface itself."""
        plain = self.caster.mesh.colors[hits.face]
        if self.caster.mesh.skin is None:
            return plain
        texels = None
        if self.caster.texels is not None:
            texels = self.caster.texels[hits.face] * hits.depth / np.float32(self.pixels)
        position = self.origin.astype(np.float32) + hits.depth[:, None] * directions
        return self.caster.mesh.skin.colors(plain, hits.face, hits.second, hits.third, position, texels)


def _shading_normals(caster: RayCaster, hits: Hits, view: np.ndarray) -> np.ndarray:
    """Return (K, 3) interpolated normals, turned towards the viewer where the mesh shows its back."""
    corners = caster.corner_normals[hits.face]
    second, third = hits.second[:, None], hits.third[:, None]
    normal = corners[:, 0] * (1 - second - third) + corners[:, 1] * second + corners[:, 2] * third
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-6)
    from_behind = np.einsum("ij,ij->i", caster.face_normals[hits.face], view) < 0
    normal[from_behind] *= -1
    return normal


def _as_picture(per_sample: np.ndarray, camera: Camera, samples: int) -> np.ndarray:
    """Return (samples^2, H * W) as (H * samples, W * samples)."""
    layers = per_sample.reshape(samples, samples, camera.height, camera.width)
    return layers.transpose(2, 0, 3, 1).reshape(camera.height * samples, camera.width * samples)


def _bounding_box(mask: np.ndarray) -> np.ndarray:
    """Return (4,) float64 x1, y1, x2, y2 (edges) of the true cells of a mask; zeros for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return np.zeros(4)
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.float64)
