"""Measure how much sooner the grid of linear probes is trained at once than cell after cell, on the same features and batches.

The other way is a plain loop with autograd, three ``nn.Linear``, ``torch.optim.SGD`` and ``CosineAnnealingLR`` on features
that are in memory already joined: no loader, no disk. Both train every cell and predict held-out objects with it, on as many
threads as they are given (``--threads``), in one process. Features are drawn so that the labels can be learnt from them;
labels are as many bins of each angle as the photographs of docs/RESULTS.md have (40, 12 and 9).

Times are processor seconds, so that a busy machine does not decide. All cells are compared: the greatest difference of any
weight, relative to the greatest weight of its cell, and of any cell's accuracy.
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from eval.systems.linear_probe.options import LEARNING_RATES
from eval.systems.linear_probe.training import MOMENTUM, ProbeTrainer, ProbeWeights, TrainedProbes, batch_order
from llava_pose.errors import InputError
from llava_pose.model.rotation import BINS
from llava_pose.pose.geometry import bins_to_angles
from llava_pose.pose.metrics import pose_error
from llava_pose.utils.command import command
from llava_pose.utils.files import write_json

CLS = ("cls3", "cls6", "cls9", "cls10", "cls11", "cls12")
FEATURE_SETS = tuple(
    (*layers, *patches)
    for layers in (("cls12",), ("cls9", "cls10", "cls11", "cls12"), ("cls3", "cls6", "cls9", "cls12"))
    for patches in ((), ("patches12",))
)
USED_BINS = (40, 12, 9)


@dataclass
class BenchmarkConfig:
    """The options of the benchmark."""

    samples: int = field(default=2000, metadata={"help": "training objects"})
    held_out: int = field(default=500, metadata={"help": "objects that every cell predicts"})
    width: int = field(default=768, metadata={"help": "channels of the backbone"})
    epochs: int = field(default=5, metadata={"help": "passes over the training objects"})
    batch_size: int = field(default=128, metadata={"help": "objects a step"})
    repeats: int = field(default=3, metadata={"help": "times the grid is trained at once; the best one counts"})
    threads: int = field(default=1, metadata={"help": "of torch"})
    seed: int = field(default=0, metadata={"help": "draws features, labels and batches"})
    out: str | None = field(default=None, metadata={"help": "a JSON file for the figures"})

    def __post_init__(self) -> None:
        for name in ("samples", "held_out", "width", "epochs", "batch_size", "repeats", "threads"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')}: must be at least 1, not {getattr(self, name)}")


def made_features(config: BenchmarkConfig) -> tuple[dict[str, Tensor], Tensor]:
    """Blocks (objects, width), normed as a final LayerNorm leaves them, and bins (objects, 3) that can be read from them."""
    generator = torch.Generator().manual_seed(config.seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    count = config.samples + config.held_out
    causes = normal(count, 24)
    blocks = {}
    for name in (*CLS, "patches12"):
        mixed = causes @ normal(24, config.width) / 5 + normal(count, config.width) + normal(config.width)
        blocks[name] = F.layer_norm(mixed, (config.width,))
    bins = torch.stack([(causes @ normal(24, used)).argmax(1) for used in USED_BINS], 1)
    return blocks, bins


def all_at_once(
    blocks: dict[str, Tensor], bins: Tensor, batches: list[Tensor], others: Tensor
) -> tuple[float, list[TrainedProbes]]:
    """Seconds, and the probes of each feature set."""
    start = time.process_time()
    trainer = ProbeTrainer(blocks, bins, rates=LEARNING_RATES, batches=batches, others=others)
    probes = [trainer.train(names) for names in FEATURE_SETS]
    return time.process_time() - start, probes


def one_cell(
    features: Tensor, bins: Tensor, rate: float, batches: list[Tensor], others: Tensor
) -> tuple[float, ProbeWeights, Tensor]:
    """Seconds, the probe, and the bins (others, 3) that it predicts."""
    start = time.process_time()
    layers = nn.ModuleList([nn.Linear(features.shape[1], BINS) for _ in range(3)])
    for parameter in layers.parameters():
        nn.init.zeros_(parameter)
    optimizer = torch.optim.SGD(layers.parameters(), lr=rate, momentum=MOMENTUM)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
    for batch in batches:
        inputs, labels = features[batch], bins[batch]
        loss = sum(F.cross_entropy(layer(inputs), labels[:, angle]) for angle, layer in enumerate(layers))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        predicted = torch.stack([layer(features[others]).argmax(1) for layer in layers], 1)
    seconds = time.process_time() - start
    weight, bias = (torch.stack([getattr(layer, name).detach() for layer in layers]) for name in ("weight", "bias"))
    return seconds, ProbeWeights(weight, bias), predicted


def accuracy(predicted: Tensor, bins: Tensor) -> float:
    """Share of poses within 30 degrees of the labels' bin centres."""
    found, true = (bins_to_angles(b.numpy(), bins=BINS) for b in (predicted, bins))
    return float((pose_error(found, true) < math.pi / 6).mean())


