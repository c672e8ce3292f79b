#!/usr/bin/env python
"""Join prepared folders of renders and of photographs to one that a model learns both from.

    python scripts/mix.py --rendered prepared/rendered --photographs prepared/cars prepared/toys --out prepared/mixture

How often each is met follows from how often its record is listed. Of a category's photographs of one source at most ``most``
are taken, by lot; where they are fewer than the category's renders, each is listed several times. A category that turns into
itself about z has renders at all azimuths that look alike: theirs are folded to the one nearest to the front, as annotators
give it. Only the train split is weighed so. Pictures are hard links, or copies where the file system has none.
"""

from __future__ import annotations

import logging
import math
import os
import random
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import PositiveInt

from llava_pose.data.images import check_picture
from llava_pose.data.jsonl import write_jsonl
from llava_pose.data.records import METADATA_FILE, ObjectRecord, read_records
from llava_pose.errors import InputError
from llava_pose.pose import categories
from llava_pose.utils.command import command
from llava_pose.utils.config import require, require_folder
from llava_pose.utils.files import inside
from llava_pose.utils.output_folder import own_folder, require_other

logger = logging.getLogger(__name__)
TRAIN = "train"


@dataclass
class MixConfig:
    """Options of this script."""

    out: str = field(default="", metadata={"help": "The prepared folder to write."})
    rendered: list[str] = field(default_factory=list, metadata={"help": "Prepared folders of renders."})
    photographs: list[str] = field(default_factory=list, metadata={"help": "Prepared folders of photographs."})
    most: PositiveInt = field(
        default=2500, metadata={"help": "The photographs of a category and source that are taken at most."}
    )
    repeat: PositiveInt = field(
        default=4,
        metadata={"help": "How often a photograph is listed at most, where its category has more renders than them."},
    )
    seed: int = field(default=0, metadata={"help": "The seed of the lot."})


@dataclass(frozen=True)
class Part:
    """One prepared folder. Its name stands before the names of its objects."""

    folder: Path
    rendered: bool

    @property
    def name(self) -> str:
        return os.path.basename(os.path.realpath(self.folder))

    @property
    def splits(self) -> list[str]:
        return [path.parent.name for path in self.folder.glob(f"*/{METADATA_FILE}")]


def mix(config: MixConfig) -> Path:
    """Write the mixture's splits and return its folder.

    Raises:
        InputError: no folder is given, two have one name, or one cannot be read.
    """
    parts = [Part(folder, True) for folder in folders(config.rendered, "--rendered")]
    parts += [Part(folder, False) for folder in folders(config.photographs, "--photographs")]
    if not parts:
        raise InputError("There is nothing to join: give prepared folders with --rendered or --photographs.")
    names = sorted(part.name for part in parts)
    if len(set(names)) < len(names):
        raise InputError(f"Two of the prepared folders have one name ({', '.join(names)}): rename one.")
    out = Path(require(config.out or None, "--out"))
    require_other("--out", [out], [part.folder for part in parts])
    with own_folder(out, "--out", "mix"):
        for split in sorted({split for part in parts for split in part.splits}):
            objects = [(part, record) for part in parts if split in part.splits for record in usable(part, split)]
            if split == TRAIN:
                objects = weighed(objects, config)
            write_jsonl(out / split / METADATA_FILE, (record.to_dict() for record in placed(objects, split, out)))
            logger.info(f"{split}: {len(objects)} objects are in {out}")
    return out


def folders(paths: Sequence[str], option: str) -> list[Path]:
    """The folders that an option names."""
    return [require_folder(path, option, "make it with llava-pose prepare") for path in paths]


def usable(part: Part, split: str) -> Iterator[ObjectRecord]:
    """The records of a split whose pictures can be taken; the others are named and left out."""
    faults: list[InputError] = []
    for record in read_records(part.folder, split, faults=faults):
        try:
            check_picture(part.folder / split, record.file_name)
        except InputError as error:
            faults.append(error)
        else:
            yield record
    for fault in faults:
        logger.warning(f"left out: {fault}")


def weighed(objects: Sequence[tuple[Part, ObjectRecord]], config: MixConfig) -> list[tuple[Part, ObjectRecord]]:
    """The training objects, each as often as it is to be met."""
    chosen = [(part, with_folded_azimuth(record)) for part, record in objects if part.rendered]
    renders = Counter(record.category for _, record in chosen)
    groups: dict[tuple[str, str], list[tuple[Part, ObjectRecord]]] = {}
    for part, record in objects:
        if not part.rendered:
            groups.setdefault((record.category, str(record.source.get("source") or "")), []).append((part, record))
    photographs = Counter(record.category for part, record in objects if not part.rendered)
    lot = random.Random(config.seed)
    for (category, _), group in sorted(groups.items()):
        times = min(config.repeat, max(1, round(renders[category] / photographs[category])))
        chosen += (group if len(group) <= config.most else lot.sample(group, config.most)) * times
    return chosen


def with_folded_azimuth(record: ObjectRecord) -> ObjectRecord:
    """The record with the azimuth nearest to 0 of those that look alike, as its category's symmetry about z has it."""
    turns = categories.SYMMETRY_ORDERS[categories.get(record.category, allow_custom=True).symmetry[2]]
    azimuth = 0.0 if math.isinf(turns) else math.remainder(record.pose.azimuth, math.tau / turns)
    return replace(record, pose=replace(record.pose, azimuth=azimuth % math.tau))


def placed(objects: Sequence[tuple[Part, ObjectRecord]], split: str, out: Path) -> Iterator[ObjectRecord]:
    """The records under their names in the mixture, with their pictures; one that is listed again has names of its own, since
    records of one picture would be taken for several objects in it."""
    met: Counter[tuple[str, str]] = Counter()
    for part, record in objects:
        again = met[part.name, record.id]
        met[part.name, record.id] += 1
        folder = f"{part.name}-again{again}" if again else part.name
        category, name, number = record.id.split("/")
        file_name = f"{folder}/{record.file_name}"
        target = out / split / file_name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            picture = inside(part.folder / split, record.file_name)
            try:
                os.link(picture, target)
            except OSError:
                shutil.copyfile(picture, target)
        yield replace(record, id=f"{category}/{folder}-{name}/{number}", file_name=file_name)


main = command(
    MixConfig,
    mix,
    prog="python scripts/mix.py",
    description="Join prepared folders of renders and of photographs to one.",
    example="python scripts/mix.py --rendered prepared/rendered --photographs prepared/photographs --out prepared/mixture",
)

if __name__ == "__main__":
    sys.exit(main())
