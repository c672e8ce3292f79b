"""The scores of systems over the same samples: one row of outcomes a sample, groups of rows, and what is said of each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from eval.compared import Comparison, Sample, canonical_category, instance_of
from eval.confidence import confidence_columns, confidence_scores
from eval.place_errors import MEASURES, Shape, place_errors, place_figures
from llava_pose.data.records import Prediction
from llava_pose.errors import InputError
from llava_pose.pose import categories
from llava_pose.pose.bootstrap import Figure, instance_codes, with_intervals
from llava_pose.pose.metrics import (
    DEFAULT_THRESHOLDS,
    cumulative_curve,
    effective_size,
    error_figures,
    paired_figures,
    pose_error,
    symmetric_pose_error,
    threshold_name,
    wilson_interval,
)

UNKNOWN = "unknown"  # the source of a sample that names none where others do
GROUPS = ("category", "meta_class", "source", "occlusion", "source_occlusion")
ANNOTATED_GROUPS = ("density", "quality")  # only where the annotation says it
V2_PROTOCOL = "orient_anything_v2"
_DENSITIES = {"dense_yes": "dense", "dense_no": "not dense"}
FAILURES = ("no_answer", "no_pose", "not_finite")
CURVE_DEGREES = np.concatenate([np.arange(0, 30, 0.5), np.arange(30, 181, 2)])
_RESAMPLES = 2000
_LEVEL = 0.95


def score_comparison(
    comparison: Comparison,
    *,
    thresholds: Sequence[float] = DEFAULT_THRESHOLDS,
    reference: str | None = None,
    seed: int = 0,
    meta_classes: Mapping[str, Sequence[str]] | None = None,
    shapes: Mapping[str, Shape] | None = None,
    outcomes: Mapping[str, pd.DataFrame] | None = None,
) -> dict[str, Any]:
    """Return all scores of systems over the same samples, ready for JSON (docs/EVALUATION.md, "scores.json").

    Args:
        comparison: what :func:`eval.compared.align` returns.
        thresholds: radians; a hit is strictly under.
        reference: the system that the others are tested against; by default the first.
        seed: the seed of the bootstrap.
        meta_classes: meta class -> canonical names of its categories; by default the taxonomy's.
        shapes: what :func:`eval.place_errors.read_shapes` returns; without it, only the distance of where objects are.
        outcomes: what :func:`outcomes_by_system` returns, where the caller has it; columns are added to it.

    Raises:
        InputError: there is no system of the reference's name.
    """
    reference = reference or next(iter(comparison.answers))
    if reference not in comparison.answers:
        raise InputError(f"--reference {reference}: there is no such system; there are {', '.join(comparison.answers)}")
    if meta_classes is None:
        metas = {category.name: category.meta_class for category in categories.all_categories()}
    else:
        metas = {name: meta for meta, names in meta_classes.items() for name in names}
    outcomes = outcomes_by_system(comparison) if outcomes is None else outcomes
    for name, rows in outcomes.items():
        places = place_errors(comparison.samples, comparison.answers[name], shapes)
        if places is not None:
            rows[list(MEASURES)] = places.to_numpy()
        rows["meta_class"] = rows["category"].map(metas).fillna(categories.CUSTOM_META_CLASS)
    return {
        "n": len(comparison.samples),
        "n_instances": outcomes[reference]["instance"].nunique(),
        "names": names_of(outcomes[reference]["category"]),
        "meta_classes": list(categories.META_CLASSES if meta_classes is None else meta_classes),
        "thresholds_deg": [round(math.degrees(threshold), 9) for threshold in thresholds],
        "seed": seed,
        "chance": {threshold_name(threshold): chance_accuracy(threshold) for threshold in thresholds},
        "reference": reference,
        **_scores_of_systems(outcomes, reference, thresholds, seed),
    }


def chance_accuracy(threshold: float) -> float:
    """Return the accuracy of random rotations at a threshold in radians: (t - sin t) / pi (Miles, Biometrika 1965)."""
    return (threshold - math.sin(threshold)) / math.pi


def names_of(scored: Iterable[str]) -> dict[str, Any]:
    """Return what the scored categories are: how many of ImageNet3D v1's, how many it has, and the names it has not."""
    in_v1 = {category.name for category in categories.all_categories() if category.in_v1}
    names = set(scored)
    return {"in_v1": len(names & in_v1), "v1": len(in_v1), "not_in_v1": sorted(names - in_v1)}


def outcomes_by_system(comparison: Comparison) -> dict[str, pd.DataFrame]:
    """Return what :func:`outcomes_of` does of each system."""
    return {name: outcomes_of(comparison.samples, answers) for name, answers in comparison.answers.items()}


