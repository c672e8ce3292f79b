"""Facts about two objects of one picture, with the margins of ``data_prep.scene.facts``.

Each takes the pose of the first and of the second object; with the two exchanged, the answer is the opposite (or the same,
of :func:`same_way` and :func:`opposite_ways`).
"""

from __future__ import annotations

import math

import numpy as np

from data_prep.scene.facts import DECIMALS, angle_between, angles_in_degrees, between, front_of, up_of
from llava_pose.data.records import Pose


def faces_camera_more(a: Pose, b: Pose) -> bool | None:
    """Return whether the first one's front is turned more to the camera; None within 25 degrees."""
    towards = (0.0, 0.0, 1.0)
    return between(angle_between(front_of(b), towards) - angle_between(front_of(a), towards), -25, 25)


def same_way(a: Pose, b: Pose) -> bool | None:
    """Return whether the fronts point the same way: within 25 degrees, or over 60 degrees apart."""
    return between(angle_between(front_of(a), front_of(b)), 60, 25)


def opposite_ways(a: Pose, b: Pose) -> bool | None:
    """Return whether the fronts point opposite ways: over 150 degrees apart, or under 110."""
    return between(angle_between(front_of(a), front_of(b)), 110, 150)


def turned_left(a: Pose, b: Pose) -> bool | None:
    """Return whether the second must turn to its own left, the shorter way, to face as the first does; False: its right.

    None where they hardly differ, face opposite ways, or stand on different ground (their ups differ by over 25 degrees).
    """
    up_a, up_b = up_of(a), up_of(b)
    if angle_between(up_a, up_b) > 25:
        return None
    up = (up_a + up_b) / np.linalg.norm(up_a + up_b)
    front_a, front_b = (front - (front @ up) * up for front in (front_of(a), front_of(b)))
    # seen from above, from the second to the first, counter-clockwise: to its own left
    turn = round(math.degrees(math.atan2(float(up @ np.cross(front_b, front_a)), float(front_a @ front_b))), DECIMALS)
    return None if not 25 <= abs(turn) <= 150 else turn > 0


def nearer(a: Pose, b: Pose) -> bool | None:
    """Return whether the first is nearer to the camera by a third at least, of objects of one kind and picture: the unit of
    distance is the object's own size."""
    if a.distance is None or b.distance is None or min(a.distance, b.distance) <= 0:
        return None
    return between(math.log(b.distance / a.distance), -math.log(4 / 3), math.log(4 / 3))


def seen_more_from_above(a: Pose, b: Pose) -> bool | None:
    """Return whether the first is seen from higher above; None within 15 degrees."""
    return between(angles_in_degrees(a)[1] - angles_in_degrees(b)[1], -15, 15)
