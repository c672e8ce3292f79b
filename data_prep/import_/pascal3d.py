"""PASCAL3D+ and ObjectNet3D, whose annotations are MATLAB files of the same structure.

PASCAL3D+ (Xiang et al., WACV 2014)::

    Annotations/<category>_imagenet/<name>.mat     and <category>_pascal
    Images/<category>_imagenet/<name>.JPEG         and <category>_pascal/<name>.jpg
    Image_sets/<category>_imagenet_train.txt       and _val.txt

ObjectNet3D (Xiang et al., ECCV 2016)::

    Annotations/<name>.mat     Images/<name>.JPEG     Image_sets/train.txt, val.txt, test.txt

``record.objects(i).viewpoint`` has azimuth, elevation and theta in degrees, distance, px, py, focal and viewport, in our
convention. An object with a coarse viewpoint only has a distance of 0, and is left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.import_.items import ImportedObject, LeftOut, picture_in
from data_prep.import_.mat_file import MOST_UNFOLDED, read_mat
from data_prep.raw.imagenet3d import IMAGE_SUFFIXES
from llava_pose.errors import InputError
from llava_pose.utils.files import read_bytes, read_text

_SPLITS = {"train": "train", "val": "val", "test": "val"}


def read_pascal3d(root: Path, split: str) -> Iterator[ImportedObject | LeftOut]:
    """The objects of a PASCAL3D+ or ObjectNet3D folder.

    Args:
        split: of pictures that no list of Image_sets/ names.

    Raises:
        InputError: there are no annotations.
    """
    files = sorted((root / "Annotations").rglob("*.mat"))
    if not files:
        raise InputError(
            f"{root}: there is no .mat file in Annotations/; give the folder that holds Annotations and Images"
        )
    lists = _read_lists(root / "Image_sets")
    for file in files:
        name = file.relative_to(root / "Annotations").with_suffix("").as_posix()
        try:
            record = read_record(file)
        except InputError as error:
            yield LeftOut(str(file), "annotation unreadable", str(error))
            continue
        picture = _picture(root / "Images", name, record)
        if isinstance(picture, LeftOut):
            yield LeftOut(str(file), picture.reason, picture.sentence)
            continue
        of_picture = lists.get(name) or lists.get(file.stem) or split
        for index, thing in enumerate(_items(record.get("objects"))):
            yield _object(f"{file}, object {index + 1}", thing, picture, name, of_picture, _size(record))


def _object(
    where: str, thing: Any, picture: Path, name: str, split: str, size: tuple[int, int] | None
) -> ImportedObject | LeftOut:
    if not isinstance(thing, dict) or not isinstance(thing.get("class"), str):
        return LeftOut(where, "object malformed", f"{where}: it has no class; mend it")
    view = thing.get("viewpoint")
    if not isinstance(view, dict):
        return LeftOut(where, "viewpoint missing", f"{where}: it has no viewpoint; annotate it or take it out")
    numbers = {n: view.get(n) for n in ("azimuth", "elevation", "theta", "distance", "px", "py", "focal", "viewport")}
    if not numbers["distance"] or numbers["azimuth"] is None:
        return LeftOut(where, "viewpoint coarse", f"{where}: its viewpoint is coarse only, with a distance of 0")
    for angle in ("azimuth", "elevation", "theta"):
        value = numbers[angle]
        numbers[angle] = math.radians(value) if isinstance(value, int | float) else value
    if numbers["viewport"] is None:  # what both data sets were annotated with where they do not say it
        numbers["viewport"] = 3000.0
    hidden = any(thing.get(flag) in (1, True) for flag in ("truncated", "occluded"))
    fields = {
        **{n: value for n, value in numbers.items() if value is not None},
        "bbox": thing.get("bbox"),
        "cad_index": thing.get("cad_index") or 0,
        "object_status": "status_partially" if hidden else "status_good",
        "difficult": bool(thing.get("difficult")),
        "source": "pascal3d",
    }
    return ImportedObject(where, picture, name, thing["class"], split, fields, size)


def read_record(file: Path) -> dict[str, Any]:
    """The struct ``record`` of a MATLAB file, structs as dicts.

    Raises:
        InputError: it is damaged, of another version, too large, or holds no record.
    """
    try:
        record = read_mat(read_bytes(file, most=MOST_UNFOLDED)).get("record")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{file}: cannot be read as an annotation of PASCAL3D+ ({error}); download it again"
        ) from error
    if not isinstance(record, dict):
        raise InputError(f"{file}: there is no struct 'record' in it; download it again")
    return record


def _picture(images: Path, name: str, record: dict[str, Any]) -> Path | LeftOut:
    """The picture beside the annotation, or the one that the record names."""
    for suffix in IMAGE_SUFFIXES:
        if (images / f"{name}{suffix}").is_file():
            return images / f"{name}{suffix}"
    folder, _, _ = name.rpartition("/")
    named = str(record.get("filename") or f"{name}.JPEG").rpartition("/")[2]
    return picture_in(images, f"{folder}/{named}" if folder else named, name)


def _size(record: dict[str, Any]) -> tuple[int, int] | None:
    """Width and height that the record says the picture has: in size as VOC's do, or in imgsize."""
    size, numbers = record.get("size"), record.get("imgsize")
    if isinstance(size, dict):
        numbers = [size.get("width"), size.get("height")]
    if not isinstance(numbers, list) or len(numbers) < 2 or not all(isinstance(n, int) and n > 0 for n in numbers[:2]):
        return None
    return numbers[0], numbers[1]


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


_LIST = re.compile(r"(?:(?P<folder>.+)_)?(?P<split>train|val|test)\.txt")


def _read_lists(folder: Path) -> dict[str, str]:
    """Name of an annotation -> split, as the lists say: <folder>_train.txt holds names in that folder, train.txt any."""
    splits: dict[str, str] = {}
    for path in sorted(folder.glob("*.txt")):
        match = _LIST.fullmatch(path.name)
        if match is None:
            continue
        for line in read_text(path, remedy="it must be names, one a line").splitlines():
            words = line.split()
            if words and (len(words) == 1 or words[1] != "-1"):  # VOC's lists say -1 of pictures without the class
                name = f"{match['folder']}/{words[0]}" if match["folder"] else words[0]
                splits.setdefault(name, _SPLITS[match["split"]])
    return splits
