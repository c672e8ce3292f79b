"""Many answers to one question as one sequence: shared beginnings are computed once, under a tree attention mask."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class AnswerTrie:
    """The trie of token sequences, laid out as their common prefix followed by its nodes in depth-first order.

    A node sees the common prefix, its ancestors and itself, and stands at its own depth, so that a causal language model
    gives each sequence what it would give it alone.

    Attributes:
        input_ids: (length,) int64.
        position_ids: (length,) int64.
        visible: (length, length) booleans: row may attend to column.
        shared: tokens of the common prefix.
        parents: for each place the one before it, -1 for the first.
        children: the nodes behind a place, where there are some.
        leaves: (sequences,) places of the last token of each sequence.
        scored: (m,) places whose next-token distribution is needed.
        membership: (sequences, steps) booleans: which steps of :meth:`transitions` make up a sequence.
    """

    def __init__(self, sequences: Sequence[np.ndarray]):
        """
        Args:
            sequences: token ids; one may not be the beginning of another.

        Raises:
            ValueError: two are the same, one begins another, or they share no beginning to predict their first token from.
        """
        lists = [list(map(int, sequence)) for sequence in sequences]
        shared = _common_prefix_length(lists)
        if len(lists) == 1:
            shared -= 1  # so that there is a node to be the leaf
        if shared < 1:
            raise ValueError("the answers must share a beginning, their question at least")
        self.parents: list[int] = list(range(-1, shared - 1))
        tokens = lists[0][:shared]
        children: dict[tuple[int, int], int] = {}
        paths: list[list[int]] = []
        for sequence in lists:
            place, path = shared - 1, []
            for token in sequence[shared:]:
                key = (place, token)
                if key not in children:
                    children[key] = len(tokens)
                    tokens.append(token)
                    self.parents.append(place)
                place = children[key]
                path.append(place)
            paths.append(path)
        leaves = [path[-1] if path else shared - 1 for path in paths]
        inner = set(self.parents)
        if len(set(leaves)) != len(leaves) or any(leaf in inner for leaf in leaves):
            raise ValueError("an answer is the same as another, or the beginning of one: answers must end alike")
        self.shared = shared
        self.input_ids = np.asarray(tokens, dtype=np.int64)
        self.leaves = np.asarray(leaves, dtype=np.int64)
        self.position_ids, self.visible = _layout(self.parents)
        self._nodes = list(range(shared, len(tokens)))
        self.children: dict[int, list[int]] = {}
        for node in self._nodes:
            self.children.setdefault(self.parents[node], []).append(node)
        self.scored = np.asarray([shared - 1, *self._nodes], dtype=np.int64)
        steps = {node: index for index, node in enumerate(self._nodes)}
        self.membership = np.zeros((len(lists), len(self._nodes) + len(leaves)), dtype=bool)
        for row, path in enumerate(paths):
            self.membership[row, [steps[place] for place in path]] = True
            self.membership[row, len(self._nodes) + row] = True

    def transitions(self, end_token: int) -> tuple[np.ndarray, np.ndarray]:
        """Every step as (row of ``scored`` it is predicted at, token); the last ones end each sequence in ``end_token``."""
        row = {place: index for index, place in enumerate(self.scored.tolist())}
        parents = [row[self.parents[node]] for node in self._nodes] + [row[leaf] for leaf in self.leaves.tolist()]
        tokens = [int(self.input_ids[node]) for node in self._nodes] + [end_token] * len(self.leaves)
        return np.asarray(parents, dtype=np.int64), np.asarray(tokens, dtype=np.int64)


def _common_prefix_length(sequences: list[list[int]]) -> int:
    length = 0
    for column in zip(*sequences, strict=False):
        if len(set(column)) > 1:
            break
        length += 1
    return length


def _layout(parents: list[int]) -> tuple[np.ndarray, np.ndarray]:
    n = len(parents)
    visible = np.zeros((n, n), dtype=bool)
    positions = np.zeros(n, dtype=np.int64)
    for node, parent in enumerate(parents):
        if parent >= 0:
            visible[node] = visible[parent]
            positions[node] = positions[parent] + 1
        visible[node, node] = True
    return positions, visible
