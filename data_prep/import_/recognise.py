"""A folder or a file is recognised by what it looks like, and the command that reads it is named."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_prep.raw.imagenet3d import IMAGE_SUFFIXES
from llava_pose.data.records import METADATA_FILE
from llava_pose.errors import InputError
from llava_pose.utils.files import open_regular

_MOST_LOOKED_AT = 2000  # entries of a folder and of those in it
_ENDS = 1 << 18  # bytes of a JSON file that are looked at, at either end
_WORDS = {  # what stands in a JSON file -> kind; all words of a line, the first line that fits
    "omni3d": (b'"annotations"', b'"R_cam"'),
    "coco": (b'"annotations"', b'"images"', b'"bbox"'),
    "objectron": (b'"frameAnnotations"',),
    "objectron ": (b'"frame_annotations"',),
}


@dataclass(frozen=True)
class Recognised:
    """The kind of data that a path looks like.

    Attributes:
        kind: "imagenet3d", "prepared", "processed", "pictures", or what ``llava-pose import --kind`` takes.
        path: the folder or file that it is; for a nested data set, the one inside.
        sentence: what it looks like and the command for it, without a full stop.
    """

    kind: str
    path: Path
    sentence: str


def recognise(path: str | os.PathLike[str]) -> Recognised | None:
    """Look at a folder and at what is in it, or at a file, and return None if it is none of what is known."""
    path = Path(path)
    if path.is_file():
        return _file(path)
    if not path.is_dir():
        return None
    here = _folder(path)
    if here is not None:
        return here
    inner = [entry for entry in _entries(path) if entry.is_dir() and not entry.name.startswith(".")]
    for folder in inner:
        nested = _folder(folder)
        if nested is not None:
            return nested
    for folder in (path, *inner):
        for entry in _entries(folder):
            found = _file(entry) if entry.suffix.lower() in (".json", ".jsonl") and entry.is_file() else None
            if found is not None:
                return found
    return _pictures(path)


def raw_root(folder: Path) -> Path:
    """The folder of the raw layout that a person means: the one that was named, or the one in it.

    Raises:
        InputError: it is something else; the message says what it looks like, and the command for it.
    """
    if (folder / "lists").is_dir():
        return folder
    found = recognise(folder)
    if found is None:
        if (folder / "annotations").is_dir():
            return folder  # whose lists are missing, which its reader says
        raise InputError(
            f"{folder}: there are no images/, annotations/ and lists/ in it; give the folder of a data set"
        )
    if found.kind != "imagenet3d":
        raise InputError(found.sentence)
    return found.path


def _folder(path: Path) -> Recognised | None:
    names = {entry.name for entry in _entries(path)}
    if {"images", "annotations", "lists"} <= names:
        command = f"llava-pose prepare --data-root {path} --out {path}_prepared"
        return Recognised("imagenet3d", path, f"{path} looks like ImageNet3D's raw layout: {command}")
    if any((path / split / METADATA_FILE).is_file() for split in names & {"train", "val", "test"}):
        command = f"llava-pose instruct --data {path} --out {path / 'train.json'}"
        return Recognised("prepared", path, f"{path} looks like prepared data already: {command}")
    if any({"images", "annotations"} <= {e.name for e in _entries(path / s)} for s in names & {"train", "val"}):
        return Recognised(
            "processed",
            path,
            f"{path} looks like ImageNet3D's processed layout, which is cropped already; give the raw data set it was made of",
        )
    if {"Annotations", "Images"} <= names and next((path / "Annotations").rglob("*.mat"), None) is not None:
        name = "PASCAL3D+" if any(entry.is_dir() for entry in _entries(path / "Annotations")) else "ObjectNet3D"
        return _import("pascal3d", path, path, name, path)
    if next(path.glob("*/*/scene_gt.json"), None) is not None:
        return _import("bop", path, path, "a BOP data set", path)
    return None


def _file(path: Path) -> Recognised | None:
    """A JSON file by the names of fields at its beginning and its end."""
    try:
        with open_regular(path) as file:
            text = file.read(_ENDS)
            file.seek(max(0, os.fstat(file.fileno()).st_size - _ENDS))
            text += file.read(_ENDS)
    except OSError:
        return None
    folder = path.parent
    if path.suffix.lower() == ".jsonl":
        if b'"pred_category"' not in text:
            return None
        return _import("predictions", path, folder, "our own predictions", path, " --data PREPARED")
    for kind, words in _WORDS.items():
        if all(word in text for word in words):
            options = {
                "coco": f" --images {folder} --angles-file ANGLES.csv --angles degrees",
                "omni3d": f" --images {folder}",
            }
            title = {"coco": "COCO boxes", "omni3d": "Omni3D"}.get(kind, "Objectron's annotations as JSON")
            options.setdefault(kind, f" --images {folder}")
            return _import(kind.strip(), path, folder, title, path, options[kind])
    return None


def _import(kind: str, path: Path, folder: Path, title: str, source: Path, options: str = "") -> Recognised:
    out = folder.parent / f"{folder.resolve().name}_raw"
    command = f"llava-pose import {source} --kind {kind}{options} --out {out}"
    return Recognised(kind, path, f"{path} looks like {title}: {command}")


def _pictures(path: Path) -> Recognised | None:
    for folder in (path, *(entry for entry in _entries(path) if entry.is_dir())):
        if any(entry.suffix in IMAGE_SUFFIXES for entry in _entries(folder)):
            return Recognised(
                "pictures",
                path,
                f"{path} looks like pictures without annotations; llava-pose predict says their poses, and docs/DATA.md, "
                '"Your own photographs", how they are labelled',
            )
    return None


def _entries(folder: Path) -> Iterator[Path]:
    """The first entries of a folder; none of one that cannot be read."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry, _ in zip(entries, range(_MOST_LOOKED_AT), strict=False)]
    except OSError:
        names = []
    return (folder / name for name in sorted(names))
