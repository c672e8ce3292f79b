"""The messages that ask a vision-language model for a pose, docs/POSE.md in plain words, and its answer, read strictly.

A model answers with one JSON object and nothing else, in degrees:

    {"azimuth": 90, "elevation": 10, "rotation": 0}

and, where it has to say what the object is, with a ``"category"`` from a list. The worked examples of the convention are data
(:data:`EXAMPLES`, :data:`SIDES`), so that the tests can hold what the prompt says against ``llava_pose.pose.geometry``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_pose.data.conversation import object_words
from llava_pose.data.images import picture_part
from llava_pose.data.records import ObjectRecord, Pose
from llava_pose.pose.categories import Category
from llava_pose.utils.openai_client import BadAnswer, Message

RANGES: Mapping[str, tuple[float, float]] = {"azimuth": (0, 360), "elevation": (-90, 90), "rotation": (-180, 180)}
SIDES: Mapping[int, str] = {0: "front", 90: "own left side", 180: "back", 270: "own right side"}
"""Azimuth in degrees, at elevation 0 -> the object's side that the camera looks at."""


@dataclass(frozen=True)
class Example:
    """A worked example: angles in degrees, and all directions in which the object's front and top then point."""

    azimuth: int
    elevation: int
    rotation: int
    front: tuple[str, ...]
    top: tuple[str, ...]


EXAMPLES = (
    Example(0, 0, 0, ("towards the viewer",), ("up",)),
    Example(90, 0, 0, ("to the left",), ("up",)),
    Example(180, 0, 0, ("away from the viewer",), ("up",)),
    Example(270, 0, 0, ("to the right",), ("up",)),
    Example(45, 20, 0, ("towards the viewer", "to the left", "down"), ("up", "towards the viewer")),
    Example(225, -20, 0, ("away from the viewer", "to the right", "down"), ("up", "away from the viewer")),
    Example(0, 90, 0, ("down",), ("towards the viewer",)),
    Example(90, 0, 30, ("to the left", "down"), ("up", "to the left")),
    Example(0, 0, -90, ("towards the viewer",), ("to the right",)),
)

_SEEN_SIDES = "; ".join(f"{degrees}: the camera looks at the object's {side}" for degrees, side in SIDES.items())
CONVENTION = f"""You tell how an object in a picture is turned in space, by three angles in degrees.

Every object has a front, a top and sides of its own. Its front is the side that goes ahead or that its user faces (the \
headlights of a car, the screen of a laptop, the side of a chair where the sitter's knees are). "Its own left" is the left of \
the object itself, as of a driver who sits in a car and looks ahead: somebody who stands before the front and looks at it has \
the object's own left on the right.

azimuth, from 0 to 360: from which side the camera sees the object, going round its vertical axis. \
{_SEEN_SIDES}. Between 0 and 180 its own left side is visible, between 180 and 360 its own right side.
elevation, from -90 to 90: from how high. 0: on a level with the object; positive: the camera looks down on it and sees its \
top; 90: straight from above; negative: the camera looks up at it from below.
rotation, from -180 to 180: how far the object leans in the plane of the picture. 0: it stands upright in the picture; \
positive: turned counter-clockwise, so that its top leans to the left of the picture; negative: clockwise.

Examples (left, right, up and down are those of the picture):
{{examples}}

Take the object's own position as the middle of the view: what counts is the direction from which the camera sees the object, \
wherever in the picture it is."""


def _example_line(example: Example) -> str:
    front, top = (" and ".join(words) for words in (example.front, example.top))
    angles = f"azimuth {example.azimuth}, elevation {example.elevation}, rotation {example.rotation}"
    return f"- {angles}: its front points {front}, its top points {top}."


@dataclass(frozen=True)
class VlmAnswer:
    """A model's answer that could be read; the category is a canonical name, None where none was asked for."""

    pose: Pose
    category: str | None = None


def candidate_words(candidates: Sequence[Category]) -> dict[str, str]:
    """Return the canonical name of each category by what a model may call it: the name that people read, where it is unique."""
    words: dict[str, str] = {}
    for category in candidates:
        word = category.display_name if category.display_name not in words else category.name.replace("_", " ")
        words[word] = category.name
    return words


