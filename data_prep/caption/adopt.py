"""Captions that somebody else wrote: one text a picture, with `<pose6D>` at one place or several, given to objects of ours.

A file of them is JSON or JSON Lines. Each entry has the picture's name and the caption, and may say which objects it names::

    {"bed/n02818832_13.JPEG": "A bed <pose6D> beside a desk lamp <pose6D>."}
    {"image": "images/bed/n02818832_13.JPEG", "caption": "…", "objects": ["bed", "desk_lamp"]}

``objects`` has an entry for each token: a record's id, the object's number in its annotation file (from 0), its category, or
its box in the photograph, (x1, y1, x2, y2) in pixels or as shares of width and height. Without it, the name before each token
says the category, or, where one asks for that, the tokens stand in the order of the annotation. What is not sure is not
guessed: the caption is left out, with its reason.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

from data_prep.caption.check import Mismatch, check_words, expect, names_before_tokens
from data_prep.caption.lines import FAILED, OK, CaptionLine
from data_prep.scene.scenes import Scene
from llava_pose.data.conversation import POSE_TOKEN
from llava_pose.data.jsonl import parse_json, read_jsonl
from llava_pose.data.records import ObjectRecord, category_of
from llava_pose.errors import InputError
from llava_pose.utils.files import read_text, shortened

Match = Literal["auto", "order", "category", "box"]
WRITER = "others"
_IMAGE, _CAPTION, _OBJECTS = ("image", "file_name", "image_path"), ("caption", "text"), ("objects", "boxes", "bboxes")
_LEAST_OVERLAP = 0.5  # intersection over union of a box of theirs with one of ours


@dataclass(frozen=True)
class Entry:
    """One caption of the file: where it stands, the picture's name, the text, and what is said of its objects."""

    where: str
    image: str
    caption: str
    objects: Sequence[Any] | None


@dataclass
class Adopted:
    """The outcome of adopting captions: a line for each picture that is there, and the reasons of those left out."""

    lines: dict[str, CaptionLine] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)


def adopt(path: str, scenes: Mapping[str, Scene], match: Match, *, any_nouns: bool, strict: bool) -> Adopted:
    """Give each caption of a file to a picture and to its objects.

    Args:
        scenes: by the picture's path below the prepared folder, of one split.
        any_nouns: take captions that call objects, or speak of objects, by words that the records do not have.
        strict: refuse the file for one caption that cannot be used.

    Raises:
        InputError: the file cannot be read; or ``strict``, and a caption cannot be used.
    """
    found, index = Adopted(), _index(scenes)
    for entry in read_entries(path):
        image = ""
        try:
            pictures = _pictures(entry.image, index)
            image = pictures[0]
            caption = " ".join(entry.caption.split())
            photograph = _photograph(pictures, scenes)
            objects = _matched(caption, entry.objects, photograph, match)
            check_words(caption, objects, names=not any_nouns)
            image = _showing(objects, pictures, scenes)
            expect(image not in found.lines or found.lines[image].status == FAILED, "its picture has a caption already")
        except Mismatch as error:
            reason = str(error)
            if strict:
                raise InputError(
                    f"{entry.where}: the caption of {shortened(entry.image)}: {reason}; mend it or leave out --strict"
                ) from error
            found.left_out[reason] += 1
            found.examples.append(f"{entry.where}: {shortened(entry.image)}: {reason}")
            if image and image not in found.lines:
                found.lines[image] = CaptionLine(image, FAILED, "", (), WRITER, reason=reason)
            continue
        ids = tuple(record.id for record in objects)
        found.lines[image] = CaptionLine(image, OK, caption, ids, WRITER, any_nouns=any_nouns)
    return found


