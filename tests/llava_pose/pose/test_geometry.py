"""The convention of docs/POSE.md, held against scipy, the PASCAL3D+ devkit's formula, OpenCV's form and its own symmetries."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from llava_pose.pose.geometry import (
    angles_from_rotation,
    angles_to_bins,
    bins_to_angles,
    camera_center,
    canonicalize,
    crop_principal,
    flip_pose,
    geodesic_angle,
    geodesic_angle_of_poses,
    opencv_camera,
    project_points,
    rotation_matrix,
)

EXACT = 1e-12
PI = math.pi

GIMBAL = [(0.3, PI / 2, 0.4), (5.9, -PI / 2, -2.0), (1.0, PI / 2 - 1e-9, 0.5), (1.0, -PI / 2 + 1e-7, 3.0)]
WRAPPED = [
    (-7.5, 2.5, 9.0),
    (2 * PI, PI, -PI),
    (13.0, -3.0, 6.5),
    (0.0, 0.0, 0.0),
    (PI, 0.0, PI),
    (2 * PI, 0.0, 2 * PI),
]


def random_angles(n: int, seed: int = 0) -> np.ndarray:
    """(n, 3) angles over several turns, with the gimbal and the wrapped cases in front."""
    return np.concatenate([GIMBAL, WRAPPED, np.random.default_rng(seed).uniform(-2 * PI, 2 * PI, (n, 3))])


def scipy_rotation(angles: np.ndarray) -> Rotation:
    """Rz(theta) Rx(elevation - pi/2) Rz(-azimuth), by quaternions."""
    azimuth, elevation, theta = np.moveaxis(np.asarray(angles, dtype=np.float64), -1, 0)
    around_z, around_x, spin = (
        Rotation.from_euler(axis, value[..., None])
        for axis, value in (("z", theta), ("x", elevation - PI / 2), ("z", -azimuth))
    )
    return around_z * around_x * spin


def random_scene(n: int, seed: int = 0) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(n, 3) points near the origin and n cameras that have them in front."""
    rng = np.random.default_rng(seed)
    angles = rng.uniform(-PI, PI, (n, 3))
    camera = {
        "azimuth": angles[:, 0],
        "elevation": angles[:, 1],
        "theta": angles[:, 2],
        "distance": rng.uniform(2, 20, n),
        "px": rng.uniform(-50, 600, n),
        "py": rng.uniform(-50, 600, n),
        "viewport": rng.uniform(500, 4000, n),
        "focal": rng.uniform(0.5, 2, n),
    }
    return rng.uniform(-0.5, 0.5, (n, 3)), camera


# Rotations


def test_rotation_matrix_equals_scipy():
    angles = random_angles(2000)
    np.testing.assert_allclose(rotation_matrix(*angles.T), scipy_rotation(angles).as_matrix(), rtol=0, atol=EXACT)


def test_rotation_matrix_broadcasts_and_takes_plain_numbers():
    assert rotation_matrix(0.1, 0.2, 0.3).shape == (3, 3)
    grid = rotation_matrix(np.zeros((4, 1)), np.zeros(5), 0.3)
    assert grid.shape == (4, 5, 3, 3)
    np.testing.assert_array_equal(grid[2, 3], rotation_matrix(0, 0, 0.3))


def test_axes_of_the_convention():
    front, up, own_left = np.array([0, -1, 0]), np.array([0, 0, 1]), np.array([1, 0, 0])
    np.testing.assert_array_equal(np.cross(up, front), own_left)
    # azimuth 0 looks at the front: it points at the viewer (+z of the camera), up is up, the own left is on the right
    np.testing.assert_allclose(rotation_matrix(0, 0, 0) @ np.stack([own_left, up, front], 1), np.eye(3), atol=EXACT)
    # a camera at azimuth pi/2 stands on the object's own left
    np.testing.assert_allclose(camera_center(PI / 2, 0, 3.0), 3.0 * own_left, atol=EXACT)
    np.testing.assert_allclose(camera_center(1.0, PI / 2, 3.0), 3.0 * up, atol=EXACT)