def first_messages(
    record: ObjectRecord, category: Category, words: Mapping[str, str] | None, picture: Path | None
) -> list[Message]:
    """Return the messages of the first attempt, as the chat completions API takes them.

    Args:
        category: of the record; the model is told it unless there are ``words``.
        words: of :func:`candidate_words`, for the joint task; None where the category is given.
        picture: the file to send; None leaves it out (to show the prompt).

    Raises:
        InputError: the picture cannot be read.
    """
    text = [f"The picture shows {'an object' if words else category.indefinite} in the box {box_words(record)}."]
    if words:
        text.append(f"Its category is one of these: {'; '.join(sorted(words))}.")
        text.append("Which one is it, and what is its pose? Give the category exactly as it stands in the list.")
    else:
        if category.front and category.up:
            text.append(f"Of {category.indefinite}, the front is {category.front}, and up points to {category.up}.")
        text.append(f"What is the pose of the {object_words(category)['object']}?")
    keys = ", ".join(f'"{key}": …' for key in [*(["category"] if words else []), *RANGES])
    text.append(
        f"Answer with one JSON object and nothing else, numbers in degrees, with exactly these keys: {{{keys}}}"
    )
    content: list[dict[str, Any]] = [{"type": "text", "text": " ".join(text)}]
    if picture is not None:
        content.append(picture_part(picture))
    examples = "\n".join(_example_line(example) for example in EXAMPLES)
    return [
        {"role": "system", "content": CONVENTION.replace("{examples}", examples)},
        {"role": "user", "content": content},
    ]


def box_words(record: ObjectRecord) -> str:
    """Write the object's box in the prepared picture, clipped to it, in percent of its width and height."""
    x1, y1, x2, y2 = (
        round(100 * min(max(value / side, 0.0), 1.0))
        for value, side in zip(record.bbox, (record.width, record.height) * 2, strict=True)
    )
    return f"from {x1}% to {x2}% of its width and {y1}% to {y2}% of its height (from the upper left corner)"


def read_answer(text: str | None, words: Mapping[str, str] | None) -> VlmAnswer:
    """Read a model's answer and check it; JSON in a code fence is taken, words around it are not.

    Args:
        words: of :func:`candidate_words`, for the joint task; None where no category was asked for.

    Raises:
        BadAnswer: what is wrong with it, in words that the model may be sent.
    """
    if text is None or not text.strip():
        raise BadAnswer("the answer is empty")
    body = re.sub(r"\A```(?:json)?\s*\n(.*)\n```\Z", r"\1", text.strip(), flags=re.DOTALL)
    try:
        pairs = json.loads(body, object_pairs_hook=list)
    except (ValueError, RecursionError) as error:
        raise BadAnswer("the answer is not one JSON object and nothing else") from error
    keys = [*(["category"] if words is not None else []), *RANGES]
    is_object = isinstance(pairs, list) and all(isinstance(pair, tuple) for pair in pairs)
    if not is_object or sorted(key for key, _ in pairs) != sorted(keys):
        raise BadAnswer(f"the answer must be a JSON object with exactly the keys {', '.join(keys)}")
    value = dict(pairs)
    angles = [math.radians(_degrees(name, value[name])) for name in RANGES]
    if words is None:
        return VlmAnswer(Pose(*angles))
    named = value["category"]
    by_word = {word.casefold(): name for word, name in words.items()}
    if not isinstance(named, str) or named.strip().casefold() not in by_word:
        raise BadAnswer("'category' must be one of the list, as it stands there")
    return VlmAnswer(Pose(*angles), by_word[named.strip().casefold()])


def _degrees(name: str, value: Any) -> float:
    low, high = RANGES[name]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or (isinstance(value, float) and not math.isfinite(value)):
        raise BadAnswer(f"'{name}' must be a finite number of degrees")
    if not low <= value <= high:
        raise BadAnswer(f"'{name}' must be from {low:g} to {high:g} degrees")
    return float(value)
