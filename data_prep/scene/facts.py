"""Facts about a pose, and what cannot be said for sure: the geometry behind questions and answers.

Every fact has a margin: between "yes" and "no" lies a range in which nothing is asked (None), so that an annotator's error
of a few degrees turns no answer round. Whose left is meant is as in ``llava_pose.data.viewpoint_words``.

Front and up of an object are directions in the camera frame: x to the viewer's right, y up, z towards the viewer. Each
pose is that of a camera that looks at the object (docs/POSE.md), so that two objects of one picture are compared as
they appear.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from llava_pose.data.records import Pose
from llava_pose.data.viewpoint_words import describe_viewpoint
from llava_pose.pose.categories import Category
from llava_pose.pose.geometry import rotation_matrix

# Aspects of a pose that an answer in words tells.
HEADING, HEIGHT, TILT, DISTANCE = "heading", "height", "tilt", "distance"
ALL_ASPECTS = frozenset((HEADING, HEIGHT, TILT, DISTANCE))

_POSES_AT_HAND = 256  # whose axes and angles are kept, since each is asked for many times in a row
DECIMALS = 9  # of what is compared with an edge, so that a pose and its mirror image fall on the same side of it
POLAR = 70.0  # degrees of elevation: nearer to the pole, sides and tilt mean little


# Directions and angles


@functools.lru_cache(_POSES_AT_HAND)
def axes_of(pose: Pose) -> np.ndarray:
    """Return the rotation (3, 3) from the object to the camera frame; read only."""
    rotation = rotation_matrix(*pose.angles)
    rotation.flags.writeable = False
    return rotation


def front_of(pose: Pose) -> np.ndarray:
    """Return where the front points, (3,) in the camera frame."""
    return -axes_of(pose)[:, 1]


def up_of(pose: Pose) -> np.ndarray:
    """Return where the object's up points, (3,) in the camera frame."""
    return axes_of(pose)[:, 2]


def angle_between(a: Iterable[float], b: Iterable[float]) -> float:
    """Return the degrees between two directions."""
    (ax, ay, az), (bx, by, bz) = a, b
    across = math.hypot(ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx)
    return round(math.degrees(math.atan2(across, ax * bx + ay * by + az * bz)), DECIMALS)


@functools.lru_cache(_POSES_AT_HAND)
def angles_in_degrees(pose: Pose) -> tuple[float, float, float]:
    """Return canonical azimuth, elevation and theta in degrees."""
    azimuth, elevation, theta = (round(angle, DECIMALS) for angle in pose.degrees())
    return azimuth, elevation, theta


# Facts that are true or false of one pose


@dataclass(frozen=True)
class Predicate:
    """A question with yes or no for its answer.

    Attributes:
        question: with {ref}, which "the" goes before.
        statement: the same as a sentence about "it".
        aspect: what the answer tells of the pose.
        needs_front, needs_up: which directions the category must have.
        truth: True, False, or None where it is too close to call.
    """

    name: str
    question: str
    statement: str
    aspect: str
    needs_front: bool
    needs_up: bool
    truth: Callable[[Pose], bool | None]

    def can_be_asked(self, category: Category) -> bool:
        return (category.has_front or not self.needs_front) and (category.has_up or not self.needs_up)


def between(value: float, no: float, yes: float) -> bool | None:
    """Return True from ``yes`` on and False from ``no`` on, whichever way round they lie, and None between them."""
    value = round(value, DECIMALS)
    if (value - yes) * (yes - no) >= 0:
        return True
    return False if (value - no) * (yes - no) <= 0 else None


def _faces(direction: tuple[float, float, float], no: float, yes: float) -> Callable[[Pose], bool | None]:
    return lambda pose: between(angle_between(front_of(pose), direction), no, yes)


def _sees(side: tuple[float, float, float]) -> Callable[[Pose], bool | None]:
    """Make the truth of whether a side of the object, by its normal in the object frame, is turned to the camera."""

    def truth(pose: Pose) -> bool | None:
        if abs(angles_in_degrees(pose)[1]) > POLAR:
            return None
        return between(float(axes_of(pose)[2] @ np.array(side)), 0.0, 0.35)

    return truth


def _elevation(no: float, yes: float) -> Callable[[Pose], bool | None]:
    return lambda pose: between(angles_in_degrees(pose)[1], no, yes)


def _level(pose: Pose) -> bool | None:
    return between(abs(angles_in_degrees(pose)[1]), 15, 7)


