"""Any stage's output as a :class:`~data_prep.inspect.entries.Dataset`: what it is is seen from what is in it.

A bad object, line or file stops nothing: it becomes a problem of the dataset. Only what is no dataset at all is an
error.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_prep.inspect.entries import Dataset, Entry, Kind, Problem
from data_prep.inspect.texts import caption_entry, instruction_entry, picture_of
from data_prep.raw.imagenet3d import (
    AnnotationError,
    RawLayout,
    filter_reason,
    object_status,
    parse_object,
    plain,
    read_annotation,
    read_list,
)
from llava_pose.data.records import METADATA_FILE, ObjectRecord, Pose, Prediction, parse_json, read_jsonl
from llava_pose.errors import InputError
from llava_pose.utils.config import read_yaml
from llava_pose.utils.files import is_plain_name, is_regular, open_regular, read_text

_MOST_BYTES = 1 << 36  # of a train.json, as training reads it
PREPARE_SETTINGS = "prepare.yaml"
_ACCEPTED = (
    "give a raw dataset (a folder with annotations/), a prepared folder, metadata.jsonl, captions.jsonl, train.json or "
    "predictions.jsonl"
)


def open_dataset(path: str | Path, *, prepared: str | None = None) -> Dataset:
    """Read a stage's output.

    Args:
        path: a folder or a file.
        prepared: the prepared folder that pictures of a file are relative to; by default where the file lies.

    Raises:
        InputError: the path is not there, or is none of what can be inspected.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: there is no such file or folder; {_ACCEPTED}")
    if path.is_dir():
        return _open_folder(path)
    folder = Path(prepared) if prepared is not None else path.parent
    if not folder.is_dir():
        raise InputError(f"--prepared {folder}: there is no such folder; give the prepared folder that the file is of")
    return _open_file(path, folder)


def _open_folder(path: Path) -> Dataset:
    if any(path.glob(f"*/{METADATA_FILE}")):
        return _read_prepared(path)
    if (path / "annotations").is_dir():
        return _read_raw(path)
    if (path / METADATA_FILE).is_file():
        raise InputError(f"{path}: it is one split of a prepared folder; give {path.parent}, or {path / METADATA_FILE}")
    if any((path / split / "annotations").is_dir() for split in ("train", "val", "test")):
        raise InputError(f"{path}: it is in the processed layout, which is made of a prepared folder; inspect that")
    raise InputError(f"{path}: it is no dataset; {_ACCEPTED}")


# Raw


def _read_raw(root: Path) -> Dataset:
    layout = RawLayout(root)
    entries: list[Entry] = []
    problems: list[Problem] = []
    listed: set[tuple[str, str]] = set()
    lists = [
        (split, category, file) for split, files in layout.list_files().items() for category, file in files.items()
    ]
    names = [(split, category, name) for split, category, file in lists for name in _listed(file, problems)]
    for split, category, name in tqdm(names, desc="reading", unit="image", delay=2, leave=False, mininterval=0.5):
        if not is_plain_name(name):
            problems.append(Problem("bad name", f"lists/{category}_imagenet_{split}.txt: {name!r} is no file name"))
            continue
        listed.add((category, name))
        entries += _raw_entries(layout, split, category, name, problems)
    for file in sorted((root / "annotations").glob("*/*.npz")):
        if (file.parent.name, file.stem) not in listed:
            problems.append(Problem("annotation in no list", f"{file}: no list names it, so that no stage reads it"))
    cad = root / "CAD"
    return Dataset(root, "raw", tuple(entries), tuple(problems), cad if cad.is_dir() else None)


def _listed(file: Path, problems: list[Problem]) -> list[str]:
    try:
        return read_list(file)
    except InputError as error:
        problems.append(Problem("list unreadable", str(error)))
        return []


