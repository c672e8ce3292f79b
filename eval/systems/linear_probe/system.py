"""Linear probing of object-level 3D awareness: how well a frozen backbone's features tell the pose, linearly.

The grid of ImageNet3D's report (layers x pooling x learning rates) is trained at once. It is trained twice: on the train split
without a hold-out, to choose a cell on what was held out, and on all of the train split, to predict with the chosen cell. The
published numbers chose the cell on the test set; what that gives stands beside it in probe_grid.json.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from safetensors.torch import save_file
from torch import Tensor

from eval.systems.linear_probe.backbone import ProbeBackbone, load_probe_backbone, read_backbone_config
from eval.systems.linear_probe.features import ProbeFeatures, build_features
from eval.systems.linear_probe.options import GRID_FILE, LinearProbeOptions
from eval.systems.linear_probe.retrieval import neighbour_scores
from eval.systems.linear_probe.training import ProbeTrainer, ProbeWeights, batch_order, half_mirrored
from eval.systems.record_choice import select_records
from eval.systems.system import PREDICTIONS, run_system
from llava_pose.data.jsonl import write_jsonl
from llava_pose.data.records import ObjectRecord, Pose, Prediction, category_of, read_predictions
from llava_pose.errors import InputError
from llava_pose.model.rotation import BINS
from llava_pose.pose.geometry import angles_to_bins, bins_to_angles, flip_pose
from llava_pose.pose.metrics import pose_error
from llava_pose.utils.distributed import from_first_process, leave_at_exit
from llava_pose.utils.files import write_json
from llava_pose.utils.output_folder import keep_settings

logger = logging.getLogger(__name__)


class LinearProbe:
    """The linear probes of one frozen backbone, of which the hold-out chooses one."""

    def __init__(self, options: LinearProbeOptions):
        """
        Raises:
            InputError: the backbone is no vision model.
        """
        read_backbone_config(options.backbone)
        self.options = options

    def answer(self, records: Sequence[ObjectRecord]) -> list[Prediction]:
        """Probe, or see that it has been done; the processes of a run share the features, and the first does the rest."""
        options, state = self.options, PartialState()
        leave_at_exit()
        train = training_records(options)
        backbone = load_probe_backbone(
            options.backbone,
            image_size=options.image_size,
            center_crop=options.center_crop,
            final_norm=options.final_norm,
            mae_mask=options.mae_mask,
            device=state.device,
        )
        if options.features is not None:
            backbone.keep(options.features)
        images = sorted(
            {f"train/{record.file_name}" for record in train}
            | {f"{options.split}/{record.file_name}" for record in records}
        )
        cache_dir = options.cache_dir or Path(options.output_dir) / "features"
        share = (state.process_index, state.num_processes)
        features = build_features(cache_dir, options.data, images, backbone, flips=options.random_flip, share=share)
        state.wait_for_everyone()
        return from_first_process(lambda: _probe_or_read(options, backbone, features, train, records))


def run(options: LinearProbeOptions) -> Path:
    """Probe a backbone and write ``predictions.jsonl``, or see that it has been done; return its path.

    Raises:
        InputError: bad data or settings.
    """
    return run_system(options, LinearProbe(options))


def training_records(options: LinearProbeOptions) -> list[ObjectRecord]:
    """Return the objects to train on.

    Raises:
        InputError: there are none, or none of a category that is asked for.
    """
    records = select_records(options.data, "train", options.train_categories, "--train-categories")
    if options.limit is not None and options.limit < len(records):
        chosen = np.random.default_rng(options.seed).permutation(len(records))[: options.limit]
        records = [records[index] for index in sorted(chosen)]
    return records


def hold_out(records: Sequence[ObjectRecord], share: float, seed: int) -> np.ndarray:
    """Choose the objects that are held out: of each category about that share, whole instances together.

    Objects without a named instance go by their picture. A category of one instance is divided by object, and one object is
    never held out.

    Returns:
        (n,) bool.
    """
    rng = np.random.default_rng(seed)
    held = np.zeros(len(records), dtype=bool)
    by_category: dict[str, dict[Any, list[int]]] = {}
    for index, record in enumerate(records):
        instance = record.source.get("instance")
        key = (record.source.get("source"), instance) if instance else record.source.get("image") or record.id
        by_category.setdefault(category_of(record).name, {}).setdefault(key, []).append(index)
    for groups in by_category.values():
        parts = list(groups.values())
        if len(parts) == 1:
            parts = [[index] for index in parts[0]]
        count = sum(map(len, parts))
        taken = 0
        for part in rng.permutation(len(parts))[:-1]:  # one is left to train on
            if taken >= share * count:
                break
            held[parts[part]] = True
            taken += len(parts[part])
    return held


def _probe_or_read(
    options: LinearProbeOptions,
    backbone: ProbeBackbone,
    features: ProbeFeatures,
    train: Sequence[ObjectRecord],
    records: Sequence[ObjectRecord],
) -> list[Prediction]:
    output = Path(options.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    out, text = output / PREDICTIONS, json.dumps([record.to_dict() for record in (*train, *records)], sort_keys=True)
    settings = {k: v for k, v in dataclasses.asdict(options).items() if k not in ("output_dir", "cache_dir", "data")}
    settings["features_digest"] = features.name
    settings["records_digest"] = hashlib.sha256(text.encode()).hexdigest()[:24]
    keep_settings(output, "--output-dir", "linear-probe", settings, begun=out.is_file())
    if out.is_file() and (output / GRID_FILE).is_file():  # which is written last
        logger.info(f"{out}: {options.system} has been probed")
    else:
        _probe(options, backbone, features, train, records)
    return read_predictions(out)


def _probe(
    config: LinearProbeOptions,
    backbone: ProbeBackbone,
    features: ProbeFeatures,
    train: Sequence[ObjectRecord],
    predict: Sequence[ObjectRecord],
) -> None:
    output = Path(config.output_dir)
    held = hold_out(train, config.holdout, config.seed)
    if not held.any():
        raise InputError(
            f"{config.data}/train: {len(train)} objects are too few to hold some out; raise --limit or prepare more"
        )
    images = [f"train/{r.file_name}" for r in train] + [f"{config.split}/{r.file_name}" for r in predict]
    rows, angles = features.of(images), np.array([record.pose.angles for record in (*train, *predict)])
    if config.random_flip:  # the mirror images of what is trained on stand behind all others
        rows = torch.cat([rows, features.of(images[: len(train)], mirrored=True)])
        azimuth, elevation, theta = angles[: len(train)].T
        angles = np.concatenate([angles, np.stack(flip_pose(azimuth, elevation, theta, 0.0, 0.0)[:3], -1)])
    blocks = {k: v.contiguous().to(backbone.model.device) for k, v in backbone.split(rows).items()}
    fit, kept_out = np.flatnonzero(~held), np.flatnonzero(held)
    everything, to_predict = np.arange(len(train)), np.arange(len(train), len(images))
    mirrored = len(images) if config.random_flip else None
    chosen_on, _ = _train_grid(config, backbone, blocks, angles, fit, kept_out, mirrored, f"{config.system}, hold-out")
    predicted, probes = _train_grid(config, backbone, blocks, angles, everything, to_predict, mirrored, config.system)
    cells = [
        {**name, "holdout": _scores(on_holdout), "predicted": _scores(on_predicted)}
        for name, on_holdout, on_predicted in zip(_cell_names(config, backbone), chosen_on, predicted, strict=True)
    ]
    best = max(range(len(cells)), key=lambda cell: _merit(cells[cell]["holdout"]))
    best_on_predicted = max(range(len(cells)), key=lambda cell: _merit(cells[cell]["predicted"]))
    feature_set = backbone.feature_sets[best // len(config.learning_rates)]
    probe = probes[best // len(config.learning_rates)].weights(best % len(config.learning_rates))
    neighbours = neighbour_scores(
        blocks,
        backbone.feature_sets,
        angles,
        [category_of(record).name for record in (*train, *predict)],
        searched=everything,
        asked=to_predict,
        seed=config.seed,
    )
    seen = torch.cat([blocks[name][len(train) : len(images)] for name in feature_set.blocks], 1)
    save_file(
        {"weight": probe.weight.cpu(), "bias": probe.bias.cpu()},
        output / "probe.safetensors",
        metadata={"backbone": config.backbone, "blocks": " ".join(feature_set.blocks)},
    )
    write_jsonl(output / PREDICTIONS, _predictions(config, predict, probe, seen))
    write_json(
        output / GRID_FILE,
        {
            "objects": {"train": len(train), "held_out": len(kept_out), "predicted": len(predict)},
            "cells": cells,
            "selected": cells[best],
            "selected_on_predicted": cells[best_on_predicted],
            "retrieval": neighbours,
        },
    )
    logger.info(
        f"{config.system}: {_cell_text(cells[best])} chosen on the hold-out, acc@30 {_percent(cells[best])} on "
        f"{config.split}; chosen there, as published: {_cell_text(cells[best_on_predicted])}, "
        f"{_percent(cells[best_on_predicted])}"
    )


def _train_grid(
    config: LinearProbeOptions,
    backbone: ProbeBackbone,
    blocks: dict[str, Tensor],
    angles: np.ndarray,
    fit: np.ndarray,
    others: np.ndarray,
    mirrored: int | None,
    name: str,
) -> tuple[list[np.ndarray], list[Any]]:
    """Return the pose errors (others,) of each cell, in radians, and the probes of each feature set.

    Args:
        blocks, angles: of all objects.
        fit: the objects to train on.
        others: the objects to predict.
        mirrored: how many rows behind an object its mirror image stands; None where none is trained on.
        name: what the progress bar says.
    """
    order = batch_order(len(fit), epochs=config.epochs, batch_size=config.batch_size, seed=config.seed)
    batches = [torch.from_numpy(fit)[batch] for batch in order]
    if mirrored is not None:
        batches = half_mirrored(batches, mirrored, config.seed)
    trainer = ProbeTrainer(
        blocks,
        torch.from_numpy(angles_to_bins(angles, bins=BINS)),
        rates=config.learning_rates,
        batches=batches,
        others=torch.from_numpy(others),
        progress=name,
    )
    probes = [trainer.train(feature_set.blocks) for feature_set in backbone.feature_sets]
    return [
        pose_error(bins_to_angles(bins.cpu().numpy(), bins=BINS), angles[others]) for p in probes for bins in p.bins
    ], probes


def _cell_names(config: LinearProbeOptions, backbone: ProbeBackbone) -> list[dict[str, Any]]:
    return [
        {"layers": feature_set.layers, "pooling": feature_set.pooling, "learning_rate": rate}
        for feature_set in backbone.feature_sets
        for rate in config.learning_rates
    ]


def _scores(errors: np.ndarray) -> dict[str, float]:
    """Return shares in [0, 1], and the median in degrees."""
    return {
        "acc@30": float((errors < math.pi / 6).mean()),
        "acc@10": float((errors < math.pi / 18).mean()),
        "median_deg": math.degrees(float(np.median(errors))),
    }


def _merit(scores: dict[str, float]) -> tuple[float, float]:
    """Return what cells are ranked by: accuracy at 30 degrees, as published; among equals, the median."""
    return scores["acc@30"], -scores["median_deg"]


def _cell_text(cell: dict[str, Any]) -> str:
    return f"{cell['layers']} {cell['pooling']} {cell['learning_rate']:g}"


def _percent(cell: dict[str, Any]) -> str:
    return f"{100 * cell['predicted']['acc@30']:.1f}%"


def _predictions(
    config: LinearProbeOptions, records: Sequence[ObjectRecord], probe: ProbeWeights, features: Tensor
) -> list[dict[str, Any]]:
    """Return the lines of predictions; the confidence is the product of the three bins' probabilities."""
    best = probe.logits(features).softmax(-1).max(-1)
    poses = bins_to_angles(best.indices.cpu().numpy(), bins=BINS)
    return [
        Prediction.of(
            record,
            system=config.system,
            pose=Pose(*map(float, pose)),
            pred_category=None,
            confidence=float(confidence),
        ).to_dict()
        for record, pose, confidence in zip(records, poses, best.values.prod(-1).tolist(), strict=True)
    ]