def read_entries(path: str) -> Iterator[Entry]:
    """Yield the captions of a file: an object picture -> caption, a list of entries, or JSON Lines of them.

    Raises:
        InputError: it cannot be read, or an entry has no picture or no caption.
    """
    text = read_text(path)
    try:
        value = parse_json(text)
    except ValueError:
        value = None
    if value is None or (isinstance(value, dict) and _named(value, _IMAGE) is not None):
        entries: Iterable[tuple[str, Any]] = read_jsonl(path)
    elif isinstance(value, dict):
        entries = [
            (f"{path}: {shortened(image)}", {"image": image, **(one if isinstance(one, dict) else {"caption": one})})
            for image, one in value.items()
        ]
    elif isinstance(value, list):
        entries = [(f"{path}: entry {number}", one) for number, one in enumerate(value)]
    else:
        raise InputError(f"{path}: must hold captions by picture, not {shortened(str(value))}")
    for where, one in entries:
        image, caption = (_named(one, names) if isinstance(one, dict) else None for names in (_IMAGE, _CAPTION))
        if not isinstance(image, str) or not isinstance(caption, str):
            raise InputError(f"{where}: must have the picture's name as 'image' and its text as 'caption'; mend it")
        objects = _named(one, _OBJECTS)
        if objects is not None and not isinstance(objects, list):
            raise InputError(f"{where}: 'objects' must be a list with an entry for each {POSE_TOKEN}")
        yield Entry(where, image, caption, objects)


