"""The trie: each answer sees its own beginning and nothing else, and its score is its own."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_pose.inference.answer_trie import AnswerTrie

END, LAST = 90, 99  # what follows every answer, and the token that every answer of these tests ends with

beginnings = st.lists(st.integers(10, 14), min_size=1, max_size=4)
bodies = st.lists(st.lists(st.integers(20, 23), max_size=5), min_size=1, max_size=8, unique_by=tuple)


def sequences_of(beginning: list[int], bodies: list[list[int]]) -> list[np.ndarray]:
    """No answer begins another, since LAST stands at the end alone."""
    return [np.array([*beginning, *body, LAST]) for body in bodies]


def tokens_seen_by(trie: AnswerTrie, place: int) -> list[int]:
    places = np.flatnonzero(trie.visible[place])
    return trie.input_ids[places[np.argsort(trie.position_ids[places])]].tolist()


def log_probability(seen: list[int], token: int) -> float:
    """A made-up language model: any function of the tokens seen and the next one."""
    digest = hashlib.sha256(repr((seen, token)).encode()).digest()
    return math.log((1 + digest[0]) / 512)


@given(beginnings, bodies)
def test_a_leaf_sees_its_own_answer_in_order(beginning, bodies):
    sequences = sequences_of(beginning, bodies)
    trie = AnswerTrie(sequences)
    for sequence, leaf in zip(sequences, trie.leaves, strict=True):
        assert tokens_seen_by(trie, leaf) == sequence.tolist()
        seen = np.flatnonzero(trie.visible[leaf])
        assert sorted(trie.position_ids[seen].tolist()) == list(range(len(sequence)))


@given(beginnings, bodies)
def test_every_beginning_is_computed_once(beginning, bodies):
    sequences = sequences_of(beginning, bodies)
    trie = AnswerTrie(sequences)
    distinct = {tuple(s[: n + 1].tolist()) for s in sequences for n in range(len(s))}
    assert len(trie.input_ids) == len(distinct)
    assert {tuple(tokens_seen_by(trie, place)) for place in range(len(trie.input_ids))} == distinct


@given(beginnings, bodies)
def test_a_score_is_that_of_the_answer_alone(beginning, bodies):
    sequences = sequences_of(beginning, bodies)
    trie = AnswerTrie(sequences)
    rows, tokens = trie.transitions(END)
    steps = np.array(
        [
            log_probability(tokens_seen_by(trie, trie.scored[row]), int(token))
            for row, token in zip(rows, tokens, strict=True)
        ]
    )
    # what all answers share is not scored: it would add the same to each
    shared = len(sequences[0]) - 1 if len(sequences) == 1 else common_length(sequences)
    for sequence, score in zip(sequences, trie.membership @ steps, strict=True):
        whole = [*sequence.tolist(), END]
        alone = sum(log_probability(whole[:n], whole[n]) for n in range(shared, len(whole)))
        assert score == pytest.approx(alone)


def common_length(sequences: list[np.ndarray]) -> int:
    lengths = [n for n in range(min(map(len, sequences)) + 1) if len({tuple(s[:n].tolist()) for s in sequences}) == 1]
    return max(lengths)


@given(beginnings, bodies, st.data())
def test_one_answer_may_not_begin_another(beginning, bodies, data):
    sequences = sequences_of(beginning, bodies)
    longer = data.draw(st.sampled_from(sequences))
    cut = data.draw(st.integers(1, len(longer)))
    with pytest.raises(ValueError, match="the beginning of one"):
        AnswerTrie([*sequences, longer[:cut]])


@pytest.mark.parametrize("sequences", [[[1, 2], [3, 4]], [[5]], []])
def test_answers_must_share_a_beginning(sequences):
    with pytest.raises(ValueError, match="share a beginning"):
        AnswerTrie([np.array(s) for s in sequences])
