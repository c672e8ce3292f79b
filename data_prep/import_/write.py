"""Objects of any data set written in the raw layout: pictures, annotations, and the lists last.

::

    images/, annotations/, lists/     as docs/DATA.md, "The raw layout"
    rejects.jsonl                     a line for each object that could not be taken: where, reason, sentence
    import.yaml                       the settings

A picture is filed under the category of its first object; ``class`` says the category of each. Pictures are hard links where
the disk allows it, and files are written whole or not at all, so that the same command goes on where it was stopped.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags
from tqdm import tqdm

from data_prep.import_.items import ImportedObject, LeftOut
from data_prep.raw.imagenet3d import (
    IMAGE_SUFFIXES,
    AnnotationError,
    RawLayout,
    parse_object,
    write_annotation,
    write_list,
)
from llava_pose.data.images import DECODING_ERRORS, open_image
from llava_pose.data.jsonl import write_jsonl
from llava_pose.errors import InputError
from llava_pose.pose import categories
from llava_pose.utils.files import is_plain_name, printable, replacing, shortened, unsafe_name

REJECTS_FILE = "rejects.jsonl"
_LONGEST_SIDE = 2**16 - 1  # pixels: ImageNet3D writes them as numbers of 16 bits
_LONGEST_NAME = 150  # letters of a picture's name in the raw layout; of longer ones the end is kept


@dataclass
class Account:
    """The account of what became of a data set's objects."""

    objects: Counter[str] = field(default_factory=Counter)  # by split
    pictures: int = 0
    custom: set[str] = field(default_factory=set)
    rejects: list[LeftOut] = field(default_factory=list)

    @property
    def reasons(self) -> Counter[str]:
        return Counter(reject.reason for reject in self.rejects)


def write_raw(
    items: Iterable[ImportedObject | LeftOut], out: Path, *, rename: Mapping[str, str], copy: bool = False
) -> Account:
    """Write a data set and return the account of it. The caller owns the folder.

    Args:
        rename: the data set's names of categories -> ours.
        copy: copies of pictures in place of hard links.

    Raises:
        InputError: nothing could be written.
    """
    account, layout = Account(), RawLayout(out)
    pictures: dict[Path, list[tuple[ImportedObject, dict[str, Any]]]] = {}
    sizes: dict[Path, tuple[int, int] | LeftOut] = {}
    for item in items:
        taken = item if isinstance(item, LeftOut) else _annotation(item, rename, sizes)
        if isinstance(taken, LeftOut):
            account.rejects.append(taken)
        else:
            assert isinstance(item, ImportedObject)
            pictures.setdefault(item.picture, []).append((item, taken))
    lists: dict[tuple[str, str], list[str]] = {}
    names: set[str] = set()
    for picture, objects in tqdm(pictures.items(), desc="import", unit="picture", delay=2, mininterval=0.5):
        first, annotation = objects[0]
        name = free_name(first.picture_name, names)
        folder = annotation["class"]
        carry(picture, out / "images" / folder / f"{name}{picture.suffix}", copy=copy)
        write_annotation(layout.annotation(folder, name), [values for _, values in objects])
        lists.setdefault((folder, first.split), []).append(name)
        account.objects[first.split] += len(objects)
        account.pictures += 1
        account.custom |= {v["class"] for _, v in objects if categories.find(v["class"]) is None}
    # names of files may hold what no text can
    write_jsonl(out / REJECTS_FILE, ({k: printable(v) for k, v in vars(reject).items()} for reject in account.rejects))
    for (category, split), listed in lists.items():  # last of all: what is listed is there
        write_list(layout.list_file(category, split), listed)
    return account


def _annotation(
    item: ImportedObject, rename: Mapping[str, str], sizes: dict[Path, tuple[int, int] | LeftOut]
) -> dict[str, Any] | LeftOut:
    """The annotation of an object, checked as ``prepare`` will check it, or why there is none."""
    reason = unsafe_name(item.picture_name)
    if reason is not None:
        sentence = f"{item.where}: the name of its picture {shortened(item.picture_name)} {reason}; rename it"
        return LeftOut(item.where, "picture name malformed", sentence)
    name = rename.get(item.category, item.category)
    known = categories.find(name)
    category = name if known is None else known.name
    if not is_plain_name(category):
        sentence = f"{item.where}: the category {shortened(category)} cannot name a folder; rename it"
        return LeftOut(item.where, "category malformed", sentence)
    if item.picture not in sizes:
        sizes[item.picture] = _picture_size(item)
    size = sizes[item.picture]
    if isinstance(size, LeftOut):
        return LeftOut(item.where, size.reason, size.sentence)
    if item.size is not None and item.size not in (size, size[::-1]):  # one that EXIF turns is told apart by prepare
        told = f"{item.size[0]}x{item.size[1]}, and the file {size[0]}x{size[1]}"
        sentence = f"{item.where}: the data set says that the picture is {told}; it is another picture"
        return LeftOut(item.where, "picture size differs", sentence)
    width, height = item.size or size
    if max(width, height) > _LONGEST_SIDE:
        sentence = (
            f"{item.where}: its picture has {width}x{height} pixels, and a side may have {_LONGEST_SIDE}; shrink it"
        )
        return LeftOut(item.where, "picture too large", sentence)
    values = {
        **{"focal": 1.0, "object_status": "status_good", "dense": "dense_no", "cad_index": 0},
        **item.fields,
        **{"class": category, "width": np.uint16(width), "height": np.uint16(height)},
    }
    try:
        parsed = parse_object(values)
    except AnnotationError as error:
        return LeftOut(item.where, error.reason, f"{item.where}: {error}")
    values["bbox"] = np.array(parsed.bbox)
    values["principal"] = np.array([parsed.px, parsed.py])
    return values


def _picture_size(item: ImportedObject) -> tuple[int, int] | LeftOut:
    if item.picture.suffix not in IMAGE_SUFFIXES:
        sentence = f"{item.picture}: pictures must be one of {', '.join(IMAGE_SUFFIXES)}; save it as JPEG or PNG"
        return LeftOut(item.where, "picture format", sentence)
    try:
        with open_image(item.picture) as image:
            if item.size is None and image.getexif().get(ExifTags.Base.Orientation, 1) not in (0, 1):
                sentence = (
                    f"{item.picture}: EXIF turns it, and nothing says which way up it was annotated; save it upright"
                )
                return LeftOut(item.where, "picture orientation unknown", sentence)
            return image.size
    except (InputError, *DECODING_ERRORS) as error:
        return LeftOut(item.where, "picture unreadable", f"{item.picture}: cannot be read ({error}); save it anew")


def free_name(picture_name: str, taken: set[str]) -> str:
    """The name of a picture in the raw layout: that in the data set with its folders, and a number where that is taken."""
    stem = os.path.splitext(picture_name)[0].replace("\\", "/").strip("/")
    base = (
        "_".join(part.strip() for part in stem.split("/") if part not in ("", "."))[-_LONGEST_NAME:].strip(" ._")
        or "picture"
    )
    while len(base.encode("utf-8")) > _LONGEST_NAME:
        base = base[1:]
    name, number = base, 1
    while name in taken:
        number += 1
        name = f"{base}_{number}"
    taken.add(name)
    return name


def carry(source: Path, target: Path, *, copy: bool) -> None:
    """Bring a picture to its place whole: as a hard link where the disk allows it, else, or if asked for, as a copy."""
    with replacing(target) as temporary:
        if not copy:
            try:
                os.link(os.path.realpath(source), temporary)
                return
            except OSError:  # another disk, or one without hard links
                pass
        shutil.copyfile(source, temporary)