def test_positive_theta_turns_the_image_counter_clockwise():
    top = project_points([0.0, 0, 0.5], azimuth=0, elevation=0, theta=0.2, distance=5, px=0, py=0, viewport=1000)
    assert top[0] < 0  # the object's top moves to the left
    assert top[1] < 0


def test_camera_center_projects_onto_the_camera_origin():
    angles = random_angles(200)
    distance = np.linspace(1, 30, len(angles))
    center = camera_center(angles[:, 0], angles[:, 1], distance)
    in_camera = np.einsum("nij,nj->ni", rotation_matrix(*angles.T), center)
    np.testing.assert_allclose(in_camera, np.stack([0 * distance, 0 * distance, distance], -1), atol=1e-11)


def test_angles_from_rotation_reproduces_the_rotation():
    rotation = rotation_matrix(*random_angles(2000).T)
    azimuth, elevation, theta = angles_from_rotation(rotation)
    assert ((azimuth >= 0) & (azimuth < 2 * PI)).all()
    assert (np.abs(elevation) <= PI / 2).all()
    assert ((theta >= -PI) & (theta < PI)).all()
    np.testing.assert_allclose(rotation_matrix(azimuth, elevation, theta), rotation, rtol=0, atol=EXACT)


def test_angles_from_rotation_of_any_rotation_matrix():
    rotation = Rotation.random(500, random_state=3).as_matrix()
    np.testing.assert_allclose(rotation_matrix(*angles_from_rotation(rotation)), rotation, rtol=0, atol=EXACT)


@pytest.mark.parametrize("distance_to_pole", [0.0, 1e-15, 1e-14, 1e-13, 2e-13, 3e-13, 1e-12, 1e-10, 1e-6])
@pytest.mark.parametrize("pole", [-PI / 2, PI / 2])
def test_angles_from_rotation_near_the_poles(pole, distance_to_pole):
    rotation = rotation_matrix(1.0, pole - math.copysign(distance_to_pole, pole), 2.5)
    azimuth, elevation, theta = angles_from_rotation(rotation)
    np.testing.assert_allclose(rotation_matrix(azimuth, elevation, theta), rotation, rtol=0, atol=EXACT)
    if distance_to_pole < 1e-14:
        assert theta == 0


# Canonical angles

ANGLE = st.floats(-50, 50, allow_nan=False) | st.sampled_from(
    [0.0, -0.0, PI / 2, -PI / 2, PI, -PI, 2 * PI, 3 * PI / 2, 1e-300, -1e-300, -1e-17, math.nextafter(PI, 4)]
)


@given(ANGLE, ANGLE, ANGLE)
@settings(max_examples=500, deadline=None)
def test_canonicalize_keeps_the_rotation_and_stays_in_range(azimuth, elevation, theta):
    a, e, t = canonicalize(azimuth, elevation, theta)
    assert 0 <= a < 2 * PI
    assert -PI / 2 <= e <= PI / 2
    assert -PI <= t < PI
    difference = geodesic_angle(rotation_matrix(a, e, t), rotation_matrix(azimuth, elevation, theta))
    assert difference < 5e-12  # wrapping an angle of 50 rad loses a few of its 7e-15 ulps; a locked pole up to 1e-12


@given(ANGLE, ANGLE, ANGLE)
@settings(max_examples=300, deadline=None)
def test_canonicalize_is_idempotent(azimuth, elevation, theta):
    once = canonicalize(azimuth, elevation, theta)
    assert canonicalize(*once) == once


@given(st.floats(-7, 7), st.floats(-1.5, 1.5), st.floats(-7, 7), st.integers(-3, 3))
@settings(max_examples=300, deadline=None)
def test_canonicalize_gives_both_names_of_a_rotation_the_same_angles(azimuth, elevation, theta, turns):
    once = canonicalize(azimuth, elevation, theta)
    other = canonicalize(azimuth + PI + turns * 2 * PI, PI - elevation, theta + PI)
    for x, y in zip(once, other, strict=True):
        assert abs(math.remainder(x - y, 2 * PI)) < 1e-13