def outcomes_of(samples: Sequence[Sample], answers: Sequence[Prediction | None]) -> pd.DataFrame:
    """Return one system's outcomes, a row a sample in the order of the samples.

    Columns: ``error`` in radians, pi where there is no usable pose; ``symmetric``, the least error over the category's
    symmetry group, and ``in_taxonomy``, whether that group is known (else it is the plain error); ``correct``, whether the
    category is right, only where the system names any; the failures ``no_answer``, ``no_pose`` and ``not_finite``, at most
    one of them true; ``instance``, a number that samples of the same instance share; and the groups that the sample is in
    (:data:`GROUPS`, but for the meta class). Where no sample names a source there are no groups of sources, where none says
    how dense its scene is none of density, and none of visual quality where occlusion says as much. ``own_symmetry`` is the
    least error over the turns that the system itself calls the same, only where it says so of any. Those of
    :func:`eval.confidence.confidence_columns` are there as well.
    """
    poses = [None if answer is None else answer.pose for answer in answers]
    pred = np.array([(math.nan,) * 3 if pose is None else pose.angles for pose in poses], dtype=np.float64)
    true = np.array([sample.true.angles for sample in samples], dtype=np.float64)
    no_answer, absent = (np.array([value is None for value in values]) for values in (answers, poses))
    rows = pd.DataFrame(
        {
            "error": np.asarray(pose_error(pred, true)),
            "no_answer": no_answer,
            "no_pose": absent & ~no_answer,
            "not_finite": ~absent & ~np.isfinite(pred).all(axis=1),
            "instance": pd.factorize(pd.Series([instance_of(sample) for sample in samples]))[0],
            "category": [canonical_category(sample.category) for sample in samples],
            "occlusion": ["occluded" if sample.occluded else "unoccluded" for sample in samples],
        }
    )
    rows["symmetric"], rows["in_taxonomy"] = rows["error"], False
    for name, index in rows.groupby("category").indices.items():
        known = categories.find(str(name))
        if known is not None:
            symmetric = symmetric_pose_error(pred[index], true[index], *known.symmetry_group)
            rows.loc[index, "symmetric"], rows.loc[index, "in_taxonomy"] = symmetric, True
    if any(sample.source for sample in samples):
        rows["source"] = [sample.source or UNKNOWN for sample in samples]
        rows["source_occlusion"] = rows["source"] + ", " + rows["occlusion"]
    if any(sample.dense for sample in samples):
        rows["density"] = [_DENSITIES.get(sample.dense, UNKNOWN) for sample in samples]
    if len({sample.object_status for sample in samples}) > 2:
        rows["quality"] = [sample.object_status.removeprefix("status_") for sample in samples]
    orders = [None if answer is None else answer.symmetry_order for answer in answers]
    if any(order is not None for order in orders):
        rows["own_symmetry"] = _least_over_turns(pred, true, np.array([order or 1 for order in orders]))
    for column, values in confidence_columns(answers, true).items():
        rows[column] = values
    named = [None if answer is None else answer.pred_category for answer in answers]
    if any(name is not None for name in named):
        rows["correct"] = [None if name is None else canonical_category(name) for name in named] == rows["category"]
    return rows


