"""The chat format: questions, answers with `<pose6D>` interleaved, and how a person reads them.

A conversation is LLaVA's list of ``{"from": "human" | "gpt", "value": text}``; a training sample adds "poses", one for
each `<pose6D>` in the order of the tokens, and "image", the path of its picture or a list of paths, one for each `<image>` in
the order of these. A pose's "picture" is the place in that list of the one that it is measured in, 0 if it is left out.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from llava_pose.data.records import Pose, is_size
from llava_pose.errors import InputError
from llava_pose.pose.categories import Category
from llava_pose.pose.geometry import canonicalize
from llava_pose.utils.files import shortened, unsafe_name

IGNORE_INDEX = -100  # the label of a token that is not supervised
IMAGE_TOKEN = "<image>"
POSE_TOKEN = "<pose6D>"
_POSE_AFTER_WORD = re.compile(rf"(?<=[^\s(\[\"']){re.escape(POSE_TOKEN)}")

# The first phrasing of each kind is the one that evaluation asks. {object}: a display name, {an_object}: with article.
POSE_QUESTIONS = (
    "What is the pose of the {object}?",
    "How is the {object} turned?",
    "Estimate the 6D pose of the {object}.",
    "Which way does the {object} face?",
    "Give the viewpoint of the {object} in this picture.",
    "Where does the camera stand relative to the {object}?",
    "Tell me the orientation of the {object}.",
    "From where is the {object} seen?",
)
POSE_ANSWER = "The {object} is at {pose}."

JOINT_QUESTIONS = (
    "What is this and what is its pose?",
    "Name the object and give its 6D pose.",
    "Which object is shown, and how is it turned?",
    "Identify the object and estimate its viewpoint.",
    "What do you see, and which way does it face?",
    "What kind of object is this? Give its orientation too.",
    "Recognise the object and tell how it stands.",
)
JOINT_ANSWER = "This is {an_object} at {pose}."

# The object's kind is described, not named, as one would ask for a category that no training picture shows. The last asks
# for the name as well, and is answered by JOINT_ANSWER.
DESCRIBED_QUESTIONS = (
    "Find the object of this description and give its pose. {description}",
    "{description} What is the pose of this object in the picture?",
    "Somebody describes an object: “{description}” What is it called, and how is it turned here?",
)
DESCRIBED_ANSWER = "The object described is at {pose}."

CAPTION_QUESTIONS = (
    "Describe the picture with the pose of the object.",
    "Write a caption with the 6D pose of the object.",
    "Caption this picture and say how the object is turned.",
    "What does the picture show? Mention the pose.",
    "Tell what is seen here and from which side.",
    "Describe the object and its viewpoint.",
)

_OTHER_SIDE = {"left": "right", "right": "left", "Left": "Right", "Right": "Left"}
_SIDE = re.compile(rf"\b({'|'.join(_OTHER_SIDE)})\b")
# [x1, y1, x2, y2], shares of the picture's width and height with two decimals, as data_prep.scene.scenes writes them
_BOX = re.compile(r"\[([01])\.(\d\d), ([01]\.\d\d), ([01])\.(\d\d), ([01]\.\d\d)\]")
_ROLES = {"human": "user", "gpt": "assistant", "system": "system"}
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
# "picture 2", "the second image"; and any number in a text that has such a name, for "the first and the second image" has two
_PICTURE_NAME = re.compile(
    rf"\b(?:picture|image|photo) \d{{1,3}}\b|\b(?:{'|'.join(_ORDINALS)}) (?:picture|image|photo)\b", re.IGNORECASE
)
_NUMBER = re.compile(rf"\b(?:\d{{1,3}}|{'|'.join(_ORDINALS)})\b", re.IGNORECASE)


class ChatTooLongError(InputError):
    """A chat has more tokens than it may have."""


def object_words(category: Category) -> dict[str, str]:
    """Return a category's names for the templates: {object} goes after "the", {an_object} has its own article.

    {object} is the display name, but "pair of scissors" for scissors, so that the sentences stay singular.
    """
    return {"object": category.indefinite.split(" ", 1)[1], "an_object": category.indefinite}


def to_messages(conversation: Sequence[Mapping[str, str]], *, where: str = "conversation") -> list[dict[str, str]]:
    """LLaVA's turns as the role/content messages of a chat template.

    Raises:
        InputError: it is no list, or a turn has another speaker or no text; ``where`` names the sample.
    """
    if not isinstance(conversation, list | tuple):
        raise InputError(f"{where}: 'conversations' must be a list of turns, not {reprlib.repr(conversation)}")
    messages = []
    for turn in conversation:
        speaker = turn.get("from") if isinstance(turn, Mapping) else None
        role = _ROLES.get(speaker) if isinstance(speaker, str) else None
        if role is None or not isinstance(turn.get("value"), str):
            raise InputError(
                f"{where}: a turn needs 'from' (one of {', '.join(_ROLES)}) and 'value' (text): {reprlib.repr(turn)}"
            )
        messages.append({"role": role, "content": turn["value"]})
    return messages


def count_pose_tokens(conversation: Sequence[Mapping[str, str]]) -> int:
    """Count the `<pose6D>` of a conversation, questions and answers together."""
    return sum(turn["value"].count(POSE_TOKEN) for turn in conversation)


def describe_pose(pose: Pose) -> str:
    """The angles as a person reads them: canonical, in whole degrees, with their names."""
    angles = [math.degrees(float(angle)) for angle in canonicalize(*pose.angles)]
    azimuth, elevation, theta = (round(angle) for angle in angles)
    return f"(azimuth {azimuth % 360}°, elevation {elevation}°, in-plane {theta}°)"


def mirror_sides(text: str) -> str:
    """The text for the horizontally flipped image: left and right swapped, whole words only ("upright" stays), and boxes
    mirrored ("[0.10, 0.20, 0.30, 0.40]" is "[0.70, 0.20, 0.90, 0.40]").

    True of both the viewer's sides and the object's own, since a flip maps azimuth to -azimuth (docs/POSE.md).
    """
    return _BOX.sub(_mirror_box, _SIDE.sub(lambda match: _OTHER_SIDE[match.group()], text))


def _mirror_box(match: re.Match[str]) -> str:
    whole_1, cents_1, y1, whole_2, cents_2, y2 = match.groups()
    x1, x2 = int(whole_1 + cents_1), int(whole_2 + cents_2)
    if max(x1, x2) > 100:  # beyond the picture: not a box of shares
        return match.group()
    x1, x2 = 100 - x2, 100 - x1
    return f"[{x1 // 100}.{x1 % 100:02}, {y1}, {x2 // 100}.{x2 % 100:02}, {y2}]"


def space_poses(text: str) -> str:
    """A space before each `<pose6D>` that directly follows a word: the token itself holds it, and decoding drops it."""
    return _POSE_AFTER_WORD.sub(f" {POSE_TOKEN}", text)


def interleave_poses(text: str, poses: Sequence[Pose]) -> str:
    """A model's answer with each `<pose6D>` replaced by its angles in degrees.

    Raises:
        ValueError: there are not as many poses as tokens.
    """
    parts = text.split(POSE_TOKEN)
    if len(parts) - 1 != len(poses):
        raise ValueError(f"{len(parts) - 1} {POSE_TOKEN} in the text, but {len(poses)} poses")
    shown = [describe_pose(pose) for pose in poses] + [""]
    return "".join(part + pose for part, pose in zip(parts, shown, strict=True))


def pictures_of(sample: Mapping[str, Any]) -> list[str]:
    """Return the paths of a sample's pictures, in the order of their `<image>`."""
    image = sample.get("image")
    return image if isinstance(image, list) else [image] if image else []


