#!/usr/bin/env python
"""Draw the axes of every convention of llava_pose.pose.conventions, for docs/POSE.md.

    python scripts/draw_conventions.py docs/images/conventions

A car stands before a camera; both carry the axes of their frames, x red, y green, z blue. The view is a parallel projection.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Polygon
from PIL import Image

from llava_pose.pose.conventions import CONVENTIONS, Convention
from llava_pose.pose.geometry import rotation_matrix

COLOURS = {"x": "#d62728", "y": "#2ca02c", "z": "#1f4fd8"}
VIEW = rotation_matrix(np.radians(38), np.radians(24), 0.0)  # from the car's front, somewhat from its left and above
CAMERA = np.array([0.0, -2.7, 0.1])  # where it stands, looking along +y at the car
CAMERA_TO_WORLD = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # rows: OpenCV's right, down, forward


def seen(points: np.ndarray) -> np.ndarray:
    """(..., 3) of the world to (..., 2) of the figure."""
    return (np.asarray(points, dtype=float) @ VIEW.T)[..., :2]


def depth(points: np.ndarray) -> float:
    return float((np.asarray(points, dtype=float) @ VIEW.T)[..., 2].mean())


def car_faces() -> list[tuple[np.ndarray, str]]:
    """A box with a low bonnet at its front (-y) and a cabin behind: polygons with their colours."""
    side = np.array([[-0.7, 0], [-0.7, 0.22], [-0.25, 0.27], [-0.08, 0.52], [0.45, 0.52], [0.62, 0.28], [0.62, 0]])
    side[:, 1] -= 0.26  # the origin is the middle of its box
    faces = []
    for x in (-0.3, 0.3):
        faces.append((np.column_stack([np.full(len(side), x), side]), "#c9c9d2"))
    for index, (a, b) in enumerate(zip(side, np.roll(side, -1, axis=0), strict=True)):
        quad = np.array([[-0.3, *a], [0.3, *a], [0.3, *b], [-0.3, *b]])
        faces.append((quad, {0: "#f2b632", 2: "#9cc3e6"}.get(index, "#dcdce4")))  # the nose yellow, the windscreen blue
    return faces


def camera_faces() -> list[tuple[np.ndarray, str]]:
    """A pyramid from the camera's centre to its picture."""
    corners = np.array([[x, y, 0.55] for x, y in ((-0.32, -0.24), (0.32, -0.24), (0.32, 0.24), (-0.32, 0.24))])
    corners = CAMERA + corners @ CAMERA_TO_WORLD
    return [
        (np.array([CAMERA, a, b]), "#e8e8e8") for a, b in zip(corners, np.roll(corners, -1, axis=0), strict=True)
    ] + [(corners, "#f7f3d8")]


def draw(convention: Convention, path: Path) -> None:
    figure, axes = plt.subplots(figsize=(4.4, 2.9), dpi=90)
    for faces, alpha in ((camera_faces(), 0.75), (car_faces(), 0.92)):
        for points, colour in sorted(faces, key=lambda face: depth(face[0])):
            axes.add_patch(Polygon(seen(points), facecolor=colour, edgecolor="#555", linewidth=0.7, alpha=alpha))
    for origin, directions, length in (
        (np.zeros(3), convention.object_axes, 1.05),
        (CAMERA, convention.camera_axes @ CAMERA_TO_WORLD, 0.75),
    ):
        for name, direction in zip("xyz", directions, strict=True):  # row i: axis i in our object frame
            start, end = seen(origin), seen(origin + length * direction)
            axes.annotate(
                "",
                end,
                start,
                arrowprops={"arrowstyle": "-|>", "color": COLOURS[name], "lw": 2.2, "shrinkA": 0, "shrinkB": 0},
            )
            away = (end - start) / max(0.2, float(np.linalg.norm(end - start)))
            axes.text(
                *(end + 0.11 * away), name, color=COLOURS[name], fontsize=12, weight="bold", ha="center", va="center"
            )
    hand = "right-handed" if convention.right_handed else "left-handed"
    unit = {1.0: "", 0.001: ", millimetres"}[convention.unit]
    axes.set_title(f"{convention.title} ({hand}{unit})", fontsize=11)
    axes.set_xlim(-2.45, 1.3)
    axes.set_ylim(-1.95, 1.25)
    axes.set_aspect("equal")
    axes.axis("off")
    figure.tight_layout(pad=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)
    with Image.open(path) as drawn:
        small = drawn.convert("RGB").quantize(64)
    small.save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", default=Path("docs/images/conventions"))
    out = parser.parse_args().out
    for name, convention in CONVENTIONS.items():
        draw(convention, out / f"{name}.png")


if __name__ == "__main__":
    main()