def _leans(sign: int) -> Callable[[Pose], bool | None]:
    def truth(pose: Pose) -> bool | None:
        _, elevation, theta = angles_in_degrees(pose)
        if abs(elevation) > POLAR or abs(theta) > 125:
            return None
        return between(sign * theta, 7, 13)

    return truth


def _upright(pose: Pose) -> bool | None:
    _, elevation, theta = angles_in_degrees(pose)
    return None if abs(elevation) > POLAR else between(abs(theta), 15, 6)


ASKS_FRONT: Mapping[str, Any] = {"aspect": HEADING, "needs_front": True, "needs_up": False}
ASKS_SIDE: Mapping[str, Any] = {"aspect": HEADING, "needs_front": True, "needs_up": True}
ASKS_HEIGHT: Mapping[str, Any] = {"aspect": HEIGHT, "needs_front": False, "needs_up": True}
ASKS_TILT: Mapping[str, Any] = {"aspect": TILT, "needs_front": False, "needs_up": True}

PREDICATES: Mapping[str, Predicate] = {
    predicate.name: predicate
    for predicate in (
        Predicate(
            "faces the camera",
            "Does the {ref} face the camera?",
            "it faces the camera",
            truth=_faces((0, 0, 1), 55, 35),
            **ASKS_FRONT,
        ),
        Predicate(
            "faces away",
            "Does the {ref} face away from the camera?",
            "it faces away from the camera",
            truth=_faces((0, 0, -1), 55, 35),
            **ASKS_FRONT,
        ),
        Predicate(
            "faces left",
            "Does the front of the {ref} point to the viewer's left?",
            "its front points to the viewer's left",
            truth=_faces((-1, 0, 0), 85, 60),
            **ASKS_FRONT,
        ),
        Predicate(
            "faces right",
            "Does the front of the {ref} point to the viewer's right?",
            "its front points to the viewer's right",
            truth=_faces((1, 0, 0), 85, 60),
            **ASKS_FRONT,
        ),
        Predicate(
            "shows front",
            "Can the camera see the front of the {ref}?",
            "its front is turned to the camera",
            truth=_sees((0, -1, 0)),
            **ASKS_SIDE,
        ),
        Predicate(
            "shows rear",
            "Can the camera see the rear of the {ref}?",
            "its rear is turned to the camera",
            truth=_sees((0, 1, 0)),
            **ASKS_SIDE,
        ),
        Predicate(
            "shows left",
            "Does the {ref} turn its own left side to the camera?",
            "it turns its own left side to the camera",
            truth=_sees((1, 0, 0)),
            **ASKS_SIDE,
        ),
        Predicate(
            "shows right",
            "Does the {ref} turn its own right side to the camera?",
            "it turns its own right side to the camera",
            truth=_sees((-1, 0, 0)),
            **ASKS_SIDE,
        ),
        Predicate(
            "from above",
            "Is the {ref} seen from above?",
            "it is seen from above",
            truth=_elevation(3, 11),
            **ASKS_HEIGHT,
        ),
        Predicate(
            "from below",
            "Is the {ref} seen from below?",
            "it is seen from below",
            truth=_elevation(-3, -11),
            **ASKS_HEIGHT,
        ),
        Predicate(
            "level",
            "Is the camera at the same height as the {ref}?",
            "the camera is at its height",
            truth=_level,
            **ASKS_HEIGHT,
        ),
        Predicate(
            "steeply",
            "Does the camera look down steeply on the {ref}?",
            "the camera looks down on it steeply",
            truth=_elevation(28, 45),
            **ASKS_HEIGHT,
        ),
        Predicate(
            "upright", "Does the {ref} stand upright in the picture?", "it stands upright", truth=_upright, **ASKS_TILT
        ),
        Predicate(
            "leans left",
            "Is the {ref} tilted to the viewer's left?",
            "it is tilted to the viewer's left",
            truth=_leans(1),
            **ASKS_TILT,
        ),
        Predicate(
            "leans right",
            "Is the {ref} tilted to the viewer's right?",
            "it is tilted to the viewer's right",
            truth=_leans(-1),
            **ASKS_TILT,
        ),
    )
}


def correction(predicate: Predicate, pose: Pose) -> str:
    """Say what is true where the predicate is not: "it faces the viewer's left"."""
    words = describe_viewpoint(pose)
    if predicate.aspect == HEIGHT:
        return f"it is seen {words.height}"
    if predicate.aspect == TILT:
        return f"it is {words.tilt}" if words.tilt else "it stands upright"
    return f"it {words.facing}" if not predicate.needs_up or words.side is None else f"it is seen from its {words.side}"
