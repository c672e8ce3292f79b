"""The pose of a box from its keypoints in one picture, held against the camera of docs/POSE.md."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from llava_pose.pose.box_keypoints import _linear_box, pose_of_box
from llava_pose.pose.geometry import flip_pose, geodesic_angle, opencv_camera, project_points, rotation_matrix

KEYPOINTS = np.array([(0, 0, 0), *itertools.product((-1, 1), repeat=3)], dtype=float)
LEFT_AND_RIGHT_CHANGED = [0, 5, 6, 7, 8, 1, 2, 3, 4]  # which keypoint is at (-x, y, z) of each
SIZES = ((0.4, 0.8, 0.45), (0.58, 0.58, 0.57), (0.95, 0.2, 0.24))


def seen(size, *, px=0.0, py=0.0, **pose):
    """Where the keypoints of a box of that size fall, in focal lengths from the middle of the picture."""
    return project_points(KEYPOINTS * np.asarray(size) / 2, px=px, py=py, viewport=1.0, **pose)


def opencv_rotation(azimuth, elevation, theta):
    return np.diag([1, -1, -1]) @ rotation_matrix(azimuth, elevation, theta)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("distance", [1.2, 4.0, 60.0])
def test_a_box_seen_from_anywhere_comes_back_to_rounding(size, distance):
    size = np.array(size) / np.linalg.norm(size)
    for azimuth, elevation, theta in itertools.product(
        np.radians((0, 37, 90, 181, 300)), (-0.9, 0.1, 1.5), (-2.0, 0.0, 0.4)
    ):
        pose = {"azimuth": azimuth, "elevation": elevation, "theta": theta, "distance": distance}
        camera = opencv_camera(**pose, px=0.0, py=0.0, viewport=1.0)
        points = seen(size, **pose)
        rotation, translation, found = pose_of_box(points, KEYPOINTS)
        assert geodesic_angle(rotation, camera.rotation) < 1e-4
        np.testing.assert_allclose(found, size, rtol=1e-3)
        np.testing.assert_allclose(translation, camera.translation, rtol=1e-3, atol=1e-4 * distance)


def test_a_box_at_the_side_of_the_picture_stands_where_it_is_seen():
    turned, size = opencv_rotation(0.6, 0.3, -0.1), np.array([0.5, 0.7, 0.5]) / np.linalg.norm([0.5, 0.7, 0.5])
    for place in ([0.8, 0.1, 2.0], [-1.0, 0.9, 3.0]):
        corners = KEYPOINTS * size / 2 @ turned.T + place
        rotation, translation, _ = pose_of_box(corners[:, :2] / corners[:, 2:], KEYPOINTS)
        assert geodesic_angle(rotation, turned) < 1e-5
        np.testing.assert_allclose(translation, place, rtol=1e-4)


def test_a_box_with_right_angles_is_nearer_than_epnp_alone_where_keypoints_are_off():
    """The farther away, the more: the depths of free edges are told by the perspective alone. Off by 1% of the diagonal."""
    rng = np.random.default_rng(0)
    for distance, least in ((2.0, 1.5), (8.0, 3.0)):
        errors = []
        for _ in range(40):
            angles = rng.uniform(0, 2 * np.pi), rng.uniform(-0.1, 0.9), rng.normal() * 0.1
            size = rng.uniform(0.3, 1.0, 3)
            pose = dict(zip(("azimuth", "elevation", "theta"), angles, strict=True))
            points = seen(size / np.linalg.norm(size), **pose, distance=distance)
            points = points + rng.normal(size=points.shape) * 0.01 / distance
            turned = opencv_rotation(*angles)
            ways = pose_of_box(points, KEYPOINTS)[0], _linear_box(points, KEYPOINTS)[0]
            errors.append([geodesic_angle(way, turned) for way in ways])
        searched, linear = np.median(errors, axis=0)
        assert linear > least * searched
        assert searched < np.radians(3)


def test_a_mirrored_picture_with_left_and_right_changed_is_the_flipped_pose():
    pose = {"azimuth": 0.7, "elevation": 0.35, "theta": 0.2}
    points = seen((0.4, 0.8, 0.45), **pose, distance=3.0) * [-1, 1]
    flipped = flip_pose(*pose.values(), 0.0, 0.0)[:3]
    rotation = pose_of_box(points[LEFT_AND_RIGHT_CHANGED], KEYPOINTS)[0]
    assert geodesic_angle(rotation, opencv_rotation(*flipped)) < 1e-6


def test_a_picture_upside_down_is_half_a_turn_in_its_plane_and_mirrored_it_is_the_flipped_pose_turned():
    pose = {"azimuth": 0.7, "elevation": 0.35, "theta": 0.2}
    points = seen((0.4, 0.8, 0.45), **pose, distance=3.0)
    turned = pose_of_box(-points, KEYPOINTS)[0]
    assert geodesic_angle(turned, opencv_rotation(0.7, 0.35, 0.2 + np.pi)) < 1e-6
    mirrored = pose_of_box(points[LEFT_AND_RIGHT_CHANGED] * [1, -1], KEYPOINTS)[0]
    azimuth, elevation, theta = flip_pose(*pose.values(), 0.0, 0.0)[:3]
    assert geodesic_angle(mirrored, opencv_rotation(azimuth, elevation, theta + np.pi)) < 1e-6


def test_points_of_a_mirrored_box_give_a_rotation_and_no_mirror():
    rng = np.random.default_rng(0)
    points = seen((0.4, 0.8, 0.45), azimuth=0.7, elevation=0.35, theta=0.2, distance=3.0)
    for strange in (points * [-1, 1], rng.normal(size=(9, 2)), np.zeros((9, 2)), np.full((9, 2), 1e6)):
        rotation, translation, size = pose_of_box(strange, KEYPOINTS)
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-9)
        assert np.linalg.det(rotation) > 0
        assert translation[2] > 0
        assert np.linalg.norm(size) == pytest.approx(1)


def test_keypoints_may_come_in_any_order_and_frame():
    points = seen((0.4, 0.8, 0.45), azimuth=2.0, elevation=0.3, theta=0.1, distance=3.0)
    order = np.random.default_rng(1).permutation(9)
    rotation, _, size = pose_of_box(points, KEYPOINTS)
    assert geodesic_angle(pose_of_box(points[order], KEYPOINTS[order])[0], rotation) < 1e-6
    axes = np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])  # another frame's coordinates of a point of ours
    other, _, theirs = pose_of_box(points, KEYPOINTS @ axes.T)
    assert geodesic_angle(other @ axes, rotation) < 1e-6
    np.testing.assert_allclose(theirs, axes @ size, rtol=1e-5)


def test_a_keypoint_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="not finite"):
        pose_of_box(np.full((9, 2), np.nan), KEYPOINTS)
