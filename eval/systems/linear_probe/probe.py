"""Linear probing of object-level 3D awareness: how well a frozen backbone's features tell the pose, linearly.

The grid of ImageNet3D's report (layers x pooling x learning rates) is trained at once. It is trained twice: on the train split
without a hold-out, to choose a cell on what was held out, and on all of the train split, to predict with the chosen cell. The
published figures chose the cell on the test set; what that gives stands beside it in probe_grid.json.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import PartialState
from safetensors.torch import save_file
from torch import Tensor

from eval.systems.linear_probe.backbone import ProbeBackbone, load_probe_backbone
from eval.systems.linear_probe.features import ProbeFeatures, build_features
from eval.systems.linear_probe.settings import (
    GRID_FILE,
    LinearProbeConfig,
    predict_records,
    training_records,
)
from eval.systems.linear_probe.settings import (
    LEARNING_RATES as LEARNING_RATES,
)
from eval.systems.linear_probe.training import ProbeTrainer, ProbeWeights, batch_order
from eval.systems.record_choice import category_of
from llava_pose.data.records import ObjectRecord, Pose, Prediction, write_jsonl
from llava_pose.errors import InputError
from llava_pose.model.rotation import BINS
from llava_pose.pose.geometry import angles_to_bins, bins_to_angles
from llava_pose.pose.metrics import pose_error
from llava_pose.utils.config import require_folder, save_config
from llava_pose.utils.distributed import leave_at_exit
from llava_pose.utils.files import write_json

logger = logging.getLogger(__name__)


def run(config: LinearProbeConfig) -> Path:
    """Probe a backbone and write ``predictions.jsonl``, or see that it has been done; returns its path.

    Several processes (``accelerate launch``, torchrun) share the features; the first of them does the rest.

    Raises:
        InputError: bad data or settings.
    """
    require_folder(config.data, "--data", "make it with llava-pose prepare")
    state = PartialState()
    leave_at_exit()
    train, predict = training_records(config), predict_records(config)
    backbone = load_probe_backbone(config.backbone, image_size=config.image_size, device=state.device)
    images = sorted(
        {f"train/{record.file_name}" for record in train}
        | {f"{config.predict_split}/{record.file_name}" for record in predict}
    )
    cache_dir = config.cache_dir or Path(config.output_dir) / "features"
    share = (state.process_index, state.num_processes)
    features = build_features(cache_dir, config.data, images, backbone, share=share)
    state.wait_for_everyone()
    output = Path(config.output_dir) / "predictions.jsonl"
    if state.is_main_process:
        settings = _settings(config, features.name, [*train, *predict])
        if output.is_file() and _finished_with(Path(config.output_dir), settings):
            logger.info(f"{output}: {config.system} has been probed with these settings")
        else:
            _probe(config, settings, backbone, features, train, predict)
    state.wait_for_everyone()
    return output


def hold_out(records: Sequence[ObjectRecord], share: float, seed: int) -> np.ndarray:
    """Which objects are held out: of each category about that share, whole instances together.

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


def _settings(config: LinearProbeConfig, features: str, records: Sequence[ObjectRecord]) -> dict[str, Any]:
    """What decides the result."""
    text = json.dumps([record.to_dict() for record in records], sort_keys=True)
    values = {k: v for k, v in dataclasses.asdict(config).items() if k not in ("output_dir", "cache_dir", "data")}
    return {**values, "features": features, "records": hashlib.sha256(text.encode()).hexdigest()[:24]}


def _finished_with(folder: Path, settings: dict[str, Any]) -> bool:
    try:
        return json.loads((folder / GRID_FILE).read_text(encoding="utf-8"))["settings"] == settings
    except (OSError, ValueError, KeyError, TypeError):  # not there, or not of this program: it is written anew
        return False


