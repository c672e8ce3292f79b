"""The pose of a box whose keypoints are seen in one picture, while its three edge lengths are not known (numpy, scipy)."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

_NEAREST = 0.01  # of the centre's depth: what a step of the search puts nearer, or behind the camera, counts as there
_LONGEST = 20.0  # the logarithm of a half edge in the centre's depth, beyond which none is looked for
_THINNEST = 1e-3  # of the centre's depth: the least half edge to start from, whose logarithm is searched


def pose_of_box(points: Any, keypoints: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the rotation (3, 3) and translation (3,) of a box before OpenCV's camera, and its edge lengths (3,).

    One picture tells them but for a common factor: lengths are in diagonals of the box. The start is EPnP (Lepetit,
    Moreno-Noguer and Fua, IJCV 2009) with the box's centre and three half edges as control points, which here are unknown in
    length as well. Each point gives two equations that are linear in them, and they are what solves all of these best. Such
    edges need not be at right angles, and of a box that is far away their depths are mostly noise. From the nearest box
    on, rotation, lengths and place are therefore searched that bring the points nearest, by Levenberg and Marquardt.

    A mirrored picture has no such box: what is nearest to its points is returned, and is a rotation nevertheless.

    Args:
        points: (n, 2) where the keypoints are seen, ``K⁻¹`` times the pixels: x / z and y / z, x right, y down, z forward.
        keypoints: (n, 3) where they are in a box of edge length 2 about the origin, in the object's frame, in the same order:
            corners are ±1. At least six, not all in one plane.

    Raises:
        ValueError: a point is not finite.
    """
    points, keypoints = np.asarray(points, np.float64), np.asarray(keypoints, np.float64)
    if not np.isfinite(points).all():
        raise ValueError("a keypoint is not finite")
    start, half, centre = _linear_box(points, keypoints)

    def box(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        turn = Rotation.from_rotvec(values[:3]).as_matrix() @ start
        return turn, np.exp(np.clip(values[3:6], -_LONGEST, _LONGEST)), np.append(values[6:], 1.0)

    def distances(values: np.ndarray) -> np.ndarray:
        rotation, half, centre = box(values)
        placed = keypoints * half @ rotation.T + centre
        return (placed[:, :2] / np.maximum(placed[:, 2:], _NEAREST) - points).ravel()

    first = np.concatenate([np.zeros(3), np.log(np.maximum(half, _THINNEST)), centre])
    rotation, half, place = box(least_squares(distances, first, method="lm").x)
    diagonal = 2 * np.linalg.norm(half)
    return rotation, place / diagonal, 2 * half / diagonal


def _linear_box(points: np.ndarray, keypoints: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return EPnP's rotation, half edges (3,) and centre (x, y), with the centre at depth 1."""
    weights = np.concatenate([np.ones((len(keypoints), 1)), keypoints], axis=1)  # of the four control points
    # a point (x, y, z) that is seen at (u, v) has x - u z = 0 and y - v z = 0
    seen = np.zeros((len(points), 2, 3))
    seen[:, 0, 0] = seen[:, 1, 1] = 1
    seen[:, :, 2] = -points
    equations = np.einsum("nk,nij->nikj", weights, seen).reshape(2 * len(points), 12)
    control = np.linalg.svd(equations)[2][-1].reshape(4, 3)
    depth = control[0, 2] if abs(control[0, 2]) > 1e-9 else 1e-9  # its sign too is free: the box lies before the camera
    control = control / depth
    half = np.linalg.norm(control[1:], axis=1)
    left, _, right = np.linalg.svd(control[1:].T / np.maximum(half, 1e-9))
    return left @ np.diag([1.0, 1.0, np.linalg.det(left @ right)]) @ right, half, control[0, :2]
