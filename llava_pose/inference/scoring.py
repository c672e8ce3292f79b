"""Log probabilities of many answers to one question, in the ways that a backbone can: over a tree, or by a repeated cache."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from llava_pose.inference.answer_trie import AnswerTrie
from llava_pose.model.modeling import LlavaPoseForConditionalGeneration
from llava_pose.model.pose_head import ImageTokens
from llava_pose.model.processing import LlavaPoseProcessor

logger = logging.getLogger(__name__)
TOLERANCES = {torch.float32: 1e-4}  # of scores and states, as a share of the largest
_IN_HALF = 0.03
# large enough to have many tokens where pictures have any number: a tree is wrong where these have places in two dimensions
PROBED = Image.linear_gradient("L").resize((448, 448)).rotate(30).convert("RGB")
Scores = tuple[Tensor, Tensor, ImageTokens | None]


def tree_scores(
    model: LlavaPoseForConditionalGeneration,
    trie: AnswerTrie,
    answers: Sequence[np.ndarray],
    end_token: int,
    inputs: Mapping[str, Any],
    batch: int,
) -> Scores:
    """Score all answers in one forward pass, under an attention mask in the form of the trie.

    Args:
        trie: of the answers.
        answers: token ids, question and all.
        end_token: what each answer ends with, and is scored with.
        inputs: the pictures, one a row, as ``model.see`` takes them.
        batch: rows.

    Returns:
        (batch, answers) log probabilities, the states (batch, answers, hidden) that predict the end token, and what the head
        sees of the pictures.
    """
    weight = model.pose_token_embedding.change
    ids = torch.as_tensor(trie.input_ids, device=weight.device).expand(batch, -1)
    dtype = model.vlm.dtype
    mask = torch.zeros(trie.visible.shape, dtype=dtype, device=weight.device)
    mask.masked_fill_(~torch.as_tensor(trie.visible, device=weight.device), torch.finfo(dtype).min)
    scored = torch.as_tensor(trie.scored, device=weight.device)
    output = model(
        input_ids=ids,
        attention_mask=mask.expand(batch, 1, -1, -1),
        position_ids=torch.as_tensor(trie.position_ids, device=weight.device).expand(batch, -1),
        logits_to_keep=scored,
        use_cache=False,
        **inputs,
    )
    log_probabilities = output.logits.float().log_softmax(-1)
    parents, tokens = (torch.as_tensor(part, device=weight.device) for part in trie.transitions(end_token))
    steps = log_probabilities[:, parents, tokens]
    member = torch.as_tensor(trie.membership, dtype=steps.dtype, device=weight.device)
    row = {place: index for index, place in enumerate(trie.scored.tolist())}
    return steps @ member.T, output.states[:, [row[leaf] for leaf in trie.leaves.tolist()]], output.image_tokens


def cached_scores(
    model: LlavaPoseForConditionalGeneration,
    trie: AnswerTrie,
    answers: Sequence[np.ndarray],
    end_token: int,
    inputs: Mapping[str, Any],
    batch: int,
) -> Scores:
    """Score all answers as a batch behind what they share, whose keys and values are computed once; see :func:`tree_scores`.

    For one picture at a time.
    """
    device = model.pose_token_embedding.change.device
    shared = trie.shared
    ids = torch.as_tensor(answers[0][:shared], device=device)[None]
    prefix = model(input_ids=ids, attention_mask=torch.ones_like(ids), logits_to_keep=1, use_cache=True, **inputs)
    cache = prefix.past_key_values
    cache.batch_repeat_interleave(len(answers))
    tails, attended = _padded([answer[shared:] for answer in answers], device)
    # no mask: what fills up a tail comes after it, and some families number the places of a mask's tokens anew
    rest = model(input_ids=tails, past_key_values=cache, use_cache=True)
    first = prefix.logits.float().log_softmax(-1).expand(len(answers), -1, -1)
    log_probabilities = torch.cat([first, rest.logits.float().log_softmax(-1)], 1)
    return _summed(log_probabilities, rest.states, tails, attended, end_token, prefix.image_tokens)


def each_scores(
    model: LlavaPoseForConditionalGeneration,
    trie: AnswerTrie,
    answers: Sequence[np.ndarray],
    end_token: int,
    inputs: Mapping[str, Any],
    batch: int,
) -> Scores:
    """Score each answer by a forward pass of its own, picture and all; see :func:`tree_scores`. For one picture at a time."""
    device = model.pose_token_embedding.change.device
    scores, states, seen = [], [], None
    for answer in answers:
        ids = torch.as_tensor(answer, device=device)[None]
        output = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **inputs)
        tail = ids[:, trie.shared :]
        log_probabilities = output.logits[:, trie.shared - 1 :].float().log_softmax(-1)
        score, state, seen = _summed(
            log_probabilities,
            output.states[:, trie.shared :],
            tail,
            torch.ones_like(tail),
            end_token,
            output.image_tokens,
        )
        scores.append(score)
        states.append(state)
    return torch.cat(scores, 1), torch.cat(states, 1), seen


def _padded(tails: Sequence[np.ndarray], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return (n, longest) token ids, padded behind with any, and where there are some."""
    ids = torch.zeros(len(tails), max(map(len, tails)), dtype=torch.long, device=device)
    attended = torch.zeros_like(ids)
    for row, tail in enumerate(tails):
        ids[row, : len(tail)] = torch.as_tensor(tail, device=device)
        attended[row, : len(tail)] = 1
    return ids, attended


