"""A chat about one picture, whatever it is led through: a terminal, a page, a program."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from PIL import Image

from llava_pose.data.conversation import IMAGE_TOKEN, POSE_TOKEN
from llava_pose.data.images import assumed_viewport, cut_to_box
from llava_pose.data.records import Pose
from llava_pose.data.viewpoint_words import describe_viewpoint
from llava_pose.errors import InputError
from llava_pose.inference.drawing import draw_axes, draw_box
from llava_pose.inference.wires import Wires
from llava_pose.pose import categories
from llava_pose.serve.limits import QUESTION_CHARACTERS

if TYPE_CHECKING:
    from llava_pose.inference.answers import ChatAnswer, PoseAnswer
    from llava_pose.inference.predictor import PosePredictor

SOMETHING = "object"  # the name of what an answer does not name
_NAMED = re.compile(r"\b(?:the|an?|this|that|my|your|these|those)\s+(?=([\w-]+(?:\s+[\w-]+){0,2}))")

_PLAIN_KINDS = {"joint", "pose", "caption"}  # what an object is and how it is turned, in our phrasings
_ASKS_THAT = re.compile(
    r"\b(poses?|6d|turn(ed|s)?|rotat\w+|fac(e|es|ing)|viewpoint|orient\w+|angles?|azimuth|elevation|tilt\w*|sides?|seen?"
    r"|camera|stands?|point(s|ing)?|directions?|front|rear|left|right|objects?|describe|caption|picture|image"
    r"|what('s| is| are) (this|that|it))\b"
)


def angles_in_degrees(pose: Pose) -> tuple[float, float, float]:
    """Canonical azimuth in [0, 360), elevation in [-90, 90] and in-plane angle in [-180, 180], to a tenth of a degree."""
    azimuth, elevation, theta = (round(angle, 1) + 0.0 for angle in pose.degrees())  # -0.0 is 0.0
    return azimuth % 360.0, elevation, theta


def numbered(text: str) -> str:
    """Return what an answer says with [1], [2], … for its poses, which may be shown before the poses are known."""
    first, *parts = text.split(POSE_TOKEN)
    return first + "".join(f"[{number}]{part}" for number, part in enumerate(parts, start=1))


def named_objects(text: str) -> list[str]:
    """Return for each `<pose6D>` of an answer the category that is named last before it, or :data:`SOMETHING`."""
    names = []
    for part in text.split(POSE_TOKEN)[:-1]:
        words = re.findall(r"[\w-]+", part)
        spans = (words[end - size : end] for end in range(len(words), 0, -1) for size in (3, 2, 1) if size <= end)
        found = next((category for span in spans if (category := categories.find(" ".join(span)))), None)
        names.append(SOMETHING if found is None else found.name)
    return names


def shown_name(name: str) -> str:
    """Return what people read for a category, which need not be in the taxonomy."""
    return categories.get(name, allow_custom=True).display_name


def seen_words(pose: Pose, name: str = SOMETHING) -> str:
    """Return from where an object is seen, in words: "seen from its front-left, slightly from above".

    Of a category that has no front, or no upper end, no such thing is said; nothing is left of one that has neither.
    """
    view, category = describe_viewpoint(pose), categories.find(name)
    if category is not None and not category.has_up:
        return view.facing if category.has_front else ""
    has_front = category is None or category.has_front
    return ", ".join(part for part in (view.seen if has_front else f"seen {view.height}", view.tilt) if part)


def possible_words(answer: PoseAnswer) -> str:
    """Return from where an object is seen, in words, and from where else it may be, by the prediction set of a checkpoint that
    was calibrated: "seen from its front, at its own height, or else seen from its rear, at its own height".
    """
    held = [answer.pose.angles, *(answer.prediction_set or ())[1:]]
    return ", or else ".join(dict.fromkeys(filter(None, (seen_words(Pose(*a), answer.category) for a in held))))


def taught(known: Sequence[str]) -> str:
    """Return which categories a checkpoint was taught, as a sentence; nothing where it does not say so."""
    if not known:
        return ""
    names = [shown_name(name) for name in known]
    return (
        f"It was taught {names[0]}." if len(names) == 1 else f"It was taught {', '.join(names[:-1])} and {names[-1]}."
    )


def doubt(question: str, known: Sequence[str], kinds: Sequence[str] = ()) -> str:
    """Return a sentence about what a question asks and the checkpoint was not taught: a category, or another kind of question
    ("hello") than its own; nothing where there is no such thing, or the checkpoint does not say what it was taught.

    A name is looked for behind an article ("the boat"): words such as "can" are categories, too.
    """
    unknown = []
    named = False
    for match in _NAMED.finditer(question.lower()) if known else ():
        words = match[1].split()
        found = next(
            (c for n in range(len(words), 0, -1) if (c := categories.find(" ".join(words[:n]))) is not None), None
        )
        named = named or found is not None
        if found is not None and found.name not in known and found.display_name not in unknown:
            unknown.append(found.display_name)
    if unknown:
        return f"This checkpoint was not taught {' or '.join(unknown)}: do not rely on what it says of it."
    if known and kinds and _PLAIN_KINDS.issuperset(kinds) and not named and not _ASKS_THAT.search(question.lower()):
        return "This checkpoint was taught to say what an object is and how it is turned: do not rely on this answer."
    return ""


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
        box: left, top, right, bottom of the part that is asked about, pixels; None for the whole picture.
        viewport: pixels per unit focal length of its camera.
        turns: what was asked and answered so far.
    """

    def __init__(
        self,
        predictor: PosePredictor,
        picture: Image.Image,
        *,
        box: Sequence[float] | None = None,
        viewport: float | None = None,
        max_new_tokens: int = 128,
        max_seconds: float | None = None,
        models: Mapping[str, Wires] | None = None,
    ):
        """
        Args:
            models: the wires of a CAD model by category, drawn where a cube would be.

        Raises:
            InputError: nothing of the box is in the picture.
        """
        from llava_pose.inference.pipeline import require_box  # which loads torch

        self.picture = picture
        self.box = None if box is None else require_box(box, picture.size)
        self.viewport = assumed_viewport(picture) if viewport is None else viewport
        self.turns: list[Turn] = []
        self._predictor = predictor
        self._max_new_tokens = max_new_tokens
        self._max_seconds = max_seconds
        self._models = models or {}

    def ask(self, question: str, on_text: Callable[[str], None] | None = None) -> ChatAnswer:
        """Answer a question and remember both. A question that fails leaves the chat as it was.

        Args:
            on_text: is called with the answer so far, with a `<pose6D>` for each pose, while it is written.

        Raises:
            InputError: the question is empty, too long or holds one of the model's own tokens, the chat has become too long, or
                the model answers with a pose that is not finite.
        """
        question = question.encode(errors="replace").decode().strip()  # half a surrogate pair is no text
        if not question:
            raise InputError("the question is empty; type what you want to know about the picture")
        require_short(question)
        require_plain(question)
        shown, scale, left, top = (self.picture, 1.0, 0, 0) if self.box is None else cut_to_box(self.picture, self.box)
        answer = self._predictor.chat(
            shown,
            [*self.messages, {"role": "user", "content": question}],
            viewport=self.viewport * scale,
            max_new_tokens=self._max_new_tokens,
            max_seconds=self._max_seconds,
            on_text=on_text,
        )
        if not all(math.isfinite(angle) for pose in answer.poses for angle in pose.angles):
            raise InputError(
                "the checkpoint answers with a pose that is no number; it is damaged or its training diverged"
            )
        if self.box is not None:
            answer = replace(answer, poses=[_in_whole(pose, scale, left, top) for pose in answer.poses])
        self.turns.append(Turn(question, answer))
        return answer

    def objects(self, answer: ChatAnswer) -> list[PoseAnswer]:
        """Return an answer's poses, each with the category that the text names for it."""
        return answer.objects(named_objects(answer.text), self.viewport)

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

    def overlay(self, *, at_least: int = 0, poses: Sequence[Pose] | None = None, cube: bool = False) -> Image.Image:
        """The picture with the box, and the axes of the latest poses, numbered where there are several.

        Args:
            at_least: pixels; a picture whose longer side is less is enlarged to it, so that its axes are drawn fine.
            poses: to be drawn in the place of the latest.
            cube: draw a cube round each object, or the wires of its category's CAD model where there is one.
        """
        scale = self.scale(at_least)
        width, height = self.picture.size
        drawn = self.picture.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
        if self.box is not None:
            draw_box(drawn, [edge * scale for edge in self.box])
        answer = self.last_with_poses
        shown = poses if poses is not None else answer.poses if answer else ()
        names = named_objects(answer.text) if answer else [SOMETHING] * len(shown)
        for number, (pose, name) in enumerate(zip(shown, names, strict=True), start=1):
            px, py = (None if place is None else place * scale for place in (pose.px, pose.py))
            enlarged = replace(pose, px=px, py=py)
            mark = number if len(shown) > 1 else None
            wires = self._models.get(name) if cube else None
            drawn = draw_axes(drawn, enlarged, self.viewport * scale, cube=cube, wires=wires, number=mark)
        return drawn

    def scale(self, at_least: int) -> float:
        """Return how many times larger than the picture :meth:`overlay` is."""
        return max(1.0, at_least / max(self.picture.size))


def _in_whole(pose: Pose, scale: float, left: int, top: int) -> Pose:
    """Return a pose of a part of a picture with its place in pixels of the whole picture."""
    if pose.px is None or pose.py is None:
        return pose
    return replace(pose, px=pose.px / scale + left, py=pose.py / scale + top)
