"""The offline grammar that makes a caption of a pose in words (``llava_pose.data.viewpoint_words``)."""

from __future__ import annotations

import random

from llava_pose.data.conversation import POSE_TOKEN, object_words
from llava_pose.data.records import Pose
from llava_pose.data.viewpoint_words import describe_viewpoint
from llava_pose.pose.categories import Category

# The pose stands before the words that tell it: in the other order, it could be read from the caption's own words,
# which training shows to the model, instead of from the picture.
CAPTIONS = (
    "{An_object} at {pose}, {seen}{tilt}.",
    "A picture of {an_object} at {pose}, {seen}{tilt}; it {facing}.",
    "{An_object} at {pose}. It {facing} and is {seen}{tilt}.",
    "The picture shows {an_object} at {pose} that {facing}, {seen}{tilt}.",
)
SIDELESS_CAPTIONS = (
    "{An_object} at {pose}, {seen}{tilt}.",
    "A picture of {an_object} at {pose}, {seen}{tilt}.",
    "The picture shows {an_object} at {pose}, {seen}{tilt}.",
)
UPLESS_CAPTIONS = (  # of a bow, which has a front and no upper end
    "{An_object} at {pose}. It {facing}.",
    "A picture of {an_object} at {pose}; it {facing}.",
    "The picture shows {an_object} at {pose} that {facing}.",
)
BARE_CAPTIONS = (
    "{An_object} at {pose}.",
    "A picture of {an_object} at {pose}.",
    "The picture shows {an_object} at {pose}.",
)


def offline_caption(pose: Pose, category: Category, rng: random.Random) -> str:
    """Write a caption with one `<pose6D>`, without any model.

    What no picture shows is not told: sides of a bottle, a table or a cup, and above and below of an hourglass.

    Args:
        rng: draws the phrasing.
    """
    return rng.choice(caption_templates(category)).format(**caption_words(pose, category))


def caption_templates(category: Category) -> tuple[str, ...]:
    """Return the templates that tell nothing which the category's symmetry or mirror plane takes away."""
    if category.has_up:
        return CAPTIONS if category.has_front else SIDELESS_CAPTIONS
    return UPLESS_CAPTIONS if category.has_front else BARE_CAPTIONS


def caption_words(pose: Pose, category: Category) -> dict[str, str]:
    """Return what fills the slots of :func:`caption_templates`."""
    words = describe_viewpoint(pose)
    an_object = object_words(category)["an_object"]
    return {
        "an_object": an_object,
        "An_object": an_object[:1].upper() + an_object[1:],
        "pose": POSE_TOKEN,
        "seen": words.seen if caption_templates(category) is CAPTIONS else f"seen {words.height}",
        "facing": words.facing,
        "tilt": f", {words.tilt}" if words.tilt else "",
    }
