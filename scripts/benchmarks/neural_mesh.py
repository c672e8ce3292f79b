"""Measure what the pose search of a neural mesh model costs: one class, many classes, with and without pruning by votes.

    python scripts/benchmarks/neural_mesh.py --classes 1 6 40 189 --out figures.json

Features are random: the cost does not depend on them. "one class" is the whole pose of an image, the published grid of 144
poses and the refinement; then for each number of classes the votes alone, the pose with the voted class (the search that
``llava-pose neural-mesh`` makes), with the three most voted ones, and with all. Every figure is the best of some
repetitions, in seconds an image, by --threads threads.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize

from eval.systems.neural_mesh.geometry import Cuboid, cuboid_points
from eval.systems.neural_mesh.grid import published_grid
from eval.systems.neural_mesh.search import Meshes, PoseSearch, Starts, classify_and_search
from llava_pose.errors import InputError
from llava_pose.utils.command import command
from llava_pose.utils.files import write_json


@dataclass
class NeuralMeshBenchmarkConfig:
    """The options of the benchmark."""

    classes: list[int] = field(default_factory=lambda: [1, 6, 40], metadata={"help": "numbers of classes"})
    vertices: int = field(default=1000, metadata={"help": "of a mesh; refinement uses three times as many"})
    dims: int = field(default=128, metadata={"help": "of a feature"})
    map_side: int = field(default=28, metadata={"help": "positions of the feature map along a side; 224 pixels / 8"})
    batch: int = field(default=4, metadata={"help": "images at a time"})
    repeats: int = field(default=3, metadata={"help": "repetitions; the best one counts"})
    threads: int = field(default=2, metadata={"help": "of torch"})
    most_unpruned: int = field(default=40, metadata={"help": "above so many classes no search of all is measured"})
    out: str | None = field(default=None, metadata={"help": "a JSON file for the figures"})

    def __post_init__(self) -> None:
        for name in ("vertices", "dims", "map_side", "batch", "repeats", "threads"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')}: must be at least 1, not {getattr(self, name)}")
        if not self.classes or min(self.classes) < 1:
            raise InputError("--classes: give numbers of at least 1, such as --classes 1 6 40")


def random_search(classes: int, config: NeuralMeshBenchmarkConfig, **options: Any) -> PoseSearch:
    """A search over cuboids of several shapes, with random features."""
    generator = torch.Generator().manual_seed(0)
    sizes = 0.1 + 0.35 * torch.rand(classes, 3, generator=generator)

    def meshes(count: int) -> Meshes:
        surfaces = [cuboid_points(count, Cuboid(tuple((-s).tolist()), tuple(s.tolist()))) for s in sizes]
        rows = [torch.tensor(np.stack(part), dtype=torch.float32) for part in zip(*surfaces, strict=True)]
        return Meshes(*rows, normalize(torch.randn(classes, count, config.dims, generator=generator), dim=-1))

    grid = torch.tensor(published_grid(), dtype=torch.float32)
    starts = Starts(grid, torch.zeros(classes, len(grid), 3), torch.full((classes, 3), 0.05), torch.tensor(5.0))
    clutter = normalize(torch.randn(1024, config.dims, generator=generator), dim=-1)
    return PoseSearch(meshes(config.vertices), meshes(3 * config.vertices), clutter, starts, **options)


def benchmark(config: NeuralMeshBenchmarkConfig) -> list[dict[str, Any]]:
    """Measure, print a table and write the JSON file if asked for."""
    torch.set_num_threads(config.threads)
    side = config.map_side
    maps = normalize(torch.randn(config.batch, config.dims, side, side), dim=1)
    images, first = list(range(config.batch)), [0] * config.batch
    rows: list[dict[str, Any]] = []

    def measure(what: str, classes: int, work: Callable[[], Any]) -> None:
        work()  # what is worked out once for a class is not measured
        seconds = math.inf
        for _ in range(config.repeats):
            start = time.perf_counter()
            work()
            seconds = min(seconds, time.perf_counter() - start)
        rows.append({"classes": classes, "what": what, "seconds_an_image": seconds / config.batch})
        sys.stdout.write(f"{classes:4} classes  {what:36} {seconds / config.batch:8.4f} s an image\n")
        sys.stdout.flush()

    one = random_search(1, config)
    measure("grid of 144 poses", 1, lambda: one.grid_scores(maps, 0))
    measure("grid of 144 poses and refinement", 1, lambda: one.search(maps, images, first))
    for classes in config.classes:
        search = random_search(classes, config)
        measure("votes", classes, lambda search=search: search.votes(maps))
        for tried in sorted({1, min(3, classes), classes}):
            if tried <= max(3, config.most_unpruned):
                name = "all" if tried == classes else f"the {tried} most voted"
                what = f"votes, and poses of {name}"
                measure(what, classes, lambda s=search, tried=tried: classify_and_search(s, maps, tried))
    if config.out is not None:
        write_json(config.out, {"torch": torch.__version__, "config": asdict(config), "rows": rows})
    return rows


main = command(
    NeuralMeshBenchmarkConfig,
    benchmark,
    prog="python scripts/benchmarks/neural_mesh.py",
    description="Measure what the pose search of a neural mesh model costs.",
    example="python scripts/benchmarks/neural_mesh.py --classes 1 6 40 --out figures.json",
)

if __name__ == "__main__":
    sys.exit(main())
