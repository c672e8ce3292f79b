"""The pose-accuracy core, held against scipy, closed forms and hand-computed cases."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from llava_pose.pose.bootstrap import bootstrap_interval
from llava_pose.pose.geometry import angles_from_rotation, rotation_matrix
from llava_pose.pose.metrics import (
    accuracy,
    count_not_finite,
    cumulative_curve,
    effective_size,
    mean_over_groups,
    paired_accuracy_test,
    pose_error,
    summarize_errors,
    symmetric_pose_error,
    threshold_name,
    wilson_interval,
)

PI = math.pi
EXACT = 1e-12
CASES = {
    "the same": ([0.3, 0.2, 0.1], [0.3, 0.2, 0.1], 0.0),
    "wrapped": ([0.3 + 2 * PI, 0.2, 0.1 - 4 * PI], [0.3, 0.2, 0.1], 0.0),
    "the other name": ([0.3 + PI, PI - 0.2, 0.1 + PI], [0.3, 0.2, 0.1], 0.0),
    "near 0": ([0.3, 0.2, 0.1 + 1e-9], [0.3, 0.2, 0.1], 1e-9),
    "near pi": ([0.3, 0.2, 0.1 + PI - 1e-9], [0.3, 0.2, 0.1], PI - 1e-9),
    "exactly pi": ([PI, 0.0, 0.0], [0.0, 0.0, 0.0], PI),
    "theta alone": ([1.0, 0.5, 2.0], [1.0, 0.5, -1.0], 3.0),
    "elevation alone": ([1.0, 0.5, 2.0], [1.0, -0.25, 2.0], 0.75),
    "gimbal": ([1.0, PI / 2, 0.5], [0.5, PI / 2, 0.0], 0.0),
    "gimbal below": ([1.0, -PI / 2, 0.5], [1.5, -PI / 2, 0.0], 0.0),
}


def scipy_error(pred: np.ndarray, true: np.ndarray) -> np.ndarray:
    first, second = (
        Rotation.from_euler("ZXZ", np.stack([x[:, 2], x[:, 1] - PI / 2, -x[:, 0]], -1)) for x in (pred, true)
    )
    return (first * second.inv()).magnitude()


# pose_error


@pytest.mark.parametrize("name", CASES)
def test_pose_error_by_hand(name):
    pred, true, expected = CASES[name]
    error = pose_error(pred, true)
    assert isinstance(error, np.float64)
    assert error == pytest.approx(expected, abs=EXACT)
    assert pose_error(true, pred) == pytest.approx(expected, abs=EXACT)


def test_pose_error_equals_scipy_on_more_than_a_block():
    rng = np.random.default_rng(0)
    pred, true = rng.uniform(-2 * PI, 2 * PI, (2, 10_000, 3))
    np.testing.assert_allclose(pose_error(pred, true), scipy_error(pred, true), rtol=0, atol=EXACT)
    np.testing.assert_allclose(pose_error(pred + 1e-7, pred), scipy_error(pred + 1e-7, pred), rtol=0, atol=EXACT)


def test_pose_error_keeps_shape_and_broadcasts():
    rng = np.random.default_rng(1)
    pred, true = rng.uniform(0, 6, (4, 5, 3)), rng.uniform(0, 6, (5, 3))
    errors = pose_error(pred, true)
    assert errors.shape == (4, 5)
    assert errors[2, 3] == pose_error(pred[2, 3], true[3])
    assert pose_error(np.empty((0, 3)), np.empty((0, 3))).shape == (0,)


def test_what_is_not_finite_counts_as_pi_and_is_counted():
    true = np.zeros((4, 3))
    pred = np.array([[0, 0, 0], [math.nan, 0, 0], [0, math.inf, 0], [0.5, 0, 0]])
    np.testing.assert_allclose(pose_error(pred, true), [0, PI, PI, 0.5], atol=EXACT)
    assert count_not_finite(pred) == 2


def test_a_true_angle_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="true angle"):
        pose_error([0, 0, 0], [0, math.nan, 0])


@pytest.mark.parametrize("shape", [(), (2,), (3, 4)])
def test_wrong_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="azimuth, elevation, theta"):
        pose_error(np.zeros(shape), np.zeros(3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_pose_error_takes_tensors(dtype):
    pred = torch.tensor([[0.5, 0.25, 1.0], [math.nan, 0, 0]], dtype=dtype, requires_grad=True)
    errors = pose_error(pred, np.zeros((2, 3)))
    assert isinstance(errors, torch.Tensor)
    assert errors.dtype == torch.float64
    np.testing.assert_array_equal(errors, pose_error([[0.5, 0.25, 1.0], [math.nan, 0, 0]], np.zeros((2, 3))))


def test_chance_level_of_random_rotations():
    pred, true = (
        np.stack(angles_from_rotation(Rotation.random(400_000, random_state=seed).as_matrix()), -1) for seed in (1, 2)
    )
    errors = pose_error(pred, true)
    for threshold, share in ((PI / 6, 0.0075), (PI / 18, 0.00028)):
        assert (threshold - math.sin(threshold)) / PI == pytest.approx(share, rel=0.02)  # the closed form
        assert accuracy(errors, threshold) == pytest.approx(share, abs=4 * math.sqrt(share / len(errors)))
    assert errors.mean() == pytest.approx(PI / 2 + 2 / PI, abs=0.005)


# Symmetric objects

QUARTER_TURNS = rotation_matrix(np.arange(4) * PI / 2, PI / 2, 0.0) @ rotation_matrix(0.0, PI / 2, 0.0).T


def test_quarter_turns_are_turns_about_the_objects_vertical():
    np.testing.assert_allclose(QUARTER_TURNS @ [0.0, 0, 1], np.tile([0.0, 0, 1], (4, 1)), atol=EXACT)
    np.testing.assert_allclose(QUARTER_TURNS[0], np.eye(3), atol=EXACT)


def test_symmetric_error_forgives_what_the_symmetry_allows():
    true = np.array([1.0, 0.4, 0.2])
    pred = true + np.array([[0.1, 0, 0], [PI / 2, 0, 0], [PI + 0.1, 0, 0], [-PI / 2 - 0.2, 0, 0], [0, 0.3, 0]])
    turn = [0.1, 0.0, 0.1, 0.2, 0.3]  # what is left of the turn after the nearest quarter
    np.testing.assert_allclose(symmetric_pose_error(pred, true, QUARTER_TURNS), turn, atol=EXACT)
    np.testing.assert_allclose(symmetric_pose_error(pred, true, np.eye(3)[None]), pose_error(pred, true), atol=EXACT)


def test_symmetric_error_is_never_more_and_does_not_depend_on_which_symmetric_label_was_written():
    rng = np.random.default_rng(2)
    pred, true = rng.uniform(-PI, PI, (2, 500, 3))
    errors = symmetric_pose_error(pred, true, QUARTER_TURNS)
    assert (errors <= pose_error(pred, true)).all()
    relabelled = true + np.array([PI / 2, 0, 0])
    np.testing.assert_allclose(symmetric_pose_error(pred, relabelled, QUARTER_TURNS), errors, atol=EXACT)
    assert errors.mean() < pose_error(pred, true).mean() - 0.2


@pytest.mark.parametrize("axis", [None, [0.0, 0.0, 1.0]])
def test_symmetric_error_of_no_answer_is_pi(axis):
    assert symmetric_pose_error([[math.nan, 0, 0]], [[0.0, 0, 0]], QUARTER_TURNS, axis).tolist() == [PI]
    with pytest.raises(ValueError, match="true angle"):
        symmetric_pose_error([[0.0, 0, 0]], [[math.nan, 0, 0]], QUARTER_TURNS, axis)


def test_a_free_axis_leaves_its_swing_alone():
    up, true = np.array([0.0, 0, 1]), np.array([0.3, 0.4, 0.1])
    swing, turn = rotation_matrix(0.0, PI / 2 + 0.35, 0.0), rotation_matrix(2.0, PI / 2, 0.0)
    pred = np.stack(angles_from_rotation(rotation_matrix(*true) @ swing @ turn), -1)
    assert symmetric_pose_error(pred, true, np.eye(3)[None], up) == pytest.approx(0.35, abs=EXACT)
    upside_down = np.diag([1.0, -1, -1])
    pred = np.stack(angles_from_rotation(rotation_matrix(*true) @ upside_down @ swing @ turn), -1)
    assert symmetric_pose_error(pred, true, np.eye(3)[None], up) == pytest.approx(PI - 0.35, abs=EXACT)
    both_ways_up = np.stack([np.eye(3), upside_down])
    assert symmetric_pose_error(pred, true, both_ways_up, up) == pytest.approx(0.35, abs=EXACT)


def test_a_free_axis_is_the_limit_of_many_turns():
    rng = np.random.default_rng(0)
    pred, true = rng.uniform(-PI, PI, (2, 4, 50, 3))
    turns = Rotation.from_rotvec(np.radians(np.arange(0, 360, 0.5))[:, None] * [0.0, 0, 1]).as_matrix()
    exact = symmetric_pose_error(pred, true, np.eye(3)[None], [0.0, 0, 1])
    sampled = symmetric_pose_error(pred, true, turns)
    assert exact.shape == (4, 50)
    assert (exact <= sampled + 1e-9).all()
    assert np.degrees(sampled - exact).max() < 0.26


# Accuracy and averages


def test_accuracy_is_strict():
    errors = [0.0, PI / 6, np.nextafter(PI / 6, 0), PI]
    assert accuracy(errors, PI / 6) == 0.5
    assert math.isnan(accuracy([], PI / 6))


def test_threshold_names():
    assert [threshold_name(x) for x in (PI / 6, PI / 18, math.radians(7.5))] == ["acc@30", "acc@10", "acc@7.5"]


def test_summary_by_hand():
    errors = np.radians([1.0, 9.0, 20.0, 90.0])
    summary = summarize_errors(errors, correct_class=[True, False, True, True])
    assert summary["n"] == 4
    expected = {
        "acc@30": 0.75,
        "acc@10": 0.5,
        "mean_deg": 30.0,
        "median_deg": 14.5,
        "class_accuracy": 0.75,
        "3d_acc@30": 0.5,
        "3d_acc@10": 0.25,
    }
    assert {name: summary[name]["value"] for name in expected} == pytest.approx(expected)
    assert set(summary) == {"n", *expected}
    assert all(s["low"] <= s["value"] <= s["high"] for name, s in summary.items() if name != "n")
    json.dumps(summary, allow_nan=False)
    assert summarize_errors([]) == {"n": 0}


def test_a_wrong_class_adds_nothing_to_the_pose_error():
    errors = np.radians([1.0, 2.0, 3.0])
    plain, with_classes = summarize_errors(errors), summarize_errors(errors, correct_class=[False] * 3)
    assert {name: with_classes[name] for name in plain} == plain
    assert with_classes["3d_acc@30"]["value"] == 0


def test_mean_over_groups_counts_each_group_once():
    groups = {"a": summarize_errors([0.0] * 9), "b": summarize_errors([PI]), "empty": summarize_errors([])}
    assert mean_over_groups(groups, "acc@30") == 0.5
    assert math.isnan(mean_over_groups({}, "acc@30"))


def test_effective_size_is_between_instances_and_pictures():
    rng = np.random.default_rng(0)
    instances = np.repeat(np.arange(200), 16)
    alike = np.repeat(rng.random(200) < 0.3, 16)  # hit or missed together: an instance is worth one picture
    alone = rng.random(3200) < 0.3  # whatever instance they show: each is worth one
    for hits, expected in ((alike, 200), (alone, 3200)):
        size = effective_size(hits[:, None], instances)
        assert size == pytest.approx([expected], rel=0.15)
    assert effective_size(np.tile([False, True], (3200, 1)), instances).tolist() == [200, 200]
    assert effective_size(alone[:, None]).tolist() == [3200]
    half = np.tile([True, False], 1600)  # the same in every instance: they tell as much as pictures can
    assert effective_size(half[:, None], instances).tolist() == [3200]
    unequal = np.repeat(np.arange(51), [500] + [1] * 50)  # all but a tenth of the pictures show one instance
    shown = unequal == 0
    least = 550**2 / (500**2 + 50)
    assert least < effective_size(shown[:, None], unequal)[0] < 51 / 3
    assert effective_size(np.zeros((550, 1)), unequal) == pytest.approx([least])
    for hits in (14, 15, 16):  # of one instance nothing is known
        assert effective_size((np.arange(22) < hits)[:, None], np.zeros(22)).tolist() == [1]


def test_the_band_of_shares_is_the_bootstraps():
    """Two ways to the same interval, with as many pictures of an instance as there happen to be."""
    rng = np.random.default_rng(1)
    sizes = rng.integers(1, 30, 150)
    instances = np.repeat(np.arange(150), sizes)
    hits = rng.random(sizes.sum()) < np.repeat(rng.beta(1, 2, 150), sizes)
    size = effective_size(hits[:, None], instances)
    low, high = wilson_interval([hits.mean()], size)
    expected = bootstrap_interval(hits, instances=instances)
    assert (low[0], high[0]) == pytest.approx((expected.low, expected.high), abs=0.012)
    assert expected.high - expected.low > 0.05


def test_the_interval_of_a_share_of_no_hit_has_a_width():
    low, high = wilson_interval([0.0, 1.0], [10, 10])
    assert low == pytest.approx([0, 0.7225], abs=1e-4)  # 1 / (1 + z² / 10)
    assert high == pytest.approx([0.2775, 1], abs=1e-4)


def test_cumulative_curve_agrees_with_accuracy():
    errors = np.radians([0.0, 5.0, 10.0, 10.0, 180.0])
    np.testing.assert_allclose(cumulative_curve(errors, [0, 5, 5.1, 10.1, 180, 181]), [0, 0.2, 0.4, 0.8, 0.8, 1])
    assert np.isnan(cumulative_curve([], [10])).all()


# Intervals


@pytest.mark.parametrize("kind", ["hits", "mean", "median"])
def test_interval_covers_the_truth_about_95_times_in_100(kind):
    rng = np.random.default_rng(3)
    draw, truth, statistic = {
        "hits": (lambda: rng.random(200) < 0.7, 0.7, "mean"),
        "mean": (lambda: rng.exponential(1.0, 200), 1.0, "mean"),
        "median": (lambda: rng.exponential(1.0, 200), math.log(2), "median"),
    }[kind]
    intervals = [bootstrap_interval(draw(), statistic, resamples=300, seed=i) for i in range(400)]
    coverage = np.mean([interval.low <= truth <= interval.high for interval in intervals])
    assert 0.90 <= coverage <= 0.98


def test_interval_of_hits_is_what_resampling_gives():
    hits = (np.arange(500) < 350).astype(float)
    fast = bootstrap_interval(hits, resamples=20_000)
    scaled = bootstrap_interval(hits * 2, resamples=20_000)  # not 0 and 1: resampled in full
    assert fast.value == 0.7
    assert (fast.low, fast.high) == pytest.approx((scaled.low / 2, scaled.high / 2), abs=0.003)
    half_width = 1.96 * math.sqrt(0.7 * 0.3 / 500)
    assert (fast.low, fast.high) == pytest.approx((0.7 - half_width, 0.7 + half_width), abs=0.005)


def every_resample(n: int) -> np.ndarray:
    return np.array(list(itertools.product(range(n), repeat=n)))


def many_resamples(n: int) -> np.ndarray:
    return np.random.default_rng(8).integers(0, n, (40_000, n))


@pytest.mark.parametrize(
    ("n", "resamples"), [(4, every_resample), (5, every_resample), (60, many_resamples), (61, many_resamples)]
)
def test_interval_of_a_median_is_what_resampling_gives(n, resamples):
    values = np.round(np.random.default_rng(6).exponential(1.0, n), 1)  # with ties
    medians = np.sort(np.median(values[resamples(n)], axis=1))
    for level in np.linspace(0.05, 0.95, 19):
        interval = bootstrap_interval(values, "median", resamples=40_000, level=level)
        assert interval.value == np.median(values)
        for bound, share in ((interval.low, (1 - level) / 2), (interval.high, (1 + level) / 2)):
            # as medians come in steps, a bound is the quantile of a range of shares
            least, most = (np.searchsorted(medians, bound, side) / len(medians) for side in ("left", "right"))
            assert least - 0.01 <= share <= most + 0.01


def test_interval_of_a_median_takes_no_longer_for_many_values():
    values = np.random.default_rng(7).exponential(1.0, 1_000_000)  # plain resampling would draw two thousand million
    interval = bootstrap_interval(values, "median")
    half_width = 1.96 * 0.5 / math.sqrt(len(values)) / 0.5  # of a sample median; the density at the median is 1/2
    assert (interval.low, interval.high) == pytest.approx(
        (interval.value - half_width, interval.value + half_width), abs=2e-4
    )


def test_interval_of_equal_values_has_no_width():
    for statistic in ("mean", "median"):
        interval = bootstrap_interval(np.ones(7), statistic)
        assert (interval.value, interval.low, interval.high) == (1.0, 1.0, 1.0)


def test_interval_depends_on_the_seed_alone():
    values = np.random.default_rng(4).random(50)
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)


@pytest.mark.parametrize(("values", "statistic", "match"), [([], "mean", "at least one"), ([1.0], "mode", "'mode'")])
def test_interval_refuses(values, statistic, match):
    with pytest.raises(ValueError, match=match):
        bootstrap_interval(values, statistic)


def correlated(rng: np.random.Generator, instances: int, each: int) -> tuple[np.ndarray, np.ndarray]:
    """Hits, and instances whose pictures are hit with one chance of their own."""
    chances = rng.beta(0.5, 0.5, instances)
    return (rng.random((instances, each)) < chances[:, None]).ravel(), np.repeat(np.arange(instances), each)


def test_interval_over_instances_covers_where_one_over_pictures_does_not():
    rng = np.random.default_rng(9)
    covered = {True: 0, False: 0}
    for seed in range(300):
        hits, instances = correlated(rng, 40, 10)
        for by_instance in covered:
            interval = bootstrap_interval(hits, instances=instances if by_instance else None, resamples=300, seed=seed)
            covered[by_instance] += interval.low <= 0.5 <= interval.high
    assert 0.89 <= covered[True] / 300 <= 0.98
    assert covered[False] / 300 < 0.75


@pytest.mark.parametrize("statistic", ["mean", "median"])
def test_interval_over_instances_is_what_resampling_them_gives(statistic):
    rng = np.random.default_rng(10)
    instances = rng.integers(0, 12, 57)  # of unequal sizes
    values = np.round(rng.exponential(1.0, 57) + instances / 4, 1)
    members = [values[instances == number] for number in np.unique(instances)]
    of = np.mean if statistic == "mean" else np.median
    picks = rng.integers(0, len(members), (4000, len(members)))
    figures = np.sort([of(np.concatenate([members[k] for k in row])) for row in picks])
    interval = bootstrap_interval(values, statistic, instances=[f"car {k}" for k in instances], resamples=20_000)
    assert interval.value == of(values)
    for bound, share in ((interval.low, 0.025), (interval.high, 0.975)):
        least, most = (np.searchsorted(figures, bound, side) / len(figures) for side in ("left", "right"))
        assert least - 0.01 <= share <= most + 0.01


@pytest.mark.parametrize("statistic", ["mean", "median"])
def test_pictures_of_one_instance_each_are_resampled_as_ever(statistic):
    values = np.random.default_rng(11).random(20)
    own = bootstrap_interval(values, statistic, instances=np.arange(20)[::-1])
    assert own == bootstrap_interval(values, statistic)
    with pytest.raises(ValueError, match="20 pictures need as many instances, not 3"):
        bootstrap_interval(values, statistic, instances=[1, 2, 3])


def test_a_summary_says_how_many_instances_there_are():
    assert summarize_errors([0.1, 0.2, 3.0], instances=["a", "a", "b"])["n_instances"] == 2
    assert "n_instances" not in summarize_errors([0.1, 0.2, 3.0], instances=["a", "c", "b"])


# Two systems on the same pictures


def test_paired_test_by_hand():
    a = np.array([1] * 8 + [0] * 2 + [1] * 20 + [0] * 10, dtype=bool)
    b = np.array([0] * 8 + [1] * 2 + [1] * 20 + [0] * 10, dtype=bool)
    test = paired_accuracy_test(a, b)
    assert (test.only_a, test.only_b) == (8, 2)
    assert test.p_value == pytest.approx(2 * (1 + 10 + 45) / 2**10)  # both tails of 10 tosses with at most 2 heads
    assert test.difference.value == pytest.approx(6 / 40)
    assert test.difference.low < 6 / 40 < test.difference.high
    assert paired_accuracy_test(b, a).p_value == test.p_value


def test_paired_test_of_equal_systems():
    test = paired_accuracy_test([True, False, True], [True, False, True])
    assert (test.p_value, test.difference.value, test.difference.low, test.difference.high) == (1.0, 0.0, 0.0, 0.0)


def test_paired_test_sees_what_unpaired_intervals_do_not():
    rng = np.random.default_rng(5)
    b = rng.random(1000) < 0.8
    a = b.copy()
    a[np.flatnonzero(~b)[:20]] = True  # the same system with 20 failures mended
    assert bootstrap_interval(a).low < bootstrap_interval(b).high
    assert paired_accuracy_test(a, b).p_value < 1e-5


def test_paired_test_by_instance_by_hand():
    """Five instances of three pictures, all for a: of 32 ways to give them names, two are as one-sided."""
    a, b = np.ones(15, dtype=bool), np.zeros(15, dtype=bool)
    instances = np.repeat(np.arange(5), 3)
    assert paired_accuracy_test(a, b, instances=instances).p_value == pytest.approx(2 / 32, abs=0.01)
    assert paired_accuracy_test(a, b).p_value == pytest.approx(2 / 2**15)
    assert paired_accuracy_test(a, a, instances=instances).p_value == 1.0


def test_paired_test_by_instance_is_not_fooled_by_pictures_that_go_together():
    rng = np.random.default_rng(12)
    found = {True: 0, False: 0}
    for seed in range(200):
        (a, instances), (b, _) = correlated(rng, 40, 10), correlated(rng, 40, 10)
        for by_instance in found:
            test = paired_accuracy_test(a, b, instances=instances if by_instance else None, seed=seed)
            found[by_instance] += test.p_value < 0.05
    assert found[True] / 200 < 0.1
    assert found[False] / 200 > 0.2


@pytest.mark.parametrize(("a", "b"), [([True], [True, False]), ([], [])])
def test_paired_test_needs_the_same_instances(a, b):
    with pytest.raises(ValueError, match="same pictures"):
        paired_accuracy_test(a, b)
