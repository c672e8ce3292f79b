"""A checkpoint in three lines of Python: paths or pictures in, poses or a spoken answer out.

pipe = llava_pose.pipeline("checkpoint")
answer = pipe("chair.jpg", category="chair")       # a PoseAnswer; a list of them for a list of pictures
answer.degrees(), answer.matrix("opencv"), answer.draw(picture), answer.to_dict()
pipe("chair.jpg", text="What is this and what is its pose?")   # a ChatAnswer: text and poses
pipe(["a.jpg", "b.jpg"], text="How is the chair turned in picture 2?")   # one answer, about both pictures
"""

from __future__ import annotations

import os
import reprlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
from PIL import Image

from llava_pose.data.conversation import IMAGE_TOKEN, POSE_TOKEN, object_words
from llava_pose.data.images import (
    BOX_MARGIN,
    MAX_SQUARE,
    assumed_viewport,
    cut_to_box,
    open_picture,
    shrink,
    to_rgb,
)
from llava_pose.data.records import Pose
from llava_pose.errors import InputError
from llava_pose.inference.answers import ChatAnswer, PoseAnswer
from llava_pose.inference.photos import AUTO
from llava_pose.inference.predictor import PosePredictor
from llava_pose.pose import categories
from llava_pose.utils.files import is_plain_name, shortened

Box = Sequence[float]


@dataclass(frozen=True)
class Asked:
    """One object to ask about, with no more of its picture than a model sees: many of them may wait at a time.

    Attributes:
        seen: the picture, or the square round a box of it, with no side of more than ``MAX_SQUARE`` pixels.
        categories: one to ask about, or several of which the checkpoint chooses.
        size: width and height of the whole picture, pixels.
        viewport: pixels of the whole picture per unit focal length.
        scale, left, top: a pixel of the whole picture = one of what is seen / scale + (left, top).
    """

    seen: Image.Image
    categories: tuple[str, ...]
    size: tuple[int, int]
    viewport: float
    scale: float
    left: int
    top: int


