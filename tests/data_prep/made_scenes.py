"""Records of pictures with one or several objects, drawn by a seed: what tests of captions and questions ask about."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image

from llava_pose.data.records import ObjectRecord, Pose, write_records

SIDE = 240
VIEWPORT = 900.0
# a front and a mirror plane; no front; no front but a half turn; chiral; mirrors about y; a novel one; a plural noun
CATEGORIES = ("car", "bottle", "diningtable", "guitar", "cup", "airship", "scissors", "chair", "bus", "sofa")


def make_record(category: str, picture: int, index: int, rng: np.random.Generator, **changes) -> ObjectRecord:
    """An object of a picture; angles as cameras see things: mostly upright, from somewhat above."""
    centre, half = rng.uniform(0.2, 0.8, 2) * SIDE, rng.uniform(0.08, 0.2, 2) * SIDE
    (cx, cy), (hx, hy) = centre.tolist(), half.tolist()
    pose = Pose(
        float(rng.uniform(0, 2 * math.pi)),
        float(rng.normal(0.15, 0.5)),
        float(rng.normal(0, 0.3)),
        float(rng.uniform(2, 12)),
        cx,
        cy,
    )
    fields = {
        "file_name": f"{category}/n{picture:03d}_whole.JPEG",
        "id": f"{category}/n{picture:03d}/{index}",
        "category": category,
        "pose": pose,
        "viewport": VIEWPORT / 2,
        "focal": 2.0,
        "width": SIDE,
        "height": SIDE,
        "bbox": (cx - hx, cy - hy, cx + hx, cy + hy),
        "object_status": str(rng.choice(["status_good", "status_partially"])),
        "source": {"image": f"images/{category}/n{picture:03d}.JPEG"},
    }
    return ObjectRecord(**{**fields, **changes})


def make_records(pictures: int = 30, *, seed: int = 0, most: int = 4) -> list[ObjectRecord]:
    """Objects of so many pictures, 1 to ``most`` in each, sometimes several of one category."""
    rng = np.random.default_rng(seed)
    records = []
    for picture in range(pictures):
        count = 1 + picture % most
        first = CATEGORIES[picture % len(CATEGORIES)]
        names = [first, *(str(name) for name in rng.choice([*CATEGORIES, first, first], count - 1))]
        folder = f"{first}/n{picture:03d}_whole.JPEG"
        for index, name in enumerate(names):
            record = make_record(name, picture, index, rng, file_name=folder, id=f"{first}/n{picture:03d}/{index}")
            records.append(ObjectRecord(**{**vars(record), "source": {"image": f"images/{first}/n{picture:03d}.JPEG"}}))
    return records


def make_prepared(folder: Path, records: list[ObjectRecord], split: str = "train") -> Path:
    """A prepared folder with a small picture for each file name."""
    write_records(folder, split, records)
    for name in {record.file_name for record in records}:
        path = folder / split / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    return folder