def _probe(
    config: LinearProbeConfig,
    settings: dict[str, Any],
    backbone: ProbeBackbone,
    features: ProbeFeatures,
    train: Sequence[ObjectRecord],
    predict: Sequence[ObjectRecord],
) -> None:
    output = Path(config.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    # written last: until then nothing says that what stands here is done, with these settings or with earlier ones
    (output / GRID_FILE).unlink(missing_ok=True)
    save_config(config, output / "linear_probe.yaml")
    held = hold_out(train, config.holdout, config.seed)
    if not held.any():
        raise InputError(
            f"{config.data}/train: {len(train)} objects are too few to hold some out; raise --limit or prepare more"
        )
    images = [f"train/{r.file_name}" for r in train] + [f"{config.predict_split}/{r.file_name}" for r in predict]
    blocks = {k: v.contiguous().to(backbone.model.device) for k, v in backbone.split(features.of(images)).items()}
    angles = np.array([record.pose.angles for record in (*train, *predict)])
    fit, kept_out = np.flatnonzero(~held), np.flatnonzero(held)
    everything, to_predict = np.arange(len(train)), np.arange(len(train), len(images))
    chosen_on, _ = _train_grid(config, backbone, blocks, angles, fit, kept_out, f"{config.system}, hold-out")
    predicted, probes = _train_grid(config, backbone, blocks, angles, everything, to_predict, cast(str, config.system))
    cells = [
        {**name, "holdout": _figures(on_holdout), "predicted": _figures(on_predicted)}
        for name, on_holdout, on_predicted in zip(_cell_names(config, backbone), chosen_on, predicted, strict=True)
    ]
    best = max(range(len(cells)), key=lambda cell: _merit(cells[cell]["holdout"]))
    best_on_predicted = max(range(len(cells)), key=lambda cell: _merit(cells[cell]["predicted"]))
    feature_set = backbone.feature_sets[best // len(config.learning_rates)]
    probe = probes[best // len(config.learning_rates)].weights(best % len(config.learning_rates))
    seen = torch.cat([blocks[name][len(train) :] for name in feature_set.blocks], 1)
    save_file(
        {"weight": probe.weight.cpu(), "bias": probe.bias.cpu()},
        output / "probe.safetensors",
        metadata={"backbone": config.backbone, "blocks": " ".join(feature_set.blocks)},
    )
    write_jsonl(output / "predictions.jsonl", _predictions(config, predict, probe, seen))
    write_json(
        output / GRID_FILE,
        {
            "settings": settings,
            "objects": {"train": len(train), "held_out": len(kept_out), "predicted": len(predict)},
            "cells": cells,
            "selected": cells[best],
            "selected_on_predicted": cells[best_on_predicted],
        },
    )
    logger.info(
        f"{config.system}: {_cell_text(cells[best])} chosen on the hold-out, acc@30 {_percent(cells[best])} on "
        f"{config.predict_split}; chosen there, as published: {_cell_text(cells[best_on_predicted])}, "
        f"{_percent(cells[best_on_predicted])}"
    )


def _train_grid(
    config: LinearProbeConfig,
    backbone: ProbeBackbone,
    blocks: dict[str, Tensor],
    angles: np.ndarray,
    fit: np.ndarray,
    others: np.ndarray,
    name: str,
) -> tuple[list[np.ndarray], list[Any]]:
    """Pose errors (others,) of each cell, in radians, and the probes of each feature set."""
    order = batch_order(len(fit), epochs=config.epochs, batch_size=config.batch_size, seed=config.seed)
    trainer = ProbeTrainer(
        blocks,
        torch.from_numpy(angles_to_bins(angles, bins=BINS)),
        rates=config.learning_rates,
        batches=[torch.from_numpy(fit)[batch] for batch in order],
        others=torch.from_numpy(others),
        progress=name,
    )
    probes = [trainer.train(feature_set.blocks) for feature_set in backbone.feature_sets]
    return [
        pose_error(bins_to_angles(bins.cpu().numpy(), bins=BINS), angles[others]) for p in probes for bins in p.bins
    ], probes


def _cell_names(config: LinearProbeConfig, backbone: ProbeBackbone) -> list[dict[str, Any]]:
    return [
        {"layers": feature_set.layers, "pooling": feature_set.pooling, "learning_rate": rate}
        for feature_set in backbone.feature_sets
        for rate in config.learning_rates
    ]


def _figures(errors: np.ndarray) -> dict[str, float]:
    """Shares in [0, 1]; the median in degrees."""
    return {
        "acc@30": float((errors < math.pi / 6).mean()),
        "acc@10": float((errors < math.pi / 18).mean()),
        "median_deg": math.degrees(float(np.median(errors))),
    }


def _merit(figures: dict[str, float]) -> tuple[float, float]:
    """Accuracy at 30 degrees decides, as published; among equals, the median."""
    return figures["acc@30"], -figures["median_deg"]


def _cell_text(cell: dict[str, Any]) -> str:
    return f"{cell['layers']} {cell['pooling']} {cell['learning_rate']:g}"


def _percent(cell: dict[str, Any]) -> str:
    return f"{100 * cell['predicted']['acc@30']:.1f}%"


def _predictions(
    config: LinearProbeConfig, records: Sequence[ObjectRecord], probe: ProbeWeights, features: Tensor
) -> list[dict[str, Any]]:
    """The confidence is the product of the three bins' probabilities."""
    best = probe.logits(features).softmax(-1).max(-1)
    poses = bins_to_angles(best.indices.cpu().numpy(), bins=BINS)
    return [
        Prediction.of(
            record,
            system=cast(str, config.system),
            pose=Pose(*map(float, pose)),
            pred_category=None,
            confidence=float(confidence),
        ).to_dict()
        for record, pose, confidence in zip(records, poses, best.values.prod(-1).tolist(), strict=True)
    ]
