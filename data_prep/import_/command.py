"""`llava-pose import`: another data set to ImageNet3D's raw layout, which `prepare` reads.

What could not be taken stands in rejects.jsonl with its reason, and the log counts the reasons. Train and val go into one
folder by ``--val-source``; BOP and PASCAL3D+ say themselves which picture is in which split.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from data_prep.import_.bop import read_bop
from data_prep.import_.coco import read_coco
from data_prep.import_.items import ImportedObject, LeftOut
from data_prep.import_.objectron import read_objectron
from data_prep.import_.omni3d import read_omni3d
from data_prep.import_.pascal3d import read_pascal3d
from data_prep.import_.poses import read_posed
from data_prep.import_.predictions import read_own
from data_prep.import_.recognise import recognise
from data_prep.import_.write import REJECTS_FILE, Account, write_raw
from llava_pose.data.convert import FormatName, check_intrinsics
from llava_pose.errors import InputError
from llava_pose.utils.command import command, say_next
from llava_pose.utils.config import check_fields, require, require_folder
from llava_pose.utils.files import file_digest, is_plain_name
from llava_pose.utils.output_folder import LOCK_NAME, keep_settings, own_folder, settings_file
from llava_pose.utils.yaml_files import as_written

logger = logging.getLogger(__name__)
KINDS = ("coco", "pascal3d", "bop", "omni3d", "objectron", "predictions", "poses")


@dataclass
class ImportConfig:
    """Options of ``llava-pose import``."""

    source: str | None = field(
        default=None,
        metadata={"help": "The folder of the data set, or its file (COCO, Omni3D, Objectron, predictions, poses)."},
    )
    out: str | None = field(default=None, metadata={"help": "The folder to write in the raw layout."})
    kind: Literal["auto", "coco", "pascal3d", "bop", "omni3d", "objectron", "predictions", "poses"] = field(
        default="auto",
        metadata={
            "help": "What it is; pascal3d reads ObjectNet3D too, poses what llava-pose convert reads, and auto looks at it."
        },
    )
    images: str | None = field(
        default=None, metadata={"help": "The folder that picture names are relative to; by default that of the file."}
    )
    angles_file: str | None = field(
        default=None,
        metadata={
            "help": "COCO: a CSV file with annotation_id, azimuth, elevation and theta (distance, px, py if known)."
        },
    )
    angles: Literal["degrees", "radians"] | None = field(
        default=None, metadata={"help": "COCO: the unit of the angles in that file."}
    )
    data: str | None = field(
        default=None, metadata={"help": "Predictions: the prepared folder that they were made of."}
    )
    min_confidence: Annotated[float, Field(ge=0, le=1)] = field(
        default=0.0, metadata={"help": "Predictions and poses: the confidence from which on one is taken."}
    )
    from_format: FormatName | None = field(
        default=None, metadata={"help": "Poses: the format of the file, as llava-pose convert names it."}
    )
    intrinsics: list[float] | None = field(
        default=None,
        metadata={
            "help": "Poses: fx fy cx cy of the camera of all pictures, in pixels, where the file does not hold it."
        },
    )
    split: str = field(default="train", metadata={"help": "The split of the source, where it does not say it itself."})
    val_source: str | None = field(
        default=None,
        metadata={"help": "A second source of the same kind, for the split val (COCO, Omni3D, Objectron, poses)."},
    )
    rename: dict[str, str] = field(
        default_factory=dict, metadata={"help": "In YAML only: the data set's names of categories, and ours."}
    )
    files: Literal["link", "copy"] = field(
        default="link",
        metadata={"help": "Pictures as hard links, which take no room where the disk allows them, or copies."},
    )

    def __post_init__(self) -> None:
        check_fields(self)
        check_intrinsics(self.intrinsics)
        if not is_plain_name(self.split):
            raise InputError(f"--split {self.split}: cannot name a split; use letters and digits")


def import_dataset(config: ImportConfig) -> Path:
    """Write a data set in the raw layout, and return its folder.

    Raises:
        InputError: it cannot be read, is none of what is known, holds no object that can be taken, or ``--out`` holds something
            else.
    """
    source, out = Path(require(config.source, "--source")), Path(require(config.out, "--out"))
    if not source.exists():
        raise InputError(f"--source {source}: there is nothing of that name; check the path")
    kind, source = _kind(config.kind, source)
    items = _items(config, kind, source)
    with own_folder(out, "--out", "import"):
        kept = settings_file(out, "import")
        # where nothing could be taken, the next try, with the data mended or other options, is a new beginning
        is_empty = kept.is_file() and {path.name for path in out.iterdir()} <= {kept.name, REJECTS_FILE, LOCK_NAME}
        begun = False if is_empty else None
        keep_settings(out, "--out", "import", _settings(config, kind, source), begun=begun)
        account = write_raw(items, out, rename=config.rename, copy=config.files == "copy")
    _report(account, str(config.from_format) if kind == "poses" else kind, source, out)
    return out


def _settings(config: ImportConfig, kind: str, source: Path) -> dict[str, object]:
    settings = {n: value for n, value in as_written(config).items() if n not in ("out", "source", "kind", "files")}
    read = {"source": str(source), "angles": config.angles_file, "val": config.val_source}
    digests = {f"{name}_digest": file_digest(file) for name, file in read.items() if file and Path(file).is_file()}
    return {"source": str(source.resolve()), "kind": kind, **settings, **digests}


def _kind(kind: str, source: Path) -> tuple[str, Path]:
    """Return what the source is, and where it lies: a data set may be in a folder of the one that was named."""
    found = recognise(source) if kind == "auto" or source.is_dir() else None
    if kind != "auto":
        nested = found is not None and found.kind == kind and kind != "objectron"
        return kind, found.path if found is not None and nested else source
    if found is None:
        raise InputError(
            f"--source {source}: is none of {', '.join(KINDS)}; name it with --kind, or give another folder"
        )
    if found.kind not in KINDS:
        raise InputError(f"--source: {found.sentence}")
    logger.info("%s is read as %s", found.path, found.kind)
    return found.kind, found.path


def _items(config: ImportConfig, kind: str, source: Path) -> Iterator[ImportedObject | LeftOut]:
    """The objects of all sources. What is missing among the options is said before anything is read."""
    if kind in ("pascal3d", "bop"):
        require_folder(source, "--source", "give the folder of the data set")
        if config.val_source is not None:
            raise InputError("--val-source: this data set says itself what is in which split; leave it out")
        return read_bop(source) if kind == "bop" else read_pascal3d(source, config.split)
    if kind == "predictions":
        data = require_folder(require(config.data, "--data"), "--data", "give the prepared folder that was predicted")
        return read_own(source, data, config.split, config.min_confidence)
    if kind == "coco":
        table, unit = Path(require(config.angles_file, "--angles-file")), require(config.angles, "--angles")
    if kind == "poses":
        require(config.from_format, "--from-format")
    parts = [(source, config.split)]
    if config.val_source is not None:
        parts.append((Path(config.val_source), "val"))

    def read(file: Path, split: str) -> Iterator[ImportedObject | LeftOut]:
        folder = file if file.is_dir() else file.parent
        images = require_folder(config.images or folder, "--images", "give the folder of the pictures")
        if kind == "coco":
            return read_coco(file, images, table, unit, split)
        if kind == "poses":
            form, camera = str(config.from_format), config.intrinsics
            return read_posed(file, form, images, split, intrinsics=camera, least=config.min_confidence)
        return read_omni3d(file, images, split) if kind == "omni3d" else read_objectron(file, images, split)

    return chain.from_iterable(read(file, split) for file, split in parts)


def _report(account: Account, kind: str, source: Path, out: Path) -> None:
    for reason, count in account.reasons.most_common():
        logger.info("left out: %d, %s", count, reason)
    if not account.pictures:
        why = f"; the first: {account.rejects[0].sentence}" if account.rejects else ""
        raise InputError(
            f"--source {source}: no object of it could be taken, {out / REJECTS_FILE} says why of each{why}"
        )
    if kind in ("omni3d", "bop", "qwen3-vl"):
        logger.warning("%s fixes no front: look at the labels with llava-pose inspect page %s", kind, out)
    options = [f"--splits {','.join(account.objects)}"]
    if kind not in ("pascal3d", "bop", "omni3d", "objectron"):  # whose distances can be trusted
        options.append("--crop box")
    if account.custom:
        logger.info("not in the taxonomy: %s", ", ".join(sorted(account.custom)))
        options.append("--allow-custom-categories")
    logger.info(
        "%d objects of %d pictures are in %s, %d were left out (%s)",
        *(account.objects.total(), account.pictures, out, len(account.rejects), REJECTS_FILE),
    )
    say_next(f"llava-pose prepare --data-root {out} --out {out.with_name(f'{out.name}_prepared')} {' '.join(options)}")


main = command(
    ImportConfig,
    import_dataset,
    prog="llava-pose import",
    description="Bring another data set (COCO boxes with angles, PASCAL3D+, ObjectNet3D, BOP, Omni3D, Objectron, our own "
    "predictions, files of poses) into ImageNet3D's raw layout.",
    example="llava-pose import boxes.json --angles-file angles.csv --angles degrees --images photos --out photos_raw",
    positional="source",
)

if __name__ == "__main__":
    raise SystemExit(main())
