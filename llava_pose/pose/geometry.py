"""Rotations, the camera, projection, flips and crops: the one convention of the project.

Object frame: z up, the object's front faces -y. A pose is (azimuth, elevation, theta, distance, px, py); angles are
radians. Azimuth 0 looks at the front from -y. The camera frame is x right, y up, looking along -z, so that
``R = Rz(theta) @ Rx(elevation - pi/2) @ Rz(-azimuth)`` maps world to camera and the translation is (0, 0, -distance).
docs/POSE.md derives every formula. The convention is that of PASCAL3D+ (Xiang et al., WACV 2014) as ImageNet3D
(Ma et al., 2024) uses it.

Every function takes Python numbers, numpy arrays or torch tensors, broadcasts them, and answers in kind: tensors keep
device and gradient (float16 and bfloat16 are raised to float32), everything else is computed in float64.
"""

from __future__ import annotations

import math
import sys
from typing import Any, NamedTuple

import numpy as np

TWO_PI = 2 * math.pi
Array = Any  # np.ndarray or torch.Tensor


class OpenCVCamera(NamedTuple):
    """A camera in OpenCV's convention (x right, y down, z forward): ``x_pixel ~ K @ (R @ X + t)``."""

    rotation: Array  # (..., 3, 3)
    translation: Array  # (..., 3)
    intrinsics: Array  # (..., 3, 3)


def _is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")  # if torch was never imported, nothing can be a tensor
    return torch is not None and isinstance(value, torch.Tensor)


def _unify(*values: Any) -> tuple[Any, list[Array]]:
    """The namespace (numpy or torch) and the values as floating arrays of it, not yet broadcast."""
    tensors = [value for value in values if _is_tensor(value)]
    if not tensors:
        return np, [np.asarray(value, dtype=np.float64) for value in values]
    import torch

    dtype = torch.float32
    for tensor in tensors:
        if tensor.dtype == torch.float64:
            dtype = torch.float64
    device = tensors[0].device
    return torch, [torch.as_tensor(value, dtype=dtype, device=device) for value in values]


def _broadcast(xp: Any, arrays: list[Array]) -> list[Array]:
    return list(np.broadcast_arrays(*arrays) if xp is np else xp.broadcast_tensors(*arrays))


def _rotation_entries(xp: Any, azimuth: Array, elevation: Array, theta: Array) -> list[list[Array]]:
    """The nine entries of R as separate arrays: no (..., 3, 3) array is needed to project or to compare."""
    sin_a, cos_a = xp.sin(azimuth), xp.cos(azimuth)
    sin_e, cos_e = xp.sin(elevation), xp.cos(elevation)
    sin_t, cos_t = xp.sin(theta), xp.cos(theta)
    tilt_a, tilt_b = sin_e * sin_a, sin_e * cos_a
    return [
        [cos_t * cos_a + sin_t * tilt_a, cos_t * sin_a - sin_t * tilt_b, -sin_t * cos_e],
        [sin_t * cos_a - cos_t * tilt_a, sin_t * sin_a + cos_t * tilt_b, cos_t * cos_e],
        [cos_e * sin_a, -cos_e * cos_a, sin_e],
    ]


def _angle_between_entries(xp: Any, a: list[list[Array]], b: list[list[Array]]) -> Array:
    """Angle of A @ B.T from entries: sum_k a_k x b_k is the vee of the skew part, sum_k a_k . b_k the trace."""
    trace = sum(a[i][k] * b[i][k] for i in range(3) for k in range(3))
    vee = [
        sum(a[(i + 2) % 3][k] * b[(i + 1) % 3][k] - a[(i + 1) % 3][k] * b[(i + 2) % 3][k] for k in range(3))
        for i in range(3)
    ]
    return xp.arctan2(_length(xp, vee), trace - 1)  # 2 sin and 2 cos of the angle


def _length(xp: Any, vector: list[Array]) -> Array:
    if xp is np:
        return np.sqrt(vector[0] * vector[0] + vector[1] * vector[1] + vector[2] * vector[2])
    return xp.linalg.vector_norm(xp.stack(vector, -1), dim=-1)  # its gradient at 0 is 0, that of sqrt is NaN


def rotation_matrix(azimuth: Any, elevation: Any, theta: Any) -> Array:
    """World-to-camera rotation ``Rz(theta) Rx(elevation - pi/2) Rz(-azimuth)``.

    Args:
        azimuth, elevation, theta: radians, broadcastable shapes (...).

    Returns:
        (..., 3, 3) rotations into the camera frame (x right, y up, looking along -z).
    """
    xp, angles = _unify(azimuth, elevation, theta)
    rows = _rotation_entries(xp, *_broadcast(xp, angles))
    return xp.stack([xp.stack(row, -1) for row in rows], -2)


