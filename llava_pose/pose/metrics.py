"""The pose-accuracy core: errors, thresholds, intervals and paired tests. Every score of the project is made here.

Errors are radians in [0, pi]; what people read is degrees. Averages are over instances.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llava_pose.pose.bootstrap import Figure, Interval, bootstrap_intervals, instance_codes, with_intervals
from llava_pose.pose.geometry import geodesic_angle, geodesic_angle_of_poses, rotation_matrix

DEFAULT_THRESHOLDS = (math.pi / 6, math.pi / 18)
CONFIDENCE_BINS = 15
_CHUNK = 4096  # poses a block: its temporaries stay in the second-level cache, which is worth a factor of two


def pose_error(pred: Any, true: Any) -> Any:
    """Geodesic angle between predicted and true poses.

    Args:
        pred: (..., 3) azimuth, elevation, theta in radians; a row with anything not finite counts as an error of pi.
        true: the same shape or broadcastable.

    Returns:
        (...) errors in radians, float64; a torch tensor if an argument is one.

    Raises:
        ValueError: the last axis is not of length 3, or a true angle is not finite.
    """
    if type(pred).__module__.startswith("torch") or type(true).__module__.startswith("torch"):
        import torch

        device = next(x.device for x in (pred, true) if isinstance(x, torch.Tensor))
        as_numpy = [x.detach().cpu().double().numpy() if isinstance(x, torch.Tensor) else x for x in (pred, true)]
        return torch.as_tensor(pose_error(*as_numpy), device=device)

    pred, true = np.asarray(pred, dtype=np.float64), np.asarray(true, dtype=np.float64)
    for name, value in (("pred", pred), ("true", true)):
        if value.ndim == 0 or value.shape[-1] != 3:
            raise ValueError(f"{name} must have shape (..., 3): azimuth, elevation, theta; it has {value.shape}")
    if not np.isfinite(true).all():
        raise ValueError("a true angle is not finite: drop or mend that annotation before scoring")
    shape = np.broadcast_shapes(pred.shape, true.shape)
    pred = np.broadcast_to(pred, shape).reshape(-1, 3)
    true = np.broadcast_to(true, shape).reshape(-1, 3)
    errors = np.empty(len(pred))
    for start in range(0, len(pred), _CHUNK):
        block = slice(start, start + _CHUNK)
        errors[block] = _block_error(pred[block], true[block])
    return errors.reshape(shape[:-1])[()]


def _block_error(pred: np.ndarray, true: np.ndarray) -> np.ndarray:
    finite = np.isfinite(pred).all(-1)
    if finite.all():
        return geodesic_angle_of_poses(pred, true)
    errors = np.full(len(pred), math.pi)
    errors[finite] = geodesic_angle_of_poses(pred[finite], true[finite])
    return errors


def count_not_finite(pred: Any) -> int:
    """Count the predicted poses (..., 3) with a value that is not finite; they count as errors of pi."""
    return int((~np.isfinite(np.asarray(pred, dtype=np.float64)).all(-1)).sum())


def symmetric_pose_error(pred: Any, true: Any, symmetries: Any, axis: Any = None) -> np.ndarray:
    """The least :func:`pose_error` over a symmetry group: a second column beside the error, never the only one.

    The group comes from the data's taxonomy, never from the prediction. With an ``axis`` it is every turn about that axis
    after each of ``symmetries``. The turn that fits best leaves of the error the swing of the axis alone, the angle
    between ``R_pred @ axis`` and ``R_true @ g @ axis``: a closed form, with no sampling of the turns.

    Args:
        pred, true: (..., 3) azimuth, elevation, theta in radians.
        symmetries: (k, 3, 3) rotations of the object frame that leave the object as it is, the identity among them.
        axis: (3,) unit vector about which the object may turn freely, if there is one.

    Returns:
        (...) radians, float64; rows of ``pred`` that are not finite give pi.

    Raises:
        ValueError: as :func:`pose_error`.
    """
    pred, true = np.asarray(pred, dtype=np.float64), np.asarray(true, dtype=np.float64)
    plain = np.asarray(pose_error(pred, true))  # checks both, and is what the identity gives
    finite = np.isfinite(pred).all(-1)
    safe = np.where(finite[..., None], pred, 0.0)
    rotation_pred, rotation_true = (rotation_matrix(x[..., 0], x[..., 1], x[..., 2]) for x in (safe, true))
    symmetries = np.asarray(symmetries, dtype=np.float64)
    if axis is None:
        best = plain
        for symmetry in symmetries:
            best = np.minimum(best, geodesic_angle(rotation_pred, rotation_true @ symmetry))
    else:
        axis = np.asarray(axis, dtype=np.float64)
        swings = [_vector_angle(rotation_pred @ axis, rotation_true @ (symmetry @ axis)) for symmetry in symmetries]
        best = np.min(swings, axis=0)
    return np.where(finite, best, math.pi)


def _vector_angle(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Angle between unit vectors (..., 3), radians; exact near 0 and pi too, where the cosine alone is flat."""
    return np.arctan2(np.linalg.norm(np.cross(a, b), axis=-1), (a * b).sum(-1))


