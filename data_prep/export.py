"""`llava-pose export`: prepared data in ImageNet3D's processed layout, for programs that read that."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from data_prep.raw.imagenet3d import write_list
from data_prep.raw.processed import ProcessedLayout, filed_under, flat_annotation, npz_bytes, published_annotation
from llava_pose.data.images import check_picture
from llava_pose.data.records import METADATA_FILE, ObjectRecord, read_records
from llava_pose.errors import InputError, joined, left_out
from llava_pose.utils.command import command
from llava_pose.utils.config import require_folder
from llava_pose.utils.files import is_plain_name, replacing, write_atomic
from llava_pose.utils.output_folder import keep_settings, own_folder, settings_file
from llava_pose.utils.yaml_files import read_yaml

logger = logging.getLogger(__name__)


@dataclass
class ExportConfig:
    """The options of ``llava-pose export``."""

    data: str = field(metadata={"help": "The prepared folder, as llava-pose prepare writes it."})
    out: str = field(metadata={"help": "The folder to write; the same command goes on where it was stopped."})
    splits: str = field(
        default="", metadata={"help": "The splits, separated by commas; by default all that are prepared."}
    )
    profile: Literal["ours", "published"] = field(
        default="ours",
        metadata={
            "help": "Write every published field as the published preprocessing does, its mistakes included; of a folder of "
            "prepare --profile published."
        },
    )
    published_distance: bool = field(
        default=False,
        metadata={
            "help": "Write the distance divided by the resize rate and the viewport of the raw image, as the published "
            "preprocessing does; otherwise the distance is true and the viewport is the picture's."
        },
    )


def export(config: ExportConfig) -> Path:
    """Write the splits and return the output folder.

    Raises:
        InputError: there is nothing to export, or the folder holds something else. Also where records or pictures cannot be
            used: the others have been exported then.
    """
    data = require_folder(config.data, "--data", "make it with: llava-pose prepare --data-root … --out …")
    made = settings_file(data, "prepare")
    if config.profile == "published" and (not made.is_file() or read_yaml(made).get("profile") != "published"):
        raise InputError(
            f"--profile published: {data} was prepared otherwise; make it with llava-pose prepare --profile published"
        )
    splits = [name.strip() for name in config.splits.split(",") if name.strip()]
    splits = splits or sorted(path.parent.name for path in data.glob(f"*/{METADATA_FILE}"))
    if not splits:
        raise InputError(f"--data {data}: there is no <split>/{METADATA_FILE} in it; run llava-pose prepare")
    out = Path(config.out)
    faults: list[InputError] = []
    records = {split: read_records(data, split, faults=faults) for split in splits}
    empty = [split for split, of_split in records.items() if not of_split]
    if empty and not faults and (config.splits or len(empty) == len(records)):
        raise InputError(
            f"{data / empty[0] / METADATA_FILE}: there is no object in it; choose other --splits, or prepare it again"
        )
    if len(empty) == len(records):
        raise joined(faults, f"{data}: none of its objects can be used")
    for split in empty:
        logger.info("%s: there is no object in it; nothing is exported of it", data / split)
        del records[split]
    exported = 0
    with own_folder(out, "--out", "export"):
        settings = {"data": str(data.resolve()), "published_distance": config.published_distance}
        if config.profile != "ours":  # a folder from before there was a choice is gone on with
            settings["profile"] = config.profile
        keep_settings(out, "--out", "export", settings)
        for split, of_split in records.items():
            exported += _export_split(of_split, data / split, ProcessedLayout(out, split), config, faults)
    logger.info(
        "%d objects of %s are in %s, in the processed layout of ImageNet3D; its loaders take this folder as root_path",
        *(exported, ", ".join(records), out),
    )
    if faults:
        raise left_out(faults, f"{out}: {len(faults)} objects cannot be used and are not in it")
    return out


def _export_split(
    records: list[ObjectRecord],
    pictures: Path,
    layout: ProcessedLayout,
    config: ExportConfig,
    faults: list[InputError],
) -> int:
    """Write one split and return how many objects it holds; what is wrong with the others goes to ``faults``."""
    names = object_names(records)
    listed: dict[str, list[str]] = {}
    progress = tqdm(records, desc=f"export {layout.split}", unit="object", disable=None)
    for record, (category, name) in zip(progress, names, strict=True):
        try:
            if not is_plain_name(name):
                raise InputError(f"record {record.id!r}: its name is too long for a file's; rename its picture")
            if config.profile == "published":
                content = npz_bytes(published_annotation(record, name))
            else:
                content = npz_bytes(flat_annotation(record, name, published_distance=config.published_distance))
            picture, _ = check_picture(pictures, record.file_name)
        except KeyError as error:
            reason = f"record {record.id!r}: says nothing of its photograph's {error}; make it with llava-pose prepare"
            faults.append(InputError(reason))
            continue
        except InputError as error:
            faults.append(error)
            continue
        _copy_if_other(picture, layout.image(category, name))
        annotation = layout.annotation(category, name)
        if not annotation.is_file() or annotation.read_bytes() != content:
            write_atomic(annotation, content)
        listed.setdefault(category, []).append(name)
    for category, names_of in listed.items():
        write_list(layout.list_file(category), names_of)
    _remove_strays(layout, listed)
    return sum(map(len, listed.values()))


def object_names(records: list[ObjectRecord]) -> list[tuple[str, str]]:
    """Return category folder and file name of each record: ``<name>_<index>`` as published, and where objects of other folders
    would have the name of another, with their own folder's name in front.
    """
    taken: set[tuple[str, str]] = set()
    names = []
    for record in sorted(records, key=lambda record: record.id.split("/")[0] != filed_under(record)):
        folder, name, index = record.id.split("/")
        place = filed_under(record), f"{name}_{int(index):02d}"
        while place in taken:  # also where the longer name is another object's own
            place = place[0], f"{folder}_{place[1]}"
        taken.add(place)
        names.append((record.id, place))
    places = dict(names)
    return [places[record.id] for record in records]


def _copy_if_other(source: Path, target: Path) -> None:
    """Copy whole or not at all. What has size and date of the source is it: the date is copied with it."""
    status = source.stat()
    if target.is_file():
        there = target.stat()
        if (there.st_size, there.st_mtime_ns) == (status.st_size, status.st_mtime_ns):
            return
    with replacing(target) as temporary:
        shutil.copy2(source, temporary)


def _remove_strays(layout: ProcessedLayout, listed: Mapping[str, list[str]]) -> None:
    """Remove objects that an earlier export wrote and that are no longer prepared, and what a killed one left."""
    kept = {layout.list_file(category) for category in listed}
    for category, names in listed.items():
        kept |= {layout.image(category, name) for name in names} | {layout.annotation(category, name) for name in names}
    strays = [path for path in (layout.root / layout.split).glob("*/*/*") if path not in kept and not path.is_dir()]
    for path in strays:
        path.unlink()
    if strays:
        logger.info("%s: %d files of objects that are not prepared any more were removed", layout.split, len(strays))


main = command(
    ExportConfig,
    export,
    prog="llava-pose export",
    description="Write prepared data in the processed layout of ImageNet3D's published code.",
    example="llava-pose export --data prepared --out imagenet3d_processed",
)

if __name__ == "__main__":
    raise SystemExit(main())
