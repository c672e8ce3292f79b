"""Facts with several possible answers, as multiple choice asks for them: the answer, and what is clearly wrong.

What lies between, the neighbours of the true answer, is never offered, and where the truth is near an edge nothing is asked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from data_prep.scene.facts import (
    ASKS_FRONT,
    ASKS_HEIGHT,
    ASKS_SIDE,
    ASKS_TILT,
    POLAR,
    PREDICATES,
    angle_between,
    angles_in_degrees,
    front_of,
)
from llava_pose.data.records import Pose
from llava_pose.data.viewpoint_words import PICTURE_DIRECTIONS, SIDES, describe_viewpoint
from llava_pose.pose.categories import Category

HEIGHTS = (
    "from straight above",
    "from high above",
    "slightly from above",
    "at its own height",
    "slightly from below",
    "from far below",
    "from straight below",
)
_HEIGHT_EDGES = (75, 40, 10, -10, -40, -75)  # degrees, between the heights
TILTS = ("upright", "tilted to the viewer's left", "tilted to the viewer's right", "upside down")
_TO_VIEWER = {"faces the camera": (0.0, 0.0, 1.0), "faces away from the camera": (0.0, 0.0, -1.0)}
HEADINGS: Mapping[str, tuple[float, float, float]] = {
    **_TO_VIEWER,
    **{
        words: (math.cos(sector * math.pi / 4), math.sin(sector * math.pi / 4), 0.0)
        for sector, words in enumerate(PICTURE_DIRECTIONS)
    },
}


@dataclass(frozen=True)
class Topic:
    """A question with one answer of a list.

    Attributes:
        truth: the answer, or None where it is too close to call.
        wrong: the answers that are clearly wrong; those between are not offered.
    """

    name: str
    question: str
    aspect: str
    needs_front: bool
    needs_up: bool
    truth: Callable[[Pose], str | None]
    wrong: Callable[[Pose], tuple[str, ...]]

    def can_be_asked(self, category: Category) -> bool:
        return (category.has_front or not self.needs_front) and (category.has_up or not self.needs_up)


def _side(pose: Pose) -> str | None:
    azimuth, elevation, _ = angles_in_degrees(pose)
    off_centre = abs((azimuth + 22.5) % 45 - 22.5)
    return describe_viewpoint(pose).side if off_centre <= 15 and abs(elevation) <= POLAR else None


def _wrong_sides(pose: Pose) -> tuple[str, ...]:
    azimuth = angles_in_degrees(pose)[0]
    return tuple(side for i, side in enumerate(SIDES) if abs((azimuth - 45 * i + 180) % 360 - 180) > 65)


def _heading(pose: Pose) -> str | None:
    """Return the words of the pose where they are nearer by far than any others."""
    front = front_of(pose)
    angles = sorted((angle_between(front, direction), words) for words, direction in HEADINGS.items())
    (nearest, words), (second, _) = angles[:2]
    return words if second - nearest >= 12 and words == describe_viewpoint(pose).facing else None


def _wrong_headings(pose: Pose) -> tuple[str, ...]:
    front = front_of(pose)
    return tuple(words for words, direction in HEADINGS.items() if angle_between(front, direction) > 65)


def _height(pose: Pose) -> str | None:
    elevation = angles_in_degrees(pose)[1]
    return None if min(abs(elevation - edge) for edge in _HEIGHT_EDGES) < 4 else describe_viewpoint(pose).height


def _wrong_heights(pose: Pose) -> tuple[str, ...]:
    step = HEIGHTS.index(describe_viewpoint(pose).height)
    return tuple(words for i, words in enumerate(HEIGHTS) if abs(i - step) > 1)


def _lean(pose: Pose) -> str | None:
    truths = {name: PREDICATES[name].truth(pose) for name in ("upright", "leans left", "leans right")}
    if truths["upright"]:
        return TILTS[0]
    if truths["leans left"] or truths["leans right"]:
        return TILTS[1] if truths["leans left"] else TILTS[2]
    _, elevation, theta = angles_in_degrees(pose)
    return TILTS[3] if abs(theta) > 145 and abs(elevation) <= POLAR else None


def _wrong_leans(pose: Pose) -> tuple[str, ...]:
    truth = _lean(pose)
    return tuple(words for words in TILTS if words != truth)


TOPICS: Mapping[str, Topic] = {
    topic.name: topic
    for topic in (
        Topic("side", "From which of its own sides is the {ref} seen?", truth=_side, wrong=_wrong_sides, **ASKS_SIDE),
        Topic("direction", "Complete the sentence: the {ref} …", truth=_heading, wrong=_wrong_headings, **ASKS_FRONT),
        Topic("height", "From what height is the {ref} seen?", truth=_height, wrong=_wrong_heights, **ASKS_HEIGHT),
        Topic("tilt", "How does the {ref} stand in the picture?", truth=_lean, wrong=_wrong_leans, **ASKS_TILT),
    )
}
