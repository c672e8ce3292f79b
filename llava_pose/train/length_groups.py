"""The order of an epoch in which each batch is of samples of like length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

_BATCHES_SORTED = (
    50  # batches among which lengths are sorted: enough to be alike, few enough for other batches each epoch
)


class LengthGroups(Sampler[int]):
    """A sampler by lot, but for this: samples of one batch are of like length, so that little of it is padding.

    An epoch's order is decided by the seed and the epoch's number alone, so that processes agree on it and a run that was
    stopped goes on with it. The batch with the longest sample comes first, so that memory that is too small is found at once;
    the one that is not full, if there is one, comes last.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int):
        """
        Args:
            lengths: of each sample, tokens.
            batch_size: samples that are to be alike: those of a step of all processes, which wait for one another.
            seed: of the order.
        """
        self._lengths = np.asarray(lengths)
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """The epoch whose order is asked for next, counted from 0."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng((self._seed, self._epoch))
        order = rng.permutation(len(self._lengths))
        in_full_batches = len(order) - len(order) % self._batch_size
        sorted_among = _BATCHES_SORTED * self._batch_size
        batches = [
            batch
            for start in range(0, in_full_batches, sorted_among)
            for batch in self._sorted(order[start : min(start + sorted_among, in_full_batches)]).reshape(
                -1, self._batch_size
            )
        ]
        batches = [batches[number] for number in rng.permutation(len(batches))]
        if batches:
            longest = max(range(len(batches)), key=lambda number: self._lengths[batches[number]].max())
            batches.insert(0, batches.pop(longest))
        for batch in (*batches, self._sorted(order[in_full_batches:])):
            yield from batch.tolist()

    def _sorted(self, items: np.ndarray) -> np.ndarray:
        return items[np.argsort(self._lengths[items], kind="stable")]
