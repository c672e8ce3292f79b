"""Data sets of prepared records, for networks that look at one picture: pixels, angles, the category's number."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ImageOps
from torch.utils.data import Dataset

from eval.systems.record_choice import require_pictures
from llava_pose.data.augmentation import UNCHANGED, Augmentation
from llava_pose.data.images import load_rgb
from llava_pose.data.records import ObjectRecord, Pose, category_of
from llava_pose.pose.geometry import flip_pose
from llava_pose.utils.files import inside


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
            folder: the folder of the split; file names are relative to it.
            names: the categories, in the order of the outputs; none where all are one.

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

    def pixels(self, item: int, change: Augmentation = UNCHANGED, *, mirrored: bool | None = None) -> torch.Tensor:
        """Return one item as the network takes it, (3, height, width), after a change of the picture.

        Args:
            mirrored: whether it is the mirror image; None for what the item says.
        """
        index, by_item = self.items[item]
        picture = load_rgb(inside(self.folder, self.records[index].file_name))
        if by_item if mirrored is None else mirrored:
            picture = ImageOps.mirror(picture)
        pixels = self.image_processor(change.picture(picture), return_tensors="np")["pixel_values"][0]
        return torch.from_numpy(np.asarray(pixels, dtype=np.float32))

    def category(self, item: int) -> int:
        """Return the index of an item's category among the names, 0 of one not among them."""
        return self._index.get(category_of(self.records[self.items[item][0]]).name, 0)


class RecordImages(MirroredRecords):
    """Inputs of a pose classifier; with ``augment``, each so many times, each time changed in another way.

    With a ``flip_seed`` each picture, of whatever category, is its mirror image in half of the epochs. Seed, epoch and item
    decide the lot, so that a run that goes on draws what an undisturbed one does.
    """

    def __init__(self, *args: Any, augment: int = 0, flip_seed: int | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.augment = augment
        self._flip_seed = flip_seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Draw the mirror images of that epoch from now on."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self.items) * max(1, self.augment)

    def __getitem__(self, item: int) -> dict[str, torch.Tensor]:
        """Return pixel_values (3, height, width), angles (3,) in radians and category."""
        item = range(len(self))[item]  # what is past the end ends an iteration
        change = Augmentation.of_item(item, self.augment)
        mirrored = self._is_mirrored(item)
        item %= len(self.items)
        record = self.records[self.items[item][0]]
        pose = Pose(*record.pose.angles)
        if mirrored:
            pose = Pose(*map(float, flip_pose(*pose.angles, 0.0, 0.0)[:3]))
        angles = change.pose(pose, record.width, record.height).angles
        return {
            "pixel_values": self.pixels(item, change, mirrored=mirrored),
            "angles": torch.tensor(angles, dtype=torch.float32),
            "category": torch.tensor(self.category(item)),
        }

    def _is_mirrored(self, item: int) -> bool:
        if self._flip_seed is None:
            return self.items[item % len(self.items)][1]
        return bool(np.random.default_rng((self._flip_seed, self._epoch, item)).integers(2))