@pytest.mark.parametrize(("pole", "defined"), [(PI / 2, lambda a, t: a - t), (-PI / 2, lambda a, t: a + t)])
def test_canonicalize_puts_theta_to_zero_at_the_poles(pole, defined):
    azimuth, elevation, theta = canonicalize(5.0, pole, 1.25)
    assert (elevation, theta) == (pole, 0.0)
    assert azimuth == pytest.approx(defined(5.0, 1.25) % (2 * PI), abs=EXACT)


def test_canonicalize_leaves_canonical_angles_to_the_bit():
    angles = (3.0000000000000004, -0.1, 0.7)
    assert canonicalize(*angles) == angles


# Angles between rotations

SMALL = [0.0, 1e-16, 1e-12, 1e-9, 1e-6, 1e-3]


@pytest.mark.parametrize("angle", SMALL + [PI - x for x in SMALL] + [0.5, PI / 2, 3.0])
def test_geodesic_angle_over_the_whole_range(angle):
    rng = np.random.default_rng(1)
    base = Rotation.random(200, random_state=2)
    axis = rng.normal(size=(200, 3))
    axis /= np.linalg.norm(axis, axis=1, keepdims=True)
    turned = Rotation.from_rotvec(angle * axis) * base
    measured = geodesic_angle(turned.as_matrix(), base.as_matrix())
    np.testing.assert_allclose(measured, angle, rtol=0, atol=EXACT)


def test_geodesic_angle_equals_scipy_on_poses():
    a, b = random_angles(3000, seed=1), random_angles(3000, seed=2)
    expected = (scipy_rotation(a) * scipy_rotation(b).inv()).magnitude()
    np.testing.assert_allclose(geodesic_angle_of_poses(a, b), expected, rtol=0, atol=EXACT)
    rotations = rotation_matrix(*a.T), rotation_matrix(*b.T)
    np.testing.assert_allclose(geodesic_angle(*rotations), expected, rtol=0, atol=EXACT)
    np.testing.assert_allclose(geodesic_angle(*rotations[::-1]), expected, rtol=0, atol=EXACT)


