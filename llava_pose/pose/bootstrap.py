"""Bootstrap intervals of means and medians: over pictures, or over instances where several pictures show one.

Figures that are made together share their draws, which of many instances cost most of the time. Memory grows with pictures and
instances, and not with resamples: these are drawn, used and dropped a block at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_BLOCK = 4_000_000  # numbers that stand in memory at once
# shares of the pictures in order: blocks that are finer near the median
_CUTS = np.unique([*np.linspace(0, 1, 17), *(0.5 + 0.5 ** np.arange(5, 11)), *(0.5 - 0.5 ** np.arange(5, 11))])


@dataclass(frozen=True)
class Interval:
    """A figure and its 95% bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Figure:
    """A mean or a median that waits for its interval.

    Attributes:
        values: (n,) one value a picture: errors, or hits as 0 and 1.
        statistic: "mean" or "median".
        codes: (n,) what :func:`instance_codes` returns.
    """

    values: np.ndarray
    statistic: str = "mean"
    codes: Any = None

    def __post_init__(self) -> None:
        if self.values.size == 0:
            raise ValueError("an interval needs at least one value")
        if self.statistic not in ("mean", "median"):
            raise ValueError(f"statistic must be 'mean' or 'median', not {self.statistic!r}")


def bootstrap_interval(
    values: Any,
    statistic: str = "mean",
    *,
    instances: Any = None,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap over pictures, or over instances where several pictures show one (Efron and Tibshirani, 1993,
    ch. 13; the cluster bootstrap of Davison and Hinkley, 1997, sec. 3.8).

    Pictures of one instance are hit or missed together. Resampled one by one, sixteen of a model would count as sixteen
    models, and the interval would be too narrow for what is asked: how it would be on other models.

    Where every value is the same, as at exactly 0% or 100% of hits, every resample is the same too and the interval has no
    width. That is the bootstrap's way and no certainty: of n hits out of n, a true rate of about 1 - 3 / n may be behind.

    Args:
        values: (n,) one value a picture: errors, or hits as 0 and 1.
        statistic: "mean" or "median".
        instances: (n,) which instance each picture shows, any labels; None: each shows one of its own.

    Raises:
        ValueError: there are no values, not as many instances, or the statistic is not known.
    """
    values = np.asarray(values).ravel()
    figure = Figure(values, statistic, instance_codes(instances, values.size))
    return bootstrap_intervals([figure], resamples=resamples, level=level, seed=seed)[0]


def with_intervals(scores: Mapping[str, Any], *, seed: int = 0) -> dict[str, Any]:
    """Return nested scores with {"value", "low", "high"} in the place of each :class:`Figure`, all of one set of draws."""
    return _filled(scores, iter(bootstrap_intervals(list(_figures_in(scores)), seed=seed)))


def _figures_in(scores: Any) -> Iterator[Figure]:
    if isinstance(scores, Figure):
        yield scores
    elif isinstance(scores, Mapping):
        for value in scores.values():
            yield from _figures_in(value)


def _filled(scores: Any, intervals: Iterator[Interval]) -> Any:
    if isinstance(scores, Figure):
        return vars(next(intervals))
    return {k: _filled(v, intervals) for k, v in scores.items()} if isinstance(scores, Mapping) else scores


def bootstrap_intervals(
    figures: Sequence[Figure], *, resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> list[Interval]:
    """Return the interval of each figure, as :func:`bootstrap_interval` gives it. Figures of as many instances, or of as many
    pictures without instances, are resampled by the same draws.
    """
    alike: dict[tuple[bool, int], list[int]] = {}
    for place, figure in enumerate(figures):
        count = figure.values.size if figure.codes is None else int(figure.codes.max()) + 1
        alike.setdefault((figure.codes is None, count), []).append(place)
    estimates: dict[int, np.ndarray] = {}
    for (alone, count), places in alike.items():
        of_figures = _of_pictures if alone else _of_instances
        estimates |= zip(places, of_figures([figures[p] for p in places], count, resamples, seed), strict=True)
    tails = [(1 - level) / 2, (1 + level) / 2]
    intervals = []
    for place, figure in enumerate(figures):
        point = figure.values.mean() if figure.statistic == "mean" else np.median(figure.values)
        intervals.append(Interval(float(point), *map(float, np.quantile(estimates[place], tails))))
    return intervals


def instance_codes(instances: Any, n: int) -> np.ndarray | None:
    """Return (n,) numbers from 0 of the instances that pictures show; None where each shows one of its own.

    Raises:
        ValueError: there are not n.
    """
    if instances is None:
        return None
    labels, codes = np.unique(np.asarray(instances).ravel(), return_inverse=True)
    if codes.size != n:
        raise ValueError(f"{n} pictures need as many instances, not {codes.size}")
    return None if labels.size == n else codes


def _of_instances(figures: Sequence[Figure], count: int, resamples: int, seed: int) -> np.ndarray:
    """Return the estimates, (figures, resamples), of resamples of as many instances as there are."""
    rng = np.random.default_rng(seed)
    estimates = np.empty((len(figures), resamples))
    means = [place for place, figure in enumerate(figures) if figure.statistic == "mean"]
    totals = np.array([np.bincount(figures[place].codes, figures[place].values) for place in means])
    sizes = np.array([np.bincount(figures[place].codes) for place in means], dtype=np.float64)
    medians = {p: _Medians(f.values, f.codes, count) for p, f in enumerate(figures) if f.statistic == "median"}
    rows = max(1, _BLOCK // count)
    for start in range(0, resamples, rows):
        block = slice(start, min(start + rows, resamples))
        # how often each instance is drawn, when as many are drawn as there are
        drawn = rng.multinomial(count, np.full(count, 1 / count), block.stop - start).astype(np.float64)
        if means:
            estimates[means, block] = (totals @ drawn.T) / (sizes @ drawn.T)
        for place, of_drawn in medians.items():
            estimates[place, block] = of_drawn(drawn)
    return estimates


class _Medians:
    """Medians of resampled instances: of m values in order that at rank (m - 1) / 2, or the mean of the two beside it.

    How many values a resample has in each of some blocks of the order is a product of matrices. Only in the block where its
    median lies are values looked at one by one.
    """

    def __init__(self, values: np.ndarray, codes: Any, count: int) -> None:
        order = np.argsort(values, kind="stable")
        self.ordered, self.codes = values[order], codes[order]
        self.edges = np.unique((_CUTS * values.size).astype(np.int64))
        blocks = len(self.edges) - 1
        block_of = np.repeat(np.arange(blocks), np.diff(self.edges))
        sizes = np.bincount(self.codes * blocks + block_of, minlength=count * blocks)
        self.sizes = sizes.reshape(count, blocks).astype(np.float64)

    def __call__(self, drawn: np.ndarray) -> np.ndarray:
        upto = (drawn @ self.sizes).cumsum(axis=1)
        upto = np.concatenate([np.zeros((len(drawn), 1)), upto], axis=1)
        lower = self._at((upto[:, -1:] - 1) // 2, upto, drawn)
        return (lower + self._at(upto[:, -1:] // 2, upto, drawn)) / 2

    def _at(self, ranks: np.ndarray, upto: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        """Return the values at ranks (resamples, 1); ``upto``, (resamples, blocks + 1), counts values before each edge."""
        block = (upto[:, 1:] <= ranks).sum(axis=1)
        width = int(np.diff(self.edges)[block].max())
        ranks = ranks - np.take_along_axis(upto, block[:, None], axis=1)
        places = self.edges[block]
        rows = max(1, _BLOCK // 4 // width)
        for start in range(0, len(drawn), rows):
            part = slice(start, start + rows)
            within = (self.edges[block[part], None] + np.arange(width)).clip(max=len(self.codes) - 1)
            counts = np.take_along_axis(drawn[part], self.codes[within], axis=1).cumsum(axis=1)
            places[part] += (counts <= ranks[part]).sum(axis=1)
        return self.ordered[places]


def _of_pictures(figures: Sequence[Figure], n: int, resamples: int, seed: int) -> np.ndarray:
    """Return the estimates, (figures, resamples), of resamples of n pictures."""
    estimates = np.empty((len(figures), resamples))
    in_full = []
    for place, figure in enumerate(figures):
        rng = np.random.default_rng(seed)
        if figure.statistic == "median":
            estimates[place] = _resampled_medians(figure.values, resamples, rng)
        elif np.isin(figure.values, (0.0, 1.0)).all():
            estimates[place] = rng.binomial(n, figure.values.mean(), resamples) / n  # what resampling n hits comes to
        else:
            in_full.append(place)
    rng, rows = np.random.default_rng(seed), max(1, _BLOCK // n)
    for start in range(0, resamples if in_full else 0, rows):
        drawn = rng.integers(0, n, (min(rows, resamples - start), n))
        for place in in_full:
            estimates[place, start : start + rows] = figures[place].values[drawn].mean(axis=1)
    return estimates


def _resampled_medians(values: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Medians of resamples, without the resamples: their distribution is known (Maritz and Jarrett, JASA 1978).

    A resample takes the values at ranks floor(n U) of n uniform U, and its k-th smallest is the value at the rank of the
    k-th smallest U, which is Beta(k, n + 1 - k). The next U above it is the least of the n - k that are uniform between
    there and 1.
    """
    ordered, n = np.sort(values), values.size
    middle = (n + 1) // 2
    uniform = rng.beta(middle, n + 1 - middle, resamples)
    medians = ordered[np.minimum((n * uniform).astype(np.int64), n - 1)]
    if n % 2:
        return medians
    above = uniform + (1 - uniform) * rng.beta(1, n - middle, resamples)
    return (medians + ordered[np.minimum((n * above).astype(np.int64), n - 1)]) / 2
