"""A visitor of the demo: a picture, the box round one of its objects, and the chats about it, one with each checkpoint."""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from llava_pose.data.records import Pose
from llava_pose.errors import InputError
from llava_pose.inference.drawing import draw_box
from llava_pose.serve.decoding import decode_apart
from llava_pose.serve.demo_gate import NOT_HERE, Uploads
from llava_pose.serve.session import ChatSession
from llava_pose.utils.files import open_regular, printable

if TYPE_CHECKING:
    from llava_pose.inference.answers import PoseAnswer

SHOWN_SIDE = 720  # pixels: smaller pictures are enlarged for the drawing
NO_PICTURE = "Give me a picture first: drop one into the field “Picture”, or click there."
BOX_IS = "the box is four numbers, left, top, width and height in percent of the picture, such as 10 20 50 40"
Box = tuple[float, float, float, float]
NewChats = Callable[[Image.Image, Sequence[float] | None], tuple[ChatSession, ...]]


class Desk:
    """The demo's memory of one visitor, several of whose requests may be at work at once.

    Attributes:
        name: of the picture, as the visitor calls it.
        chats: about the picture, one with each checkpoint; empty as long as there is none.
    """

    def __init__(self) -> None:
        self.name = ""
        self.chats: tuple[ChatSession, ...] = ()
        self._file: str | None = None
        self._picture: Image.Image | None = None
        self._box: Box | None = None  # left, top, right, bottom as shares of the picture
        self._corner: tuple[float, float] | None = None  # of a box whose other corner is still to come
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: Any) -> Desk:
        """Gradio gives each visitor a copy of the first."""
        return Desk()

    def look(
        self, upload: Mapping[str, Any], box: str, uploads: Uploads, new_chats: NewChats
    ) -> tuple[ChatSession, ...]:
        """Return the chats about a picture and a box: those that there are, or new ones.

        Args:
            upload: the picture as Gradio names it.
            box: as a person writes it; nothing for the whole picture.
            new_chats: (picture, box in pixels) -> the chats.

        Raises:
            InputError: the picture is not here or cannot be read, or the box is none.
        """
        shares = parse_box(box)
        with self._lock:
            picture = self._picture
            if picture is None or upload.get("path") != self._file:
                self.clear()
                self.name = printable(" ".join((upload.get("orig_name") or "").split())) or "the picture"
                self._picture = picture = _open_picture(str(upload.get("path")), self.name, uploads)
                self._file = upload.get("path")
            if not self.chats or shares != self._box:
                self.chats = new_chats(
                    picture, None if shares is None else np.multiply(shares, picture.size * 2).tolist()
                )
                self._box, self._corner = shares, None
            return self.chats

    def clear(self) -> None:
        """Forget the picture and the chats."""
        self.chats, self._file, self._picture, self._box, self._corner = (), None, None, None, None

    def mark(self, x: float, y: float) -> str | None:
        """Take the place of a click on the drawn picture: one corner of a box, or with an earlier one the box itself.

        Returns:
            The box as :func:`parse_box` reads it; None for a first corner, or one that is too near to it.
        """
        chats = self.chats  # none, too, where nothing of a picture is in the box
        if not chats:
            return None
        scale = chats[0].scale(SHOWN_SIDE)
        place = tuple(
            min(1.0, max(0.0, v / (scale * side))) for v, side in zip((x, y), chats[0].picture.size, strict=True)
        )
        first, self._corner = self._corner, place  # type: ignore[assignment]
        if first is None:
            return None
        (left, right), (top, bottom) = (sorted(pair) for pair in zip(first, place, strict=True))
        if min(right - left, bottom - top) < 0.01:
            return None
        self._corner = None
        return " ".join(f"{100 * part:.0f}" for part in (left, top, right - left, bottom - top))

    def objects(self, index: int) -> list[PoseAnswer]:
        """Return the objects in the latest answer of a checkpoint that holds poses."""
        chats = self.chats
        chat = chats[index] if chats else None
        return chat.objects(answer) if chat and (answer := chat.last_with_poses) else []

    def drawn(self, index: int, poses: Sequence[Pose] | None = None) -> Image.Image | None:
        """Return the picture with the box, and with the poses of the latest answer of a checkpoint, or others."""
        chats = self.chats
        if not chats:
            return None
        picture = chats[index].overlay(at_least=SHOWN_SIDE, poses=poses, cube=True)
        corner = self._corner
        if corner is not None:
            x, y = (share * side for share, side in zip(corner, picture.size, strict=True))
            for reach in (3, 12):
                draw_box(picture, [x - reach, y - reach, x + reach, y + reach])
        return picture


def turned(objects: Sequence[PoseAnswer], number: int, degrees: Sequence[float]) -> list[Pose]:
    """Return the poses of objects, one of them turned to azimuth, elevation and in-plane angle."""
    poses = [one.pose for one in objects]
    azimuth, elevation, theta = np.radians(degrees).tolist()
    poses[number] = replace(poses[number], azimuth=azimuth, elevation=elevation, theta=theta)
    return poses


def said(chat: ChatSession, question: str, model: Executor) -> Iterator[str]:
    """Ask a chat in the thread of the model, and yield the answer as it grows. Whoever stops listening ends it.

    Raises:
        InputError: as :meth:`ChatSession.ask`.
    """
    texts: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    gone = threading.Event()

    def tell(text: str) -> None:
        if gone.is_set():
            raise _Gone
        texts.put(text)

    asked = model.submit(chat.ask, question, tell)
    asked.add_done_callback(lambda _: texts.put(None))
    try:
        while (text := texts.get()) is not None:
            yield text
        asked.result()
    finally:
        gone.set()
        asked.cancel()


class _Gone(Exception):
    """Nobody waits for the answer any more."""


def parse_box(text: str) -> Box | None:
    """Return left, top, right, bottom as shares of the picture; None for no text.

    Raises:
        InputError: it is no box, or nothing of it is in the picture.
    """
    words = text.replace(",", " ").replace("%", " ").split()
    if not words:
        return None
    try:
        left, top, width, height = (_share(word) for word in words)
    except ValueError as error:
        raise InputError(BOX_IS) from error
    right, bottom = min(1.0, left + width), min(1.0, top + height)
    left, top = max(0.0, left), max(0.0, top)
    if min(right - left, bottom - top) < 0.005:
        raise InputError(f"nothing of the picture is in this box; {BOX_IS}")
    return left, top, right, bottom


def _share(percent: str) -> float:
    share = float(percent) / 100
    if not math.isfinite(share):
        raise ValueError(f"{percent} is no share of a picture")
    return share


def _open_picture(path: str, name: str, uploads: Uploads) -> Image.Image:
    """Return what a visitor uploaded. Nothing in a message tells whether there is another file, and where."""
    try:
        if not uploads.holds(path):
            raise InputError(NOT_HERE)
        with open_regular(path) as file:
            return decode_apart(file, name)
    except OSError as error:
        raise InputError(NOT_HERE) from error
