"""A checkpoint in three lines of Python: paths or pictures in, poses or a spoken answer out.

pipe = llava_pose.pipeline("checkpoint")
answer = pipe("chair.jpg", category="chair")       # a PoseAnswer; a list of them for a list of pictures
answer.degrees(), answer.matrix("opencv"), answer.draw(picture), answer.to_dict()
pipe("chair.jpg", text="What is this and what is its pose?")   # a ChatAnswer: text and poses
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
from PIL import Image

from llava_pose.data.conversation import object_words
from llava_pose.data.images import BOX_MARGIN, PADDING_COLOUR, assumed_viewport, open_picture, to_rgb
from llava_pose.data.records import Pose
from llava_pose.errors import InputError
from llava_pose.inference.photos import AUTO
from llava_pose.inference.predictor import ChatAnswer, PoseAnswer, PosePredictor
from llava_pose.pose import categories

Box = Sequence[float]


@dataclass(frozen=True)
class Asked:
    """One object to ask about.

    Attributes:
        picture: that shows it, whole.
        categories: one to ask about, or several of which the checkpoint chooses.
        box: left, top, right, bottom in pixels of the picture; None where the object fills it.
    """

    picture: Image.Image
    categories: tuple[str, ...]
    box: tuple[float, float, float, float] | None = None


class PosePipeline:
    """Answers about pictures. See the module."""

    def __init__(self, predictor: PosePredictor, *, margin: float = BOX_MARGIN, allow_custom_categories: bool = False):
        self.predictor = predictor
        self._margin = margin
        self._allow_custom = allow_custom_categories

    @overload
    def __call__(self, images: Any, *, text: str, viewport: float | None = None) -> Any: ...

    @overload
    def __call__(
        self,
        images: Any,
        *,
        category: str | Sequence[str] = AUTO,
        box: Box | Sequence[Box | None] | None = None,
        flip: bool = False,
    ) -> Any: ...

    def __call__(
        self,
        images: Any,
        *,
        text: str | None = None,
        category: str | Sequence[str] = AUTO,
        box: Any = None,
        flip: bool = False,
        viewport: float | None = None,
    ) -> PoseAnswer | ChatAnswer | list[PoseAnswer] | list[ChatAnswer]:
        """Answer about one picture, or about each of a list.

        Args:
            images: a path or a PIL picture, or a list of them.
            text: a question, which is answered in words, with the pose of each object that they name.
            category: what the pictures show; several names for the checkpoint to choose from; or "auto", all that it knows.
            box: left, top, right, bottom of the object in pixels, or a list of one (or None) a picture; without it, the object
                fills the picture.
            flip: ask about the mirror image too, and give the mean of both.
            viewport: pixels per unit focal length of the camera, for a question in words.

        Raises:
            InputError: an argument is none of these, a picture cannot be read, or a category is not known.
        """
        is_one = isinstance(images, str | os.PathLike | Image.Image)
        pictures = [_picture(image) for image in _listed(images, is_one)]
        if text is not None:
            said = [
                self.predictor.chat(picture, [{"role": "user", "content": _text(text)}], viewport=viewport)
                for picture in pictures
            ]
            return said[0] if is_one else said
        names = self.known(category)
        boxes = [box] if is_one else [None] * len(pictures) if box is None else list(box)
        if len(boxes) != len(pictures):
            raise InputError(
                f"there are {len(pictures)} pictures and {len(boxes)} boxes; give one box, or None, a picture"
            )
        asked = [
            Asked(picture, names, None if box is None else require_box(box, picture.size))
            for picture, box in zip(pictures, boxes, strict=True)
        ]
        answers = self.ask(asked, flip=flip)
        return answers[0] if is_one else answers

    def known(self, category: str | Sequence[str]) -> tuple[str, ...]:
        """Return the canonical names of categories, or those that the checkpoint was taught.

        Raises:
            InputError: a name is not in the taxonomy, or the checkpoint does not say what it was taught.
        """
        names = [category] if isinstance(category, str) else list(category)
        if names == [AUTO]:
            names = self.predictor.categories
            if not names:
                raise InputError(
                    "the checkpoint does not say which categories it knows; name one, or several to choose from"
                )
        if not names or not all(isinstance(name, str) for name in names):
            raise InputError(f"a category is a name, several are a list of names, not {category!r}")
        return tuple(dict.fromkeys(self._category(name).name for name in names))

    def _category(self, name: str) -> categories.Category:
        return categories.get(name, allow_custom=self._allow_custom)

    def ask(self, asked: Sequence[Asked], *, flip: bool = False) -> list[PoseAnswer]:
        """Return a pose for each object, in pixels of its whole picture, in one forward pass for each choice of categories."""
        groups: dict[tuple[str, ...], list[int]] = {}
        for row, one in enumerate(asked):
            groups.setdefault(one.categories if len(one.categories) > 1 else (), []).append(row)
        answers = {}
        for choice, rows in groups.items():
            crops = [_crop(asked[row], self._margin) for row in rows]
            pictures, viewports = [crop for crop, _, _ in crops], [assumed_viewport(asked[row].picture) for row in rows]
            if choice:
                given = self._choose(pictures, choice, viewports, flip)
            else:
                given = self._ask(pictures, [asked[row].categories[0] for row in rows], viewports, flip)
            for row, (_, left, top), answer in zip(rows, crops, given, strict=True):
                answers[row] = replace(answer, pose=_moved(answer.pose, left, top))
        return [answers[row] for row in range(len(asked))]

    def _ask(
        self, pictures: Sequence[Image.Image], names: Sequence[str], viewports: Sequence[float], flip: bool
    ) -> list[PoseAnswer]:
        known = [self._category(name) for name in names]
        words = [object_words(category)["object"] for category in known]
        flips = [category.mirror_axis == "x" for category in known] if flip else None
        answers = self.predictor.predict(pictures, words, viewports=viewports, flip=flips)
        return [replace(answer, category=name) for answer, name in zip(answers, names, strict=True)]

    def _choose(
        self, pictures: Sequence[Image.Image], names: Sequence[str], viewports: Sequence[float], flip: bool
    ) -> list[PoseAnswer]:
        known = [self._category(name) for name in names]
        mirrored = {category.name for category in known if category.mirror_axis == "x"} if flip else None
        candidates = {category.name: category.indefinite for category in known}
        return self.predictor.classify(pictures, candidates, viewports=viewports, flip=mirrored)


def _moved(pose: Pose, left: float, top: float) -> Pose:
    if pose.px is None or pose.py is None:
        return pose
    return replace(pose, px=pose.px + left, py=pose.py + top)


def pipeline(
    checkpoint: str | os.PathLike[str], *, base: str | None = None, device: str | None = None, **options: Any
) -> PosePipeline:
    """Return a checkpoint, ready to be asked.

    Args:
        checkpoint: a folder or a hub id.
        base: the base of an adapter, if it has moved.
        device: by default a GPU if there is one.
        options: of :class:`PosePipeline`.

    Raises:
        InputError: as :meth:`PosePredictor.from_checkpoint`.
    """
    return PosePipeline(PosePredictor.from_checkpoint(checkpoint, base=base, device=device), **options)


def require_box(box: Any, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return a box as the part of it that is in its picture.

    Raises:
        InputError: it is not four finite numbers, or nothing of it is in the picture.
    """
    try:
        left, top, right, bottom = (float(number) for number in box)
    except (TypeError, ValueError) as error:
        raise InputError(f"a box is four numbers, left, top, right and bottom in pixels, not {box!r}") from error
    if not np.isfinite([left, top, right, bottom]).all():
        raise InputError(f"a box is four finite numbers, not {box!r}")
    inner = max(0.0, left), max(0.0, top), min(float(size[0]), right), min(float(size[1]), bottom)
    if inner[2] - inner[0] < 1 or inner[3] - inner[1] < 1:
        raise InputError(
            f"the box {left:g} {top:g} {right:g} {bottom:g} (left, top, right, bottom) has no pixel of its picture, which "
            f"is {size[0]}×{size[1]}"
        )
    return inner