class PosePipeline:
    """Answers about pictures. See the module."""

    def __init__(self, predictor: PosePredictor, *, margin: float = BOX_MARGIN, allow_custom_categories: bool = False):
        self.predictor = predictor
        self._margin = margin
        self._allow_custom = allow_custom_categories

    @overload
    def __call__(self, images: Any, *, text: str, viewport: float | Sequence[float] | None = None) -> ChatAnswer: ...

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
        viewport: float | Sequence[float] | None = None,
    ) -> PoseAnswer | ChatAnswer | list[PoseAnswer]:
        """Answer about one picture, or about each of a list; to a question in words, once about all of them.

        Args:
            images: a path or a PIL picture, or a list of them.
            text: a question about the pictures, which is answered in words, with the pose of each object that they name. The
                pictures are shown before it in their order, or each where an `<image>` stands in it.
            category: what the pictures show; several names for the checkpoint to choose from; or "auto", all that it knows.
            box: left, top, right, bottom of the object in pixels, or a list of one (or None) a picture; without it, the object
                fills the picture.
            flip: ask about the mirror image too, and give the mean of both.
            viewport: pixels per unit focal length of the camera, for a question in words; one for each picture, or for all.

        Raises:
            InputError: an argument is none of these, a picture cannot be read, or a category is not known.
        """
        is_one = isinstance(images, str | os.PathLike | Image.Image)
        pictures = _listed(images, is_one)
        if text is not None:
            question = [{"role": "user", "content": _text(text)}]
            return self.predictor.chat([_picture(image) for image in pictures], question, viewport=viewport)
        names = self.known(category)
        boxes = [box] if is_one else [None] * len(pictures) if box is None else list(box)
        if len(boxes) != len(pictures):
            raise InputError(
                f"there are {len(pictures)} pictures and {len(boxes)} boxes; give one box, or None, a picture"
            )
        asked = [self.asked(_picture(image), names, box) for image, box in zip(pictures, boxes, strict=True)]
        answers = self.ask(asked, flip=flip)
        return answers[0] if is_one else answers

    def known(self, category: str | Sequence[str]) -> tuple[str, ...]:
        """Return the canonical names of categories, or those that the checkpoint was taught.

        Raises:
            InputError: a name is neither in the taxonomy nor the checkpoint's, or cannot name a category, or the checkpoint
                does not say what it was taught.
        """
        names = [category] if isinstance(category, str) else list(category)
        if names == [AUTO]:
            names = self.predictor.categories
            if not names:
                raise InputError(
                    "the checkpoint does not say which categories it knows; name one, or several to choose from"
                )
        if not names or not all(isinstance(name, str) for name in names):
            raise InputError(f"a category is a name, several are a list of names, not {reprlib.repr(category)}")
        for name in names:
            if not is_plain_name(name) or IMAGE_TOKEN in name or POSE_TOKEN in name:
                raise InputError(f"{shortened(name)} cannot name a category; use plain words")
        return tuple(dict.fromkeys(self._category(name).name for name in names))

    def _category(self, name: str) -> categories.Category:
        return categories.get(name, allow_custom=self._allow_custom or name in self.predictor.categories)

    def asked(self, picture: Image.Image, names: tuple[str, ...], box: Any = None) -> Asked:
        """Return what is asked about an object of a picture.

        Args:
            box: left, top, right, bottom of the object in pixels; None where it fills the picture.

        Raises:
            InputError: as :func:`require_box`.
        """
        viewport = assumed_viewport(picture)
        if box is None:
            seen, left, top = shrink(to_rgb(picture), MAX_SQUARE), 0, 0
            scale = max(seen.size) / max(picture.size)
        else:
            seen, scale, left, top = cut_to_box(to_rgb(picture), require_box(box, picture.size), self._margin)
        return Asked(seen, names, picture.size, viewport, scale, left, top)

    def ask(self, asked: Sequence[Asked], *, flip: bool = False) -> list[PoseAnswer]:
        """Return a pose for each object, in pixels of its whole picture, in one forward pass for each choice of categories."""
        groups: dict[tuple[str, ...], list[int]] = {}
        for row, one in enumerate(asked):
            groups.setdefault(one.categories if len(one.categories) > 1 else (), []).append(row)
        answers = {}
        for choice, rows in groups.items():
            pictures = [asked[row].seen for row in rows]
            viewports = [asked[row].viewport * asked[row].scale for row in rows]
            if choice:
                given = self._choose(pictures, choice, viewports, flip)
            else:
                given = self._ask(pictures, [asked[row].categories[0] for row in rows], viewports, flip)
            for row, answer in zip(rows, given, strict=True):
                answers[row] = replace(answer, pose=_in_whole(answer.pose, asked[row]), viewport=asked[row].viewport)
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


def _in_whole(pose: Pose, asked: Asked) -> Pose:
    """Return a pose with its place in pixels of the whole picture."""
    if pose.px is None or pose.py is None:
        return pose
    return replace(pose, px=pose.px / asked.scale + asked.left, py=pose.py / asked.scale + asked.top)


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
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"a box is four numbers, left, top, right and bottom in pixels, not {reprlib.repr(box)}"
        ) from error
    if not np.isfinite([left, top, right, bottom]).all():
        raise InputError(f"a box is four finite numbers, not {reprlib.repr(box)}")
    inner = max(0.0, left), max(0.0, top), min(float(size[0]), right), min(float(size[1]), bottom)
    if inner[2] - inner[0] < 1 or inner[3] - inner[1] < 1:
        raise InputError(
            f"the box {left:g} {top:g} {right:g} {bottom:g} (left, top, right, bottom) has no pixel of its picture, which "
            f"is {size[0]}×{size[1]}"
        )
    return inner


def _listed(images: Any, is_one: bool) -> Collection[Any]:
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