def accuracy(errors: Any, threshold: float) -> float:
    """The share of errors (radians) strictly under the threshold (radians); NaN for no errors."""
    errors = np.asarray(errors, dtype=np.float64)
    return float((errors < threshold).mean()) if errors.size else math.nan


def threshold_name(threshold: float) -> str:
    """ "acc@30" for pi/6: the name under which an accuracy is stored."""
    return f"acc@{math.degrees(threshold):.4g}"


def summarize_errors(
    errors: Any,
    *,
    thresholds: Sequence[float] = DEFAULT_THRESHOLDS,
    correct_class: Any = None,
    instances: Any = None,
    seed: int = 0,
) -> dict[str, Any]:
    """All figures for one group of pictures, ready for JSON.

    Args:
        errors: (n,) radians.
        thresholds: radians; a hit is strictly under.
        correct_class: (n,) booleans; adds the 3D-aware accuracies (class right and error under the threshold). The pose
            errors themselves are reported for all pictures: a wrong class adds nothing to a mean error.
        instances: (n,) as :func:`bootstrap_interval` takes them.

    Returns:
        {"n", "n_instances" where these are fewer, "acc@30": {"value", "low", "high"}, …, "mean_deg", "median_deg", and with
        classes "class_accuracy", "3d_acc@30", …}; only {"n": 0} for an empty group.
    """
    errors = np.asarray(errors, dtype=np.float64).ravel()
    codes = instance_codes(instances, errors.size) if errors.size else None
    return with_intervals(error_figures(errors, codes, thresholds, correct_class), seed=seed)


def error_figures(
    errors: np.ndarray, codes: np.ndarray | None, thresholds: Sequence[float], correct_class: Any = None
) -> dict[str, Any]:
    """Return what :func:`summarize_errors` does, with a :class:`Figure` in the place of each interval.

    Args:
        codes: (n,) what :func:`instance_codes` returns.
    """
    if errors.size == 0:
        return {"n": 0}
    figures: dict[str, Any] = {"n": int(errors.size)}
    if codes is not None:
        figures["n_instances"] = int(codes.max()) + 1
    hits = {threshold_name(threshold): errors < threshold for threshold in thresholds}
    degrees = np.degrees(errors)
    figures |= {name: Figure(hit, codes=codes) for name, hit in hits.items()}
    figures |= {f"{name}_deg": Figure(degrees, name, codes) for name in ("mean", "median")}
    if correct_class is not None:
        correct = np.asarray(correct_class, dtype=bool).ravel()
        figures["class_accuracy"] = Figure(correct, codes=codes)
        figures |= {f"3d_{name}": Figure(correct & hit, codes=codes) for name, hit in hits.items()}
    return figures