def _raw_entries(layout: RawLayout, split: str, category: str, name: str, problems: list[Problem]) -> Iterator[Entry]:
    file = layout.annotation(category, name)
    try:
        objects = read_annotation(file)
    except InputError as error:
        problems.append(Problem("annotation unreadable" if os.path.exists(file) else "annotation missing", str(error)))
        return
    if not objects:
        problems.append(Problem("annotation empty", f"{file}: there is no object in it"))
    picture = layout.image(category, name)
    if not is_regular(picture):
        problems.append(Problem("image missing", f"{picture}: the image is not there"))
    for index, raw in enumerate(objects):
        id = f"{category}/{name}/{index}"
        fields = {"split": split, **{key: plain(value) for key, value in raw.items()}}
        reason = filter_reason(raw)
        if reason is not None:
            problems.append(Problem(f"filtered: {reason}", f"{id}: prepare leaves it out ({reason})"))
        try:
            parsed = parse_object(raw)
        except AnnotationError as error:
            problems.append(Problem(error.reason, f"{id}: {error}"))
            # what is wrong with it is in the problems; what is missing is still counted
            missing = tuple(
                key for key in ("azimuth", "elevation", "theta", "distance", "bbox") if raw.get(key) is None
            )
            status = object_status(raw) or ""
            yield Entry(id, category, split, status, picture=picture, missing=missing, fields=fields)
            continue
        pose = Pose(parsed.azimuth, parsed.elevation, parsed.theta, parsed.distance, parsed.px, parsed.py)
        yield Entry(
            id,
            parsed.category or category,
            split,
            parsed.object_status,
            poses=(pose,),
            viewport=parsed.viewport * parsed.focal,
            size=(parsed.width, parsed.height) if parsed.width and parsed.height else None,
            bbox=parsed.bbox,
            picture=picture,
            cad_index=parsed.cad_index,
            source=parsed.source,
            missing=parsed.absent,
            fields=fields,
        )


# Prepared


def _read_prepared(root: Path) -> Dataset:
    entries: list[Entry] = []
    problems: list[Problem] = []
    for file in sorted(root.glob(f"*/{METADATA_FILE}")):
        entries += _records(file, file.parent, file.parent.name, problems)
    return Dataset(root, "prepared", tuple(entries), tuple(problems), _cad_of_prepared(root))


def _cad_of_prepared(root: Path) -> Path | None:
    """The CAD folder of the raw dataset that a folder was prepared from, if it is still there."""
    settings = root / PREPARE_SETTINGS
    if not settings.is_file():
        return None
    cad = Path(str(read_yaml(settings).get("data_root", ""))) / "CAD"
    return cad if os.path.isdir(cad) else None


def _records(file: Path, folder: Path, split: str, problems: list[Problem]) -> Iterator[Entry]:
    for where, value in _lines(file, problems):
        try:
            record = ObjectRecord.from_dict(value, where=where)
        except InputError as error:
            problems.append(Problem("record malformed", str(error)))
            continue
        picture = picture_of(folder, record.file_name, where, problems)
        index = record.source.get("cad_index")
        yield Entry(
            record.id,
            record.category,
            split,
            record.object_status,
            poses=(record.pose,),
            viewport=record.viewport * record.focal,
            size=(int(record.width), int(record.height)),
            bbox=record.bbox,
            picture=picture,
            cad_index=index if isinstance(index, int) else 0,
            source=str(record.source.get("source") or ""),
            missing=tuple(str(record.source.get("absent") or "").split()),
            fields={"split": split, **value},
        )


# Files


def _open_file(path: Path, folder: Path) -> Dataset:
    problems: list[Problem] = []
    first = _first_sign(path)
    if first == "[":
        return _read_instructions(path, folder, problems)
    if first != "{":
        raise InputError(f"{path}: it holds neither a JSON array nor JSON Lines; {_ACCEPTED}")
    kind = _kind_of_line(path)
    cad = _cad_of_prepared(folder)
    if kind == "records":
        entries = tuple(_records(path, path.parent, path.parent.name, problems))
        return Dataset(path, kind, entries, tuple(problems), _cad_of_prepared(path.parent.parent))
    if kind == "predictions":
        return Dataset(path, kind, tuple(_predictions(path, problems)), tuple(problems), cad)
    entries = tuple(_captions(path, folder, problems) if kind == "captions" else _turns(path, folder, problems))
    return Dataset(path, kind, entries, tuple(problems), cad)


