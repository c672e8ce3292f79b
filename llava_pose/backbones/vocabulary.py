"""The row of a new token in a backbone's vocabulary: a free one, a reserved one, or a new one."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from tokenizers import AddedToken
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from llava_pose.data.conversation import POSE_ANSWER, POSE_QUESTIONS
from llava_pose.model.processing import POSE_ADDED_TOKEN

# <|reserved_special_token_7|>, <unused7>, [unused7], <extra_id_7>, <SPECIAL_7>, <|placeholder7|>, <|EXTRA_7_TOKEN|>, …
_RESERVED = re.compile(
    r"[<\[>|]+(?:reserved|unused|extra|special|placeholder|dummy)(?:_[a-z_]*?)?[_-]?\d+(?:_token)?[>\]<|]+",
    re.IGNORECASE,
)


def place_pose_token(processor: ProcessorMixin, model: PreTrainedModel) -> None:
    """Give `<pose6D>` an id whose row nothing else uses.

    That is, in this order: the id that it has; the next one behind the tokenizer's, where the matrices have a row for it; the
    last of the tokens that the family holds in reserve and that neither chat template, processor nor settings name, whose
    place it takes in the tokenizer; else the next id again, for which the matrices grow to the next multiple of 64.
    """
    ours: Any = processor
    vocabulary = ours.tokenizer.get_vocab()
    is_full = POSE_ADDED_TOKEN.content not in vocabulary and max(vocabulary.values()) + 1 >= rows_of(model)
    if is_full and (reserved := reserved_tokens(processor, model)):
        tokenizer = _renamed(ours.tokenizer, reserved[0], POSE_ADDED_TOKEN)
        if _is_the_same_but_for(tokenizer, ours.tokenizer, reserved[0]):
            ours.tokenizer = tokenizer
    add_token(ours.tokenizer, POSE_ADDED_TOKEN, model)


def rows_of(model: PreTrainedModel) -> int:
    """Return how many tokens have a row in both the embedding and the output layer, which may have more or fewer."""
    layers: tuple[Any, ...] = (model.get_input_embeddings(), model.get_output_embeddings())
    return min(layer.weight.shape[0] for layer in layers if layer is not None)


def add_token(tokenizer: PreTrainedTokenizerBase, token: AddedToken, model: PreTrainedModel | None) -> int:
    """Give a token an id in a tokenizer, and a row in a model where none is free; return the id."""
    if token.content not in tokenizer.get_vocab():
        tokenizer.add_tokens([token], special_tokens=True)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    number = cast(int, tokenizer.convert_tokens_to_ids(token.content))
    if model is not None and number >= rows_of(model):
        model.resize_token_embeddings(max(number + 1, len(tokenizer)), pad_to_multiple_of=64)
    return number


def reserved_tokens(processor: ProcessorMixin, model: PreTrainedModel) -> list[str]:
    """Return the tokens that a family holds in reserve and that nothing names, the last of them first: others who take one
    take the first.
    """
    ours: Any = processor
    templates = json.dumps([ours.chat_template, ours.tokenizer.chat_template], ensure_ascii=False)
    values = (*vars(ours).values(), *ours.tokenizer.special_tokens_map.values())
    named = {value for value in values if isinstance(value, str)}
    settings = [part for part in (model.config, model.generation_config) if part is not None]
    used = {number for part in settings for number in _token_ids(part.to_dict())}
    rows = rows_of(model)
    free = {
        name: number
        for name, number in ours.tokenizer.get_vocab().items()
        if _RESERVED.fullmatch(name)
        and number < rows
        and number not in used
        and name not in named
        and json.dumps(name, ensure_ascii=False)[1:-1] not in templates
    }
    return sorted(free, key=lambda name: free[name], reverse=True)


def _token_ids(values: Mapping[str, Any]) -> Iterator[int]:
    """Yield the ids that settings name: fields such as image_token_id, eos_token_id and visual_indicator_token_ids."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _token_ids(value)
        elif "token" in str(name):  # a table of labels has numbers for names
            yield from (number for number in (value if isinstance(value, list) else [value]) if isinstance(number, int))


def _renamed(tokenizer: PreTrainedTokenizerBase, name: str, token: AddedToken) -> PreTrainedTokenizerBase:
    """Return a tokenizer in which a token stands in the place of another, by its files: no library renames a token."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for file in Path(folder).glob("*.json"):
            content = _replaced(json.loads(file.read_text(encoding="utf-8")), name, token)
            file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        return type(tokenizer).from_pretrained(folder)


def _replaced(value: Any, name: str, token: AddedToken) -> Any:
    """Return JSON in which every text that is the name is the token's, with the token's flags where it has some."""
    if isinstance(value, list):
        return [_replaced(one, name, token) for one in value]
    if not isinstance(value, dict):
        return token.content if value == name else value
    changed = {token.content if key == name else key: _replaced(one, name, token) for key, one in value.items()}
    if value.get("content") == name:
        changed |= {flag: getattr(token, flag) for flag in ("lstrip", "rstrip", "single_word", "normalized", "special")}
    return changed


def _is_the_same_but_for(tokenizer: PreTrainedTokenizerBase, before: PreTrainedTokenizerBase, name: str) -> bool:
    """Return whether nothing has changed but the token's name: each id, and what becomes of text."""
    text = f"{POSE_QUESTIONS[0]} {POSE_ANSWER}\n\n 12.5°"
    vocabulary = {
        POSE_ADDED_TOKEN.content if key == name else key: number for key, number in before.get_vocab().items()
    }
    return tokenizer.get_vocab() == vocabulary and tokenizer(text)["input_ids"] == before(text)["input_ids"]


__all__ = ["add_token", "place_pose_token", "reserved_tokens", "rows_of"]