def mean_over_groups(summaries: Mapping[str, Mapping[str, Any]], figure: str) -> float:
    """The mean of one figure over groups (categories), each group counting once; NaN if no group has it."""
    values = [s[figure]["value"] for s in summaries.values() if figure in s]
    return float(np.mean(values)) if values else math.nan


def cumulative_curve(errors: Any, degrees: Any) -> np.ndarray:
    """The share of errors (radians) strictly under each of ``degrees`` (m,) -> (m,)."""
    ordered = np.sort(np.degrees(np.asarray(errors, dtype=np.float64).ravel()))
    if ordered.size == 0:
        return np.full(len(np.asarray(degrees)), math.nan)
    return np.searchsorted(ordered, np.asarray(degrees, dtype=np.float64), side="left") / ordered.size


def reliability(confidence: Any, hits: Any, *, bins: int = CONFIDENCE_BINS) -> np.ndarray:
    """Return what a confidence promises and what came of it, in equal bins of the confidence.

    Args:
        confidence: (n,) in [0, 1]. hits: (n,) booleans.

    Returns:
        (m, 3), a row a bin that is not empty: its mean confidence, its share of hits, and how many are in it.
    """
    confidence, hits = np.asarray(confidence, dtype=np.float64).ravel(), np.asarray(hits, dtype=bool).ravel()
    place = np.clip((confidence * bins).astype(int), 0, bins - 1)
    there = (place == b for b in np.unique(place))
    return np.array([(confidence[of].mean(), hits[of].mean(), of.sum()) for of in there]).reshape(-1, 3)


def calibration_error(confidence: Any, hits: Any) -> float:
    """Expected calibration error over 15 equal bins (Guo et al., ICML 2017); arguments as in :func:`reliability`."""
    promised, kept, count = reliability(confidence, hits).T
    return float(np.abs(promised - kept) @ count / count.sum()) if len(count) else math.nan


def accuracy_by_coverage(confidence: Any, hits: Any) -> tuple[np.ndarray, np.ndarray]:
    """The accuracy of the surest answers over the share of all that they are (El-Yaniv and Wiener, JMLR 2010).

    Args:
        confidence: (n,). hits: (n,) booleans.

    Returns:
        Coverage and accuracy, (m,) each, where m counts the confidences that differ: answers of one confidence come together.
    """
    confidence, hits = np.asarray(confidence, dtype=np.float64).ravel(), np.asarray(hits, dtype=np.float64).ravel()
    order = np.argsort(-confidence, kind="stable")
    ends = np.flatnonzero(np.diff(confidence[order], append=-math.inf))
    return (ends + 1) / len(hits), np.cumsum(hits[order])[ends] / (ends + 1)


def effective_size(hits: Any, instances: Any = None) -> np.ndarray:
    """Return how many pictures of an instance each would make shares of hits as sure as they are (Kish, Survey Sampling, 1965,
    sec. 5.4): the variance of a share of n such pictures is share (1 - share) / n, and that of ours is the ratio estimator's
    over instances (Cochran, Sampling Techniques, 1977, sec. 2.11).

    Args:
        hits: (n, m) of pictures, 0 or 1; the shares are their means.
        instances: as in :func:`bootstrap_interval`.

    Returns:
        (m,), to the number of pictures from that of instances, or fewer where some show in many more pictures than others:
        n² / Σ m² of instances of m pictures. It is this least where nothing is known of how instances differ: of a share of
        0 or 1, or of a single instance.
    """
    hits = np.asarray(hits)
    codes = instance_codes(instances, len(hits))
    if codes is None:
        return np.full(hits.shape[1], float(len(hits)))
    shares = hits.mean(axis=0)
    totals = np.column_stack([np.bincount(codes, column) for column in hits.T])
    pictures = np.bincount(codes)
    apart = totals - pictures[:, None] * shares
    count = len(totals)
    variance = (apart**2).sum(axis=0) * count / max(1, count - 1) / len(hits) ** 2
    within = shares * (1 - shares)
    unknown = (within <= 0) | (count == 1)
    least = len(hits) ** 2 / (pictures**2).sum()
    # instances that are alike tell as much as pictures can
    sizes = within / np.maximum(variance, within / len(hits) + np.finfo(float).tiny)
    return np.where(unknown, least, sizes.clip(least, len(hits)))


