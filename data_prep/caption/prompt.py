"""The messages that ask a model for a caption: the rules, the annotations in words and numbers, and the picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_prep.scene.scenes import Scene, box_text, noun
from llava_pose.data.conversation import POSE_TOKEN, describe_pose, object_words
from llava_pose.data.images import picture_part
from llava_pose.data.records import ObjectRecord, category_of
from llava_pose.data.viewpoint_words import describe_viewpoint

RULES = f"""You write captions that train a vision-language model to tell how objects are turned in space.
You get one picture and a list of its annotated objects. Write one coherent caption of one to three sentences.

Rules:
1. Directly after the name of each object that you mention for the first time comes the mark {POSE_TOKEN}, which stands for \
its 6D pose: "a red car {POSE_TOKEN} stands before a bicycle {POSE_TOKEN}". Call each object by the name that the list gives.
2. One {POSE_TOKEN} for each object that you name, none more. Name each object singly, not "two cars".
3. Speak of no object that is not in the list. The surroundings (street, room, sky) may be mentioned.
4. Words for the viewpoint (from the front, from its left side, from above) are welcome after the object's {POSE_TOKEN}, if \
they agree with the list. "Its left" is the object's own left, "the viewer's left" is the left of the picture.
5. No numbers of angles, distances or coordinates, no degrees, no words such as azimuth. The list's numbers are for you alone.

Answer with one JSON object and nothing else:
{{"objects": [numbers of the objects in the order of their {POSE_TOKEN}], "caption": "the caption"}}"""

_STATUS = {"status_good": "wholly visible", "status_partially": "partly hidden", "status_barely": "hardly visible"}


def describe_object(record: ObjectRecord, number: int) -> str:
    """Write the line of one object."""
    category, words = category_of(record), describe_viewpoint(record.pose)
    facts = [
        f'{number}. {object_words(category)["an_object"]}, to be called "{noun(record)}"',
        f"box {box_text(record)}",
    ]
    if category.has_front and category.has_up:
        facts += [words.seen, words.facing]
    elif category.has_up:
        facts.append(f"seen {words.height}")
    if words.tilt and category.has_up:
        facts.append(words.tilt)
    distance = record.pose.distance
    if distance is not None and math.isfinite(distance):
        facts.append(f"distance {distance:.1f} times its own size")
    facts.append(_STATUS.get(record.object_status, "partly hidden"))
    return f"{'; '.join(facts)}; pose {describe_pose(record.pose)}"


def prompt_text(objects: Sequence[ObjectRecord]) -> str:
    """Write the text that goes with the picture."""
    lines = "\n".join(describe_object(record, number) for number, record in enumerate(objects, start=1))
    return (
        "The objects (boxes are x1, y1, x2, y2 as shares of the picture's width and height, from its upper left corner):\n"
        f"{lines}\n\nWrite the caption."
    )


def first_messages(scene: Scene, picture: Path | None) -> list[dict[str, Any]]:
    """Return the messages of the first attempt, as the chat completions API takes them.

    Args:
        picture: the file to send; None to ask by the text alone.

    Raises:
        InputError: the picture cannot be read.
    """
    text: list[dict[str, Any]] = [{"type": "text", "text": prompt_text(scene.distinct)}]
    if picture is not None:
        text.append(picture_part(picture))
    return [{"role": "system", "content": RULES}, {"role": "user", "content": text}]
