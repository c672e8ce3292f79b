"""Prepared records as a neural mesh takes them: pictures, and the camera that each was annotated with."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ImageOps
from torch.utils.data import Dataset

from eval.baselines.neural_mesh_grid import Cameras
from eval.baselines.record_images import category_of, select_records
from llava_pose.errors import InputError
from llava_pose.geometry import flip_pose, rotation_matrix
from llava_pose.pictures import load_rgb
from llava_pose.records import ObjectRecord

logger = logging.getLogger(__name__)


def square_records(data: str | Path, split: str, names: Sequence[str] | None, option: str) -> list[ObjectRecord]:
    """:func:`eval.baselines.record_images.select_records`, of square pictures alone.

    Raises:
        InputError: as that does, or a picture is not square.
    """
    records = select_records(data, split, names, option)
    oblong = next((record for record in records if record.width != record.height), None)
    if oblong is not None:
        raise InputError(
            f"{data}/{split}: the picture of '{oblong.id}' is {oblong.width}x{oblong.height} pixels, not square; "
            "run llava-pose prepare"
        )
    return records


def with_cameras(records: Sequence[ObjectRecord], where: str) -> list[ObjectRecord]:
    """Those whose distance and principal point are known; the others are counted in the log.

    Raises:
        InputError: none is.
    """
    known = [record for record in records if _has_camera(record)]
    if len(known) < len(records):
        logger.warning(f"{where}: {len(records) - len(known)} objects without distance, px or py are left out")
    if not known:
        raise InputError(f"{where}: no object has a distance, px and py, which a mesh is projected with; add them")
    return known


def _has_camera(record: ObjectRecord) -> bool:
    pose = record.pose
    numbers = (pose.distance, pose.px, pose.py)
    return all(number is not None and math.isfinite(number) for number in numbers) and pose.distance > 0


class MeshImages(Dataset):
    """Pictures and cameras; with ``flip``, mirror-symmetric objects a second time mirrored.

    Args:
        folder: of the split; file names are relative to it.
        image_processor: for mean and standard deviation of the pixels; pictures become squares of its size.
        names: of the classes; None: one class for all.
    """

    def __init__(
        self,
        records: Sequence[ObjectRecord],
        folder: Path,
        image_processor: Any,
        names: Sequence[str] | None,
        *,
        flip: bool = False,
    ):
        self.records = records
        self.folder = folder
        self.image_processor = image_processor
        self.side = image_processor.size["height"]
        self._index = {} if names is None else {name: index for index, name in enumerate(names)}
        self.items = [(index, False) for index in range(len(records))]
        if flip:
            self.items += [
                (index, True) for index, record in enumerate(records) if category_of(record).mirror_axis == "x"
            ]

    def __len__(self) -> int:
        return len(self.items)

    def pixels(self, item: int) -> torch.Tensor:
        """(3, side, side) of one item, as the network takes it."""
        index, mirrored = self.items[item]
        picture = load_rgb(self.folder / self.records[index].file_name)
        if mirrored:
            picture = ImageOps.mirror(picture)
        pixels = self.image_processor(picture, return_tensors="np")["pixel_values"][0]
        return torch.from_numpy(np.asarray(pixels, dtype=np.float32))

    def camera(self, item: int) -> tuple[tuple[float, float, float], float, float, float, float]:
        """Angles (radians), distance (object units), focal length, px and py (prepared pixels)."""
        index, mirrored = self.items[item]
        record = self.records[index]
        pose, angles, px = record.pose, record.pose.angles, record.pose.px
        if mirrored:
            *turned, px = (float(value) for value in flip_pose(*angles, px, record.width))
            angles = tuple(turned)
        return angles, pose.distance, record.viewport * record.focal, px, pose.py

    def category(self, item: int) -> int:
        """Class index of one item."""
        return self._index.get(category_of(self.records[self.items[item][0]]).name, 0)

    def __getitem__(self, item: int) -> dict[str, torch.Tensor]:
        index, mirrored = self.items[item]
        record = self.records[index]
        angles, distance, focal, px, py = self.camera(item)
        x1, y1, x2, y2 = record.bbox
        if mirrored:
            x1, x2 = record.width - x2, record.width - x1
        scale = self.side / record.width
        return {
            "pixel_values": self.pixels(item),
            "angles": torch.tensor(angles, dtype=torch.float32),
            "distance": torch.tensor(distance, dtype=torch.float32),
            "focal": torch.tensor(scale * focal, dtype=torch.float32),
            "principal": scale * torch.tensor([px, py], dtype=torch.float32),
            "bbox": scale * torch.tensor([x1, y1, x2, y2], dtype=torch.float32),
            "category": torch.tensor(self.category(item)),
            "key": torch.tensor(item),
        }

    def cameras(self) -> tuple[Cameras, float]:
        """Where all items stand in their pictures, and their median distance in object units."""
        rows = [self.camera(item) for item in range(len(self))]
        widths = [self.records[index].width for index, _ in self.items]
        angles = np.array([row[0] for row in rows], dtype=np.float64)
        values = [
            (math.log(focal / (distance * width)), px / width - 0.5, py / width - 0.5)
            for (_, distance, focal, px, py), width in zip(rows, widths, strict=True)
        ]
        category = np.array([self.category(item) for item in range(len(self))])
        cameras = Cameras(rotation_matrix(*angles.T), np.array(values, dtype=np.float64), category)
        return cameras, float(np.median([row[1] for row in rows]))
