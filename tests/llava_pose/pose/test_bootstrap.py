"""Intervals and sign-flip tests, held against plain ones that hold every resample and every sign in memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from llava_pose.pose.bootstrap import Figure, bootstrap_interval, bootstrap_intervals, instance_codes, with_intervals
from llava_pose.pose.metrics import paired_accuracy_test, summarize_errors

EXACT = 1e-12


def plain_interval(values, statistic, instances, seed, resamples=2000):
    """The value and the ends of the interval, of resamples that are written out."""
    rng = np.random.default_rng(seed)
    of = {"mean": np.mean, "median": np.median}[statistic]
    labels, codes = np.unique(instances, return_inverse=True)
    drawn = rng.multinomial(len(labels), np.full(len(labels), 1 / len(labels)), resamples)
    estimates = [of(np.repeat(values, times[codes])) for times in drawn]
    return [of(values), *np.quantile(estimates, [0.025, 0.975])]


def plain_p_value(hits_a, hits_b, instances, seed):
    gains = np.bincount(np.unique(instances, return_inverse=True)[1], hits_a.astype(float) - hits_b)
    gains = gains[gains != 0]
    signs = np.random.default_rng(seed).integers(0, 2, (9999, len(gains))) * 2 - 1
    return (1 + (np.abs(signs @ gains) >= np.abs(gains.sum())).sum()) / 10_000


# pictures, instances: from a single one to nearly as many as there are pictures
@pytest.mark.parametrize(("pictures", "instances"), [(2, 1), (3, 2), (50, 7), (400, 399), (3001, 900), (2000, 3)])
def test_intervals_over_instances_are_those_of_resamples_written_out(pictures, instances):
    rng = np.random.default_rng(pictures)
    shown = rng.integers(0, instances, pictures)
    shown[:2] = 0
    errors = np.round(rng.exponential(20.0, pictures), 1 if pictures % 2 else 9)  # with ties and without
    hits = errors < 30
    for seed in (0, 5):
        for values, statistic in ((errors, "mean"), (errors, "median"), (hits, "mean")):
            found = bootstrap_interval(values, statistic, instances=shown, seed=seed)
            expected = plain_interval(values, statistic, shown, seed)
            assert [found.value, found.low, found.high] == pytest.approx(expected, rel=EXACT, abs=EXACT)


def test_sign_flip_tests_are_those_of_signs_written_out():
    rng = np.random.default_rng(1)
    instances = rng.integers(0, 700, 5000)
    chances = rng.random(700)[instances]
    for seed in (0, 1, 2):
        a, b = rng.random(5000) < chances, rng.random(5000) < chances * 0.97
        assert paired_accuracy_test(a, b, instances=instances, seed=seed).p_value == plain_p_value(
            a, b, instances, seed
        )


def test_figures_that_share_their_draws_have_the_intervals_they_have_alone():
    rng = np.random.default_rng(2)
    instances = rng.integers(0, 40, 300)
    codes = instance_codes(instances, 300)
    columns = [rng.random(300), rng.random(300) < 0.3, rng.random(300)]
    figures = [
        *(Figure(values, statistic, codes) for values in columns for statistic in ("mean", "median")),
        *(Figure(values, statistic) for values in columns for statistic in ("mean", "median")),
        Figure(columns[0][:100], "mean", instance_codes(instances[:100], 100)),
    ]
    for figure, shared in zip(figures, bootstrap_intervals(figures, seed=3), strict=True):
        alone = bootstrap_interval(figure.values, figure.statistic, instances=figure.codes, seed=3)
        assert vars(shared) == pytest.approx(vars(alone), rel=EXACT)


def test_nested_scores_get_their_intervals_where_the_figures_stand():
    values = np.array([0.0, 1.0, 1.0])
    scores = with_intervals({"n": 3, "deep": {"of": Figure(values), "names": ["a"]}, "last": Figure(values, "median")})
    assert list(scores) == ["n", "deep", "last"]
    assert scores["deep"] == {"of": vars(bootstrap_interval(values)), "names": ["a"]}
    assert scores["last"]["value"] == 1.0


def test_memory_does_not_grow_with_resamples_times_instances():
    rng = np.random.default_rng(4)
    instances = rng.integers(0, 20_000, 60_000)
    tracemalloc.start()
    summarize_errors(rng.random(60_000), instances=instances)
    hits = rng.random((2, 60_000)) < 0.5
    paired_accuracy_test(*hits, instances=instances)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 200e6  # 2,000 resamples of 20,000 instances are 320 MB, 9,999 signs 1.6 GB