def _least_over_turns(pred: np.ndarray, true: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """Return the least error over the turns of each prediction's azimuth by a full turn divided by its order."""
    errors = np.asarray(pose_error(pred, true))
    for order in np.unique(orders[orders > 1]):
        chosen = orders == order
        for turn in range(1, order):
            turned = pred[chosen] + (2 * math.pi * turn / order, 0.0, 0.0)
            errors[chosen] = np.minimum(errors[chosen], pose_error(turned, true[chosen]))
    return errors


def _scores_of_systems(
    outcomes: Mapping[str, pd.DataFrame], reference: str, thresholds: Sequence[float], seed: int
) -> dict[str, Any]:
    """Return the scores of each system and the paired tests. The systems' figures of one group share their resamples."""
    of = outcomes[reference]
    kinds = (*GROUPS, *of.columns.intersection(ANNOTATED_GROUPS))
    by_kind: dict[str, dict[str, Any]] = {kind: {} for kind in kinds}
    for kind in tqdm(of.columns.intersection(kinds), desc="scoring", unit="kind of group", delay=2, leave=False):
        members = sorted(of.groupby(kind).indices.items())
        figures = {
            str(group): {name: figures_of(rows.iloc[index], thresholds) for name, rows in outcomes.items()}
            for group, index in members
        }
        by_kind[kind] = with_intervals(figures, seed=seed)
    groups = {
        name: {kind: {group: of_group[name] for group, of_group in found.items()} for kind, found in by_kind.items()}
        for name in outcomes
    }
    overall = {name: figures_of(rows, thresholds) for name, rows in outcomes.items()}
    tests = {
        f"{name}, {score}": {"system": name, "reference": reference, "score": score, **test}
        for name, rows in outcomes.items()
        if name != reference
        for score, test in _paired_tests(rows, of, thresholds, seed).items()
    }
    whole = with_intervals({"systems": overall, "tests": tests}, seed=seed)
    systems = {
        name: {
            "overall": whole["systems"][name],
            "mean_over_categories": mean_over_categories(groups[name]["category"], seed=seed),
            "groups": groups[name],
            "curve": _curve(rows),
        }
        for name, rows in outcomes.items()
    }
    return {"systems": systems, "paired_tests": list(whole["tests"].values())}


def _curve(rows: pd.DataFrame) -> dict[str, list[float]]:
    """Return the share of errors under each angle, and the ends of its 95% interval.

    The interval is by instance as all are, but Wilson's, since a bootstrap of every angle would take long.
    """
    errors, instances = rows["error"].to_numpy(), rows["instance"].to_numpy()
    share = cumulative_curve(errors, CURVE_DEGREES)
    under = np.degrees(errors) < CURVE_DEGREES[:, None]
    low, high = wilson_interval(share, effective_size(under.T, instances))
    # they rise as the share does: where instances happen to be alike at one angle, the wider of two neighbours' holds
    low, high = np.minimum.accumulate(low[::-1])[::-1], np.maximum.accumulate(high)
    columns = {"share": share, "low": low, "high": high}
    return {"degrees": CURVE_DEGREES.tolist(), **{name: np.round(c, 5).tolist() for name, c in columns.items()}}


def figures_of(rows: pd.DataFrame, thresholds: Sequence[float]) -> dict[str, Any]:
    """Return the scores of one group of outcomes, with a Figure in the place of each interval.

    Returns:
        What :func:`llava_pose.pose.metrics.error_figures` returns with ``failures`` (counts, each sample in one at most),
        under ``place`` the scores of where the objects are, where the system predicts it (:mod:`eval.place_errors`),
        and under ``symmetric`` the accuracies, mean and median (these two without an interval) of the symmetry-aware errors,
        if the taxonomy knows any of the categories (``n_known`` samples; the others enter with their plain error). Under
        ``orient_anything_v2`` the accuracies by that model's own protocol, of a system that says which turns it calls the same:
        the least error over these, and an error of exactly the threshold is a hit. What confidences and prediction sets are
        worth at the first threshold is under ``confidence`` and ``prediction_sets`` (:mod:`eval.confidence`).
    """
    instances = rows["instance"].to_numpy()
    codes = instance_codes(instances, len(rows))
    correct = rows["correct"].to_numpy() if "correct" in rows else None
    scores = error_figures(rows["error"].to_numpy(), codes, thresholds, correct)
    counts = {name: scores[name] for name in ("n", "n_instances") if name in scores}
    scores["failures"] = {kind: int(rows[kind].sum()) for kind in FAILURES}
    if MEASURES[0] in rows:
        scores["place"] = place_figures(rows[list(MEASURES)], instances)
    if "own_symmetry" in rows:
        own = rows["own_symmetry"].to_numpy()
        scores[V2_PROTOCOL] = counts | {threshold_name(t): Figure(own <= t, codes=codes) for t in thresholds}
    scores |= confidence_scores(rows, thresholds[0])
    known = int(rows["in_taxonomy"].sum())
    if known:
        symmetric = rows["symmetric"].to_numpy()
        scores["symmetric"] = {
            **counts,
            "n_known": known,
            **{threshold_name(t): Figure(symmetric < t, codes=codes) for t in thresholds},
            "mean_deg": {"value": float(np.degrees(symmetric.mean()))},
            "median_deg": {"value": float(np.degrees(np.median(symmetric)))},
        }
    return scores


def mean_over_categories(by_category: Mapping[str, Mapping[str, Any]], *, seed: int = 0) -> dict[str, Any]:
    """Return each score averaged over the categories, each counting once.

    The interval of an accuracy is a bootstrap within each category (a share of n resampled hits is binomial); where several
    samples show one instance, categories are resampled, since of the one or two instances that a category may have nothing
    can be said. Errors get the mean of the categories' means and medians, without an interval.
    """
    rng = np.random.default_rng(seed)
    result: dict[str, Any] = {"n_categories": len(by_category)}
    for name in dict.fromkeys(name for scores in by_category.values() for name in scores):
        having = [c for c in by_category.values() if name in c]
        if name in ("symmetric", V2_PROTOCOL):
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


def _paired_tests(a: pd.DataFrame, b: pd.DataFrame, thresholds: Sequence[float], seed: int) -> dict[str, Any]:
    """Return the paired test of a system's outcomes against others by each accuracy, 3D-aware ones where both name classes."""
    tests: dict[str, Any] = {}
    for threshold in thresholds:
        hits = {threshold_name(threshold): [rows["error"] < threshold for rows in (a, b)]}
        if "correct" in a and "correct" in b:
            hits[f"3d_{threshold_name(threshold)}"] = [r["correct"] & (r["error"] < threshold) for r in (a, b)]
        for score, hit in hits.items():
            test = paired_figures(*hit, instances=a["instance"], seed=seed)
            names = {
                "difference": "difference",
                "only_a": "only_system",
                "only_b": "only_reference",
                "p_value": "p_value",
            }
            tests[score] = {ours: test[name] for name, ours in names.items()}
    return tests