def _captions(path: Path, folder: Path, problems: list[Problem]) -> Iterator[Entry]:
    records = {entry.id: entry for entry in _read_prepared(folder).entries}
    for where, value in _lines(path, problems):
        yield caption_entry(value, where, folder, problems, records)


def _turns(path: Path, folder: Path, problems: list[Problem]) -> Iterator[Entry]:
    for where, value in _lines(path, problems):
        yield instruction_entry(value, where, folder, problems)


def _first_sign(path: Path) -> str:
    try:
        with open_regular(path, "r", encoding="utf-8-sig", errors="replace") as file:
            while sign := file.read(1):
                if not sign.isspace():
                    return sign
    except OSError as error:
        raise InputError(f"{path}: cannot read the file ({error.strerror}); check the path") from error
    raise InputError(f"{path}: there is nothing in it; {_ACCEPTED}")


def _kind_of_line(path: Path) -> Kind:
    """What the first line of a JSON Lines file that can be read says it is."""
    bad: list[InputError] = []
    where, value = next(read_jsonl(path, on_bad_line=bad.append), ("", None))
    if value is None:
        raise bad[0]
    if {"pose", "bbox", "file_name"} <= value.keys():
        return "records"
    if "true" in value and "id" in value:
        return "predictions"
    if "conversations" in value:
        return "instructions"
    if "caption" in value:
        return "captions"
    found = ", ".join(sorted(value)[:8]) or "nothing"
    raise InputError(
        f"{where}: the line is no record, caption, conversation or prediction (it has {found}); {_ACCEPTED}"
    )


def _lines(path: Path, problems: list[Problem]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The lines that can be read; the others are problems, each with its number."""
    try:
        yield from read_jsonl(path, on_bad_line=lambda error: problems.append(Problem("line unreadable", str(error))))
    except InputError as error:
        problems.append(Problem("file unreadable", str(error)))


def _read_instructions(path: Path, folder: Path, problems: list[Problem]) -> Dataset:
    text = read_text(path, remedy="write the file again", most=_MOST_BYTES)
    try:
        items = parse_json(text)
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error}); write the file again") from error
    entries = []
    for number, item in enumerate(items):
        where = f"{path}[{number}]"
        if not isinstance(item, dict) or "conversations" not in item:
            problems.append(Problem("no conversation", f"{where}: it has no 'conversations'"))
            continue
        entries.append(instruction_entry(item, where, folder, problems))
    if items and not entries:
        raise InputError(f"{path}: none of its {len(items)} items has 'conversations'; {_ACCEPTED}")
    return Dataset(path, "instructions", tuple(entries), tuple(problems), _cad_of_prepared(folder))


def _predictions(path: Path, problems: list[Problem]) -> Iterator[Entry]:
    for where, value in _lines(path, problems):
        try:
            prediction = Prediction.from_dict(value, where=where)
            if fault := prediction.true.fault():
                raise InputError(f"{where}: {fault}; mend or drop the line")
        except InputError as error:
            problems.append(Problem("prediction malformed", str(error)))
            continue
        missing: tuple[str, ...] = ("pose",) if prediction.pose is None else ()
        missing += ("confidence",) if prediction.confidence is None else ()
        yield Entry(
            prediction.id,
            prediction.category,
            "",
            prediction.object_status,
            poses=(prediction.true,),
            predicted=prediction.pose,
            system=prediction.system,
            pred_category=prediction.pred_category,
            source=prediction.source,
            missing=missing,
            fields=value,
        )
