"""Box, wireframe and axes of an object as SVG over its picture: sharp at any size, and each can be switched off."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from llava_pose.data.records import Pose
from llava_pose.inference.drawing import AXIS_COLOURS, project_axes

_LABELLED = ("front", "up")


def overlay_svg(
    size: tuple[int, int],
    *,
    bbox: Sequence[float] | None,
    lines: np.ndarray | None,
    poses: Sequence[tuple[Pose, bool]],
    viewport: float | None,
) -> str:
    """The SVG element that lies over a picture.

    Args:
        size: (width, height) of the picture as it is shown, pixels; all else is in pixels of it.
        bbox: (x1, y1, x2, y2).
        lines: (N, 2, 2) of the wireframe.
        poses: whose axes are drawn, each with whether it is dashed.
        viewport: pixels per unit focal length.
    """
    parts = [f'<svg viewBox="0 0 {size[0]} {size[1]}" aria-hidden="true">']
    if lines is not None and len(lines):
        path = "".join(f"M{_n(a[0])} {_n(a[1])}L{_n(b[0])} {_n(b[1])}" for a, b in _inside(lines, size))
        parts.append(f'<g class="wire"><path class="halo" d="{path}"/><path d="{path}"/></g>')
    if bbox is not None:
        x1, y1, x2, y2 = bbox
        parts.append(
            f'<g class="box"><rect x="{_n(x1)}" y="{_n(y1)}" width="{_n(x2 - x1)}" height="{_n(y2 - y1)}"/></g>'
        )
    for pose, dashed in poses:
        if all(map(math.isfinite, pose.angles)):
            parts += _axes(pose, size, viewport, dashed=dashed)
    return "".join([*parts, "</svg>"])


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _inside(lines: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The lines that touch the picture, as far as their bounding boxes say."""
    low, high = lines.min(axis=1), lines.max(axis=1)
    return lines[((high >= 0) & (low <= np.array(size))).all(axis=1)]


def _axes(pose: Pose, size: tuple[int, int], viewport: float | None, *, dashed: bool) -> Iterator[str]:
    axes = project_axes(pose, size, viewport)
    yield f'<g class="axes{" dashed" if dashed else ""}">'
    for name in sorted(axes.tips, key=axes.towards.__getitem__):  # the nearest is drawn last
        tip = axes.tips[name]
        if np.isfinite(tip).all():
            yield _arrow(name, axes.origin, tip, size, towards=axes.towards[name] > 0, dashed=dashed)
    yield "</g>"


def _arrow(name: str, start: np.ndarray, tip: np.ndarray, size: tuple[int, int], *, towards: bool, dashed: bool) -> str:
    colour = "#{:02x}{:02x}{:02x}".format(*AXIS_COLOURS[name])
    width = min(size) / (55 if name == "front" else 85) * (0.6 if dashed else 1)
    head = 4.2 * width
    along = tip - start
    reach = float(np.hypot(*along))
    if reach < head:  # seen end on: a dot towards the viewer, a ring away from him
        fill = colour if towards else "none"
        return f'<circle cx="{_n(tip[0])}" cy="{_n(tip[1])}" r="{_n(0.5 * head)}" fill="{fill}" stroke="{colour}"/>'
    unit = along / reach
    neck, across = tip - unit * head, np.array([-unit[1], unit[0]]) * 0.45 * head
    corners = " ".join(f"{_n(x)},{_n(y)}" for x, y in (neck + across, tip, neck - across))
    ends = f'x1="{_n(start[0])}" y1="{_n(start[1])}" x2="{_n(neck[0])}" y2="{_n(neck[1])}"'
    dashes = f' stroke-dasharray="{_n(3 * width)} {_n(2 * width)}"' if dashed else ""
    text = ""
    if name in _LABELLED and not dashed:
        # a word at the edge is still read
        x, y = np.clip(tip + unit * 1.6 * head, (22, 10), np.maximum((22, 10), np.array(size) - (22, 10)))
        text = f'<text x="{_n(x)}" y="{_n(y)}" fill="{colour}">{name}</text>'
    return (
        f'<line class="halo" {ends} stroke-width="{_n(2.2 * width)}"/><line {ends} stroke="{colour}" '
        f'stroke-width="{_n(width)}"{dashes}/><polygon points="{corners}" fill="{colour}"/>{text}'
    )