def angles_from_rotation(rotation: Any) -> tuple[Array, Array, Array]:
    """Azimuth, elevation and theta (radians, canonical ranges) of rotations (..., 3, 3).

    The inverse of :func:`rotation_matrix`. In gimbal lock (elevation of +-pi/2) theta is 0. Theta is measured after the
    azimuth has been taken out, so that the three together reproduce the rotation to rounding however near the pole.
    """
    xp, (matrix,) = _unify(rotation)
    r = [[matrix[..., i, j] for j in range(3)] for i in range(3)]
    locked = xp.hypot(r[2][0], r[2][1]) < _gimbal_tolerance(xp, matrix)
    # each branch sees harmless numbers where the other one is taken: a NaN gradient would pass through where()
    zero, one = xp.zeros_like(r[2][2]), xp.ones_like(r[2][2])
    across, along = xp.where(locked, zero, r[2][0]), xp.where(locked, one, -r[2][1])
    elevation = xp.arctan2(r[2][2], xp.where(locked, zero, xp.hypot(across, along)))
    locked_azimuth = xp.arctan2(xp.where(locked, r[0][1], zero), xp.where(locked, r[0][0], one))
    azimuth = xp.where(locked, locked_azimuth, xp.arctan2(across, along))
    sin_a, cos_a = xp.sin(azimuth), xp.cos(azimuth)
    theta = xp.arctan2(r[1][0] * cos_a + r[1][1] * sin_a, r[0][0] * cos_a + r[0][1] * sin_a)
    theta = xp.where(locked, xp.zeros_like(theta), theta)
    return _wrap(xp, azimuth, 0.0), elevation, _wrap(xp, theta, -math.pi)


def _gimbal_tolerance(xp: Any, like: Array) -> float:
    return 1024 * float(xp.finfo(like.dtype).eps)


def _wrap(xp: Any, angle: Array, low: float) -> Array:
    """The angle modulo 2 pi in [low, low + 2 pi); an angle already in range is returned to the bit."""
    wrapped = angle - TWO_PI * xp.floor((angle - low) / TWO_PI)
    # a tiny negative angle rounds to the excluded upper end, and rounding in floor() can miss by one turn
    wrapped = xp.where(wrapped >= low + TWO_PI, wrapped - TWO_PI, wrapped)
    return xp.where(wrapped < low, xp.full_like(wrapped, low), wrapped)


def canonicalize(azimuth: Any, elevation: Any, theta: Any) -> tuple[Array, Array, Array]:
    """The same rotation with azimuth in [0, 2 pi), elevation in [-pi/2, pi/2] and theta in [-pi, pi).

    (a + pi, pi - e, t + pi) is the same rotation as (a, e, t). At e = pi/2 only t - a is defined, at -pi/2 only
    t + a: theta becomes 0 there.
    """
    xp, angles = _unify(azimuth, elevation, theta)
    azimuth, elevation, theta = _broadcast(xp, angles)
    elevation = _wrap(xp, elevation, -math.pi)
    over = xp.abs(elevation) > math.pi / 2
    half_turn = xp.where(elevation < 0, xp.full_like(elevation, -math.pi), xp.full_like(elevation, math.pi))
    elevation = xp.where(over, half_turn - elevation, elevation)
    azimuth = xp.where(over, azimuth + math.pi, azimuth)
    theta = xp.where(over, theta + math.pi, theta)

    locked = xp.cos(elevation) < _gimbal_tolerance(xp, elevation)
    locked_azimuth = xp.where(elevation > 0, azimuth - theta, azimuth + theta)
    azimuth = xp.where(locked, locked_azimuth, azimuth)
    theta = xp.where(locked, xp.zeros_like(theta), theta)
    return _wrap(xp, azimuth, 0.0), elevation, _wrap(xp, theta, -math.pi)


def geodesic_angle(rotation_a: Any, rotation_b: Any) -> Array:
    """Angle of ``rotation_a @ rotation_b.T`` in [0, pi] radians, shapes (..., 3, 3) -> (...).

    ``atan2(|vee(M - M^T)| / 2, (tr M - 1) / 2)``: accurate to rounding over the whole range, at 0 and pi too, where the
    arccos of the trace loses half the digits (Huynh, "Metrics for 3D rotations", JMIV 2009, eq. 23; the atan2 form
    avoids its arccos). It equals ``|log M|_F / sqrt(2)``.
    """
    xp, (a, b) = _unify(rotation_a, rotation_b)
    entries_a = [[a[..., i, j] for j in range(3)] for i in range(3)]
    entries_b = [[b[..., i, j] for j in range(3)] for i in range(3)]
    return _angle_between_entries(xp, entries_a, entries_b)


def geodesic_angle_of_poses(angles_a: Any, angles_b: Any) -> Array:
    """:func:`geodesic_angle` between poses given as (..., 3) azimuth, elevation, theta in radians -> (...)."""
    xp, (a, b) = _unify(angles_a, angles_b)
    entries_a = _rotation_entries(xp, a[..., 0], a[..., 1], a[..., 2])
    entries_b = _rotation_entries(xp, b[..., 0], b[..., 1], b[..., 2])
    return _angle_between_entries(xp, entries_a, entries_b)


def camera_center(azimuth: Any, elevation: Any, distance: Any) -> Array:
    """The camera's centre in the object frame, (..., 3): ``distance (cos e sin a, -cos e cos a, sin e)``."""
    xp, values = _unify(azimuth, elevation, distance)
    a, e, d = _broadcast(xp, values)
    return xp.stack([d * xp.cos(e) * xp.sin(a), -d * xp.cos(e) * xp.cos(a), d * xp.sin(e)], -1)