def size_of(sample: Mapping[str, Any], name: str, picture: int) -> Any:
    """Return a sample's "width", "height" or "viewport" for one of its pictures: what it gives for all, or that one's of a
    list.
    """
    value = sample.get(name)
    return value[picture] if isinstance(value, list) and len(value) == len(pictures_of(sample)) else value


def pictures_meant(question: str, before: Sequence[str], count: int) -> list[int | None]:
    """Return for each `<pose6D>` of an answer which of ``count`` pictures it is of, counted from 0.

    With one picture it is that. With several it is the one that the answer names before the token ("picture 2", "the second
    image"), or else the one that the question names; where that is none, or not one alone, it is None.

    Args:
        before: the answer's words before each `<pose6D>`, from the one before it on.
    """
    if count == 1:
        return [0] * len(before)
    named = [_pictures_named(words) or _pictures_named(question) for words in before]
    return [min(one) if len(one) == 1 and min(one) in range(count) else None for one in named]


def _pictures_named(text: str) -> set[int]:
    if _PICTURE_NAME.search(text) is None:
        return set()
    words = (word.lower() for word in _NUMBER.findall(text))
    return {_ORDINALS.index(word) if word in _ORDINALS else int(word) - 1 for word in words}


def validate_sample(sample: Mapping[str, Any], *, where: str) -> list[Pose]:
    """Check all that one training sample says, and return its poses.

    Raises:
        InputError: a field is missing or malformed, an image is no path below the prepared folder, questions and answers do
            not take turns, `<image>` does not stand in the questions once for each image, the poses are not as many as the
            tokens, or nothing can be learned from one of them, the picture or the size it is measured by.
    """
    for name in ("id", "conversations", "poses"):
        if not isinstance(sample, Mapping) or name not in sample:
            raise InputError(f"{where}: the sample has no '{name}'; make it with llava-pose instruct")
    if not isinstance(sample["poses"], list):
        raise InputError(f"{where}: 'poses' must be a list of poses, not {reprlib.repr(sample['poses'])}")
    image = sample.get("image")
    if not isinstance(image, str | list | None) or not all(isinstance(p, str) and p for p in pictures_of(sample)):
        raise InputError(
            f"{where}: 'image' must be the path of a picture, or a list of such paths, not {reprlib.repr(image)}"
        )
    for path in pictures_of(sample):
        if (reason := unsafe_name(path)) is not None:
            raise InputError(f"{where}: 'image' must be a path below the prepared folder, {shortened(path)} {reason}")
    if not isinstance(sample.get("flippable", False), bool):
        raise InputError(f"{where}: 'flippable' must be true or false, not {reprlib.repr(sample['flippable'])}")
    kinds = sample.get("kinds") or []
    if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
        raise InputError(f"{where}: 'kinds' must be a list of names, not {reprlib.repr(kinds)}")
    _check_turns(sample, to_messages(sample["conversations"], where=where), where)
    return _poses(sample, where)