def _summed(
    log_probabilities: Tensor,
    states: Tensor,
    tails: Tensor,
    attended: Tensor,
    end_token: int,
    seen: ImageTokens | None,
) -> Scores:
    """Sum the steps of each answer of one picture: its tail's tokens, and the end token behind them.

    Args:
        log_probabilities: (n, tail + 1, vocabulary), the first before the tail.
        states: (n, tail, hidden).
    """
    steps = log_probabilities[:, :-1].gather(2, tails[..., None]).squeeze(2)
    lengths = attended.sum(1)
    rows = torch.arange(len(tails), device=tails.device)
    ends = log_probabilities[rows, lengths, end_token]
    return ((steps * attended).sum(1) + ends)[None], states[rows, lengths - 1][None], seen


@torch.inference_mode()
def best_scores(
    model: LlavaPoseForConditionalGeneration, processor: LlavaPoseProcessor, answers: Sequence[np.ndarray]
) -> Any:
    """Return the fastest of these ways that gives on a small picture what a forward pass for each answer gives.

    A tree mask is silently wrong with sliding windows, recurrent blocks and places of more than one dimension, and a cache
    may be, too: what a backbone can is measured, and not believed.

    Args:
        answers: to that picture, of unlike lengths.
    """
    trie = AnswerTrie(answers)
    device = model.pose_token_embedding.change.device
    inputs = {name: value.to(device) for name, value in processor.picture_inputs(PROBED).items()}
    expected = each_scores(model, trie, answers, processor.pose_token_id, inputs, 1)
    for way in (tree_scores, cached_scores):
        try:
            found = way(model, trie, answers, processor.pose_token_id, inputs, 1)
        except Exception as error:  # noqa: BLE001  # whatever a family raises at what it does not know
            logger.debug(f"{way.__name__}: {error}")
            continue
        if all(is_close(one, other) for one, other in zip(found[:2], expected[:2], strict=True)):
            return way
        logger.debug(f"{way.__name__}: differs from single passes")
    logger.info("categories are scored one at a time: this backbone can neither share a beginning nor score a tree")
    return each_scores


@torch.inference_mode()
def answers_by_cache(
    model: LlavaPoseForConditionalGeneration, processor: LlavaPoseProcessor, question: str, never: Sequence[int]
) -> bool:
    """Return whether an answer that is written with kept keys and values has the states that a pass over the whole of it has.

    Args:
        question: about a picture.
        never: ids of tokens that no answer has.
    """
    device = model.pose_token_embedding.change.device
    turns, picture = [{"role": "user", "content": question}], PROBED.resize((160, 120))
    chat = processor.encode_chat(turns, picture, add_generation_prompt=True)
    ids = torch.from_numpy(chat.input_ids)[None].to(device)
    inputs = {name: value.to(device) for name, value in chat.pictures.items()}
    steps = 3
    options: dict[str, Any] = {
        "max_new_tokens": steps,
        "min_new_tokens": steps,
        "do_sample": False,
        "suppress_tokens": list(never),
    }
    pad = processor.tokenizer.pad_token_id
    try:
        answer = model.answer(ids, inputs=inputs, use_cache=True, pad_token_id=pad, **options)
        whole = torch.cat([ids, answer.tokens], 1)
        forced = model(input_ids=whole, attention_mask=torch.ones_like(whole), use_cache=False, **inputs).states
        start = ids.shape[1] - 1
        if is_close(answer.states[0], forced[0, start : start + steps]):
            return True
    except Exception as error:  # noqa: BLE001  # whatever a family raises at what it does not know
        logger.debug(f"an answer with a cache: {error}")
    logger.info(
        "each word of an answer takes a pass over all before it: this backbone's kept keys and values are not exact"
    )
    return False


def is_close(one: Tensor, other: Tensor) -> bool:
    """Return whether scores or states are the same but for rounding, in their type."""
    difference = float((one - other).abs().max()) / max(1.0, float(other.abs().max()))
    return difference <= TOLERANCES.get(one.dtype, _IN_HALF)


__all__ = ["Scores", "answers_by_cache", "best_scores", "cached_scores", "each_scores", "is_close", "tree_scores"]
