"""The answers of a checkpoint: the pose of an object, and a turn of a chat."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from llava_pose.data.conversation import interleave_poses
from llava_pose.data.records import Pose
from llava_pose.errors import InputError
from llava_pose.inference.drawing import draw_axes
from llava_pose.pose.conventions import CONVENTIONS, camera_of_pose
from llava_pose.pose.quaternions import matrix_to_quaternion


class Mode(NamedTuple):
    """A rotation that the head holds likely: angles in radians, and its probability among all modes."""

    azimuth: float
    elevation: float
    theta: float
    probability: float


@dataclass(frozen=True)
class PoseAnswer:
    """The pose of one object, in pixels of the picture that was given.

    Attributes:
        confidence: the head's probability that the rotation is within its threshold (30 degrees by default).
        category: the category that was asked about or found.
        probabilities: over the candidates, where the category was found.
        viewport: pixels per unit focal length of the picture.
        modes: the rotations that the head holds likely, the pose's first; of probability 0 where it has fewer.
        prediction_set: azimuth, elevation and theta in radians of the rotations, the pose's first, one of which is to be the
            true one in the share of answers that ``llava-pose calibrate`` was asked for; None of a checkpoint that was not
            calibrated.
    """

    pose: Pose
    confidence: float
    category: str
    probabilities: dict[str, float] | None = None
    viewport: float | None = None
    modes: Sequence[Mode] = ()
    prediction_set: Sequence[tuple[float, float, float]] | None = None

    def degrees(self) -> tuple[float, float, float]:
        """Azimuth in [0, 360), elevation and in-plane rotation."""
        return self.pose.degrees()

    def matrix(self, convention: str = "opencv") -> np.ndarray:
        """(4, 4): coordinates of the object to those of a camera that looks straight at it, in a convention of
        ``llava_pose.pose.conventions``. Without a distance the object is at 1.

        Raises:
            InputError: there is no such convention.
        """
        if convention not in CONVENTIONS:
            raise InputError(f"there is no convention {convention!r}; choose one of {', '.join(CONVENTIONS)}")
        matrix = np.eye(4)
        known = self.pose.distance is not None and math.isfinite(self.pose.distance)
        distance = float(self.pose.distance) if known else 1.0  # type: ignore[arg-type]
        azimuth, elevation, theta = self.pose.angles
        seen = camera_of_pose(
            azimuth=azimuth,
            elevation=elevation,
            theta=theta,
            distance=distance,
            px=0.0,
            py=0.0,
            intrinsics=(1.0, 1.0, 0.0, 0.0),
        )
        matrix[:3, :3], matrix[:3, 3] = CONVENTIONS[convention].from_opencv(seen.rotation, seen.translation)
        return matrix

    def quaternion(self, convention: str = "opencv") -> list[float]:
        """The rotation of :meth:`matrix`, in the order that the convention writes (docs/POSE.md has them)."""
        rotation = self.matrix(convention)[:3, :3]
        return [float(part) for part in matrix_to_quaternion(rotation, CONVENTIONS[convention].quaternion)]

    def draw(self, image: Image.Image) -> Image.Image:
        """The picture that was given, with the object's axes on it: front green, up blue, left red."""
        return draw_axes(image, self.pose, self.viewport)

    def to_dict(self, convention: str = "opencv") -> dict[str, Any]:
        """All of it in plain numbers: angles in degrees and radians, matrix, quaternion, distance, place and confidence."""
        azimuth, elevation, theta = self.degrees()
        return {
            "category": self.category,
            "confidence": self.confidence,
            "pose": self.pose.to_dict(),
            "prediction_set": self.prediction_set,
            "degrees": {"azimuth": azimuth, "elevation": elevation, "theta": theta},
            "convention": convention,
            "matrix": [[float(number) for number in row] for row in self.matrix(convention)],
            "quaternion": self.quaternion(convention),
            "viewport": self.viewport,
        }


@dataclass(frozen=True)
class ChatAnswer:
    """One answer of a chat.

    Attributes:
        text: with a `<pose6D>` for each of ``poses``.
        poses: in pixels of their pictures, in the order of their tokens.
        confidences: of the poses.
        prediction_sets: of the poses (:attr:`PoseAnswer.prediction_set`).
        complete: False if the answer was cut off, at the limit of its tokens or of its time.
        took_too_long: whether it was time that cut it off.
        pictures: for each pose, the place of its picture in the list that the chat is about, as far as the words tell
            (:func:`llava_pose.data.conversation.pictures_meant`). None is unknown; a pose of one of several pictures then has
            no distance and no place.
    """

    text: str
    poses: list[Pose] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)
    prediction_sets: list[Sequence[tuple[float, float, float]] | None] = field(default_factory=list)
    complete: bool = True
    took_too_long: bool = False
    pictures: list[int | None] = field(default_factory=list)

    def objects(self, names: Sequence[str] | None = None, viewport: float | None = None) -> list[PoseAnswer]:
        """Return the poses one by one.

        Args:
            names: a category for each; by default none.
            viewport: pixels of the picture per unit focal length.
        """
        count = len(self.poses)
        sets, names = self.prediction_sets or [None] * count, names or [""] * count
        return [
            PoseAnswer(pose, confidence, name, viewport=viewport, prediction_set=held)
            for pose, confidence, name, held in zip(self.poses, self.confidences, names, sets, strict=True)
        ]

    @property
    def readable(self) -> str:
        """The text with angles in degrees in the place of `<pose6D>`."""
        return interleave_poses(self.text, self.poses)