def _named(entry: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((entry[name] for name in names if name in entry), None)


def _index(scenes: Mapping[str, Scene]) -> dict[str, dict[str, list[str]]]:
    """Return name -> photograph -> its pictures, for every end of every name that a picture or its photograph has.

    Suffixes of files do not count, and the pictures of one photograph are crops of it.
    """
    index: dict[str, dict[str, list[str]]] = defaultdict(dict)
    for picture, scene in scenes.items():
        photograph = str(scene.objects[0].source.get("image") or picture)
        for name in {picture, photograph}:
            for end in _ends(name):
                index[end].setdefault(photograph, []).append(picture)
    return index


def _ends(name: str) -> list[str]:
    """Return "a/b/c", "b/c" and "c" of "a/b/c.jpg"."""
    parts = PurePosixPath(name).with_suffix("").parts if PurePosixPath(name).name else ()
    return ["/".join(parts[start:]) for start in range(len(parts))]


def _pictures(name: str, index: Mapping[str, Mapping[str, list[str]]]) -> list[str]:
    """Return the pictures of the one photograph that a name means, by the longest end of it that is known."""
    found = next((index[end] for end in _ends(name.replace("\\", "/")) if end in index), None)
    if found is None:
        raise Mismatch("there is no picture of that name in the split")
    expect(len(found) == 1, "there are several pictures of that name")
    return sorted(next(iter(found.values())))


def _photograph(pictures: Iterable[str], scenes: Mapping[str, Scene]) -> list[ObjectRecord]:
    """Return all objects of a photograph, each as the picture that is its own shows it, in the order of the annotation."""
    own = {id_: scenes[picture].by_id[id_] for picture in pictures for id_ in scenes[picture].owners}
    return sorted(own.values(), key=lambda record: int(record.id.rsplit("/", 1)[1]))


def _showing(objects: Sequence[ObjectRecord], pictures: Iterable[str], scenes: Mapping[str, Scene]) -> str:
    """Return the picture that shows all of them, the first object's own where it does."""
    wanted = {record.id for record in objects}
    fitting = [picture for picture in pictures if wanted <= scenes[picture].by_id.keys()]
    expect(fitting, "no one crop shows all objects that it names (prepare --crop whole has them in one picture)")
    return next((p for p in fitting if objects[0].id in scenes[p].owners), fitting[0])


def _matched(
    caption: str, said: Sequence[Any] | None, objects: Sequence[ObjectRecord], match: Match
) -> list[ObjectRecord]:
    """Return the object of each token.

    Raises:
        Mismatch: it is not sure which.
    """
    tokens = caption.count(POSE_TOKEN)
    expect(tokens, f"there is no {POSE_TOKEN} in it")
    expect(tokens <= len(objects), f"it has more {POSE_TOKEN} than its picture has objects")
    if said is not None and match in ("auto", "box"):
        expect(len(said) == tokens, f"its 'objects' are not as many as its {POSE_TOKEN}")
        return _distinct([_meant(one, objects) for one in said])
    expect(match != "box", "it says no boxes of its objects")
    if len(objects) == 1:
        return list(objects)
    if match == "order":
        numbers = [int(record.id.rsplit("/", 1)[1]) for record in objects]
        expect(
            tokens == len(objects) and numbers == list(range(len(objects))),
            f"its {POSE_TOKEN} are not as many as the objects that are annotated, so that their order says nothing",
        )
        return list(objects)
    names = names_before_tokens(caption, [category_of(record) for record in objects])
    by_category = [[r for r in objects if named is not None and category_of(r).name in named] for named in names]
    expect(all(by_category), f"a {POSE_TOKEN} follows no name of an object of its picture")
    expect(all(len(fitting) == 1 for fitting in by_category), "its picture has several objects of one of its names")
    return _distinct([fitting[0] for fitting in by_category])


def _distinct(objects: list[ObjectRecord]) -> list[ObjectRecord]:
    expect(len({record.id for record in objects}) == len(objects), f"two of its {POSE_TOKEN} mean one object")
    return objects


def _meant(said: Any, objects: Sequence[ObjectRecord]) -> ObjectRecord:
    """Return the object that an entry of ``objects`` means."""
    if isinstance(said, dict):
        said = next((said[name] for name in ("id", "bbox", "box", "category", "class") if name in said), said)
    if isinstance(said, list):
        return _in_box(said, objects)
    if isinstance(said, int) and not isinstance(said, bool):
        fitting = [record for record in objects if record.id.endswith(f"/{said}")]
    else:
        fitting = [record for record in objects if record.id == said]
        # a category by any of its names
        fitting = fitting or [r for r in objects if isinstance(said, str) and _is_called(r, said)]
    expect(fitting, f"{shortened(json.dumps(said))} is no object of its picture")
    expect(len(fitting) == 1, f"{shortened(json.dumps(said))} may be any of {len(fitting)} objects of its picture")
    return fitting[0]


def _is_called(record: ObjectRecord, name: str) -> bool:
    category, words = category_of(record), " ".join(name.replace("_", " ").lower().split())
    names = (category.name, category.display_name, *category.aliases)
    return words in {known.replace("_", " ").lower() for known in names}


def _in_box(box: Sequence[Any], objects: Sequence[ObjectRecord]) -> ObjectRecord:
    """Return the object whose box in the photograph a box covers best."""
    expect(
        len(box) == 4 and all(isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < 1e9 for v in box),
        "a box of its objects is not four numbers",
    )
    as_shares = all(0 <= value <= 1 for value in box)
    overlaps = [_overlap(box, _box_in_photograph(record, as_shares=as_shares)) for record in objects]
    best = max(overlaps)
    expect(best >= _LEAST_OVERLAP, "a box of its objects is none of its picture's")
    expect(sum(overlap > best - 0.1 for overlap in overlaps) == 1, "a box of its objects is that of two")
    return objects[overlaps.index(best)]


def _box_in_photograph(record: ObjectRecord, *, as_shares: bool) -> list[float]:
    crop, source = record.crop, record.source
    scale, origin = crop.get("scale", 1.0), (crop.get("left", 0.0), crop.get("top", 0.0))
    width, height = source.get("width") or record.width, source.get("height") or record.height
    sizes = (width, height) if as_shares else (1.0, 1.0)
    return [(value / scale + origin[i % 2]) / sizes[i % 2] for i, value in enumerate(record.bbox)]


def _overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the intersection of two boxes over their union."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0.0) * max(height, 0.0)
    either = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    return both / either if either > 0 else 0.0
