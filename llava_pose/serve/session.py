"""A chat about one picture, whatever it is led through: a terminal, a page, a program."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from PIL import Image

from llava_pose.data.conversation import IMAGE_TOKEN, POSE_TOKEN
from llava_pose.data.images import assumed_viewport
from llava_pose.data.records import Pose
from llava_pose.errors import InputError
from llava_pose.inference.drawing import draw_axes
from llava_pose.pose import categories
from llava_pose.serve.limits import QUESTION_CHARACTERS

if TYPE_CHECKING:
    from llava_pose.inference.predictor import ChatAnswer, PosePredictor

_NAMED = re.compile(r"\b(?:the|an?|this|that|my|your|these|those)\s+(?=([\w-]+(?:\s+[\w-]+){0,2}))")


def angles_in_degrees(pose: Pose) -> tuple[float, float, float]:
    """Canonical azimuth in [0, 360), elevation in [-90, 90] and in-plane angle in [-180, 180], to a tenth of a degree."""
    azimuth, elevation, theta = (round(angle, 1) for angle in pose.degrees())
    return azimuth % 360.0, elevation, theta


def taught(known: Sequence[str]) -> str:
    """Return which categories a checkpoint was taught, as a sentence; nothing where it does not say so."""
    if not known:
        return ""
    names = [categories.display_name(name) for name in known]
    return (
        f"It was taught {names[0]}." if len(names) == 1 else f"It was taught {', '.join(names[:-1])} and {names[-1]}."
    )


def doubt(question: str, known: Sequence[str]) -> str:
    """Return a sentence about categories that a question names and the checkpoint was not taught; nothing where it names
    none, or the checkpoint does not say what it was taught.

    A name is looked for behind an article ("the boat"): words such as "can" are categories, too.
    """
    unknown = []
    for match in _NAMED.finditer(question.lower()) if known else ():
        words = match[1].split()
        found = next(
            (c for n in range(len(words), 0, -1) if (c := categories.find(" ".join(words[:n]))) is not None), None
        )
        if found is not None and found.name not in known and found.display_name not in unknown:
            unknown.append(found.display_name)
    if not unknown:
        return ""
    return f"This checkpoint was not taught {' or '.join(unknown)}: do not rely on what it says of it."


def require_plain(question: str) -> None:
    """Raise InputError for a question that holds one of the model's own tokens."""
    for token in (IMAGE_TOKEN, POSE_TOKEN):
        if token in question:
            raise InputError(f"a question cannot hold {token}, which is the model's own; ask in plain words")


def require_short(question: str) -> None:
    """Raise InputError for a question that is longer than any person's."""
    if len(question) > QUESTION_CHARACTERS:
        raise InputError(
            f"the question has {len(question)} characters, more than {QUESTION_CHARACTERS}: ask in fewer words"
        )


@dataclass(frozen=True)
class Turn:
    """One question and its answer."""

    question: str
    answer: ChatAnswer


class ChatSession:
    """Questions about one picture, each asked with all that went before it.

    Attributes:
        picture: upright, RGB.
        viewport: pixels per unit focal length of its camera.
        turns: what was asked and answered so far.
    """

    def __init__(
        self,
        predictor: PosePredictor,
        picture: Image.Image,
        *,
        viewport: float | None = None,
        max_new_tokens: int = 128,
        max_seconds: float | None = None,
    ):
        self.picture = picture
        self.viewport = assumed_viewport(picture) if viewport is None else viewport
        self.turns: list[Turn] = []
        self._predictor = predictor
        self._max_new_tokens = max_new_tokens
        self._max_seconds = max_seconds

    def ask(self, question: str) -> ChatAnswer:
        """Answer a question and remember both. A question that fails leaves the chat as it was.

        Raises:
            InputError: the question is empty, too long or holds one of the model's own tokens, the chat has become too long, or
                the model answers with a pose that is not finite.
        """
        question = question.encode(errors="replace").decode().strip()  # half a surrogate pair is no text
        if not question:
            raise InputError("the question is empty; type what you want to know about the picture")
        require_short(question)
        require_plain(question)
        answer = self._predictor.chat(
            self.picture,
            [*self.messages, {"role": "user", "content": question}],
            viewport=self.viewport,
            max_new_tokens=self._max_new_tokens,
            max_seconds=self._max_seconds,
        )
        if not all(math.isfinite(angle) for pose in answer.poses for angle in pose.angles):
            raise InputError(
                "the checkpoint answers with a pose that is no number; it is damaged or its training diverged"
            )
        self.turns.append(Turn(question, answer))
        return answer

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The chat so far as the predictor takes it."""
        return [
            {"role": role, "content": content}
            for turn in self.turns
            for role, content in (("user", turn.question), ("assistant", turn.answer.text))
        ]

    @property
    def last_with_poses(self) -> ChatAnswer | None:
        """The latest answer that holds a pose."""
        return next((turn.answer for turn in reversed(self.turns) if turn.answer.poses), None)

    def overlay(self, *, at_least: int = 0) -> Image.Image:
        """The picture with the axes of the latest poses; a plain copy if there are none yet.

        Args:
            at_least: pixels; a picture whose longer side is less is enlarged to it, so that its axes are drawn fine.
        """
        scale = max(1.0, at_least / max(self.picture.size))
        width, height = self.picture.size
        drawn = self.picture.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
        answer = self.last_with_poses
        for pose in answer.poses if answer else ():
            px, py = cast(tuple[float, float], (pose.px, pose.py))  # the model's own poses have a place
            enlarged = replace(pose, px=px * scale, py=py * scale)
            drawn = draw_axes(drawn, enlarged, self.viewport * scale)
        return drawn
