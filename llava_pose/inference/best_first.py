"""The likeliest of many answers by best-first search over their trie, without the scores of the others.

A token's log probability is at most zero, so the sum along a path bounds every answer that goes on from it: what cannot beat
the best whole answer is never looked at. The winner is that of :mod:`llava_pose.inference.scoring`, at a fraction of the
logits.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llava_pose.inference.answer_trie import AnswerTrie
from llava_pose.inference.scoring import Scores, is_close
from llava_pose.model.modeling import LlavaPoseForConditionalGeneration
from llava_pose.model.pose_head import ImageTokens

logger = logging.getLogger(__name__)
_WIDTH = 4  # nodes of each object's trie that go through the model together


@dataclass(frozen=True)
class Winners:
    """The likeliest answer about each object.

    Attributes:
        best: (objects,) its place among the answers.
        scores: (objects,) its log probability, the mean over the views.
        states: (views, objects, hidden), which predict the end token.
        seen: for each view, what the head sees of the pictures.
    """

    best: Tensor
    scores: Tensor
    states: Tensor
    seen: list[ImageTokens | None]


class _Search:
    """The search about one object: a frontier of nodes by their bounds, and the best whole answer so far."""

    def __init__(self, trie: AnswerTrie):
        self.trie = trie
        self.frontier: list[tuple[float, int]] = []
        self.place: dict[int, int] = {}  # in the cache, behind the shared beginning, of each node that was looked at
        self.score, self.best = -np.inf, 0

    def add(self, parent: int, bound: float, log_probabilities: Tensor) -> None:
        """Put the children of a node into the frontier.

        Args:
            log_probabilities: (vocabulary,) of the token behind the parent.
        """
        children = self.trie.children.get(parent, [])
        steps = log_probabilities[self.trie.input_ids[children]].tolist() if children else []
        for node, step in zip(children, steps, strict=True):
            heapq.heappush(self.frontier, (-(bound + step), node))

    def take(self) -> list[tuple[float, int]]:
        """Take the nodes with the highest bounds, as (bound, node), as long as one can still win."""
        taken: list[tuple[float, int]] = []
        while self.frontier and len(taken) < _WIDTH and -self.frontier[0][0] > self.score:
            negative, node = heapq.heappop(self.frontier)
            taken.append((-negative, node))
        return taken


@torch.inference_mode()
def best_answers(
    model: LlavaPoseForConditionalGeneration,
    trie: AnswerTrie,
    end_token: int,
    inputs: Mapping[str, Any],
    objects: int,
    views: int = 1,
) -> Winners:
    """Return the answer to which the mean over an object's views gives the highest log probability.

    Keys and values of the shared beginning are computed once; the nodes follow a few at a time, each seeing its ancestors.

    Args:
        trie: of the answers.
        end_token: what each answer ends with, and is scored with.
        inputs: the pictures as ``model.see`` takes them: of all objects in the first view, then in the next.
    """
    device = model.pose_token_embedding.change.device
    ids = torch.as_tensor(trie.input_ids[: trie.shared], device=device).expand(views * objects, -1)
    prefix = model(input_ids=ids, attention_mask=torch.ones_like(ids), logits_to_keep=1, use_cache=True, **inputs)
    first = _mean_over_views(prefix.logits[:, -1:], views)
    searches = [_Search(trie) for _ in range(objects)]
    for search, row in zip(searches, first, strict=True):
        search.add(trie.shared - 1, 0.0, row[0])
    leaves = {int(leaf): index for index, leaf in enumerate(trie.leaves)}
    states = prefix.states.new_zeros(views, objects, prefix.states.shape[-1])
    past = 0
    while any(taken := [search.take() for search in searches]):
        width = max(map(len, taken))
        nodes, visible = _layout(searches, taken, past, width)
        output = model(
            input_ids=torch.as_tensor(trie.input_ids[nodes], device=device).repeat(views, 1),
            position_ids=torch.as_tensor(trie.position_ids[nodes], device=device).repeat(views, 1),
            attention_mask=_mask(visible, model.vlm.dtype, device).repeat(views, 1, 1, 1),
            past_key_values=prefix.past_key_values,
            use_cache=True,
        )
        past += width
        steps = _mean_over_views(output.logits, views)
        of_views = output.states.unflatten(0, (views, objects))
        for row, (search, rows_taken) in enumerate(zip(searches, taken, strict=True)):
            for column, (bound, node) in enumerate(rows_taken):
                search.add(node, bound, steps[row, column])
                if node in leaves and (score := bound + float(steps[row, column, end_token])) > search.score:
                    search.score, search.best = score, leaves[node]
                    states[:, row] = of_views[:, row, column]
    seen = prefix.image_tokens
    rows = torch.arange(views * objects, device=device).view(views, objects)
    return Winners(
        torch.tensor([search.best for search in searches], device=device),
        torch.tensor([search.score for search in searches], device=device),
        states,
        [None if seen is None else seen.of(of_view) for of_view in rows],
    )


@torch.inference_mode()
def finds_the_best(
    model: LlavaPoseForConditionalGeneration,
    trie: AnswerTrie,
    end_token: int,
    inputs: Mapping[str, Any],
    scores: Scores,
) -> bool:
    """Return whether the search gives on one picture what the scores of all answers say: a cache under a tree's mask, too, is
    believed only where it was measured.

    Args:
        scores: of the answers to this picture.
    """
    try:
        found = best_answers(model, trie, end_token, inputs, 1)
    except Exception as error:  # noqa: BLE001  # whatever a family raises at what it does not know
        logger.debug(f"best-first search: {error}")
        return False
    score, best = scores[0][0].max(0)
    return (
        bool(found.best == best)
        and is_close(found.scores[0], score)
        and is_close(found.states[0, 0], scores[1][0, best])
    )


def _mean_over_views(logits: Tensor, views: int) -> Tensor:
    """(views * objects, n, vocabulary) logits -> (objects, n, vocabulary) log probabilities."""
    return logits.float().log_softmax(-1).unflatten(0, (views, -1)).mean(0)


def _layout(
    searches: list[_Search], taken: list[list[tuple[float, int]]], past: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return (objects, width) nodes, filled up with any, and what each sees: (objects, width, shared + past + width)."""
    trie = searches[0].trie
    nodes = np.full((len(searches), width), trie.shared)
    visible = np.zeros((len(searches), width, trie.shared + past + width), dtype=bool)
    visible[:, :, : trie.shared] = True
    for row, (search, row_taken) in enumerate(zip(searches, taken, strict=True)):
        for column, (_, node) in enumerate(row_taken):
            nodes[row, column] = node
            search.place[node] = past + column
            ancestor = node
            while ancestor >= trie.shared:
                visible[row, column, trie.shared + search.place[ancestor]] = True
                ancestor = trie.parents[ancestor]
    return nodes, visible


def _mask(visible: np.ndarray, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return what is added to attention: (objects, 1, queries, keys)."""
    seen = torch.as_tensor(visible, device=device)
    return torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, torch.finfo(dtype).min)[:, None]


__all__ = ["Winners", "best_answers", "finds_the_best"]