def _crop(asked: Asked, margin: float) -> tuple[Image.Image, int, int]:
    """Return the square round a box, as prepare --crop box cuts it out, and where its corner is in the picture."""
    if asked.box is None:
        return asked.picture, 0, 0
    left, top, right, bottom = asked.box
    side = max(right - left, bottom - top) * (1 + 2 * margin)
    corner = round((left + right - side) / 2), round((top + bottom - side) / 2)
    square = Image.new("RGB", (max(2, round(side)),) * 2, PADDING_COLOUR)
    square.paste(asked.picture, (-corner[0], -corner[1]))
    return square, *corner


def _listed(images: Any, is_one: bool) -> Iterable[Any]:
    if is_one:
        return [images]
    if not isinstance(images, Collection) or isinstance(images, bytes | dict | set):
        raise InputError(f"give a path or a picture, or a list of them, not {type(images).__name__}")
    if not len(images):
        raise InputError("the list of pictures is empty")
    return images


def _picture(image: Any) -> Image.Image:
    if isinstance(image, Image.Image):
        return to_rgb(image)
    if not isinstance(image, str | os.PathLike):
        raise InputError(f"a picture is a path or a PIL picture, not {type(image).__name__}")
    if Path(image).is_dir():
        raise InputError(f"{os.fspath(image)}: is a folder; give its pictures")
    return open_picture(image)


def _text(text: Any) -> str:
    if not isinstance(text, str) or not text.strip():
        raise InputError("the question is empty, or no text")
    return text