def _check_turns(sample: Mapping[str, Any], messages: Sequence[Mapping[str, str]], where: str) -> None:
    tokens, pictures = sum(message["content"].count(IMAGE_TOKEN) for message in messages), len(pictures_of(sample))
    if tokens != pictures:
        raise InputError(
            f"{where}: {tokens} {IMAGE_TOKEN} in the text of sample {sample['id']!r}, but {pictures} in 'image'; there must "
            "be one for each picture, in their order"
        )
    if any(IMAGE_TOKEN in message["content"] for message in messages if message["role"] == "assistant"):
        raise InputError(f"{where}: {IMAGE_TOKEN} in an answer of sample {sample['id']!r}; it belongs in a question")
    turns = messages[messages[0]["role"] == "system" :] if messages else []
    if not turns:
        raise InputError(f"{where}: the chat has no turn; a sample needs a question and an answer")
    if turns[0]["role"] == "assistant":
        raise InputError(f"{where}: the chat begins with an answer; give the question that it answers")
    if turns[-1]["role"] != "assistant":
        raise InputError(f"{where}: no token is supervised; a sample needs an answer (a turn from 'gpt') at its end")
    if any(turn["role"] != ("user", "assistant")[number % 2] for number, turn in enumerate(turns)):
        raise InputError(f"{where}: questions and answers must take turns; join those that follow each other")


def _poses(sample: Mapping[str, Any], where: str) -> list[Pose]:
    tokens = count_pose_tokens(sample["conversations"])
    if tokens != len(sample["poses"]):
        raise InputError(
            f"{where}: sample {sample['id']!r} has {tokens} {POSE_TOKEN} but {len(sample['poses'])} poses; "
            "they must agree, in the order of the tokens"
        )
    poses = [Pose.annotated(value, where=where) for value in sample["poses"]]
    count = len(pictures_of(sample))
    for value, pose in zip(sample["poses"], poses, strict=True):
        picture = value.get("picture", 0)
        if type(picture) is not int or not 0 <= picture < max(1, count):
            raise InputError(
                f"{where}: 'picture' of a pose must be the place of its picture in 'image', counted from 0, not "
                f"{reprlib.repr(picture)}; there are {count}"
            )
        if None in (pose.distance, pose.px, pose.py):
            continue
        for name in ("width", "height", "viewport"):  # without it the location would be wrong and nobody would know
            if not is_size(size_of(sample, name, picture)):
                raise InputError(
                    f"{where}: '{name}' must be a number of pixels, not {reprlib.repr(sample.get(name))}, for a pose with "
                    "distance, px and py, or a list of as many as there are pictures; run llava-pose instruct again"
                )
    return poses
