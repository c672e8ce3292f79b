"""Prepared records as what a network of one picture learns from: pixels, angles, the category's number."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ImageOps
from torch.utils.data import Dataset

from llava_pose.data.augmentation import UNCHANGED, Augmentation
from llava_pose.data.images import check_picture, load_rgb
from llava_pose.data.records import ObjectRecord, Pose, read_records
from llava_pose.errors import InputError, joined
from llava_pose.pose import categories
from llava_pose.pose.geometry import flip_pose
from llava_pose.utils.files import inside


def category_of(record: ObjectRecord) -> categories.Category:
    """As the taxonomy has it, whatever alias it was filed under."""
    return categories.get(record.category, allow_custom=True, source=record.id)


def select_records(
    data: str | Path,
    split: str,
    names: Sequence[str] | None,
    option: str,
    *,
    faults: list[InputError] | None = None,
) -> list[ObjectRecord]:
    """The records of a split; with ``names``, of these categories alone.

    Args:
        option: that gave the names, for messages.
        faults: as :func:`llava_pose.data.records.read_records`.

    Raises:
        InputError: there is no such split, no object in it, or none of one of the names.
    """
    records = read_records(data, split, faults=faults)
    if not records:
        raise InputError(f"{data}/{split}: there is no object in it; run llava-pose prepare, or choose another split")
    if names:
        records = categories.only_of(names, records, option=option, place=f"{data}/{split}")
    return records


def require_pictures(records: Sequence[ObjectRecord], folder: Path) -> None:
    """Look at each picture's header, so that a missing one is found before the first step and not hours into a training.

    Raises:
        InputError: pictures are not there, or are none; the message names the first ten.
    """
    faults: list[InputError] = []
    for name in dict.fromkeys(record.file_name for record in records):
        try:
            check_picture(folder, name)
        except InputError as error:
            faults.append(error)
    if faults:
        raise joined(faults, f"{folder}: {len(faults)} pictures cannot be used")


class MirroredRecords(Dataset):
    """Prepared records with their pictures; with ``flip``, mirror-symmetric ones a second time mirrored.

    Attributes:
        items: (index of a record, whether it is mirrored) of each item.
    """

    def __init__(
        self,
        records: Sequence[ObjectRecord],
        folder: Path,
        image_processor: Any,
        names: Sequence[str],
        *,
        flip: bool = False,
    ):
        """
        Args:
            folder: of the split; file names are relative to it.
            names: of the categories, in the order of the outputs; none: all are one.

        Raises:
            InputError: pictures are not there, or are none; the message names the first ten.
        """
        require_pictures(records, folder)
        self.records = records
        self.folder = folder
        self.image_processor = image_processor
        self._index = {name: index for index, name in enumerate(names)}
        self.items = [(index, False) for index in range(len(records))]
        if flip:
            self.items += [
                (index, True) for index, record in enumerate(records) if category_of(record).mirror_axis == "x"
            ]

    def __len__(self) -> int:
        return len(self.items)

    def pixels(self, item: int, change: Augmentation = UNCHANGED) -> torch.Tensor:
        """(3, height, width) of one item, as the network takes it, after a change of the picture."""
        index, mirrored = self.items[item]
        picture = load_rgb(inside(self.folder, self.records[index].file_name))
        if mirrored:
            picture = ImageOps.mirror(picture)
        pixels = self.image_processor(change.picture(picture), return_tensors="np")["pixel_values"][0]
        return torch.from_numpy(np.asarray(pixels, dtype=np.float32))

    def category(self, item: int) -> int:
        """The index of its category among the names, 0 of one not among them."""
        return self._index.get(category_of(self.records[self.items[item][0]]).name, 0)


class RecordImages(MirroredRecords):
    """Inputs of a pose classifier; with ``augment``, each so many times, each time changed in another way."""

    def __init__(self, *args: Any, augment: int = 0, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.augment = augment

    def __len__(self) -> int:
        return len(self.items) * max(1, self.augment)

    def __getitem__(self, item: int) -> dict[str, torch.Tensor]:
        """pixel_values (3, height, width); angles (3,) radians; category."""
        item = range(len(self))[item]  # what is past the end ends an iteration
        change = Augmentation.of_item(item, self.augment)
        item %= len(self.items)
        index, mirrored = self.items[item]
        record = self.records[index]
        angles = record.pose.angles
        if mirrored:
            angles = tuple(float(angle) for angle in flip_pose(*angles, 0.0, 0.0)[:3])
        angles = change.pose(Pose(*angles), record.width, record.height).angles
        return {
            "pixel_values": self.pixels(item, change),
            "angles": torch.tensor(angles, dtype=torch.float32),
            "category": torch.tensor(self.category(item)),
        }