def benchmark(config: BenchmarkConfig) -> dict[str, Any]:
    """Train the grid both ways, print what each took and how far they differ, and write the JSON file if asked for."""
    torch.set_num_threads(config.threads)
    blocks, bins = made_features(config)
    order = {"epochs": config.epochs, "batch_size": config.batch_size, "seed": config.seed}
    batches = batch_order(config.samples, **order)
    others = torch.arange(config.samples, config.samples + config.held_out)
    all_at_once(blocks, bins, batches[:2], others)  # what the first call loads is not measured
    seconds, probes = min(
        (all_at_once(blocks, bins, batches, others) for _ in range(config.repeats)), key=lambda r: r[0]
    )
    total = 0.0
    weight_differences, accuracy_differences, accuracies = [], [], []
    with tqdm(total=len(FEATURE_SETS) * len(LEARNING_RATES), desc="one after another", unit="cell") as progress:
        for names, trained in zip(FEATURE_SETS, probes, strict=True):
            features = torch.cat([blocks[name] for name in names], 1)
            for index, rate in enumerate(LEARNING_RATES):
                spent, plain, predicted = one_cell(features, bins, rate, batches, others)
                total += spent
                ours = trained.weights(index)
                scale = plain.weight.abs().max()
                weight_differences.append(float((ours.weight - plain.weight).abs().max() / scale))
                accuracies.append(accuracy(predicted, bins[others]))
                accuracy_differences.append(abs(accuracies[-1] - accuracy(trained.bins[index], bins[others])))
                progress.update()
    figures = {
        "config": asdict(config),
        "torch": torch.__version__,
        "cells": len(accuracies),
        "steps": len(batches),
        "at_once_seconds": seconds,
        "one_after_another_seconds": total,
        "times_faster": total / seconds,
        "weight_difference": {"greatest": max(weight_differences), "median": float(np.median(weight_differences))},
        "accuracy_difference": max(accuracy_differences),
        "best_accuracy": max(accuracies),
    }
    sys.stdout.write(
        f"{figures['cells']} cells, {len(batches)} steps, {config.samples} objects, {config.width} channels\n"
        f"one after another {total:8.2f} s\nall at once       {seconds:8.2f} s, {total / seconds:.1f} times faster\n"
        f"greatest relative difference of a weight {max(weight_differences):.1e} (median over cells "
        f"{figures['weight_difference']['median']:.1e}), of an accuracy {100 * max(accuracy_differences):.2f} points "
        f"(the best cell has {100 * max(accuracies):.1f}%)\n"
    )
    if config.out is not None:
        write_json(config.out, figures)
    return figures


main = command(
    BenchmarkConfig,
    benchmark,
    prog="python scripts/benchmarks/probe_grid.py",
    description="The grid of linear probes trained at once, beside training it cell after cell.",
    example="OMP_NUM_THREADS=1 python scripts/benchmarks/probe_grid.py --out probe_grid.json",
)

if __name__ == "__main__":
    raise SystemExit(main())
