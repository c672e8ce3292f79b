"""``llava-pose prepare``: from ImageNet3D's raw layout to pictures and one record an object, in one pass an image.

What is written under ``--out`` (docs/DATA.md describes every field)::

    <split>/metadata.jsonl                      one ObjectRecord a line; datasets' "imagefolder" loads it as well
    <split>/<category>/<name>_<index>.JPEG      a crop for each object; with ``--crop whole`` <name>.JPEG, one for all of them
    rejects.jsonl                               what could not be used: split, file, object_index, reason, sentence
    summary.json                                written + filtered + rejected = objects read, by reason and category
    prepare.yaml                                the settings
    .prepare/<split>/<category>/<name>.json     what became of each image, from which a run that was stopped goes on

Every image is brought up to date by itself (:func:`~data_prep.prepare.image.bring_up_to_date`), by whatever process or machine
gets it, and what all of them have left is then gathered. So running the command again does only what is new or changed, and
with ``--shard i/n`` n machines share the work in one folder.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt
from tqdm import tqdm

from data_prep.import_.recognise import raw_root
from data_prep.pool import map_processes
from data_prep.prepare.crop import PROTOCOL_SIZE
from data_prep.prepare.image import RESULTS_FOLDER, ImageJob, ImageOptions, bring_up_to_date
from data_prep.prepare.on_ray import map_on_ray, require_ray
from data_prep.prepare.summary import REJECTS_FILE, SUMMARY_FILE, write_results
from data_prep.raw.imagenet3d import RawLayout, read_list
from llava_pose.data.images import BOX_MARGIN
from llava_pose.errors import InputError
from llava_pose.utils.command import command, say_next
from llava_pose.utils.config import check_fields, require_folder
from llava_pose.utils.files import is_plain_name, shortened
from llava_pose.utils.output_folder import (
    changed_settings,
    held_in,
    keep_settings,
    own_file,
    own_folder,
    settings_file,
    write_settings,
)

logger = logging.getLogger(__name__)
FORMAT = 1  # of records: raised where an output of an earlier version must not be gone on with


@dataclass
class PrepareConfig:
    """The options of ``llava-pose prepare``: what it reads, how it crops, and who does the work."""

    data_root: str = field(
        metadata={"help": "The folder with images/, annotations/ and lists/ in ImageNet3D's raw layout."}
    )
    out: str = field(metadata={"help": "The folder to write; the same command goes on where it was stopped."})
    splits: str = field(default="train,val", metadata={"help": "The splits to prepare, separated by commas."})
    crop: Literal["pose", "box", "whole"] = field(
        default="pose",
        metadata={
            "help": "The crop: pose is centred on the object's origin and scaled by its distance (published protocol), box is "
            "the bbox, whole is the whole image, letterboxed, one picture for all its objects (6D profile)."
        },
    )
    size: Annotated[int, Field(ge=16, le=8192)] | None = field(
        default=None,
        metadata={"help": "The side of the prepared images, in pixels; by default 256, as published 512."},
    )
    profile: Literal["ours", "published"] = field(
        default="ours",
        metadata={
            "help": "Prepare as the published preprocessing does: its filter, labels by folder, resizing to whole pixels "
            "without antialiasing, black outside of the image, JPEG quality 75."
        },
    )
    margin: Annotated[float, Field(ge=0, le=10)] = field(
        default=BOX_MARGIN, metadata={"help": "The room that --crop box leaves at each side, as a part of the bbox."}
    )
    workers: NonNegativeInt = field(
        default=0, metadata={"help": "The processes, or the tasks at once on Ray; 0 is one a core."}
    )
    shard: str = field(
        default="",
        metadata={
            "help": "Do part i of n, written i/n, on this machine; without it the parts of all machines are joined."
        },
    )
    engine: Literal["processes", "ray"] = field(
        default="processes",
        metadata={
            "help": "Work with processes of this machine, or on a Ray cluster (RAY_ADDRESS) that sees the same folders."
        },
    )
    allow_custom_categories: bool = field(
        default=False, metadata={"help": "Take categories that the taxonomy does not know."}
    )
    published_filter: bool = field(
        default=False,
        metadata={
            "help": "Keep exactly what the published preprocessing keeps: every object with a status other than status_bad "
            "and a positive distance, whatever its box and the image's size; needs --crop pose."
        },
    )
    overwrite: bool = field(default=False, metadata={"help": "Drop what --out holds from other settings."})

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.split_names:
            raise InputError("--splits: name at least one split, such as train,val")
        if self.profile == "published":
            if self.crop != "pose" or self.size not in (None, PROTOCOL_SIZE):
                raise InputError(f"--profile published: is --crop pose at --size {PROTOCOL_SIZE}; leave both out")
            self.published_filter = True
        if self.published_filter and self.crop != "pose":
            raise InputError(f"--published-filter: is that of the published crop; give --crop pose, not {self.crop}")
        if self.part is not None and self.overwrite:
            raise InputError(
                "--overwrite with --shard: would drop what other shards have done; give another --out, "
                "or drop the old output first with a run without --shard"
            )

    @property
    def side(self) -> int:
        """The side of the prepared images, pixels."""
        return self.size or (PROTOCOL_SIZE if self.profile == "published" else 256)

    @property
    def part(self) -> tuple[int, int] | None:
        """Part i (from 1) of n; None for all of the work.

        Raises:
            InputError: it is written otherwise.
        """
        if not self.shard:
            return None
        match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", self.shard.strip())
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise InputError(f"--shard {self.shard}: give part/parts, such as 1/8 to 8/8 on eight machines")
        return int(match[1]), int(match[2])

    @property
    def split_names(self) -> list[str]:
        return list(dict.fromkeys(name.strip() for name in self.splits.split(",") if name.strip()))

    @property
    def output_settings(self) -> dict[str, object]:
        """Return the settings that the content of every line depends on: one output folder holds one such set."""
        return {
            "format": FORMAT,
            "data_root": str(Path(self.data_root).resolve()),
            "crop": self.crop,
            "size": self.side,
            "margin": self.margin if self.crop == "box" else None,
            "allow_custom_categories": self.allow_custom_categories,
            # only where it is asked for: a folder from before there was a choice is gone on with
            **({"published_filter": True} if self.published_filter else {}),
            **({"profile": self.profile} if self.profile != "ours" else {}),
        }


def prepare(config: PrepareConfig) -> Path:
    """Prepare the splits and return the output folder.

    Raises:
        InputError: there is nothing to read, the output folder holds something else, or the engine is not installed.
    """
    if config.engine == "ray":
        require_ray()
    root = raw_root(
        require_folder(config.data_root, "--data-root", "give the folder that holds images/, annotations/ and lists/")
    )
    layout = RawLayout(root)
    plan = {split: list_jobs(layout, split) for split in config.split_names}
    if not any(plan.values()):
        names = ", ".join(f"lists/*_imagenet_{split}.txt" for split in plan)
        raise InputError(f"{root}: there is nothing to read, {names} are empty; write image names into them")

    out = Path(config.out)
    options = ImageOptions(
        *(root, out, config.crop, config.side, config.margin),
        allow_custom_categories=config.allow_custom_categories,
        published_filter=config.published_filter,
        published=config.profile == "published",
    )
    listed = [job for jobs in plan.values() for job in jobs]
    with _owned(out, config):
        if config.part is not None:
            # every n-th, so that each part has its share of every category
            share = listed[config.part[0] - 1 :: config.part[1]]
            _prepare_images(share, options, config)
            logger.info(
                "%d images of shard %s are done in %s; once all shards are, give the same command without --shard",
                *(len(share), config.shard, config.out),
            )
            return out
        _prepare_images(listed, options, config)
        totals = write_results(plan, options, config.output_settings)
    if totals["written"] == 0:
        raise InputError(f"{config.out}: no object could be used; {out / REJECTS_FILE} says why for each")
    logger.info(
        "%d objects prepared, %d filtered, %d rejected in %s%s",
        *(totals["written"], totals["filtered"], totals["rejected"], config.out),
        f", where {REJECTS_FILE} says why" if totals["rejected"] else "",
    )
    say_next(f"llava-pose instruct --data {config.out} --out {out / 'train.json'}")
    return out


@contextmanager
def _owned(out: Path, config: PrepareConfig) -> Iterator[None]:
    """Own the output alone, or together with other shards, and see to it that it is of these settings."""
    if config.part is None:
        with own_folder(out, "--out", "prepare"):
            _settle(out, config)
            yield
        return
    with own_folder(out, "--out", "prepare of all shards", shared=True):
        with own_folder(out / RESULTS_FOLDER, "--out", "prepare", wait=True):
            _settle(out, config)
        index, count = config.part
        with own_file(out / RESULTS_FOLDER / f"shard-{index}-of-{count}", "--out", f"prepare of {index}/{count}"):
            yield


def _settle(out: Path, config: PrepareConfig) -> None:
    """Make the folder that of these settings."""
    file = settings_file(out, "prepare")
    splits = [path.name for path in (out / RESULTS_FOLDER).glob("*/")]
    if config.overwrite and splits and file.is_file() and changed_settings(file, config.output_settings):
        for name in (REJECTS_FILE, SUMMARY_FILE):
            (out / name).unlink(missing_ok=True)
        for split in splits:
            # the results last: a run that is stopped here finds the rest to drop by them
            shutil.rmtree(out / split, ignore_errors=True)
            shutil.rmtree(out / RESULTS_FOLDER / split)
        write_settings(file, "prepare", config.output_settings)
        return
    others = {*held_in(out)} - {RESULTS_FOLDER, file.name}
    # what one shard has written down holds for the others, which may not have begun
    begun = bool(others or splits or (config.part is not None and file.is_file()))
    remedy = "give another folder, or --overwrite to drop what is there"
    keep_settings(out, "--out", "prepare", config.output_settings, begun=begun, remedy=remedy)


def list_jobs(layout: RawLayout, split: str) -> list[ImageJob]:
    """Return the images that a split lists, each once, in the order of category and list.

    Raises:
        InputError: there is no list of that split, or the name of one cannot stand in a record.
    """
    lists = layout.list_files()
    if split not in lists:
        found = f"there are lists of {', '.join(lists)}" if lists else "there are no lists"
        example = layout.list_file("car", split)
        raise InputError(f"{example.parent}: no list of the split {split!r} ({found}); name it like {example.name}")
    for path in lists[split].values():
        if not is_plain_name(path.name):
            raise InputError(
                f"{path.parent}: the file name {shortened(path.name)} cannot stand in a data set; rename it and its folders"
            )
    jobs = [ImageJob(split, category, name) for category, path in lists[split].items() for name in read_list(path)]
    unique = list(dict.fromkeys(jobs))
    if len(unique) < len(jobs):
        logger.warning("%d images stand twice in a list of %s and are taken once", len(jobs) - len(unique), split)
    return unique


def _prepare_images(jobs: Sequence[ImageJob], options: ImageOptions, config: PrepareConfig) -> None:
    if config.engine == "ray":
        made = map_on_ray(jobs, options, workers=config.workers)
    else:
        made = map_processes(bring_up_to_date, jobs, options, workers=config.workers)
    count = sum(tqdm(made, total=len(jobs), desc="prepare", unit="image", disable=None))
    if count < len(jobs):
        logger.info("%d of %d images were done already", len(jobs) - count, len(jobs))


main = command(
    PrepareConfig,
    prepare,
    prog="llava-pose prepare",
    description="Crop every annotated object of a dataset in ImageNet3D's raw layout and write its record.",
    example="llava-pose prepare --data-root imagenet3d --out prepared --crop pose --workers 8",
)

if __name__ == "__main__":
    raise SystemExit(main())