def project_points(
    points: Any,
    *,
    azimuth: Any,
    elevation: Any,
    theta: Any,
    distance: Any,
    px: Any,
    py: Any,
    viewport: Any,
    focal: Any = 1.0,
) -> Array:
    """Pixels (edge coordinates: the image's left edge is 0, its right edge its width) of points in the object frame.

    ``u = px + viewport focal x / (-z)``, ``v = py - viewport focal y / (-z)`` with (x, y, z) = R X + (0, 0, -distance).

    Args:
        points: (..., 3) in the object frame.
        azimuth, elevation, theta: radians; distance in object units; px, py in pixels; viewport in pixels per unit
            focal length. Each broadcasts against ``points.shape[:-1]``: give a batch of poses a trailing axis of 1.

    Returns:
        (..., 2) pixels. A point at or behind the camera plane has no image: NaN.
    """
    xp, values = _unify(points, azimuth, elevation, theta, distance, px, py, viewport, focal)
    points, azimuth, elevation, theta, distance, px, py, viewport, focal = values
    world = [points[..., 0], points[..., 1], points[..., 2]]
    rows = _rotation_entries(xp, azimuth, elevation, theta)
    x, y, z = (row[0] * world[0] + row[1] * world[1] + row[2] * world[2] for row in rows)
    depth = distance - z
    depth = xp.where(depth > 0, depth, xp.full_like(depth, math.nan))
    u = px + viewport * focal * x / depth
    v = py - viewport * focal * y / depth
    return xp.stack(_broadcast(xp, [u, v]), -1)


def opencv_camera(
    *,
    azimuth: Any,
    elevation: Any,
    theta: Any,
    distance: Any,
    px: Any,
    py: Any,
    viewport: Any,
    focal: Any = 1.0,
) -> OpenCVCamera:
    """The pose as OpenCV's R (..., 3, 3), t (..., 3) and K (..., 3, 3); arguments as in :func:`project_points`."""
    xp, values = _unify(azimuth, elevation, theta, distance, px, py, viewport, focal)
    azimuth, elevation, theta, distance, px, py, viewport, focal = _broadcast(xp, values)
    down_forward = [1.0, -1.0, -1.0]  # y up, looking along -z  ->  y down, looking along z
    rows = _rotation_entries(xp, azimuth, elevation, theta)
    rotation = xp.stack(
        [xp.stack([sign * x for x in row], -1) for sign, row in zip(down_forward, rows, strict=True)], -2
    )
    zero, one = xp.zeros_like(distance), xp.ones_like(distance)
    scale = viewport * focal
    intrinsics = xp.stack(
        [xp.stack([scale, zero, px], -1), xp.stack([zero, scale, py], -1), xp.stack([zero, zero, one], -1)], -2
    )
    return OpenCVCamera(rotation, xp.stack([zero, zero, distance], -1), intrinsics)


def flip_pose(azimuth: Any, elevation: Any, theta: Any, px: Any, width: Any) -> tuple[Array, Array, Array, Array]:
    """The pose of the mirror-symmetric object in the horizontally flipped image: (-a, e, -t, width - px).

    Exact only where x = 0 is a plane of symmetry of the object. Never flip a chiral category
    (``llava_pose.pose.categories`` says which are).
    """
    _, (azimuth, elevation, theta, px, width) = _unify(azimuth, elevation, theta, px, width)
    return -azimuth, elevation, -theta, width - px


def crop_principal(px: Any, py: Any, viewport: Any, *, left: Any, top: Any, scale: Any) -> tuple[Array, Array, Array]:
    """px, py and viewport after cropping at (left, top) and resizing by ``scale``. The distance stays as it is.

    Cropping moves the principal point and resizing scales the pixels per unit focal length; the object has not moved,
    so dividing its distance by the scale instead (as published preprocessing does) is wrong for near objects.
    """
    _, (px, py, viewport, left, top, scale) = _unify(px, py, viewport, left, top, scale)
    return (px - left) * scale, (py - top) * scale, viewport * scale


def angles_to_bins(angles: Any, *, bins: int = 40, shift: float = 0.0) -> Array:
    """Bin indices of angles (radians) over [0, 2 pi): floor binning as published with ImageNet3D.

    ``shift`` moves the bin edges by that fraction of a bin; 0.5 puts theta = 0 on a bin's centre instead of its edge.
    """
    xp, (angles,) = _unify(angles)
    width = TWO_PI / bins
    index = xp.floor(_wrap(xp, angles + shift * width, 0.0) / width)
    index = xp.where(index >= bins, xp.full_like(index, bins - 1), index)
    return index.astype(np.int64) if xp is np else index.long()


def bins_to_angles(index: Any, *, bins: int = 40, shift: float = 0.0) -> Array:
    """The centres (radians in [0, 2 pi)) of bins made by :func:`angles_to_bins`."""
    xp, (index,) = _unify(index)
    return _wrap(xp, (index + 0.5 - shift) * (TWO_PI / bins), 0.0)
