"""Measure how the pixels of the published preprocessing change what a classifier answers that was trained on this project's.

    python scripts/benchmarks/published_pixels.py --data-root photos --data prepared --checkpoint runs/tower --out pixels.json

Each object of the split is cut anew from its raw picture, the crop being the one of its record, and saved in five ways: as
prepare does, and with one step at a time as published (docs/DIFFERENCES.md), then all of them. Networks learn what they are
trained on: what is measured is what a change of the pixels costs, not which pixels are the better ones to train on.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_prep.prepare.crop import Crop, RawImage
from eval.systems.classifier.system import TrainedClassifier, TrainedClassifierOptions
from llava_pose.data.images import PADDING_COLOUR
from llava_pose.data.records import ObjectRecord, Prediction, read_records, write_records
from llava_pose.pose.metrics import paired_accuracy_test, pose_error
from llava_pose.utils.command import command
from llava_pose.utils.files import inside, read_bytes, write_json

OURS = {"quality": 95, "subsampling": "4:4:4"}
BLACK = (0, 0, 0)
PUBLISHED = {"quality": 75, "subsampling": "4:2:0"}


@dataclass
class PixelsConfig:
    """The options of the benchmark, and where the figures go."""

    data_root: str = field(metadata={"help": "The folder of the raw data set."})
    data: str = field(metadata={"help": "The folder that was prepared of it."})
    checkpoint: str = field(metadata={"help": "The folder of a trained classifier."})
    split: str = field(default="val", metadata={"help": "The split to predict."})
    out: str | None = field(default=None, metadata={"help": "A JSON file for the figures."})


def _surrounded(picture: Image.Image, raw: RawImage, crop: Crop, colour: tuple[int, int, int]) -> Image.Image:
    """The picture with that colour where the raw one ends."""
    x1, y1, x2, y2 = crop.visible(raw.width, raw.height)
    changed = Image.new("RGB", picture.size, colour)
    if x1 < x2 and y1 < y2:
        changed.paste(picture.crop((x1, y1, x2, y2)), (x1, y1))
    return changed


# name -> the picture of a raw one, and how it is saved
WAYS: dict[str, tuple[Callable[[RawImage, Crop], Image.Image], dict[str, Any]]] = {
    "as prepare does": (lambda raw, crop: raw.crops([crop])[0], OURS),
    "black outside": (lambda raw, crop: _surrounded(raw.crops([crop])[0], raw, crop, BLACK), OURS),
    "JPEG 75": (lambda raw, crop: raw.crops([crop])[0], PUBLISHED),
    "resized without antialiasing": (
        lambda raw, crop: _surrounded(raw.published_crops([crop])[0], raw, crop, PADDING_COLOUR),
        OURS,
    ),
    "all three": (lambda raw, crop: raw.published_crops([crop])[0], PUBLISHED),
}


def measure(config: PixelsConfig) -> dict[str, Any]:
    """Return accuracy at 30 and 10 degrees and the median of each way, and the paired test at 30 against the first."""
    records = read_records(config.data, config.split)
    found: dict[str, Any] = {"objects": len(records)}
    errors: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (cut, saved) in WAYS.items():
            made = _written(records, Path(config.data_root), Path(folder) / name, config.split, cut, saved)
            answers = _answers(config, Path(folder) / name, made)
            errors[name] = np.array([pose_error(np.array(a.pose.angles), np.array(a.true.angles)) for a in answers])
            found[name] = {
                **{f"acc@{degrees}": float((errors[name] < math.radians(degrees)).mean()) for degrees in (30, 10)},
                "median_deg": math.degrees(float(np.median(errors[name]))),
            }
            if len(errors) > 1:
                first = next(iter(errors.values()))
                found[name]["p_value"] = paired_accuracy_test(*(e < math.pi / 6 for e in (errors[name], first))).p_value
    if config.out is not None:
        write_json(config.out, found)
    return found


def _written(
    records: Sequence[ObjectRecord],
    root: Path,
    out: Path,
    split: str,
    cut: Callable[[RawImage, Crop], Image.Image],
    saved: dict[str, Any],
) -> list[ObjectRecord]:
    made = []
    for number, record in enumerate(records):
        raw = RawImage(read_bytes(inside(root, record.source["image"])), None)
        crop = Crop(record.crop["left"], record.crop["top"], record.crop["scale"], record.width)
        made.append(dataclasses.replace(record, file_name=f"{number}.JPEG"))
        path = out / split / made[-1].file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        cut(raw, crop).save(path, **saved)
    write_records(out, split, made)
    return made


def _answers(config: PixelsConfig, data: Path, records: Sequence[ObjectRecord]) -> list[Prediction]:
    options = TrainedClassifierOptions(
        data=str(data), output_dir=str(data), split=config.split, checkpoint=config.checkpoint
    )
    return TrainedClassifier(options).answer(records)


def run(config: PixelsConfig) -> None:
    for name, value in measure(config).items():
        sys.stdout.write(f"{name}: {value}\n")


main = command(
    PixelsConfig,
    run,
    prog="published_pixels.py",
    description="Measure what the published preprocessing's pixels change in a trained classifier's answers.",
    example="python scripts/benchmarks/published_pixels.py --data-root photos --data prepared --checkpoint runs/classifier",
)

if __name__ == "__main__":
    raise SystemExit(main())
