"""An object's axes drawn on its picture: what a predicted pose looks like.

Object frame (docs/POSE.md): z is up and the front faces -y, so that the object's own left is +x. Drawn are the front
(-y, a thick green arrow), up (+z, blue) and left (+x, red). The front arrow grows towards its tip where it points at
the viewer and shrinks where it points away; seen end on, it is a ring with a dot (towards) or a cross (away).

A cube may be drawn round them, of the size that distances are measured in (its diagonal is 1), its front tinted green; or the
wires of a CAD model in its place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from llava_pose.data.images import to_rgb
from llava_pose.data.records import Pose
from llava_pose.inference.wires import Wires
from llava_pose.pose.geometry import project_points, rotation_matrix

AXES = {"left": (1.0, 0.0, 0.0), "up": (0.0, 0.0, 1.0), "front": (0.0, -1.0, 0.0)}
AXIS_COLOURS = {"left": (229, 57, 53), "up": (33, 118, 255), "front": (0, 200, 83)}
_HALO = (0, 0, 0, 170)
_WIRES = (255, 214, 0)  # yellow, which none of the axes has
_CORNERS = np.array([(x, y, z) for x in (-1.0, 1.0) for y in (-1.0, 1.0) for z in (-1.0, 1.0)])
_EDGES = [(a, b) for a in range(8) for b in range(a + 1, 8) if np.abs(_CORNERS[a] - _CORNERS[b]).sum() == 2]
_FRONT = (0, 1, 5, 4)  # the corners of the face at -y, in turn
_SHARE_OF_IMAGE = 0.38  # an axis of automatic length, seen from its side, as a share of the image's mean side,
_SHARE_OF_SHORTER = 0.42  # and at most of its shorter side
_AFAR = 8.0  # object units from which a cube is seen
_NEAREST_TIP = 0.7  # of the distance: a tip may not come nearer to the camera than that
_SUPERSAMPLING = 4
_LARGEST_CANVAS = 4096  # pixels: large photographs are supersampled less
_LABELS_FROM = 160  # pixels: smaller pictures have no room for words


@dataclass(frozen=True)
class ProjectedAxes:
    """Where the axes fall in the image.

    Attributes:
        origin: (2,) pixels, edge coordinates.
        tips: (2,) pixels for each axis of :data:`AXES`.
        towards: for each axis the cosine of its angle to the viewing direction: 1 points at the viewer, -1 away.
        length: of each axis, object units.
    """

    origin: np.ndarray
    tips: dict[str, np.ndarray]
    towards: dict[str, float]
    length: float


def project_axes(
    pose: Pose,
    size: tuple[int, int],
    viewport: float | None = None,
    focal: float = 1.0,
    length: float | None = None,
) -> ProjectedAxes:
    """The pixels of the object's axes.

    Args:
        pose: what it lacks is made up for: the image's centre stands in for px and py, a narrow field of view for the
            distance or the viewport.
        size: (width, height) of the image, pixels.
        viewport: pixels per unit focal length, as in the record of the image.
        focal: focal length (1 in ImageNet3D).
        length: of the axes in object units; by default what is easily seen at the pose's distance.

    Raises:
        ValueError: an angle of the pose is not finite.
    """
    camera = _camera(pose, size, viewport, focal)
    distance = camera["distance"]
    if not camera["known"]:
        length = None
    if length is None:
        reach = min(_SHARE_OF_IMAGE * math.sqrt(size[0] * size[1]), _SHARE_OF_SHORTER * min(size))
        length = reach * distance / camera["viewport"]
    length = min(length, _NEAREST_TIP * distance)
    points = np.array([(0.0, 0.0, 0.0), *AXES.values()]) * length
    pixels = _projected(points, pose, camera)
    towards = np.array(list(AXES.values())) @ rotation_matrix(*pose.angles)[2]  # the camera looks along -z
    return ProjectedAxes(
        pixels[0], dict(zip(AXES, pixels[1:], strict=True)), dict(zip(AXES, towards.tolist(), strict=True)), length
    )


def project_cube(
    pose: Pose, size: tuple[int, int], viewport: float | None = None, focal: float = 1.0
) -> tuple[np.ndarray, int]:
    """Return the pixels (8, 2) of the corners of a cube round the object, and which of them is farthest from the camera.

    Its diagonal is one object unit; :func:`project_from_afar` has the arguments and the errors.
    """
    pixels, depth = project_from_afar(_CORNERS / (2 * math.sqrt(3)), pose, size, viewport, focal)
    return pixels, int(depth.argmin())


def project_from_afar(
    points: np.ndarray, pose: Pose, size: tuple[int, int], viewport: float | None = None, focal: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels (N, 2) of points of an object, and how far (N,) each lies towards the camera, object units.

    They are seen from afar, in the size that they have at the object's place: how strong the perspective is rests on a
    viewport that is mostly assumed.

    Args:
        points: (N, 3) in the object frame.

    Other arguments are as in :func:`project_axes`.

    Raises:
        ValueError: an angle of the pose is not finite.
    """
    camera = _camera(pose, size, viewport, focal)
    afar = max(_AFAR, camera["distance"])
    camera |= {"distance": afar, "viewport": camera["viewport"] * afar / camera["distance"]}
    return _projected(points, pose, camera), points @ rotation_matrix(*pose.angles)[2]


