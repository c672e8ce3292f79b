"""Measure how time and memory of each stage grow with the number of objects.

    python scripts/benchmarks/growth.py [--sizes 10000 100000 1000000] [--stages score instruct …] [--out figures.json]

The inputs are made for the run in a temporary folder: objects of all categories of ImageNet3D v1, ten to a picture, about 16
pictures of an instance, four sources. Each stage is a process of its own, whose CPU seconds, wall-clock seconds and largest
memory are taken. The slope is that of log seconds (CPU) over log objects between a size and the one before: 1 is linear, 2
quadratic.

- prepare: a hundredth of the objects, one in each picture of 96 x 72 pixels, with one worker
- instruct: conversations about the objects, with its defaults
- dataset: what training does with train.json before its first step: `read_samples` and `PoseDataset`
- restart: `predict` where every object is answered already
- score: one system's predictions: figures, tables, plots and page
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from PIL import Image
from pydantic import Field, PositiveInt
from tqdm import tqdm

from data_prep.raw.imagenet3d import RawLayout, write_annotation, write_list
from eval.predict import PredictConfig, run_settings
from llava_pose.data.jsonl import write_jsonl
from llava_pose.data.records import ObjectRecord, Pose, Prediction, write_records
from llava_pose.pose import categories
from llava_pose.utils.command import command
from llava_pose.utils.config import check_fields
from llava_pose.utils.files import write_json
from llava_pose.utils.output_folder import keep_settings

CLI = (sys.executable, "-m", "llava_pose.cli")
OBJECTS_A_PICTURE, PICTURES_AN_INSTANCE, LINKS_A_FILE = 10, 16, 10_000
OF_PREPARE = 100  # one picture for so many objects of the other stages
DATASET = """
import sys
from llava_pose.data.dataset import PoseDataset
from llava_pose.data.samples import read_samples
print(len(PoseDataset(read_samples(sys.argv[1]), sys.argv[2], None, flip=True)))
"""
# a process of a few megabytes, since what is started counts the memory of what has started it as its own
MEASURE = """
import json, os, subprocess, sys, time
begun = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, used = os.wait4(process.pid, 0)
seconds = time.perf_counter() - begun
print(json.dumps([status, used.ru_utime + used.ru_stime, seconds, used.ru_maxrss * 1024 / 1e6]))
"""

Stage = Literal["prepare", "instruct", "dataset", "restart", "score"]


@dataclass
class GrowthConfig:
    """The options of the benchmark."""

    sizes: list[PositiveInt] = field(
        default_factory=lambda: [10_000, 100_000, 1_000_000], metadata={"help": "The numbers of objects, rising."}
    )
    stages: Annotated[list[Stage], Field(min_length=1)] = field(
        default_factory=lambda: ["prepare", "instruct", "dataset", "restart", "score"],
        metadata={"help": "The stages that are measured; dataset needs instruct before it."},
    )
    seed: int = field(default=0, metadata={"help": "The seed of objects and answers."})
    out: str | None = field(default=None, metadata={"help": "A JSON file for the figures."})

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Row:
    """One stage at one size: seconds, MB (10⁶ bytes) at the most, and the slope from the size before."""

    stage: str
    objects: int
    cpu_seconds: float
    wall_seconds: float
    megabytes: float
    slope: float | None


def benchmark(config: GrowthConfig) -> list[Row]:
    """Measure, print the table and return its rows."""
    rows: list[Row] = []
    for size in config.sizes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            records = make_prepared(folder, size, config.seed)
            for stage in config.stages:
                words, objects = STAGES[stage](folder, records, config.seed)
                before = next((row for row in reversed(rows) if row.stage == stage), None)
                rows.append(_measured(stage, objects, words, before))
    rows.sort(key=lambda row: (config.stages.index(row.stage), row.objects))  # type: ignore[arg-type]
    sys.stdout.write(f"{'stage':10}{'objects':>10}{'CPU s':>9}{'wall s':>9}{'MB':>8}{'slope':>7}\n")
    for row in rows:
        slope = "" if row.slope is None else f"{row.slope:.2f}"
        sys.stdout.write(
            f"{row.stage:10}{row.objects:>10,}{row.cpu_seconds:9.1f}{row.wall_seconds:9.1f}{row.megabytes:8.0f}{slope:>7}\n"
        )
    if config.out is not None:
        write_json(config.out, {"config": asdict(config), "rows": [asdict(row) for row in rows]})
    return rows


def _measured(stage: str, objects: int, words: list[str], before: Row | None) -> Row:
    done = subprocess.run([sys.executable, "-c", MEASURE, *words], stdout=subprocess.PIPE, text=True, check=True)
    status, cpu, wall, megabytes = json.loads(done.stdout)
    if status:
        raise SystemExit(f"{stage}, {objects} objects: the process ended with status {status}")
    slope = None if before is None else math.log(cpu / before.cpu_seconds) / math.log(objects / before.objects)
    return Row(stage, objects, cpu, wall, megabytes, slope)


def make_prepared(folder: Path, size: int, seed: int) -> list[ObjectRecord]:
    """Write a prepared folder of so many objects, and return them. Its pictures are links to a few files."""
    rng = np.random.default_rng(seed)
    names = [category.name for category in categories.all_categories() if category.in_v1]
    angles = rng.uniform((0.0, -0.5, -0.2), (2 * math.pi, 1.0, 0.2), (size, 3)).tolist()
    instances = rng.integers(0, max(1, size // PICTURES_AN_INSTANCE), size).tolist()
    status = rng.choice(["status_good", "status_partially", "status_barely"], size, p=[0.7, 0.2, 0.1]).tolist()
    pictures = folder / "val" / "pictures"
    pictures.mkdir(parents=True)
    for number in range(-(-size // OBJECTS_A_PICTURE)):
        if number % LINKS_A_FILE == 0:
            first = pictures / f"{number}.JPEG"
            Image.new("RGB", (64, 64), (90, 120, 150)).save(first)
        else:
            os.link(first, pictures / f"{number}.JPEG")
    records = [
        ObjectRecord(
            file_name=f"pictures/{number // OBJECTS_A_PICTURE}.JPEG",
            id=f"{names[instance % len(names)]}/n{number:08d}/0",
            category=names[instance % len(names)],
            pose=Pose(*angles[number], 5.0 + instance % 7, 32.0, 30.0),
            viewport=200.0,
            width=64,
            height=64,
            bbox=(8.0, 8.0, 56.0, 56.0),
            object_status=status[number],
            source={"image": f"{number}.JPEG", "source": "abcd"[instance % 4], "instance": str(instance)},
        )
        for number, instance in enumerate(tqdm(instances, desc="making objects", unit="object", delay=2, leave=False))
    ]
    write_records(folder, "val", records)
    return records


def _prepare(folder: Path, records: list[ObjectRecord], seed: int) -> tuple[list[str], int]:
    layout, count = RawLayout(folder / "raw"), -(-len(records) // OF_PREPARE)
    rng = np.random.default_rng(seed)
    names = [f"n{number:06d}" for number in range(count)]
    (layout.root / "images" / "car").mkdir(parents=True)
    for name in names:
        pixels = rng.integers(0, 256, (72, 96, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(layout.root / "images" / "car" / f"{name}.JPEG")
        object_ = {
            **{"azimuth": rng.uniform(0, 6.28), "elevation": 0.2, "theta": 0.0, "class": "car", "distance": 5.0},
            **{"viewport": 200.0, "focal": 1.0, "px": 48.0, "py": 36.0, "bbox": np.array([8.0, 8.0, 88.0, 64.0])},
            **{"width": np.uint16(96), "height": np.uint16(72), "object_status": "status_good"},
        }
        write_annotation(layout.annotation("car", name), [object_])
    write_list(layout.list_file("car", "train"), names)
    words = ["prepare", "--data-root", str(layout.root), "--out", str(folder / "prepared"), "--splits", "train"]
    return [*CLI, *words, "--size", "64", "--workers", "1"], count


def _instruct(folder: Path, records: list[ObjectRecord], _: int) -> tuple[list[str], int]:
    words = ["instruct", "--data", str(folder), "--split", "val", "--out", str(folder / "train.json")]
    return [*CLI, *words, "--kinds", "pose", "joint"], len(records)


def _dataset(folder: Path, records: list[ObjectRecord], _: int) -> tuple[list[str], int]:
    return [sys.executable, "-c", DATASET, str(folder / "train.json"), str(folder)], len(records)


def _restart(folder: Path, records: list[ObjectRecord], seed: int) -> tuple[list[str], int]:
    out, checkpoint = folder / "answered.jsonl", "nobody/checkpoint"
    config = PredictConfig(checkpoint=checkpoint, data=str(folder), split="val", out=str(out), task="pose")
    keep_settings(out, "--out", "predict", run_settings(config, []))
    write_jsonl(out, _answers(records, config.name, seed, named=False))
    words = ["predict", "--checkpoint", checkpoint, "--data", str(folder), "--split", "val", "--out", str(out)]
    return [*CLI, *words, "--task", "pose"], len(records)


def _score(folder: Path, records: list[ObjectRecord], seed: int) -> tuple[list[str], int]:
    write_jsonl(folder / "predictions.jsonl", _answers(records, "ours", seed, named=True))
    words = ["score", str(folder / "predictions.jsonl"), "--out", str(folder / "scores.json")]
    return [*CLI, *words], len(records)


def _answers(records: list[ObjectRecord], system: str, seed: int, *, named: bool) -> Any:
    """Yield a prediction a record, of which some are wrong and each instance's are alike."""
    rng = np.random.default_rng(seed)
    off = rng.normal(size=(len(records), 4)) * rng.choice([0.1, 0.3, 2.0], (len(records), 1))
    for record, (a, e, t, d) in zip(records, off.tolist(), strict=True):
        pose = record.pose
        found = Pose(pose.azimuth + a, pose.elevation + e, pose.theta + t, pose.distance * math.exp(d), 32.0, 30.0)  # type: ignore[operator]
        category = (record.category if a < 0.2 else "car") if named else None
        made = Prediction.of(
            record, system=system, pose=found, pred_category=category, confidence=1 / (1 + math.exp(a))
        )
        yield made.to_dict()


STAGES: dict[str, Callable[[Path, list[ObjectRecord], int], tuple[list[str], int]]] = {
    "prepare": _prepare,
    "instruct": _instruct,
    "dataset": _dataset,
    "restart": _restart,
    "score": _score,
}


main = command(
    GrowthConfig,
    benchmark,
    prog="python scripts/benchmarks/growth.py",
    description="Measure how time and memory of each stage grow with the number of objects.",
    example="python scripts/benchmarks/growth.py --sizes 1000 10000 --out figures.json",
)

if __name__ == "__main__":
    raise SystemExit(main())
