"""`llava-pose prepare`: from ImageNet3D's raw layout to pictures and one record an object, in one pass an image.

What is written under ``--out`` (docs/DATA.md describes every field)::

    <split>/metadata.jsonl                      one ObjectRecord a line; datasets' "imagefolder" loads it as well
    <split>/<category>/<name>_<index>.JPEG      a crop for each object; with ``--crop whole`` <name>.JPEG, one for all of them
    rejects.jsonl                               what could not be used: split, file, object_index, reason, sentence
    summary.json                                written + filtered + rejected = objects read, by reason and category
    prepare.yaml                                the settings
    .prepare/<split>.jsonl                      the journal: a run that was stopped goes on from it

An image that is done stands in the journal with the time and size of its files, so that running the command again does
only what is new or changed. With ``--shard i/n`` n machines share the work in one folder, each keeping a journal of its
own; the same command without ``--shard`` then takes the journals over and writes the rest.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from data_prep.pool import map_processes
from data_prep.prepare.image import ImageJob, ImageOptions, ImageResult, prepare_image, stamp
from data_prep.prepare.journal import OutputFolder
from data_prep.prepare.ray_engine import prepare_on_ray, require_ray
from data_prep.prepare.shards import Shard
from data_prep.prepare.summary import write_results
from data_prep.raw.imagenet3d import RawLayout, read_list
from llava_pose.errors import InputError
from llava_pose.utils.config import command, require_folder
from llava_pose.utils.files import is_plain_name, shortened

logger = logging.getLogger(__name__)
FORMAT = 1  # of records and journals: raised where files of an earlier version must not be gone on with


@dataclass
class PrepareConfig:
    data_root: str = field(metadata={"help": "folder with images/, annotations/ and lists/ in ImageNet3D's raw layout"})
    out: str = field(metadata={"help": "folder to write; the same command goes on where it was stopped"})
    splits: str = field(default="train,val", metadata={"help": "splits to prepare, separated by commas"})
    crop: Literal["pose", "box", "whole"] = field(
        default="pose",
        metadata={
            "help": "pose: centred on the object's origin, scaled by distance (published protocol); box: the bbox; "
            "whole: the whole image, letterboxed, one picture for all its objects (6D profile)"
        },
    )
    size: int = field(default=256, metadata={"help": "side of the prepared images, pixels"})
    margin: float = field(default=0.05, metadata={"help": "crop box: room left at each side, as a part of the bbox"})
    workers: int = field(default=0, metadata={"help": "processes, or tasks at once on Ray; 0: one a core"})
    shard: str = field(
        default="", metadata={"help": "i/n: this machine's part; without it the parts of all machines are joined"}
    )
    engine: Literal["processes", "ray"] = field(
        default="processes",
        metadata={"help": "processes of this machine, or a Ray cluster (RAY_ADDRESS) that sees the same folders"},
    )
    allow_custom_categories: bool = field(
        default=False, metadata={"help": "take categories that the taxonomy does not know"}
    )
    overwrite: bool = field(default=False, metadata={"help": "drop what --out holds from other settings"})

    def __post_init__(self) -> None:
        if not 16 <= self.size <= 8192:
            raise InputError(f"--size {self.size}: give a side between 16 and 8192 pixels")
        if not 0 <= self.margin <= 10:
            raise InputError(f"--margin {self.margin}: give a part of the bbox between 0 and 10")
        if self.workers < 0:
            raise InputError(f"--workers {self.workers}: give a number of processes, or 0 for one a core")
        if not self.split_names:
            raise InputError("--splits: name at least one split, such as train,val")
        if Shard.parse(self.shard) is not None and self.overwrite:
            raise InputError(
                "--overwrite with --shard: would drop what other shards have done; give another --out, "
                "or drop the old output first with a run without --shard"
            )

    @property
    def split_names(self) -> list[str]:
        return list(dict.fromkeys(name.strip() for name in self.splits.split(",") if name.strip()))

    @property
    def output_settings(self) -> dict[str, object]:
        """The settings that the content of every line depends on: one output folder holds one such set."""
        return {
            "format": FORMAT,
            "data_root": str(Path(self.data_root).resolve()),
            "crop": self.crop,
            "size": self.size,
            "margin": self.margin if self.crop == "box" else None,
            "allow_custom_categories": self.allow_custom_categories,
        }


def prepare(config: PrepareConfig) -> Path:
    """Prepare the splits and return the output folder.

    Raises:
        InputError: there is nothing to read, the output folder holds something else, or the engine is not installed.
    """
    if config.engine == "ray":
        require_ray()
    root = require_folder(
        config.data_root, "--data-root", "give the folder that holds images/, annotations/ and lists/"
    )
    layout = RawLayout(root)
    plan = {split: list_jobs(layout, split) for split in config.split_names}
    if not any(plan.values()):
        names = ", ".join(f"lists/*_imagenet_{split}.txt" for split in plan)
        raise InputError(f"{root}: there is nothing to read, {names} are empty; write image names into them")

    options = ImageOptions(
        data_root=root,
        out=Path(config.out),
        crop=config.crop,
        size=config.size,
        margin=config.margin,
        allow_custom_categories=config.allow_custom_categories,
    )
    shard = Shard.parse(config.shard)
    listed = [job for jobs in plan.values() for job in jobs]
    with OutputFolder(config.out, config.output_settings, overwrite=config.overwrite, shard=shard) as folder:
        if shard is not None:
            share = shard.of(listed)
            _prepare_images(share, options, config, folder)
            logger.info(
                "%d images of shard %s are done in %s; next, once all shards are: the same command without --shard",
                *(len(share), shard, config.out),
            )
            return folder.path
        _prepare_images(listed, options, config, folder)
        totals = write_results(folder, layout, plan)
    if totals["written"] == 0:
        raise InputError(f"{config.out}: no object could be used; {folder.rejects_file} says why for each")
    logger.info(
        "%d objects prepared, %d filtered, %d rejected in %s; next: llava-pose instruct --data %s --out %s",
        *(totals["written"], totals["filtered"], totals["rejected"], config.out),
        *(config.out, Path(config.out) / "train.json"),
    )
    return folder.path


def list_jobs(layout: RawLayout, split: str) -> list[ImageJob]:
    """The images that a split lists, each once, in the order of category and list.

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


