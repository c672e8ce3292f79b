"""A pose in words: from which side of the object it is seen, from how high, where the front points, how it is tilted.

Two sides must not be confused, so every phrase says whose side it means:

- The object's own side. In the object frame up is +z and the front faces -y, so the own left is ``up x front`` =
  (0, 0, 1) x (0, -1, 0) = **+x**: "its front-left" means that the camera sees the front and the own left side. The
  camera stands at ``d (cos e sin a, -cos e cos a, sin e)``: on the own left for an azimuth between 0 and pi.
- The viewer's side: the left of the picture. "faces the viewer's left", "tilted to the viewer's left".

A horizontal flip swaps left and right in both, which is what ``llava_pose.data.conversation.mirror_sides`` does to a text.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from llava_pose.data.records import Pose
from llava_pose.pose.geometry import canonicalize, rotation_matrix

# Azimuth sectors of 45 degrees, centred on 0, 45, …
SIDES = ("front", "front-left", "left", "rear-left", "rear", "rear-right", "right", "front-right")

# Sectors of 45 degrees in the picture, counter-clockwise from the right.
PICTURE_DIRECTIONS = (
    "faces the viewer's right",
    "points up and to the viewer's right",
    "points up in the picture",
    "points up and to the viewer's left",
    "faces the viewer's left",
    "points down and to the viewer's left",
    "points down in the picture",
    "points down and to the viewer's right",
)

_LEVEL = math.radians(10)  # a lower camera elevation counts as level with the object
_HIGH = math.radians(40)
_POLAR = math.radians(75)  # nearer to the pole, no side of the object is seen, and tilt means nothing
_TILTED = math.radians(10)
_UPSIDE_DOWN = math.radians(135)
_DECIMALS = 9  # of what is compared with an edge, so that a pose and its mirror image fall on the same side of it
_FRONTAL = math.radians(35)  # the front points at the camera, or away from it, within this angle


class Viewpoint(NamedTuple):
    """A pose in words.

    side: the object's own side that the camera sees, one of ``SIDES``; None from straight above or below.
    height: where the camera stands: "at its own height", "slightly from above", "from high above", "from straight
        above", and the same below.
    facing: where the front points: "faces the camera", "faces the viewer's left", "points down in the picture", …
    tilt: "tilted to the viewer's left", "upside down", …; "" if it stands upright or is seen along its vertical.
    """

    side: str | None
    height: str
    facing: str
    tilt: str

    @property
    def seen(self) -> str:
        """The words "seen from its front-left, slightly from above"."""
        if self.side is None:
            return f"seen {self.height}"
        return f"seen from its {self.side}, {self.height}"


def describe_viewpoint(pose: Pose) -> Viewpoint:
    """Return the words for a pose (angles in radians, any range); see the module's text for whose left is meant.

    Raises:
        ValueError: an angle is not finite.
    """
    if not all(math.isfinite(angle) for angle in pose.angles):
        raise ValueError(f"a pose without finite angles has no words: {pose}")
    azimuth, elevation, theta = (float(angle) for angle in canonicalize(*pose.angles))
    polar = abs(elevation) > _POLAR
    side = None if polar else SIDES[_sector(azimuth)]
    return Viewpoint(side, _height(elevation), _facing(pose), "" if polar else _tilt(theta))


def _height(elevation: float) -> str:
    if abs(elevation) < _LEVEL:
        return "at its own height"
    direction = "above" if elevation > 0 else "below"
    if abs(elevation) > _POLAR:
        return f"from straight {direction}"
    if abs(elevation) < _HIGH:
        return f"slightly from {direction}"
    return f"from {'high above' if elevation > 0 else 'far below'}"


def _facing(pose: Pose) -> str:
    # the object's front (0, -1, 0) in the camera frame: x to the viewer's right, y up, z towards the viewer
    right, up, towards = (float(-x) for x in rotation_matrix(*pose.angles)[:, 1])
    if round(abs(towards) - math.cos(_FRONTAL), _DECIMALS) > 0:
        return "faces the camera" if towards > 0 else "faces away from the camera"
    return PICTURE_DIRECTIONS[_sector(math.atan2(up, right))]


def _sector(angle: float) -> int:
    """Return which eighth of a turn an angle is in, the first centred on 0; on an edge the even one, as in the mirror."""
    return round(round(angle / (math.pi / 4), _DECIMALS)) % 8


def _tilt(theta: float) -> str:
    if round(abs(theta) - _TILTED, _DECIMALS) < 0:
        return ""
    if round(abs(theta) - _UPSIDE_DOWN, _DECIMALS) > 0:
        return "upside down"
    return f"tilted to the viewer's {'left' if theta > 0 else 'right'}"  # theta > 0 turns counter-clockwise
