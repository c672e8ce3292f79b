"""Things to try in the demo: pictures from a folder, and questions of the kinds that a checkpoint was taught."""

from __future__ import annotations

import base64
import io
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from llava_pose.data.conversation import CAPTION_QUESTIONS, JOINT_QUESTIONS, POSE_QUESTIONS, object_words
from llava_pose.data.images import load_rgb
from llava_pose.errors import InputError
from llava_pose.inference.photos import find_photos
from llava_pose.pose import categories
from llava_pose.serve.decoding import REMEDY
from llava_pose.serve.limits import LARGEST_SIDE
from llava_pose.utils.files import printable

logger = logging.getLogger(__name__)
MOST_PICTURES = 12
THUMBNAIL = 96  # pixels


def prepare_pictures(folder: str, into: Path) -> list[Path]:
    """Write pictures from all of a folder, upright and no larger than visitors' own, and return their files.

    Raises:
        InputError: none of them can be read.
    """
    found = find_photos([folder])
    chosen = found[:: max(1, len(found) // MOST_PICTURES)][:MOST_PICTURES]
    titles = Counter(map(_title, chosen))
    written: list[Path] = []
    for path in chosen:
        try:
            picture = load_rgb(path, upright=True, remedy=REMEDY, max_side=LARGEST_SIDE)
        except InputError as error:
            logger.warning("--examples: %s", error)
            continue
        title = _title(path) if titles[_title(path)] == 1 else _title(path, numbers=True)  # IMG_0042 of a telephone
        file = into / f"{len(written):02}-{title}.jpg"
        picture.save(file, "JPEG", quality=92)
        written.append(file)
    if not written:
        raise InputError(f"--examples {folder}: none of its pictures can be read; {REMEDY}")
    return written


def _title(path: Path, *, numbers: bool = False) -> str:
    """Return what a picture is called: the words of its file's name, without numbers unless there is nothing else."""
    words = "".join(c if c.isalnum() else " " for c in printable(path.stem)).split()
    return " ".join([word for word in words if numbers or word.isalpha()] or words)[:24] or "picture"


def title_of(picture: Path) -> str:
    """Return what a picture of :func:`prepare_pictures` is called."""
    return picture.stem.partition("-")[2]


def thumbnail_style(identity: str, path: Path) -> str:
    """Return the style that shows a picture on a button."""
    with Image.open(path) as picture:
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
        out = io.BytesIO()
        picture.save(out, "JPEG", quality=80)
    data = base64.b64encode(out.getvalue()).decode()
    return f"#{identity} {{ background-image: url(data:image/jpeg;base64,{data}); }}\n"


def questions_about(known: Sequence[str], kinds: Sequence[str]) -> list[str]:
    """Return questions of what a checkpoint was taught, as far as it says so.

    Args:
        known: the categories.
        kinds: of questions.
    """
    names = [
        object_words(categories.get(name, allow_custom=True))["object"] for name in list(known) or ["car", "chair"]
    ]
    questions = {
        "joint": [JOINT_QUESTIONS[0]],
        "pose": [POSE_QUESTIONS[0].format(object=names[0]), POSE_QUESTIONS[3].format(object=names[-1])],
        "caption": [CAPTION_QUESTIONS[0]],
    }
    return [text for kind in questions if not kinds or kind in kinds for text in questions[kind]]