def wilson_interval(shares: Any, sizes: Any) -> tuple[np.ndarray, np.ndarray]:
    """The ends of the 95% intervals of shares (m,) of so many pictures (m,) (Wilson, JASA 1927)."""
    shares, sizes = np.asarray(shares, dtype=np.float64), np.asarray(sizes, dtype=np.float64)
    z = 1.959964
    centre = (shares + z * z / (2 * sizes)) / (1 + z * z / sizes)
    half = z / (1 + z * z / sizes) * np.sqrt(shares * (1 - shares) / sizes + z * z / (4 * sizes * sizes))
    return (centre - half).clip(0, 1), (centre + half).clip(0, 1)


@dataclass(frozen=True)
class PairedTest:
    """Two systems on the same pictures: difference of accuracies (a - b) with interval, and a p-value."""

    difference: Interval
    only_a: int
    only_b: int
    p_value: float


def paired_accuracy_test(hits_a: Any, hits_b: Any, *, instances: Any = None, seed: int = 0) -> PairedTest:
    """McNemar's exact test (Psychometrika, 1947) on two systems' hits for the same pictures, in the same order.

    Where several pictures show one instance, the same question is asked of instances: a permutation test that changes the
    systems' names at random for all pictures of an instance together (Fisher's; 9,999 draws).

    Args:
        hits_a, hits_b: (n,) booleans.
        instances: (n,) as :func:`bootstrap_interval` takes them.

    Raises:
        ValueError: the lengths differ or are 0.
    """
    found = paired_figures(hits_a, hits_b, instances=instances, seed=seed)
    difference = found.pop("difference")
    return PairedTest(bootstrap_intervals([difference], seed=seed)[0], **found)


def paired_figures(hits_a: Any, hits_b: Any, *, instances: Any = None, seed: int = 0) -> dict[str, Any]:
    """Return the attributes of a :class:`PairedTest`, the difference as a :class:`Figure`; see :func:`paired_accuracy_test`."""
    from scipy.stats import binomtest

    a, b = np.asarray(hits_a, dtype=bool).ravel(), np.asarray(hits_b, dtype=bool).ravel()
    if a.size != b.size or a.size == 0:
        raise ValueError(f"a paired test needs the same pictures for both systems, not {a.size} and {b.size}")
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    codes = instance_codes(instances, a.size)
    gains = a.astype(np.float64) - b.astype(np.float64)
    if codes is not None:
        p_value = _sign_flip_p(np.bincount(codes, gains), np.random.default_rng(seed))
    else:
        p_value = float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    return {"difference": Figure(gains, codes=codes), "only_a": only_a, "only_b": only_b, "p_value": p_value}


def _sign_flip_p(gains: np.ndarray, rng: np.random.Generator, draws: int = 9999) -> float:
    """Two-sided: the share of random signs under which the sum of the gains is as far from 0 as it is. The signs that were
    found count as one of them, so that it is never 0 (Phipson and Smyth, 2010).
    """
    gains = gains[gains != 0]
    rows = max(1, 4_000_000 // max(1, gains.size))
    as_far = 0
    for start in range(0, draws, rows):
        # the first bit of a word is a sign, and a whole word is drawn six times as fast as a number of 0 and 1
        words = rng.integers(0, 1 << 32, (min(rows, draws - start), gains.size), dtype=np.uint32)
        sums = 2 * ((words >> 31).astype(np.float64) @ gains) - gains.sum()
        as_far += int((np.abs(sums) >= np.abs(gains.sum()) - 1e-9).sum())
    return (1 + as_far) / (1 + draws)
