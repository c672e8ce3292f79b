"""Pictures that a camera might as well have taken, with their poses exact: rolled, nearer, shifted, in other light.

A roll of the camera by phi turns the picture by phi and adds phi to theta; nearness multiplies the viewport; both and a shift
move the principal point as they move every other point. Nothing else of a pose changes (docs/POSE.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageEnhance

from llava_pose.data.images import PADDING_COLOUR
from llava_pose.data.records import Pose

_TURN = math.radians(15)
_LOG_SCALE = 0.15
_SHIFT = 0.06
_COLOUR = 0.35


@dataclass(frozen=True)
class Augmentation:
    """One change of a picture.

    Attributes:
        turn: radians, counter-clockwise.
        scale: of everything, about the picture's centre.
        shift: (right, down) as shares of width and height, after turn and scale.
        brightness, contrast, saturation: factors.
    """

    turn: float = 0.0
    scale: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0

    @classmethod
    def of_item(cls, item: int, versions: int, *, geometric: bool = True) -> Augmentation:
        """Return the change of an item of a dataset, the same whenever it is drawn; none where there are 0 versions of each."""
        return cls.draw(np.random.default_rng(item), geometric=geometric) if versions else UNCHANGED

    @classmethod
    def draw(cls, rng: np.random.Generator, *, geometric: bool = True) -> Augmentation:
        """One by lot.

        Args:
            geometric: False: of the light alone, for samples whose words say where something is or how it leans.
        """
        turn, log_scale, right, down, *colours = rng.uniform(-1, 1, 7)
        brightness, contrast, saturation = (1 + _COLOUR * value for value in colours)
        if not geometric:
            return cls(brightness=brightness, contrast=contrast, saturation=saturation)
        shift = (_SHIFT * right, _SHIFT * down)
        return cls(_TURN * turn, math.exp(_LOG_SCALE * log_scale), shift, brightness, contrast, saturation)

    def picture(self, image: Image.Image) -> Image.Image:
        """The picture after it, of the same size; what it does not show is filled with the colour of padding."""
        for enhancer, factor in (
            (ImageEnhance.Brightness, self.brightness),
            (ImageEnhance.Contrast, self.contrast),
            (ImageEnhance.Color, self.saturation),
        ):
            if factor != 1.0:
                image = enhancer(image).enhance(factor)
        (a, b, right), (c, d, down) = self._matrix(image.width, image.height)
        size = a * d - b * c
        # Pillow asks where each new pixel comes from: the inverse
        inverse = (
            *(d / size, -b / size, (b * down - d * right) / size),
            *(-c / size, a / size, (c * right - a * down) / size),
        )
        if inverse == (1.0, 0.0, 0.0, 0.0, 1.0, 0.0):
            return image
        return image.transform(
            image.size, Image.Transform.AFFINE, inverse, Image.Resampling.BICUBIC, fillcolor=PADDING_COLOUR
        )

    def pose(self, pose: Pose, width: float, height: float) -> Pose:
        """The pose in the picture after it, of (width, height) pixels. Its viewport is that of the picture before times
        ``scale``. Unknown places stay unknown.
        """
        if pose.px is not None and pose.py is not None:
            rows = self._matrix(width, height)
            px, py = (a * pose.px + b * pose.py + c for a, b, c in rows)
            pose = replace(pose, px=px, py=py)
        if not self.turn:
            return pose
        return replace(pose, theta=math.remainder(pose.theta + self.turn, 2 * math.pi))

    def _matrix(self, width: float, height: float) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """Rows of the map from places before to places after, pixels, y down."""
        cosine, sine = self.scale * math.cos(self.turn), self.scale * math.sin(self.turn)
        x, y = width / 2, height / 2
        return (
            (cosine, sine, x - cosine * x - sine * y + self.shift[0] * width),
            (-sine, cosine, y + sine * x - cosine * y + self.shift[1] * height),
        )


UNCHANGED = Augmentation()
