#!/usr/bin/env python
"""Cut what lies beside the objects of photographs: backgrounds of real places for ``llava-pose render --backgrounds``.

    python scripts/backgrounds.py --photos photographs --out backgrounds

Of each photograph of the train lists the strips left, right, above and below all its boxes are kept that are wide enough.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import PositiveInt

from data_prep.raw.imagenet3d import RawLayout, parse_object, read_annotation, read_list
from llava_pose.data.images import load_rgb
from llava_pose.errors import InputError
from llava_pose.utils.command import command, say_next
from llava_pose.utils.config import require, require_folder
from llava_pose.utils.output_folder import own_folder

logger = logging.getLogger(__name__)
TRAIN = "train"


@dataclass
class BackgroundsConfig:
    """Options of this script."""

    photos: list[str] = field(default_factory=list, metadata={"help": "Folders of photographs in the raw layout."})
    out: str = field(default="", metadata={"help": "The folder that receives the pictures."})
    least: PositiveInt = field(default=56, metadata={"help": "The shorter side of a background at least, in pixels."})


def backgrounds(config: BackgroundsConfig) -> int:
    """Write the backgrounds of the train lists and return how many there are; a bad photograph is named and left out.

    Raises:
        InputError: a folder is missing, or nothing in it is wide enough.
    """
    out = Path(require(config.out or None, "--out"))
    count = 0
    with own_folder(out, "--out", "backgrounds"):
        for number, name in enumerate(config.photos):
            layout = RawLayout(require_folder(name, "--photos", "give a folder in the raw layout"))
            for category, listed in sorted(layout.list_files().get(TRAIN, {}).items()):
                for image in read_list(listed):
                    try:
                        count += cut(layout, category, image, out / f"{number}_{category}_{image}", config.least)
                    except InputError as error:
                        logger.warning(f"{category}/{image} is left out: {error}")
    if not count:
        raise InputError(f"--photos {' '.join(config.photos)}: no photograph has room beside its objects; give others.")
    logger.info(f"{count} backgrounds are in {out}")
    say_next(f"llava-pose render --backgrounds {out} --out rendered")
    return count


def cut(layout: RawLayout, category: str, image: str, stem: Path, least: int) -> int:
    """Write the strips of one photograph beside ``stem`` and return their number."""
    boxes = [parse_object(raw).bbox for raw in read_annotation(layout.annotation(category, image))]
    path = layout.image(category, image)
    photo = load_rgb(path, upright=True, remedy="replace it")
    found = list(strips(photo.width, photo.height, boxes, least))
    for number, box in enumerate(found):
        photo.crop(box).save(f"{stem}_{number}.jpg", quality=92)
    return len(found)


def strips(
    width: int, height: int, boxes: Sequence[Sequence[float]], least: int
) -> Iterator[tuple[int, int, int, int]]:
    """The boxes (left, top, right, bottom) of what lies left, right, above and below all objects, in pixels."""
    if not boxes:
        boxes = [(width, height, width, height)]  # all of it is above
    # a box may lie outside of its picture, where there is nothing to cut
    left, top = (min(size, int(min(box[side] for box in boxes))) for side, size in ((0, width), (1, height)))
    right, bottom = (max(0, int(max(box[side] for box in boxes)) + 1) for side in (2, 3))
    for box in ((0, 0, left, height), (right, 0, width, height), (0, 0, width, top), (0, bottom, width, height)):
        if min(box[2] - box[0], box[3] - box[1]) >= least:
            yield box


main = command(
    BackgroundsConfig,
    backgrounds,
    prog="python scripts/backgrounds.py",
    description="Cut backgrounds for renders out of photographs, beside their objects.",
    example="python scripts/backgrounds.py --photos photographs --out backgrounds",
)

if __name__ == "__main__":
    sys.exit(main())
