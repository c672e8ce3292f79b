"""The tiny base: random weights, about 6 million parameters, a tokenizer trained on the project's own text.

It needs no download and learns the rendered default data from nothing in minutes.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import sentencepiece
from transformers import BitConfig, LlamaConfig, LlamaTokenizer, PreTrainedTokenizerBase

from llava_pose.data import conversation
from llava_pose.pose import categories

TINY_IMAGE_SIZE = 96
_VOCABULARY = 2000


def tiny_vision_config() -> BitConfig:
    """A small ResNet v2 with group norm (BiT), which learns from nothing faster than a ConvNeXt of its cost.

    Batch norm would learn as fast, but make the loss depend on what else is in the batch.
    """
    return BitConfig(
        embedding_size=32,
        hidden_sizes=[96, 192, 384, 768],
        depths=[1, 2, 3, 2],
        num_groups=8,
    )


def tiny_text_config(tokenizer: PreTrainedTokenizerBase) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        initializer_range=0.06,  # 1 / sqrt(256); at the usual 0.02 so narrow a model passes on next to nothing at first
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def tiny_tokenizer(folder: Path) -> LlamaTokenizer:
    """Train a sentencepiece BPE model on the project's own text; bytes stand in for what it has not seen.

    Args:
        folder: tokenizer.model is written there.
    """
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=project_text(),
        model_writer=model,
        vocab_size=_VOCABULARY,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=1.0,
        pad_id=3,
        num_threads=1,
        minloglevel=2,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    tokenizer = LlamaTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    return tokenizer


def project_text() -> Iterator[str]:
    """Every question and answer of the project about every category, and the categories' descriptions."""
    for category in categories.all_categories():
        words = {**conversation.object_words(category), "pose": "(pose)"}
        yield category.description
        for template in (
            *conversation.POSE_QUESTIONS,
            *conversation.JOINT_QUESTIONS,
            *conversation.CAPTION_QUESTIONS,
            conversation.POSE_ANSWER,
            conversation.JOINT_ANSWER,
        ):
            yield "USER: " + template.format(**words) + " ASSISTANT:"