def test_geodesic_angle_is_the_norm_of_the_matrix_logarithm():
    from scipy.linalg import logm

    a, b = rotation_matrix(*random_angles(20, seed=4).T), rotation_matrix(*random_angles(20, seed=5).T)
    expected = [np.linalg.norm(logm(x @ y.T)) / math.sqrt(2) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(geodesic_angle(a, b), expected, atol=1e-10)


def test_half_turn_is_pi_and_not_zero():
    assert geodesic_angle(np.diag([-1.0, -1, 1]), np.eye(3)) == PI
    assert geodesic_angle_of_poses([PI, 0, 0], [0, 0, 0]) == pytest.approx(PI, abs=EXACT)
    assert geodesic_angle_of_poses([0.4, 0.2, 0.1], [0.4, 0.2, 0.1]) < 1e-15


# Projection


def devkit_projection(point, *, azimuth, elevation, theta, distance, px, py, viewport, focal) -> np.ndarray:
    """project_3d.m of the PASCAL3D+ devkit (Xiang et al., 2014), line by line for one point."""
    center = distance * np.array(
        [np.cos(elevation) * np.sin(azimuth), -np.cos(elevation) * np.cos(azimuth), np.sin(elevation)]
    )
    a, e = -azimuth, -(PI / 2 - elevation)
    rz = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    rx = np.array([[1, 0, 0], [0, np.cos(e), -np.sin(e)], [0, np.sin(e), np.cos(e)]])
    rotation = rx @ rz
    scale = np.array([[viewport * focal, 0, 0], [0, viewport * focal, 0], [0, 0, -1]])
    x = scale @ np.hstack([rotation, (-rotation @ center)[:, None]]) @ np.append(point, 1)
    x = x[:2] / x[2]
    turn = np.array([[np.cos(theta), -np.sin(theta)], [np.sin(theta), np.cos(theta)]])
    x = turn @ x
    return np.array([x[0], -x[1]]) + np.array([px, py])


def test_projection_equals_the_pascal3d_devkit():
    points, cameras = random_scene(500)
    expected = [
        devkit_projection(point, **{name: value[i] for name, value in cameras.items()})
        for i, point in enumerate(points)
    ]
    np.testing.assert_allclose(project_points(points, **cameras), expected, rtol=0, atol=1e-9)


def test_projection_equals_a_camera_that_looks_at_the_origin():
    """A second derivation without Euler angles: a frame built from the camera's centre, the origin and 'up'."""
    points, cameras = random_scene(300, seed=7)
    cameras["elevation"] = cameras["elevation"] / 2.1  # short of the poles, where 'up' gives no frame
    center = camera_center(cameras["azimuth"], cameras["elevation"], cameras["distance"])
    backward = center / np.linalg.norm(center, axis=1, keepdims=True)
    right = np.cross([0.0, 0.0, 1.0], backward)
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    up = np.cross(backward, right)
    ray = points - center
    x, y, depth = ((ray * axis).sum(1) for axis in (right, up, -backward))
    cos_t, sin_t = np.cos(cameras["theta"]), np.sin(cameras["theta"])
    scale = cameras["viewport"] * cameras["focal"] / depth
    u = cameras["px"] + scale * (cos_t * x - sin_t * y)
    v = cameras["py"] - scale * (sin_t * x + cos_t * y)
    np.testing.assert_allclose(project_points(points, **cameras), np.stack([u, v], -1), rtol=0, atol=1e-9)


def test_opencv_form_projects_to_the_same_pixels():
    points, cameras = random_scene(300, seed=2)
    rotation, translation, intrinsics = opencv_camera(**cameras)
    np.testing.assert_allclose(np.linalg.det(rotation), 1, atol=EXACT)
    pixel = np.einsum("nij,nj->ni", intrinsics, np.einsum("nij,nj->ni", rotation, points) + translation)
    assert (pixel[:, 2] > 0).all()
    np.testing.assert_allclose(pixel[:, :2] / pixel[:, 2:], project_points(points, **cameras), rtol=0, atol=1e-9)


def test_origin_projects_to_the_principal_point():
    _, cameras = random_scene(50, seed=3)
    pixels = project_points(np.zeros((50, 3)), **cameras)
    np.testing.assert_allclose(pixels, np.stack([cameras["px"], cameras["py"]], -1), atol=1e-10)


def test_a_batch_of_poses_projects_a_batch_of_points():
    points, cameras = random_scene(6, seed=4)
    per_pose = {name: value[:, None] for name, value in cameras.items()}
    together = project_points(points, **per_pose)
    assert together.shape == (6, 6, 2)
    for i in range(6):
        alone = project_points(points, **{name: value[i] for name, value in cameras.items()})
        np.testing.assert_allclose(together[i], alone, rtol=0, atol=1e-10)


def test_points_behind_the_camera_have_no_image():
    camera = {"azimuth": 0, "elevation": 0, "theta": 0, "distance": 2.0, "px": 0, "py": 0, "viewport": 1000}
    pixels = project_points([[0, -2.0, 0], [0, -3.0, 0.1], [0, 0, 0]], **camera)
    assert np.isnan(pixels[:2]).all()
    np.testing.assert_allclose(pixels[2], 0, atol=EXACT)


# Flip and crop


def test_flip_mirrors_the_image_of_a_symmetric_object():
    half, cameras = random_scene(300, seed=5)
    width = 640.0
    mirrored_half = half * [-1, 1, 1]  # together, the two halves are symmetric about x = 0
    azimuth, elevation, theta, px = flip_pose(
        cameras["azimuth"], cameras["elevation"], cameras["theta"], cameras["px"], width
    )
    flipped_camera = {**cameras, "azimuth": azimuth, "elevation": elevation, "theta": theta, "px": px}
    for seen, partner in ((half, mirrored_half), (mirrored_half, half)):
        before, after = project_points(seen, **cameras), project_points(partner, **flipped_camera)
        np.testing.assert_allclose(after[:, 0], width - before[:, 0], rtol=0, atol=1e-9)
        np.testing.assert_allclose(after[:, 1], before[:, 1], rtol=0, atol=1e-9)


def test_flip_twice_is_no_flip():
    assert flip_pose(*flip_pose(0.3, 0.2, -0.1, 100.0, 640), 640) == (0.3, 0.2, -0.1, 100.0)


def test_crop_moves_pixels_and_keeps_the_distance():
    points, cameras = random_scene(300, seed=6)
    left, top, scale = 37.25, -12.5, 0.381
    px, py, viewport = crop_principal(
        cameras["px"], cameras["py"], cameras["viewport"], left=left, top=top, scale=scale
    )
    expected = (project_points(points, **cameras) - [left, top]) * scale
    cropped = project_points(points, **{**cameras, "px": px, "py": py, "viewport": viewport})
    np.testing.assert_allclose(cropped, expected, rtol=0, atol=1e-9)


# Bins


@given(st.floats(-20, 20), st.sampled_from([12, 40, 41]), st.sampled_from([0.0, 0.25, 0.5]))
@settings(max_examples=400, deadline=None)
def test_a_bin_holds_the_angle(angle, bins, shift):
    index = angles_to_bins(angle, bins=bins, shift=shift)
    assert 0 <= index < bins
    off = math.remainder(bins_to_angles(index, bins=bins, shift=shift) - angle, 2 * PI)
    assert abs(off) <= PI / bins + 1e-12


def test_bins_are_floor_bins_decoded_at_the_centre():
    degrees = np.array([0.0, 8.999, 9.001, 180.1, 359.999, -0.001, 720.0])
    np.testing.assert_array_equal(angles_to_bins(np.radians(degrees)), [0, 0, 1, 20, 39, 39, 0])
    np.testing.assert_allclose(np.degrees(bins_to_angles([0, 1, 39])), [4.5, 13.5, 355.5])
    every = np.arange(40)
    np.testing.assert_array_equal(angles_to_bins(bins_to_angles(every)), every)
    np.testing.assert_array_equal(angles_to_bins(bins_to_angles(every, shift=0.5), shift=0.5), every)


def bin_floor(angles: np.ndarray, theta_shift: float = 0.0) -> np.ndarray:
    """Degrees lost by binning poses (n, 3), theta with its own shift."""
    shifts = (0.0, 0.0, theta_shift)
    decoded = [bins_to_angles(angles_to_bins(x, shift=s), shift=s) for x, s in zip(angles.T, shifts, strict=True)]
    return np.degrees(geodesic_angle_of_poses(angles, np.stack(decoded, -1)))


def test_bin_floor_figures():
    rng = np.random.default_rng(0)
    floor = bin_floor(rng.uniform(0, 2 * PI, (100_000, 3)))
    assert floor.mean() == pytest.approx(4.2, abs=0.05)
    # half a bin (4.5 degrees) three times; near a pole azimuth and theta add up: at most hypot(4.5 + 4.5, 4.5) = 10.1
    assert 9.5 < floor.max() < 10.1
    # upright objects: theta = 0 lies on the edge between two bins, a shift by half a bin puts it on a centre
    upright = np.stack([rng.uniform(0, 2 * PI, 50_000), rng.uniform(-0.2, 0.8, 50_000), np.zeros(50_000)], -1)
    assert bin_floor(upright).mean() == pytest.approx(5.7, abs=0.15)
    assert bin_floor(upright, theta_shift=0.5).mean() == pytest.approx(3.4, abs=0.15)


# torch


def assert_agree(from_numpy, from_torch, atol: float = EXACT) -> None:
    as_tuple = (lambda x: x) if isinstance(from_numpy, tuple) else (lambda x: (x,))
    for x, y in zip(as_tuple(from_numpy), as_tuple(from_torch), strict=True):
        assert isinstance(y, torch.Tensor)
        np.testing.assert_allclose(y.detach().numpy(), x, rtol=0, atol=atol)


def test_torch_agrees_with_numpy():
    angles, other = random_angles(300, seed=8), random_angles(300, seed=9)
    columns, tensors = list(angles.T), list(torch.tensor(angles).T)
    rotation, other_rotation = rotation_matrix(*columns), rotation_matrix(*other.T)
    assert_agree(rotation, rotation_matrix(*tensors))
    assert_agree(canonicalize(*columns), canonicalize(*tensors))
    assert_agree(angles_from_rotation(rotation), angles_from_rotation(torch.tensor(rotation)))
    assert_agree(geodesic_angle(rotation, other_rotation), geodesic_angle(torch.tensor(rotation), other_rotation))
    assert_agree(geodesic_angle_of_poses(angles, other), geodesic_angle_of_poses(angles, torch.tensor(other)))
    assert_agree(camera_center(*columns), camera_center(*tensors))
    assert_agree(angles_to_bins(columns[0], shift=0.5), angles_to_bins(tensors[0], shift=0.5))
    assert_agree(bins_to_angles(np.arange(40)), bins_to_angles(torch.arange(40, dtype=torch.float64)))


def test_torch_agrees_with_numpy_on_cameras():
    points, cameras = random_scene(100, seed=10)
    tensors = {name: torch.tensor(value) for name, value in cameras.items()}
    assert_agree(project_points(points, **cameras), project_points(torch.tensor(points), **tensors), atol=1e-9)
    assert_agree(tuple(opencv_camera(**cameras)), tuple(opencv_camera(**tensors)))
    names = ("azimuth", "elevation", "theta", "px")
    assert_agree(flip_pose(*(cameras[n] for n in names), 640), flip_pose(*(tensors[n] for n in names), 640))
    crop = {"left": 3.0, "top": 4.0, "scale": 0.5}
    names = ("px", "py", "viewport")
    assert_agree(
        crop_principal(*(cameras[n] for n in names), **crop), crop_principal(*(tensors[n] for n in names), **crop)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_small_floats_are_computed_in_float32(dtype):
    rotation = rotation_matrix(torch.tensor([0.5, 1.0], dtype=dtype), 0.25, torch.zeros(2, dtype=dtype))
    assert rotation.dtype == torch.float32
    np.testing.assert_allclose(rotation, rotation_matrix([0.5, 1.0], 0.25, 0.0), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("difference", [0.0, 1e-12, 1e-6, 0.1, PI / 2, PI - 1e-6, PI])
def test_gradients_of_the_angle_are_finite(difference, dtype):
    pred = torch.tensor([[0.5, 0.2, 0.1], [0.0, 0.0, 0.0]], dtype=dtype, requires_grad=True)
    true = pred.detach() + torch.tensor([difference, 0.0, 0.0], dtype=dtype)
    geodesic_angle_of_poses(pred, true).sum().backward()
    assert torch.isfinite(pred.grad).all()

    rotation = rotation_matrix(*true.T).requires_grad_()
    geodesic_angle(rotation, rotation_matrix(*pred.detach().T)).sum().backward()
    assert torch.isfinite(rotation.grad).all()


def test_gradient_of_the_angle_is_right():
    pred = torch.tensor([[0.5, 0.2, 0.1], [3.0, -0.7, 2.0]], dtype=torch.float64, requires_grad=True)
    true = torch.tensor([[1.5, 0.1, 0.3], [0.2, 0.4, -1.0]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: geodesic_angle_of_poses(x, true), pred)


@pytest.mark.parametrize(
    "rotation",
    [np.eye(3), np.diag([1.0, -1, -1]), [[0, 0, -1], [0, 1, 0], [1, 0, 0]], [[0, 0, 1], [1, 0, 0], [0, 1, 0]]],
)
def test_gradients_of_angles_from_rotations_of_exact_zeros_are_finite(rotation):
    rotation = torch.tensor(np.asarray(rotation), dtype=torch.float64, requires_grad=True)
    sum(angles_from_rotation(rotation)).backward()
    assert torch.isfinite(rotation.grad).all()


@pytest.mark.parametrize("elevation", [0.3, PI / 2, -PI / 2])
def test_gradients_of_angles_and_pixels_are_finite(elevation):
    angles = torch.tensor([0.4, elevation, 0.2], dtype=torch.float64, requires_grad=True)
    sum(angles_from_rotation(rotation_matrix(*angles))).backward()
    assert torch.isfinite(angles.grad).all()
    angles.grad = None
    azimuth, elevation, theta = angles
    pixels = project_points(
        torch.rand(5, 3), azimuth=azimuth, elevation=elevation, theta=theta, distance=5, px=1, py=2, viewport=2000
    )
    pixels.sum().backward()
    assert torch.isfinite(angles.grad).all()
