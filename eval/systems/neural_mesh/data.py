"""Data sets of prepared records for neural meshes: pictures, and the camera that each was annotated with."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import cast

import numpy as np
import torch

from eval.systems.neural_mesh.grid import Cameras
from eval.systems.record_images import MirroredRecords
from llava_pose.data.records import ObjectRecord
from llava_pose.errors import InputError
from llava_pose.pose.geometry import flip_pose, rotation_matrix

logger = logging.getLogger(__name__)


def require_square(records: Sequence[ObjectRecord], where: str) -> None:
    """Refuse pictures that are not square, whose objects a mesh would not cover.

    Raises:
        InputError: naming the first of them.
    """
    oblong = next((record for record in records if record.width != record.height), None)
    if oblong is not None:
        raise InputError(
            f"{where}: the picture of '{oblong.id}' is {oblong.width}x{oblong.height} pixels, not square; "
            "run llava-pose prepare"
        )


def with_cameras(records: Sequence[ObjectRecord], where: str) -> list[ObjectRecord]:
    """Return the records whose distance and principal point are known; the others are counted in the log.

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
    numbers = [number for number in (pose.distance, pose.px, pose.py) if number is not None and math.isfinite(number)]
    return len(numbers) == 3 and numbers[0] > 0


class MeshImages(MirroredRecords):
    """Pictures and cameras; the image processor makes squares of one size."""

    @property
    def side(self) -> int:
        """The side of the pictures that the network sees, in pixels."""
        return self.image_processor.size["height"]

    def camera(self, item: int) -> tuple[tuple[float, float, float], float, float, float, float]:
        """Return angles (radians), distance (object units), focal length, px and py (prepared pixels)."""
        index, mirrored = self.items[item]
        record = self.records[index]
        # with_cameras has left out what has none
        distance, px, py = cast(tuple[float, float, float], (record.pose.distance, record.pose.px, record.pose.py))
        angles = record.pose.angles
        if mirrored:
            azimuth, elevation, theta, px = (float(value) for value in flip_pose(*angles, px, record.width))
            angles = (azimuth, elevation, theta)
        return angles, distance, record.viewport * record.focal, px, py

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
        """Return where all items stand in their pictures, and their median distance in object units."""
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