def _prepare_images(
    listed: Sequence[ImageJob], options: ImageOptions, config: PrepareConfig, folder: OutputFolder
) -> None:
    """Do what the journals have not yet."""
    layout = RawLayout(options.data_root)
    todo = [job for job in listed if not folder.journal(job.split).is_current(job.key, stamp(job, layout))]
    if len(todo) < len(listed):
        logger.info("%d of %d images are done already", len(listed) - len(todo), len(listed))
    if not todo:
        return
    started = time.monotonic()
    with folder.journals() as journals:
        for job, result in tqdm(
            _results(todo, options, config), total=len(todo), desc="prepare", unit="image", disable=None
        ):
            journals.add(job.split, result)
    seconds = time.monotonic() - started
    logger.info("%d images in %.1f s, %.0f a second", len(todo), seconds, len(todo) / seconds)


def _results(
    jobs: Sequence[ImageJob], options: ImageOptions, config: PrepareConfig
) -> Iterator[tuple[ImageJob, ImageResult]]:
    if config.engine == "ray":
        return prepare_on_ray(jobs, options, workers=config.workers)
    return zip(jobs, map_processes(prepare_image, jobs, options, workers=config.workers), strict=True)


main = command(
    PrepareConfig,
    prepare,
    prog="llava-pose prepare",
    description="Crop every annotated object of a dataset in ImageNet3D's raw layout and write its record.",
    example="llava-pose prepare --data-root imagenet3d --out prepared --crop pose --workers 8",
)

if __name__ == "__main__":
    raise SystemExit(main())
