"""The starts of a pose search: sets of rotations, and where an object is expected in the picture at each."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple, cast

import numpy as np

from llava_pose.pose.geometry import rotation_matrix

_MOST = 20_000  # training rotations that a cover is made for; more are thinned evenly
_BLOCK = 4096  # rotations that are compared with a grid at once: bounds the memory
_NEAR = math.radians(15)  # width of the kernel that expected cameras are averaged with


class Cameras(NamedTuple):
    """The cameras of training objects: where they stand in their pictures.

    ``values`` are (n, 3): the logarithm of the share of the longer side of the picture that one object unit takes, and
    the principal point's offset from the picture's middle in shares of width and height.
    """

    rotations: np.ndarray  # (n, 3, 3) world to camera
    values: np.ndarray  # (n, 3)
    category: np.ndarray  # (n,) indices


def published_grid() -> np.ndarray:
    """Return 12 azimuths, 4 elevations and 3 in-plane rotations, (144, 3, 3), as in the published mesh models.

    It covers a third of all rotations within 30 degrees.
    """
    azimuths = np.arange(12) * math.pi / 6
    angles = itertools.product(azimuths, np.linspace(-math.pi / 6, math.pi / 3, 4), (-math.pi / 6, 0, math.pi / 6))
    return rotation_matrix(*np.array(list(angles)).T)


def uniform_grid(count: int) -> np.ndarray:
    """Spread rotations (count, 3, 3) evenly over all there are, by super-Fibonacci spirals (Alexa, CVPR 2022)."""
    phi, psi = math.sqrt(2), 1.533751168755204288118041
    index = np.arange(count) + 0.5
    inner, outer = np.sqrt(index / count), np.sqrt(1 - index / count)
    alpha, beta = 2 * math.pi * index / phi, 2 * math.pi * index / psi
    x, y, z, w = inner * np.sin(alpha), inner * np.cos(alpha), outer * np.sin(beta), outer * np.cos(beta)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, -1) for row in rows], -2)


def covering_grid(rotations: np.ndarray, radius: float) -> np.ndarray:
    """Choose some of ``rotations`` such that each of all is within ``radius`` (radians) of one: farthest points first.

    Of more than 20,000 rotations an evenly spaced subset is covered.
    """
    if len(rotations) > _MOST:
        rotations = rotations[np.linspace(0, len(rotations) - 1, _MOST).round().astype(int)]
    rows = rotations.reshape(-1, 9)
    chosen = [0]
    nearest = rows @ rows[0]
    while nearest.min() < 1 + 2 * math.cos(radius):  # the trace of the rotation between two
        chosen.append(int(nearest.argmin()))
        nearest = np.maximum(nearest, rows @ rows[chosen[-1]])
    return rotations[chosen]


def nearest_of(rotations: np.ndarray, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how far each rotation (n, 3, 3) is from the nearest of the grid (p, 3, 3), in radians, and which that is."""
    away, which = np.empty(len(rotations)), np.empty(len(rotations), dtype=np.int64)
    for start in range(0, len(rotations), _BLOCK):
        block = slice(start, start + _BLOCK)
        angles = _angles(rotations[block], grid)
        away[block], which[block] = angles.min(1), angles.argmin(1)
    return away, which


def expected_cameras(cameras: Cameras, grid: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return where an object of each class is to be expected at each rotation of the grid, from training objects alone.

    Means weighted by how near a training rotation is (a Gaussian of 15 degrees). A class with little near a rotation
    leans on the other classes there, and these on the median of all.

    Returns:
        (classes, p, 3) as ``Cameras.values``, and (classes, 3) how far training objects stray from it (standard
        deviations).
    """
    own = [cameras.category == index for index in range(classes)]
    moments = [_moments(cameras.rotations[rows], cameras.values[rows], grid) for rows in own]
    weight, total = (cast(np.ndarray, sum(parts)) for parts in zip(*moments, strict=True))
    of_all = (total + np.median(cameras.values, axis=0)) / (weight[:, None] + 1)
    means = np.stack([(total + of_all) / (weight[:, None] + 1) for weight, total in moments])
    spreads = np.tile(cameras.values.std(0), (classes, 1))
    for index, rows in enumerate(own):
        if rows.any():
            _, nearest = nearest_of(cameras.rotations[rows], grid)
            spreads[index] = np.sqrt(((cameras.values[rows] - means[index][nearest]) ** 2).mean(0))
    return means, spreads


def _moments(rotations: np.ndarray, values: np.ndarray, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum over the rotations near each of the grid: (p,) the weights and (p, 3) the weighted values."""
    weight, total = np.zeros(len(grid)), np.zeros((len(grid), 3))
    for start in range(0, len(rotations), _BLOCK):
        block = slice(start, start + _BLOCK)
        near = np.exp(-0.5 * (_angles(rotations[block], grid) / _NEAR) ** 2)
        weight += near.sum(0)
        total += near.T @ values[block]
    return weight, total


def _angles(rotations: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Return the angles between rotations and those of a grid, (n, p) radians."""
    traces = rotations.reshape(-1, 9) @ grid.reshape(-1, 9).T
    return np.arccos(np.clip((traces - 1) / 2, -1, 1))
