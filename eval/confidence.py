"""Measures of how far the confidences and the prediction sets of answers can be believed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from scipy.special import expit, logit

from llava_pose.data.records import Prediction
from llava_pose.pose.metrics import accuracy_by_coverage, calibration_error, pose_error

COVERAGES = (1.0, 0.8, 0.5)  # of the surest answers whose accuracy is told


def confidence_columns(answers: Sequence[Prediction | None], true: np.ndarray) -> dict[str, Any]:
    """Return columns of outcomes: ``confidence``, NaN where an answer has none; ``set_size`` and ``set_error``, how many
    rotations its prediction set holds and the least of their errors in radians. Those alone that some answer has.

    Args:
        true: (n, 3) azimuth, elevation, theta in radians.
    """
    columns: dict[str, Any] = {}
    given = [math.nan if answer is None or answer.confidence is None else answer.confidence for answer in answers]
    if not all(map(math.isnan, given)):
        columns["confidence"] = given
    sets = [None if answer is None else answer.prediction_set for answer in answers]
    if any(held is not None for held in sets):
        columns["set_size"] = [math.nan if held is None else len(held) for held in sets]
        columns["set_error"] = [
            math.nan
            if held is None
            else float(np.min(pose_error(np.array(held), np.broadcast_to(row, (len(held), 3)))))
            for held, row in zip(sets, true, strict=True)
        ]
    return columns


def sure_answers(rows: pd.DataFrame, threshold: float) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the confidences (n,) and the hits (n,) of the outcomes whose answer has a confidence; None where none has.

    Args:
        threshold: of a hit, radians.
    """
    if "confidence" not in rows or not rows["confidence"].notna().any():
        return None
    sure = rows[rows["confidence"].notna()]
    return sure["confidence"].to_numpy(), sure["error"].to_numpy() < threshold


def logits_of(confidence: np.ndarray) -> np.ndarray:
    """Return the logits of probabilities, of one in a million at the least on either side."""
    return logit(confidence.clip(1e-6, 1 - 1e-6))


def fit_logistic(columns: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> tuple[float, ...]:
    """Return scales and shift of weighted logistic regression: the sigmoid of the sum of scale × column, and the shift, is
    near the targets.

    Args:
        columns: (n, k), such as logits. No scale is negative.
        targets, weights: (n,); targets are probabilities.
    """

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        z = columns @ parameters[:-1] + parameters[-1]
        slope = weights * (expit(z) - targets)
        return float((weights * (np.logaddexp(0, z) - targets * z)).sum()), np.array([*(slope @ columns), slope.sum()])

    count = columns.shape[1]
    bounds = [*[(0, 100)] * count, (-100, 100)]
    found = minimize(loss, [1.0] + [0.0] * count, jac=True, method="L-BFGS-B", bounds=bounds).x
    return tuple(found.tolist())


def confidence_scores(rows: pd.DataFrame, threshold: float) -> dict[str, Any]:
    """Return what the confidences and prediction sets of a group of outcomes are worth, of the answers that have them.

    Args:
        threshold: of a hit, radians.

    Returns:
        Under ``confidence``: ``n``, their ``mean``, the expected calibration error ``ece`` and the accuracy of the ``surest``
        shares; under ``prediction_sets``: ``n``, the share that ``holds`` a rotation within the threshold, and ``mean_size``.
    """
    scores: dict[str, Any] = {}
    if (sure := sure_answers(rows, threshold)) is not None:
        confidence, hits = sure
        coverage, accuracy = accuracy_by_coverage(confidence, hits)
        at = accuracy[np.searchsorted(coverage, np.array(COVERAGES) - 1e-9)]  # the last coverage is 1
        scores["confidence"] = {
            "n": len(hits),
            "mean": float(confidence.mean()),
            "ece": calibration_error(confidence, hits),
            "surest": {f"{share:.0%}": float(value) for share, value in zip(COVERAGES, at, strict=True)},
        }
    if "set_size" in rows and rows["set_size"].notna().any():
        told = rows[rows["set_size"].notna()]
        holds, size = (told["set_error"] < threshold).mean(), told["set_size"].mean()
        scores["prediction_sets"] = {"n": len(told), "holds": float(holds), "mean_size": float(size)}
    return scores
