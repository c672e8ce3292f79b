"""`llava-pose align`: a raw dataset whose CAD models, and their annotations with them, stand in one common frame.

Reads and writes ImageNet3D's raw layout. What the table (data_prep.raw.alignment) turns is turned: the vertices of the CAD
files, and azimuth, elevation and theta of the objects. Everything else is the same file. Files are written whole or not
at all, and one that is there and no older than its source is not made again, so that the same command goes on where it
was stopped; lists/ comes last, and alignment.json, the table that was applied, after it.

Labels that were made in another frame than the CAD models beside them are mended with ``--turn annotations``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import NonNegativeInt
from tqdm import tqdm

from data_prep.pool import map_processes
from data_prep.raw.alignment import AlignmentTable, builtin_table, read_table, turned_angles
from data_prep.raw.imagenet3d import AnnotationError, parse_object, plain, read_annotation, write_annotation
from llava_pose.errors import InputError
from llava_pose.pose.meshes import turned_off
from llava_pose.utils.command import command
from llava_pose.utils.config import check_fields, require_folder
from llava_pose.utils.files import replacing, write_atomic, write_json
from llava_pose.utils.output_folder import keep_settings, own_folder, require_other
from llava_pose.utils.yaml_files import read_yaml

logger = logging.getLogger(__name__)

CONFIG_FILE = "align.yaml"
TABLE_FILES = {  # the tables that a dataset was turned by, one a kind of turn
    "both": "alignment.json",
    "annotations": "alignment_annotations.json",
    "cad": "alignment_cad.json",
}
FOLDERS, LISTS = ("images", "CAD", "annotations"), "lists"
ANGLES = ("azimuth", "elevation", "theta")


@dataclass
class AlignConfig:
    """Options of ``llava-pose align``."""

    data_root: str = field(metadata={"help": "The dataset, in ImageNet3D's raw layout."})
    out: str = field(metadata={"help": "The folder to write; the same command goes on where it was stopped."})
    table: str | None = field(
        default=None, metadata={"help": "A rotation table of your own, as JSON; without it the project's is taken."}
    )
    inverse: bool = field(
        default=False, metadata={"help": "Turn an aligned dataset back, by the table that it was aligned with."}
    )
    turn: Literal["both", "annotations", "cad"] = field(
        default="both",
        metadata={
            "help": "What is turned: annotations is for labels that were made in another frame than the CAD models, cad is "
            "the reverse."
        },
    )
    files: Literal["link", "copy"] = field(
        default="link",
        metadata={
            "help": "What becomes of files that stay as they are: hard links where the disk allows it, which take no room, or "
            "copies."
        },
    )
    workers: NonNegativeInt = field(default=0, metadata={"help": "The processes; 0 is one a core."})

    def __post_init__(self) -> None:
        check_fields(self)
        if self.inverse and self.table is not None:
            raise InputError("--inverse goes by the table that stands in the dataset; leave --table out")


@dataclass(frozen=True)
class _Job:
    """The knowledge that a worker needs beside the file."""

    root: Path
    out: Path
    table: AlignmentTable
    turn: str
    copy: bool


def align(config: AlignConfig) -> Path:
    """Write the aligned dataset and return its folder.

    Raises:
        InputError: there is nothing to read, a CAD file or an annotation file cannot be read, the dataset is aligned
            already (or with --inverse: is not), or --out holds something else.
    """
    root = require_folder(config.data_root, "--data-root", "give the folder that holds images/ and annotations/")
    out = Path(config.out)
    table = _table(config, root)
    files = {name: _files(root / name) for name in (*FOLDERS, LISTS)}
    if not files["annotations"] and not files["CAD"]:
        raise InputError(f"--data-root {root}: there are neither annotations/ nor CAD/ in it; give another folder")
    require_other("--out", [out], [root])
    with own_folder(out, "--out", "align"):
        return _align(config, root, out, table, files)


def _align(config: AlignConfig, root: Path, out: Path, table: AlignmentTable, files: Mapping[str, list[Path]]) -> Path:
    settings = {
        "data_root": str(root.resolve()),
        "inverse": config.inverse,
        "turn": config.turn,
        "table_digest": hashlib.sha256(json.dumps(table.source, sort_keys=True).encode()).hexdigest(),
    }
    keep_settings(out, "--out", "align", settings)
    job = _Job(root.resolve(), out.resolve(), table, config.turn, config.files == "copy")
    counts: Counter[str] = Counter()
    names = [path.relative_to(root) for folder in FOLDERS for path in files[folder]]
    lists = [path.relative_to(root) for path in files[LISTS]]
    with tqdm(total=len(names) + len(lists), unit="file", desc="align", delay=2, mininterval=0.5) as progress:
        # lists last: what is listed is there
        for items, workers in ((names, config.workers), (lists, 1)):
            for counted in map_processes(_align_file, items, job, workers=workers, most_items_a_task=64):
                counts.update(counted)
                progress.update()
    for name in (*FOLDERS, LISTS):
        for stray in (out / name).rglob(".*.tmp"):  # of a run that was killed
            stray.unlink()
    for kind, name in TABLE_FILES.items():
        if kind != config.turn and (root / name).is_file():
            _carry_over(root / name, out / name, copy=job.copy)
    if not config.inverse:
        write_json(out / TABLE_FILES[config.turn], table.source)
    _report(counts, table, out)
    return out


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))


def _table(config: AlignConfig, root: Path) -> AlignmentTable:
    settings: dict[str, Any] = read_yaml(root / CONFIG_FILE) if (root / CONFIG_FILE).exists() else {"inverse": True}
    if not settings["inverse"] and not (root / TABLE_FILES[settings["turn"]]).is_file():
        raise InputError(f"--data-root {root}: a run of llava-pose align was stopped in it; run that to its end first")
    aligned = root / TABLE_FILES[config.turn]
    if config.inverse:
        if not aligned.is_file():
            raise InputError(
                f"{aligned}: there is no such file, so that the dataset is not aligned; leave --inverse out"
            )
        return read_table(aligned).inverted()
    if aligned.exists():
        raise InputError(
            f"{aligned} says that the dataset is aligned already; use it as it is, or turn it back: --inverse"
        )
    return builtin_table() if config.table is None else read_table(config.table)


def _align_file(name: Path, job: _Job) -> dict[str, int]:
    """Turn or carry over one file; counts of what happened, by what the log says of it."""
    source, target = job.root / name, job.out / name
    if _is_done(source, target):
        return {"files from an earlier run": 1}
    kind, category = name.parts[0], name.parts[1] if len(name.parts) > 2 else ""
    if kind == "CAD" and category and job.turn != "annotations":
        rotation = job.table.rotation(category, _cad_index(source))
        if rotation is not None:
            write_atomic(target, turned_off(source, rotation))
            return {"CAD models turned": 1}
    if kind == "annotations" and category and source.suffix == ".npz" and job.turn != "cad":
        objects, counts = _turn_objects(source, category, job.table)
        if counts["objects turned"]:
            write_annotation(target, objects)
            return counts
        _carry_over(source, target, copy=job.copy)
        return counts
    _carry_over(source, target, copy=job.copy)
    return {}


def _is_done(source: Path, target: Path) -> bool:
    try:
        made = target.stat()
    except OSError:
        return False
    there = source.stat()
    return os.path.samestat(made, there) or made.st_mtime_ns >= there.st_mtime_ns


def _cad_index(path: Path) -> int:
    """Return the number of a CAD file; 0 for a file that has none."""
    return int(path.stem) if path.stem.isascii() and path.stem.isdigit() else 0


def _turn_objects(path: Path, folder: str, table: AlignmentTable) -> tuple[list[Mapping[str, Any]], Counter[str]]:
    counts: Counter[str] = Counter()
    objects: list[Mapping[str, Any]] = []
    for raw in read_annotation(path):
        try:
            objects.append(_turn_object(raw, folder, table, counts))
        except AnnotationError as error:
            counts[f"objects of turned categories left as they are: {error.reason}"] += 1
            objects.append(raw)
    return objects, counts


def _turn_object(raw: Mapping[str, Any], folder: str, table: AlignmentTable, counts: Counter[str]) -> Mapping[str, Any]:
    category = plain(raw.get("class")) or folder
    if not isinstance(category, str) or not table.names(category):
        return raw
    parsed = parse_object(raw)
    rotation = table.rotation(category, parsed.cad_index)
    if rotation is None:
        return raw
    counts["objects turned"] += 1
    angles = turned_angles((parsed.azimuth, parsed.elevation, parsed.theta), rotation)
    return {**raw, **dict(zip(ANGLES, angles, strict=True))}


def _carry_over(source: Path, target: Path, *, copy: bool) -> None:
    with replacing(target) as temporary:
        if copy or not _link(source, temporary):
            shutil.copyfile(source, temporary)


def _link(source: Path, target: Path) -> bool:
    """Return whether a hard link could be made; another disk or a file system without links has none."""
    try:
        target.unlink(missing_ok=True)
        os.link(source.resolve(), target)
    except OSError:
        return False
    return True


def _report(counts: Mapping[str, int], table: AlignmentTable, out: Path) -> None:
    for what, count in sorted(counts.items()):
        logger.info("%d %s", count, what)
    logger.info(
        "%d categories of the table; the dataset is %s   look at it: llava-pose inspect align --cad %s --out %s",
        *(len(table.entries), out, out / "CAD", out.with_name(out.name + "_sheets")),
    )


main = command(
    AlignConfig,
    align,
    prog="llava-pose align",
    description="Bring CAD models and annotations of a raw dataset into one frame, by a table of rotations.",
    example="llava-pose align --data-root imagenet3d --out imagenet3d_aligned",
)

if __name__ == "__main__":
    raise SystemExit(main())
