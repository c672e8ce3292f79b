"""The output of any stage as a :class:`~data_prep.inspect.entries.Dataset`: what it is, is seen from what is in it.

A bad object, line or file stops nothing: it becomes a problem of the dataset. Only what is no dataset at all is an error.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_prep.inspect.entries import Dataset, Entry, Kind, Problem
from data_prep.inspect.texts import caption_entry, conversation_entry, picture_of
from data_prep.raw.imagenet3d import (
    AnnotationError,
    RawLayout,
    filter_reason,
    object_status,
    parse_object,
    read_annotation,
    read_list,
)
from llava_pose.data.jsonl import parse_json, read_jsonl
from llava_pose.data.records import METADATA_FILE, ObjectRecord, Pose, Prediction
from llava_pose.errors import InputError
from llava_pose.utils.files import is_plain_name, is_regular, open_regular, read_text
from llava_pose.utils.yaml_files import read_yaml

_MOST_BYTES = 1 << 36  # of a train.json, as training reads it
_NEEDED = ("azimuth", "elevation", "theta", "distance", "bbox")
_ACCEPTED = (
    "give a raw dataset (a folder with annotations/), a prepared folder, metadata.jsonl, captions.jsonl, train.json or "
    "predictions.jsonl"
)
Problems = list[Problem]


def open_dataset(path: str | Path, *, prepared: str | None = None) -> Dataset:
    """Read the output of a stage.

    Args:
        path: a folder or a file.
        prepared: the prepared folder that pictures of a file are relative to; by default where the file lies.

    Raises:
        InputError: the path is not there, or is none of what can be inspected.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: there is no such file or folder; {_ACCEPTED}")
    problems: Problems = []
    if path.is_dir():
        kind, entries, cad = _folder(path, problems)
    else:
        folder = Path(prepared) if prepared is not None else path.parent
        if not folder.is_dir():
            raise InputError(f"--prepared {folder}: there is no such folder; give the prepared folder of the file")
        kind, entries, cad = _file(path, folder, problems)
    return Dataset(path, kind, tuple(entries), tuple(problems), cad)


def _folder(path: Path, problems: Problems) -> tuple[Kind, Iterator[Entry], Path | None]:
    if any(path.glob(f"*/{METADATA_FILE}")):
        return "prepared", _prepared(path, problems), _cad_of_prepared(path)
    if (path / "annotations").is_dir():
        return "raw", _raw(path, problems), path / "CAD" if (path / "CAD").is_dir() else None
    if (path / METADATA_FILE).is_file():
        raise InputError(f"{path}: it is one split of a prepared folder; give {path.parent}, or {path / METADATA_FILE}")
    if any((path / split / "annotations").is_dir() for split in ("train", "val", "test")):
        raise InputError(f"{path}: it is in the processed layout, which is made of a prepared folder; inspect that")
    raise InputError(f"{path}: it is no dataset; {_ACCEPTED}")


def _file(path: Path, folder: Path, problems: Problems) -> tuple[Kind, Iterator[Entry], Path | None]:
    kind, lines = _kind_and_lines(path, problems)
    if kind == "records":
        split = path.parent
        return kind, _records(lines, split, problems), _cad_of_prepared(split.parent)
    known = {entry.id: entry for entry in _prepared(folder, [])} if kind == "captions" else {}
    makers: Mapping[Kind, Callable[[Any, str], Entry | None]] = {
        "captions": lambda value, where: caption_entry(value, where, folder, problems, known),
        "instructions": lambda value, where: conversation_entry(value, where, folder, problems),
        "predictions": lambda value, where: _prediction(value, where, problems),
    }
    found = (makers[kind](value, where) for where, value in lines)
    return kind, (entry for entry in found if entry is not None), _cad_of_prepared(folder)


# The raw layout


def _raw(root: Path, problems: Problems) -> Iterator[Entry]:
    layout = RawLayout(root)
    named = [
        (split, category, name)
        for split, files in layout.list_files().items()
        for category, file in files.items()
        for name in _names(file, problems)
    ]
    for split, category, name in tqdm(named, desc="reading", unit="image", delay=2, leave=False, mininterval=0.5):
        if is_plain_name(name):
            yield from _objects(layout, split, category, name, problems)
        else:
            problems.append(Problem("bad name", f"lists/{category}_imagenet_{split}.txt: {name!r} is no file name"))
    listed = {(category, name) for _, category, name in named}
    for file in sorted((root / "annotations").glob("*/*.npz")):
        if (file.parent.name, file.stem) not in listed:
            problems.append(Problem("annotation in no list", f"{file}: no list names it, so that no stage reads it"))


def _names(file: Path, problems: Problems) -> list[str]:
    try:
        return read_list(file)
    except InputError as error:
        problems.append(Problem("list unreadable", str(error)))
        return []


