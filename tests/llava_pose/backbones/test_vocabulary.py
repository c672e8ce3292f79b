"""The row that `<pose6D>` gets in the vocabulary of a family: a free one, one in reserve, or a new one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer, PreTrainedTokenizerBase

from llava_pose.backbones.assemble import AssembleConfig, assemble
from llava_pose.backbones.probe import plain_inputs, probe_chat
from llava_pose.backbones.tiny import tiny_tokenizer
from llava_pose.backbones.vocabulary import _RESERVED, reserved_tokens
from llava_pose.data.conversation import POSE_TOKEN
from llava_pose.model.loading import load_full
from llava_pose.model.processors import load_processor
from tests.llava_pose.vlm_families import FAMILIES, _llava_processor

FAST = ("llava", "gemma3", "qwen3_vl", "idefics3")
RESERVED = {
    "llava": "<|reserved_special_token_{}|>",
    "gemma3": "<unused{}>",
    "qwen3_vl": "<|extra_{}|>",
    "idefics3": "[unused{}]",
}
families = [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in FAMILIES]


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    """A tokenizer that has never heard of `<pose6D>`. Read only."""
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def made(name: str, folder: Path, bare: PreTrainedTokenizerBase, **kwargs: Any) -> tuple[Path, Path]:
    """A family's model, and the base that is made of it."""
    source = FAMILIES[name].save(folder / "source", tokenizer=bare, **kwargs)
    return source, assemble(AssembleConfig(out=str(folder / "base"), vlm=str(source), pose_head_hidden_size=16))


def rows(model: Any) -> tuple[int, int]:
    return len(model.get_input_embeddings().weight), len(model.get_output_embeddings().weight)


@pytest.mark.parametrize("name", families)
def test_a_token_in_reserve_gives_its_row_where_none_is_free(tmp_path: Path, bare, name: str):
    """And nothing else of tokenizer and model is another."""
    form = RESERVED.get(name, "<extra_id_{}>")
    source, base = made(name, tmp_path, bare, spare=0, reserved=tuple(form.format(i) for i in range(3)))
    before, after = AutoTokenizer.from_pretrained(source).get_vocab(), load_processor(base).tokenizer.get_vocab()
    taken = form.format(2)
    assert after[POSE_TOKEN] == before[taken]
    assert after == {POSE_TOKEN if token == taken else token: number for token, number in before.items()}
    plain, ours, processor = (
        AutoModelForImageTextToText.from_pretrained(source).eval(),
        load_full(base),
        load_processor(base),
    )
    assert rows(plain) == rows(ours.vlm)
    word, with_token = processor.tokenizer(["at", f"at {POSE_TOKEN}"], add_special_tokens=False)["input_ids"]
    assert with_token == [*word, after[POSE_TOKEN]]  # which holds the space before it
    chat = probe_chat(processor)
    ids = torch.from_numpy(chat.input_ids)[None]
    with torch.inference_mode():
        expected = plain(**plain_inputs(plain, chat, ours.pose_config.image_token_id)).logits
        found = ours.eval()(input_ids=ids, attention_mask=torch.ones_like(ids), **chat.pictures).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_row_without_a_token_comes_first(tmp_path: Path, bare):
    source, base = made("llava", tmp_path, bare, spare=2, reserved=("<unused0>",))
    before, after = AutoTokenizer.from_pretrained(source).get_vocab(), load_processor(base).tokenizer.get_vocab()
    assert after == before | {POSE_TOKEN: len(before)}
    assert rows(AutoModelForImageTextToText.from_pretrained(source)) == rows(load_full(base).vlm)


def test_a_vocabulary_without_room_grows_by_the_token(tmp_path: Path, bare):
    source, base = made("qwen3_vl", tmp_path, bare, spare=0)
    before, after = AutoTokenizer.from_pretrained(source).get_vocab(), load_processor(base).tokenizer.get_vocab()
    assert after == before | {POSE_TOKEN: len(before)}
    assert rows(load_full(base).vlm) == (-(-len(after) // 64) * 64,) * 2


def test_what_is_named_is_not_in_reserve(tmp_path: Path, bare):
    names = tuple(f"<|reserved_special_token_{i}|>" for i in range(6))
    source = FAMILIES["llava"].save(tmp_path / "source", tokenizer=bare, spare=0, reserved=names)
    model = AutoModelForImageTextToText.from_pretrained(source)
    tokenizer = AutoTokenizer.from_pretrained(source)
    ids = tokenizer.convert_tokens_to_ids(list(names))
    tokenizer.pad_token = names[5]
    processor = _llava_processor(tokenizer)
    processor.chat_template = "{{ '" + names[4] + "' }}"
    processor.image_token = names[3]
    model.config.image_token_id = ids[2]
    model.generation_config.eos_token_id = [1, ids[1]]
    assert reserved_tokens(processor, model) == [names[0]]
    model.resize_token_embeddings(ids[0])  # and so it is without a row
    assert reserved_tokens(processor, model) == []


@pytest.mark.parametrize(
    ("token", "is_reserved"),
    [
        *((token, True) for token in ("<|reserved_special_token_247|>", "<unused12>", "[unused3]", "<extra_id_99>")),
        *(
            (token, True)
            for token in ("<SPECIAL_36>", "<|extra_204|>", "<|placeholder6|>", "<|dummy_17|>", "<|reserved_7|>")
        ),
        *(
            (token, True)
            for token in ("<|EXTRA_0_TOKEN|>", ">>UNUSED_1<<", "<|reserved_token_163590|>", "<reserved-3>")
        ),
        *((token, False) for token in ("<image>", "<|im_start|>", "<loc0001>", "<seg001>", "unused7", "<0x7F>", "<s>")),
        *(
            (token, False)
            for token in ("special", "▁extra7", "<fim_middle>", "<unused>", "<|vision_pad|>", "<|extra|>")
        ),
    ],
)
def test_the_names_of_tokens_in_reserve(token: str, is_reserved: bool):
    assert bool(_RESERVED.fullmatch(token)) == is_reserved
