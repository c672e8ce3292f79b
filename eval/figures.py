"""The figures of systems over the same samples: outcomes of each sample, groups of samples, and what is said of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from eval.compared import Comparison, Sample, canonical_category
from llava_pose.data.records import Pose, Prediction
from llava_pose.errors import InputError
from llava_pose.pose import categories
from llava_pose.pose.metrics import (
    DEFAULT_THRESHOLDS,
    bootstrap_interval,
    cumulative_curve,
    effective_size,
    paired_accuracy_test,
    pose_error,
    summarize_errors,
    symmetric_pose_error,
    threshold_name,
    wilson_interval,
)

UNKNOWN = "unknown"  # the source of a sample that names none where others do
CURVE_DEGREES = np.concatenate([np.arange(0, 30, 0.5), np.arange(30, 181, 2)])
_RESAMPLES = 2000
_LEVEL = 0.95


def score_comparison(
    comparison: Comparison,
    *,
    thresholds: Sequence[float] = DEFAULT_THRESHOLDS,
    reference: str | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """All figures of systems over the same samples, ready for JSON.

    Args:
        comparison: from :func:`eval.compared.align`.
        thresholds: radians; a hit is strictly under.
        reference: the system that the others are tested against; the first by default.
        seed: of the bootstrap.

    Raises:
        InputError: there is no system of the reference's name.
    """
    reference = reference or next(iter(comparison.answers))
    if reference not in comparison.answers:
        raise InputError(f"--reference {reference}: there is no such system; there are {', '.join(comparison.answers)}")
    groups = group_samples(comparison.samples)
    outcomes = {name: outcomes_of(comparison.samples, answers) for name, answers in comparison.answers.items()}
    return {
        "n": len(comparison.samples),
        "n_instances": len(np.unique(outcomes[reference].instances)),
        "thresholds_deg": [round(math.degrees(threshold), 9) for threshold in thresholds],
        "seed": seed,
        "chance": {threshold_name(threshold): chance_accuracy(threshold) for threshold in thresholds},
        "reference": reference,
        "systems": {name: _figures_of_system(name, o, groups, thresholds, seed) for name, o in outcomes.items()},
        "paired_tests": [
            test
            for name in outcomes
            if name != reference
            for test in _paired_tests(reference, name, outcomes, thresholds, seed)
        ],
    }


def chance_accuracy(threshold: float) -> float:
    """The accuracy of uniformly random rotations at a threshold in radians: (t - sin t) / pi (Miles, Biometrika 1965)."""
    return (threshold - math.sin(threshold)) / math.pi


@dataclass(frozen=True)
class Outcomes:
    """One system's answers as arrays over the samples, each (n,).

    Attributes:
        errors: radians; pi where there is no usable pose.
        symmetric: radians, the least error over the category's symmetry group; ``errors`` outside the taxonomy.
        in_taxonomy: the category's symmetries are known.
        correct_class: None for a system that predicts no category.
        no_answer: there is no line for the sample.
        no_pose: there is a line, without a pose.
        not_finite: the pose holds an angle that is not finite.
        instances: numbers, the same where samples show the same instance.
    """

    errors: np.ndarray
    symmetric: np.ndarray
    in_taxonomy: np.ndarray
    correct_class: np.ndarray | None
    no_answer: np.ndarray
    no_pose: np.ndarray
    not_finite: np.ndarray
    instances: np.ndarray


def outcomes_of(samples: Sequence[Sample], answers: Sequence[Prediction | None]) -> Outcomes:
    """The outcomes of one system, its answers in the order of the samples."""
    poses: list[Pose | None] = [None if answer is None else answer.pose for answer in answers]
    nowhere = (math.nan,) * 3
    pred = np.array([nowhere if pose is None else pose.angles for pose in poses], dtype=np.float64)
    true = np.array([sample.true.angles for sample in samples], dtype=np.float64)
    absent = np.array([pose is None for pose in poses])
    no_answer = np.array([answer is None for answer in answers])
    errors = np.asarray(pose_error(pred, true))

    symmetric, in_taxonomy = errors.copy(), np.zeros(len(samples), dtype=bool)
    for category, index in _index_by(samples, lambda sample: sample.category).items():
        known = categories.find(category)
        if known is not None:
            symmetric[index] = symmetric_pose_error(pred[index], true[index], *known.symmetry_group)
            in_taxonomy[index] = True

    named = [None if answer is None else answer.pred_category for answer in answers]
    correct = None
    if any(name is not None for name in named):
        correct = np.array(
            [
                name is not None and canonical_category(name) == canonical_category(sample.category)
                for name, sample in zip(named, samples, strict=True)
            ]
        )
    return Outcomes(
        errors=errors,
        symmetric=symmetric,
        in_taxonomy=in_taxonomy,
        correct_class=correct,
        no_answer=no_answer,
        no_pose=absent & ~no_answer,
        not_finite=~absent & ~np.isfinite(pred).all(axis=1),
        instances=_instances_of(samples),
    )


def _instances_of(samples: Sequence[Sample]) -> np.ndarray:
    """Of a sample that names no instance the id stands for it."""
    numbers: dict[tuple[str, ...], int] = {}
    keys = [(s.source, canonical_category(s.category), s.instance) if s.instance else (s.id,) for s in samples]
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys])


def _index_by(samples: Sequence[Sample], key: Callable[[Sample], str]) -> dict[str, np.ndarray]:
    index: dict[str, list[int]] = {}
    for number, sample in enumerate(samples):
        index.setdefault(key(sample), []).append(number)
    return {name: np.array(index[name]) for name in sorted(index)}


def group_samples(samples: Sequence[Sample]) -> dict[str, dict[str, np.ndarray]]:
    """The groups that figures are given for, as indices into the samples: kind of group -> name -> (k,).

    Kinds: category, meta_class, source, occlusion (``unoccluded`` is the annotation's status_good), and
    source_occlusion (``<source>, occluded``). Samples that name no source at all make no group of sources.
    """
    groups = {
        "category": _index_by(samples, lambda sample: canonical_category(sample.category)),
        "meta_class": _index_by(samples, _meta_class),
        "source": {},
        "occlusion": _index_by(samples, _occlusion),
        "source_occlusion": {},
    }
    if any(sample.source for sample in samples):
        groups["source"] = _index_by(samples, lambda sample: sample.source or UNKNOWN)
        groups["source_occlusion"] = _index_by(samples, lambda s: f"{s.source or UNKNOWN}, {_occlusion(s)}")
    return groups


def _meta_class(sample: Sample) -> str:
    category = categories.find(sample.category)
    return categories.CUSTOM_META_CLASS if category is None else category.meta_class


def _occlusion(sample: Sample) -> str:
    return "occluded" if sample.occluded else "unoccluded"


def _figures_of_system(
    system: str,
    outcomes: Outcomes,
    groups: Mapping[str, Mapping[str, np.ndarray]],
    thresholds: Sequence[float],
    seed: int,
) -> dict[str, Any]:
    everything = np.arange(len(outcomes.errors))
    by_kind: dict[str, dict[str, Any]] = {kind: {} for kind in groups}
    flat = [(kind, name, index) for kind, named in groups.items() for name, index in named.items()]
    for kind, name, index in tqdm(flat, desc=f"scoring {system}", unit="group", delay=2, leave=False):
        by_kind[kind][name] = figures_of(outcomes, index, thresholds, seed)
    return {
        "overall": figures_of(outcomes, everything, thresholds, seed),
        "mean_over_categories": mean_over_categories(by_kind["category"], seed=seed),
        "groups": by_kind,
        "curve": _curve(outcomes),
    }


def _curve(outcomes: Outcomes) -> dict[str, list[float]]:
    """The share of errors under each angle, and the ends of its 95% interval: by instance as all intervals, but Wilson's, since
    a bootstrap of every angle would take long.
    """
    share = cumulative_curve(outcomes.errors, CURVE_DEGREES)
    under = np.degrees(outcomes.errors)[:, None] < CURVE_DEGREES
    low, high = wilson_interval(share, effective_size(under, outcomes.instances))
    # they rise as the share does: where instances happen to be alike at one angle, the wider of two neighbours' holds
    low, high = np.minimum.accumulate(low[::-1])[::-1], np.maximum.accumulate(high)
    columns = {"share": share, "low": low, "high": high}
    return {"degrees": CURVE_DEGREES.tolist(), **{name: np.round(c, 5).tolist() for name, c in columns.items()}}


def figures_of(outcomes: Outcomes, index: np.ndarray, thresholds: Sequence[float], seed: int = 0) -> dict[str, Any]:
    """The figures of one group of samples.

    Returns:
        :func:`llava_pose.pose.metrics.summarize_errors` with ``failures`` (counts, each sample in one at most), and under
        ``symmetric`` the accuracies, mean and median (these two without an interval) of the symmetry-aware errors, if
        the taxonomy knows any of the categories (``n_known`` samples; the others enter with their plain error).
    """
    correct = None if outcomes.correct_class is None else outcomes.correct_class[index]
    instances = outcomes.instances[index]
    figures = summarize_errors(
        outcomes.errors[index], thresholds=thresholds, correct_class=correct, instances=instances, seed=seed
    )
    figures["failures"] = {
        "no_answer": int(outcomes.no_answer[index].sum()),
        "no_pose": int(outcomes.no_pose[index].sum()),
        "not_finite": int(outcomes.not_finite[index].sum()),
    }
    known = int(outcomes.in_taxonomy[index].sum())
    if known:
        symmetric = outcomes.symmetric[index]
        figures["symmetric"] = {
            "n": len(symmetric),
            **({"n_instances": figures["n_instances"]} if "n_instances" in figures else {}),
            "n_known": known,
            **{
                threshold_name(t): asdict(bootstrap_interval(symmetric < t, instances=instances, seed=seed))
                for t in thresholds
            },
            "mean_deg": {"value": float(np.degrees(symmetric.mean()))},
            "median_deg": {"value": float(np.degrees(np.median(symmetric)))},
        }
    return figures


def mean_over_categories(by_category: Mapping[str, Mapping[str, Any]], *, seed: int = 0) -> dict[str, Any]:
    """Each figure averaged over the categories, each counting once.

    The interval of an accuracy is a bootstrap within each category (a share of n resampled hits is binomial); where several
    samples show one instance, categories are resampled, since of the one or two instances that a category may have nothing
    can be said. Errors get the mean of the categories' means and medians, without an interval.
    """
    rng = np.random.default_rng(seed)
    result: dict[str, Any] = {"n_categories": len(by_category)}
    for name in dict.fromkeys(name for figures in by_category.values() for name in figures):
        having = [c for c in by_category.values() if name in c]
        if name == "symmetric":
            result[name] = mean_over_categories({str(i): c[name] for i, c in enumerate(having)}, seed=seed)
        elif isinstance(having[0][name], dict) and "value" in having[0][name]:
            shares = np.array([c[name]["value"] for c in having])
            result[name] = {"value": float(shares.mean())}
            if not name.endswith("_deg"):
                counts = np.array([c["n"] for c in having])
                if any("n_instances" in c for c in having):
                    means = rng.choice(shares, (_RESAMPLES, len(shares))).mean(axis=1)
                else:
                    means = (rng.binomial(counts, shares, (_RESAMPLES, len(counts))) / counts).mean(axis=1)
                low, high = np.quantile(means, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
                result[name] |= {"low": float(low), "high": float(high)}
    return result


def _paired_tests(
    reference: str, other: str, outcomes: Mapping[str, Outcomes], thresholds: Sequence[float], seed: int
) -> list[dict[str, Any]]:
    """The paired test of one system against the reference for each accuracy, 3D-aware ones where both name classes."""
    a, b = outcomes[other], outcomes[reference]
    tests = []
    for threshold in thresholds:
        hits = {threshold_name(threshold): (a.errors < threshold, b.errors < threshold)}
        if a.correct_class is not None and b.correct_class is not None:
            hits[f"3d_{threshold_name(threshold)}"] = (
                a.correct_class & (a.errors < threshold),
                b.correct_class & (b.errors < threshold),
            )
        for figure, (hits_a, hits_b) in hits.items():
            test = paired_accuracy_test(hits_a, hits_b, instances=a.instances, seed=seed)
            tests.append(
                {
                    "system": other,
                    "reference": reference,
                    "figure": figure,
                    "difference": asdict(test.difference),
                    "only_system": test.only_a,
                    "only_reference": test.only_b,
                    "p_value": test.p_value,
                }
            )
    return tests