def _objects(layout: RawLayout, split: str, category: str, name: str, problems: Problems) -> Iterator[Entry]:
    file, picture = layout.annotation(category, name), layout.image(category, name)
    try:
        objects = read_annotation(file)
    except InputError as error:
        problems.append(Problem("annotation unreadable" if os.path.exists(file) else "annotation missing", str(error)))
        return
    if not objects:
        problems.append(Problem("annotation empty", f"{file}: there is no object in it"))
    if not is_regular(picture):
        problems.append(Problem("image missing", f"{picture}: the image is not there"))
    for index, raw in enumerate(objects):
        id = f"{category}/{name}/{index}"
        if reason := filter_reason(raw):
            problems.append(Problem(f"filtered: {reason}", f"{id}: prepare leaves it out ({reason})"))
        try:
            found = parse_object(raw)
        except AnnotationError as error:
            problems.append(Problem(error.reason, f"{id}: {error}"))
            missing = tuple(key for key in _NEEDED if raw.get(key) is None)
            yield Entry(id, category, split, object_status(raw) or "", picture=picture, missing=missing)
            continue
        yield Entry(
            id,
            found.category or category,
            split,
            found.object_status,
            (Pose(found.azimuth, found.elevation, found.theta, found.distance, found.px, found.py),),
            viewport=found.viewport * found.focal,
            size=(found.width, found.height) if found.width and found.height else None,
            bbox=found.bbox,
            picture=picture,
            cad_index=found.cad_index,
            source=found.source,
            missing=found.absent,
        )


# Prepared folders and files


def _prepared(root: Path, problems: Problems) -> Iterator[Entry]:
    for file in sorted(root.glob(f"*/{METADATA_FILE}")):
        yield from _records(_json_lines(file, problems), file.parent, problems)


def _records(lines: Iterator[tuple[str, Any]], folder: Path, problems: Problems) -> Iterator[Entry]:
    for where, value in lines:
        try:
            record = ObjectRecord.from_dict(value, where=where)
        except InputError as error:
            problems.append(Problem("record malformed", str(error)))
            continue
        index = record.source.get("cad_index")
        yield Entry(
            record.id,
            record.category,
            folder.name,
            record.object_status,
            (record.pose,),
            viewport=record.viewport * record.focal,
            size=(int(record.width), int(record.height)),
            bbox=record.bbox,
            picture=picture_of(folder, record.file_name, where, problems),
            cad_index=index if isinstance(index, int) else 0,
            source=str(record.source.get("source") or ""),
            missing=tuple(str(record.source.get("absent") or "").split()),
            raw_image=str(record.source.get("image") or ""),
        )


def _cad_of_prepared(root: Path) -> Path | None:
    """Return the CAD folder of the raw dataset that a folder was prepared from, if it is still there."""
    settings = root / "prepare.yaml"
    if not settings.is_file():
        return None
    cad = Path(str(read_yaml(settings).get("data_root", ""))) / "CAD"
    return cad if os.path.isdir(cad) else None


def _prediction(value: Any, where: str, problems: Problems) -> Entry | None:
    try:
        found = Prediction.from_dict(value, where=where)
        if fault := found.true.fault():
            raise InputError(f"{where}: {fault}; mend or drop the line")
    except InputError as error:
        problems.append(Problem("prediction malformed", str(error)))
        return None
    return Entry(
        found.id,
        found.category,
        status=found.object_status,
        poses=(found.true,),
        predicted=found.pose,
        system=found.system,
        pred_category=found.pred_category,
        source=found.source,
        missing=tuple(name for name in ("pose", "confidence") if getattr(found, name) is None),
    )


def _kind_and_lines(path: Path, problems: Problems) -> tuple[Kind, Iterator[tuple[str, Any]]]:
    """Return what a file is, by its first item that can be read, and its items, each with where it stands."""
    first = _first_sign(path)
    if first == "[":
        return "instructions", iter(_json_array(path, problems))
    if first != "{":
        raise InputError(f"{path}: it holds neither a JSON array nor JSON Lines; {_ACCEPTED}")
    bad: list[InputError] = []
    where, value = next(read_jsonl(path, on_bad_line=bad.append), ("", None))
    if value is None:
        raise bad[0]
    signs: list[tuple[set[str], Kind]] = [
        ({"pose", "bbox", "file_name"}, "records"),
        ({"true", "id"}, "predictions"),
        ({"conversations"}, "instructions"),
        ({"caption"}, "captions"),
    ]
    for names, kind in signs:
        if names <= value.keys():
            return kind, _json_lines(path, problems)
    keys = ", ".join(sorted(value)[:8]) or "nothing"
    raise InputError(
        f"{where}: the line is no record, caption, conversation or prediction (it has {keys}); {_ACCEPTED}"
    )


def _first_sign(path: Path) -> str:
    try:
        with open_regular(path, "r", encoding="utf-8-sig", errors="replace") as file:
            while sign := file.read(1):
                if not sign.isspace():
                    return sign
    except OSError as error:
        raise InputError(f"{path}: cannot read the file ({error.strerror}); check the path") from error
    raise InputError(f"{path}: there is nothing in it; {_ACCEPTED}")


def _json_lines(path: Path, problems: Problems) -> Iterator[tuple[str, Any]]:
    try:
        yield from read_jsonl(path, on_bad_line=lambda error: problems.append(Problem("line unreadable", str(error))))
    except InputError as error:
        problems.append(Problem("file unreadable", str(error)))


def _json_array(path: Path, problems: Problems) -> list[tuple[str, Any]]:
    try:
        items = parse_json(read_text(path, remedy="write the file again", most=_MOST_BYTES))
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error}); write the file again") from error
    named = [(f"{path}[{number}]", item) for number, item in enumerate(items)]
    good = [(where, item) for where, item in named if isinstance(item, dict) and "conversations" in item]
    if items and not good:
        raise InputError(f"{path}: none of its {len(items)} items has 'conversations'; {_ACCEPTED}")
    kept = {where for where, _ in good}
    problems += [
        Problem("no conversation", f"{where}: it has no 'conversations'") for where, _ in named if where not in kept
    ]
    return good
