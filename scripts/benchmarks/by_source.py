"""Accuracy by source of the pictures, and how far the confidence can be believed: as it is, and calibrated on other sources.

    python scripts/benchmarks/by_source.py --predictions runs/everyday/predictions.jsonl --out by_source.json \\
        --fit-on stanfordcars eth80

Errors are plain geodesic angles; intervals resample instances. The calibration is Platt's: the logit of the confidence, scaled
and shifted, by maximum likelihood of "the error is under 30 degrees" on the sources of --fit-on. A pose classifier's confidence
is that of its category.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.special import expit

from eval.confidence import fit_logistic, logits_of
from llava_pose.data.records import Prediction, read_predictions
from llava_pose.errors import InputError
from llava_pose.pose import categories
from llava_pose.pose.bootstrap import bootstrap_interval
from llava_pose.pose.metrics import calibration_error, pose_error, symmetric_pose_error
from llava_pose.utils.command import command
from llava_pose.utils.config import require
from llava_pose.utils.files import write_json

logger = logging.getLogger(__name__)
HIT, FINE = np.radians(30.0), np.radians(10.0)
FRONT = np.radians([0.0, 15.0, 0.0])  # from the front and a little above, as people take photographs of furniture


@dataclass
class BySourceConfig:
    """Options of this script."""

    predictions: str = field(default="", metadata={"help": "The predictions.jsonl of one system."})
    out: str = field(default="", metadata={"help": "The JSON file for the figures."})
    fit_on: list[str] = field(default_factory=list, metadata={"help": "The sources that the calibration is fitted on."})


def by_source(config: BySourceConfig) -> dict[str, Any]:
    """The figures of each group of pictures, which are written to ``out`` as well.

    Raises:
        InputError: the file is bad, or there is no confidence to calibrate.
    """
    predictions = read_predictions(require(config.predictions or None, "--predictions"))
    calibrate = _calibration(predictions, config.fit_on) if config.fit_on else None
    figures = {name: figures_of(group, calibrate) for name, group in groups_of(predictions).items()}
    write_json(require(config.out or None, "--out"), figures)
    for name, of_group in figures.items():
        sys.stdout.write(f"{name:28s}" + "  ".join(f"{key} {value}" for key, value in of_group.items()) + "\n")
    return figures


def groups_of(predictions: Sequence[Prediction]) -> dict[str, list[Prediction]]:
    """Predictions by source, those of a source without occlusion, and those of a source by category where it has several."""
    found: dict[str, list[Prediction]] = {}
    for source in sorted({item.source for item in predictions}):
        group = [item for item in predictions if item.source == source]
        clear = [item for item in group if item.object_status == "status_good"]
        found[source or "all"] = group
        if clear and len(clear) < len(group):
            found[f"{source}, unoccluded"] = clear
        names = sorted({item.category for item in group})
        if 1 < len(names) <= 12:
            found |= {f"{source}, {name}": [item for item in group if item.category == name] for name in names}
    return found


def figures_of(
    group: Sequence[Prediction], calibrate: Callable[[np.ndarray], np.ndarray] | None = None
) -> dict[str, Any]:
    """Accuracies in %, one of them of an answer that is always :data:`FRONT`, and of the confidence its mean, its expected
    calibration error and the surest half's accuracy.
    """
    errors, symmetric = errors_of(group)
    true = np.array([item.true.angles for item in group])
    instances = np.array([item.instance or item.id for item in group])
    interval = bootstrap_interval(errors < HIT, instances=instances)
    figures: dict[str, Any] = {
        "n": len(group),
        "instances": len(set(instances.tolist())),
        "pi6": _percent(interval.value),
        "interval": [_percent(interval.low), _percent(interval.high)],
        "pi18": _percent((errors < FINE).mean()),
        "median_deg": round(float(np.degrees(np.median(errors))), 1),
        "pi6_symmetric": _percent((symmetric < HIT).mean()),
        "pi6_of_front": _percent((pose_error(np.broadcast_to(FRONT, true.shape), true) < HIT).mean()),
    }
    if all(item.pred_category is not None for item in group):
        figures["category"] = _percent(np.mean([item.pred_category == item.category for item in group]))
    confidence = _confidence(group)
    if confidence is not None:
        surest = np.argsort(-confidence, kind="stable")[: (len(group) + 1) // 2]
        figures |= {
            "mean_confidence": _percent(confidence.mean()),
            "ece": _percent(calibration_error(confidence, errors < HIT)),
            "surest_half_pi6": _percent((errors[surest] < HIT).mean()),
        }
        if calibrate is not None:
            figures["ece_calibrated"] = _percent(calibration_error(calibrate(confidence), errors < HIT))
    return figures


def errors_of(group: Sequence[Prediction]) -> tuple[np.ndarray, np.ndarray]:
    """(n,) plain errors and (n,) least errors over the categories' symmetries, radians; pi where there is no answer."""
    plain, symmetric = np.full(len(group), np.pi), np.full(len(group), np.pi)
    for index, item in enumerate(group):
        if item.pose is None:
            continue
        answer, truth = np.array([item.pose.angles]), np.array([item.true.angles])
        plain[index] = symmetric[index] = pose_error(answer, truth)[0]
        known = categories.find(item.category)
        if known is not None:
            symmetric[index] = symmetric_pose_error(answer, truth, *known.symmetry_group)[0]
    return plain, symmetric


def _calibration(predictions: Sequence[Prediction], sources: Sequence[str]) -> Callable[[np.ndarray], np.ndarray]:
    group = [item for item in predictions if item.source in sources]
    confidence = _confidence(group) if group else None
    if confidence is None:
        raise InputError(f"--fit-on {' '.join(sources)}: there is no confidence of these sources; name others.")
    hits = errors_of(group)[0] < HIT

    scale, shift = fit_logistic(logits_of(confidence)[:, None], hits.astype(float), np.full(len(hits), 1 / len(hits)))
    logger.info(f"calibration on {len(group)} pictures: sigmoid({scale:.3f} logit + {shift:.3f})")
    return lambda values: expit(scale * logits_of(values) + shift)


def _confidence(group: Sequence[Prediction]) -> np.ndarray | None:
    values = [item.confidence for item in group]
    return None if None in values else np.array(values, dtype=float)


def _percent(share: Any) -> float:
    return round(100 * float(share), 1)


main = command(
    BySourceConfig,
    by_source,
    prog="python scripts/benchmarks/by_source.py",
    description="Score predictions by the pictures' source, and their confidence.",
    example="python scripts/benchmarks/by_source.py --predictions predictions.jsonl --out by_source.json",
)

if __name__ == "__main__":
    sys.exit(main())
