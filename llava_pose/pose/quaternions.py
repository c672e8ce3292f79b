"""Rotations as quaternions of either order, and rotations that were written with few digits."""

from __future__ import annotations

from typing import Any

import numpy as np


def matrix_to_quaternion(rotation: Any, order: str = "wxyz") -> np.ndarray:
    """Unit quaternions (..., 4) of rotations (..., 3, 3), with w >= 0.

    The formulas are the same in left-handed coordinates, where they stand for turns that a left hand counts.
    """
    m = np.asarray(rotation, dtype=np.float64)
    trace = np.trace(m, axis1=-2, axis2=-1)[..., None]
    # four times the product of each two components; the row of the largest component is free of cancellation
    skew = np.stack([m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]], -1)
    products = np.empty((*m.shape[:-2], 4, 4))
    products[..., 0, 0] = 1 + trace[..., 0]
    products[..., 0, 1:] = products[..., 1:, 0] = skew
    products[..., 1:, 1:] = m + np.swapaxes(m, -1, -2) + (1 - trace[..., None]) * np.eye(3)
    largest = np.diagonal(products, axis1=-2, axis2=-1).argmax(-1)
    row = np.take_along_axis(products, largest[..., None, None], axis=-2)[..., 0, :]
    q = row / np.linalg.norm(row, axis=-1, keepdims=True)
    q = np.where(q[..., :1] < 0, -q, q)
    return q if order == "wxyz" else np.roll(q, -1, axis=-1)


def quaternion_to_matrix(quaternion: Any, order: str = "wxyz") -> np.ndarray:
    """Rotations (..., 3, 3) of quaternions (..., 4) of any length but 0."""
    q = np.asarray(quaternion, dtype=np.float64)
    q = q if order == "wxyz" else np.roll(q, 1, axis=-1)
    w, x, y, z = np.moveaxis(q / np.linalg.norm(q, axis=-1, keepdims=True), -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, -1) for row in rows], -2)


def nearest_rotation(matrix: Any) -> np.ndarray:
    """The rotation (3, 3) nearest to a matrix that was written with few digits.

    Raises:
        ValueError: it is not near to any rotation: mirrored, scaled, or its numbers stand in another order.
    """
    m = np.asarray(matrix, dtype=np.float64)
    if m.shape != (3, 3) or not np.isfinite(m).all():
        raise ValueError("a rotation must be 3×3 finite numbers")
    u, _, vt = np.linalg.svd(m)
    rotation = u @ vt
    if np.linalg.det(rotation) < 0 or np.abs(rotation - m).max() > 0.05:
        raise ValueError("the matrix is no rotation (mirrored, scaled, or its numbers in another order)")
    return rotation