def _camera(pose: Pose, size: tuple[int, int], viewport: float | None, focal: float) -> dict[str, float]:
    """Return what :func:`project_points` wants beside the angles, made up where it is not known."""
    if not all(math.isfinite(angle) for angle in pose.angles):
        raise ValueError("a pose whose angles are not all finite cannot be drawn")
    px, py = (value if _is_number(value) else side / 2 for value, side in zip((pose.px, pose.py), size, strict=True))
    distance, pixels_per_unit = pose.distance, (viewport or 0.0) * focal
    known = _is_number(distance) and distance > 0 and pixels_per_unit > 0
    if not known:
        distance, pixels_per_unit = 1.0, 5.0 * min(size)
    return {"px": px, "py": py, "distance": distance or 1.0, "viewport": pixels_per_unit, "known": known}


def _projected(points: np.ndarray, pose: Pose, camera: dict[str, float]) -> np.ndarray:
    place = {name: camera[name] for name in ("px", "py", "distance", "viewport")}
    return project_points(points, azimuth=pose.azimuth, elevation=pose.elevation, theta=pose.theta, **place)


def draw_axes(
    image: Image.Image,
    pose: Pose,
    viewport: float | None = None,
    focal: float = 1.0,
    length: float | None = None,
    *,
    dashed: bool = False,
    labels: bool = True,
    cube: bool = False,
    wires: Wires | None = None,
    number: int | None = None,
) -> Image.Image:
    """A copy of the image (RGB) with the object's axes on it; arguments as in :func:`project_axes`.

    Args:
        dashed: thin dashed lines without words, the manner of a true pose beneath a predicted one.
        labels: write "front" and "up" at the tips, where the picture has room for words.
        cube: draw the cube of :func:`project_cube` round them.
        wires: of the object's CAD model, drawn in the place of the cube.
        number: of the object, written at its origin.

    Raises:
        ValueError: an angle of the pose is not finite.
    """
    base = to_rgb(image).copy()
    axes = project_axes(pose, base.size, viewport, focal, length)
    factor = max(1, min(_SUPERSAMPLING, _LARGEST_CANVAS // max(base.size)))
    canvas = Image.new("RGBA", (base.width * factor, base.height * factor), (0, 0, 0, 0))
    pen = _Pen(ImageDraw.Draw(canvas), factor, math.sqrt(base.width * base.height), dashed)
    if wires is not None:
        pen.wires(*project_from_afar(wires.vertices, pose, base.size, viewport, focal), wires.edges)
    elif cube:
        pen.cube(*project_cube(pose, base.size, viewport, focal))
    for name in sorted(AXES, key=axes.towards.__getitem__):  # the nearest is drawn last
        pen.axis(name, axes)
    pen.dot(axes.origin)
    if number is not None:
        pen.number(number, axes.origin)
    if labels and not dashed and min(base.size) >= _LABELS_FROM:
        for name in ("up", "front"):
            pen.label(name, axes)
    if factor > 1:
        canvas = (
            canvas.convert("RGBa").resize(base.size, Image.Resampling.BOX).convert("RGBA")
        )  # premultiplied: no fringe
    base.paste(canvas, (0, 0), canvas)
    return base


def draw_box(picture: Image.Image, box: Sequence[float]) -> None:
    """Draw the edges of a box on a picture."""
    pen, width = ImageDraw.Draw(picture), max(1, round(max(picture.size) / 300))
    for colour, line in (((0, 0, 0), 3 * width), ((255, 255, 255), width)):
        pen.rectangle(tuple(box), outline=colour, width=line)


def draw_caption(picture: Image.Image, text: str, corner: Sequence[float] = (0.0, 0.0)) -> None:
    """Write words on a picture, below and to the right of a corner, in pixels; smaller where they would be too wide."""
    pen, (left, top) = ImageDraw.Draw(picture), (max(0.0, place) for place in corner)
    pixels = max(11.0, math.sqrt(picture.width * picture.height) / 18)
    width = pen.textlength(text, font=load_font(pixels))
    font = load_font(pixels * min(1.0, 0.9 * picture.width / max(1.0, width)))
    left = min(left, picture.width - pen.textlength(text, font=font) - pixels / 2)
    place = (left + pixels / 4, min(top, picture.height - 2 * pixels) + pixels / 4)
    pen.text(place, text, font=font, fill="white", stroke_width=max(1, round(pixels / 10)), stroke_fill="black")


def load_font(pixels: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, which every machine has."""
    return ImageFont.load_default(size=max(6.0, pixels))


def _is_number(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


class _Pen:
    """Draws axes on a supersampled canvas. Widths grow with the picture, so that large and small ones look alike."""

    def __init__(self, draw: ImageDraw.ImageDraw, factor: int, side: float, dashed: bool) -> None:
        self._draw = draw
        self._factor = factor
        self._unit = factor * side / 100
        self._dashed = dashed

    def axis(self, name: str, axes: ProjectedAxes) -> None:
        start, tip = axes.origin * self._factor, axes.tips[name] * self._factor
        width = self._unit * (2.6 if name == "front" else 1.5) * (0.55 if self._dashed else 1.0)
        taper = 1.0 + 0.45 * axes.towards[name] * (name == "front")
        head = width * (2.2 if name == "front" else 1.8) * taper
        reach = float(np.hypot(*(tip - start)))
        if reach < head:
            self._end_on(name, start, head, towards=axes.towards[name] > 0)
            return
        along = (tip - start) / reach
        neck = tip - along * head
        shapes = [
            *self._shaft(start, neck, width, width * taper),
            _arrow_head(neck, tip, along, 0.62 * head),
        ]
        self._fill(shapes, AXIS_COLOURS[name])

    def _shaft(self, start: np.ndarray, end: np.ndarray, width: float, end_width: float) -> list[np.ndarray]:
        if not self._dashed:
            return [_trapezium(start, end, width, end_width)]
        length = float(np.hypot(*(end - start)))
        dashes = max(1, round(length / (5 * self._unit)))
        cuts = np.linspace(0, 1, 2 * dashes)  # dash, gap, …, dash
        return [
            _trapezium(
                start + (end - start) * a,
                start + (end - start) * b,
                width + (end_width - width) * a,
                width + (end_width - width) * b,
            )
            for a, b in zip(cuts[0::2], cuts[1::2], strict=True)
        ]

    def _fill(self, shapes: list[np.ndarray], colour: tuple[int, int, int]) -> None:
        halo = self._unit * (0.9 if self._dashed else 1.1)
        for shape in shapes:
            outline = [tuple(point) for point in shape]
            self._draw.line([*outline, *outline[:2]], fill=_HALO, width=max(1, round(halo)), joint="curve")
        for shape in shapes:
            self._draw.polygon([tuple(point) for point in shape], fill=(*colour, 255))

    def _end_on(self, name: str, centre: np.ndarray, radius: float, *, towards: bool) -> None:
        line = max(1, round(0.3 * radius))
        self._circle(centre, 1.15 * radius, _HALO)
        self._circle(centre, radius, (*AXIS_COLOURS[name], 255))
        if towards:
            self._circle(centre, 0.35 * radius, (255, 255, 255, 255))
            return
        arm = 0.6 * radius
        for dx, dy in ((arm, arm), (arm, -arm)):
            ends = [(centre[0] - dx, centre[1] - dy), (centre[0] + dx, centre[1] + dy)]
            self._draw.line(ends, fill=(255, 255, 255, 255), width=line)

    def dot(self, origin: np.ndarray) -> None:
        radius = self._unit * (0.8 if self._dashed else 1.3)
        self._circle(origin * self._factor, 1.5 * radius, _HALO)
        self._circle(origin * self._factor, radius, (255, 255, 255, 255))

    def _circle(self, centre: np.ndarray, radius: float, fill: tuple[int, ...]) -> None:
        box = [tuple(centre - radius), tuple(centre + radius)]
        self._draw.ellipse(box, fill=fill)

    def cube(self, corners: np.ndarray, farthest: int) -> None:
        points = [tuple(corner * self._factor) for corner in corners]
        self._draw.polygon([points[corner] for corner in _FRONT], fill=(*AXIS_COLOURS["front"], 45))
        hidden = [edge for edge in _EDGES if farthest in edge]
        for edge in [*hidden, *(edge for edge in _EDGES if edge not in hidden)]:
            line = [points[corner] for corner in edge]
            if edge not in hidden:
                self._draw.line(line, fill=_HALO, width=max(1, round(1.1 * self._unit)))
            shade = (255, 255, 255, 110 if edge in hidden else 255)
            self._draw.line(line, fill=shade, width=max(1, round(0.5 * self._unit)))

    def wires(self, pixels: np.ndarray, depth: np.ndarray, edges: np.ndarray) -> None:
        """Draw lines, the farthest first and faintest."""
        middle = depth[edges].mean(axis=1)
        nearness = np.interp(middle, (depth.min(), depth.max()), (0.0, 1.0))
        for place in np.argsort(middle):
            line = [tuple(corner) for corner in pixels[edges[place]] * self._factor]
            shade = (*_WIRES, round(60 + 170 * nearness[place]))
            self._draw.line(line, fill=shade, width=max(1, round(0.3 * self._unit)))

    def number(self, number: int, origin: np.ndarray) -> None:
        self._circle(origin * self._factor, 3.6 * self._unit, _HALO)
        self._write(str(number), origin * self._factor, load_font(5.0 * self._unit))

    def label(self, name: str, axes: ProjectedAxes) -> None:
        start, tip = axes.origin * self._factor, axes.tips[name] * self._factor
        reach = float(np.hypot(*(tip - start)))
        away = (tip - start) / reach if reach > self._unit else np.array([0.0, -1.0])
        font = load_font(6.5 * self._unit)
        half = np.array([self._draw.textlength(name, font=font) / 2, 3.5 * self._unit])
        place = tip + away * (np.abs(away) @ half + 1.5 * self._unit)
        place = np.clip(place, half, np.array(self._draw.im.size) - half)
        self._write(name, place, font)

    def _write(self, text: str, place: np.ndarray, font: Any) -> None:
        self._draw.text(
            tuple(place),
            text,
            font=font,
            fill=(255, 255, 255, 255),
            stroke_width=max(1, round(0.8 * self._unit)),
            stroke_fill=_HALO,
            anchor="mm",
        )


def _across(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    along = b - a
    length = float(np.hypot(*along)) or 1.0
    return np.array([-along[1], along[0]]) / length


def _trapezium(start: np.ndarray, end: np.ndarray, width: float, end_width: float) -> np.ndarray:
    side = _across(start, end)
    return np.array(
        [start + side * width / 2, end + side * end_width / 2, end - side * end_width / 2, start - side * width / 2]
    )


def _arrow_head(neck: np.ndarray, tip: np.ndarray, along: np.ndarray, half_width: float) -> np.ndarray:
    side = np.array([-along[1], along[0]])
    return np.array([neck + side * half_width, tip, neck - side * half_width])
