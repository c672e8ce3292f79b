"""Small random models of many families, each with its processor and a chat template in its manner, saved as the hub has them.

Processors whose video half needs torchvision cannot be built without it. Such families get an :class:`ImageProcessorAlone`:
their own image processor and their own way to expand the token of a picture.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from tests.llava_pose.small_models import project_tokenizer

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
}
CLIP = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 14}
SPARE = 8  # rows of the vocabulary that no token has


def template(user: str, assistant: str, end: str, image: str, begin: str = "") -> str:
    """A chat template as most families write it: turns between marks, the picture's token in its place."""
    return (
        f"{begin}{{% for m in messages %}}"
        f"{{% if m.role == 'assistant' %}}{assistant}{{% else %}}{user}{{% endif %}}"
        f"{{% for part in m.content %}}{{% if part.type == 'image' %}}{image}{{% else %}}"
        "{{ part.text }}{% endif %}{% endfor %}"
        f"{end}{{% endfor %}}{{% if add_generation_prompt %}}{assistant}{{% endif %}}"
    )


VICUNA = template("USER: ", "ASSISTANT: ", " ", "<image>\n", "{{ bos_token }}")
QWEN = template(
    "<|im_start|>user\n", "<|im_start|>assistant\n", "<|im_end|>\n", "<|vision_start|><|image_pad|><|vision_end|>"
)
INTERN = template("<|im_start|>user\n", "<|im_start|>assistant\n", "<|im_end|>\n", "<IMG_CONTEXT>\n")
IDEFICS = template("User: ", "Assistant: ", "<end_of_utterance>\n", "<image>")
GEMMA = template(
    "<start_of_turn>user\n", "<start_of_turn>model\n", "<end_of_turn>\n", "<start_of_image>", "{{ bos_token }}"
)
MISTRAL = template("[INST]", " ", "[/INST]", "[IMG]", "{{ bos_token }}")


class ImageProcessorAlone(ProcessorMixin):
    """A family's image processor and tokenizer, and how many tokens stand for a picture."""

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None, image_token="<image>", **kwargs):
        self.image_token = image_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs: Any) -> str:
        raise NotImplementedError


class GridProcessor(ImageProcessorAlone):
    """Of the Qwen family: a token for each merged cell of the picture's grid."""

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs: Any) -> str:
        cells = int(image_inputs["image_grid_thw"][image_idx].prod()) // self.image_processor.merge_size**2
        return self.image_token * cells


class TileProcessor(ImageProcessorAlone):
    """Of the InternVL family: as many tokens for each tile."""

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs: Any) -> str:
        return self.image_token * 4 * int(image_inputs["num_patches"][image_idx])

    @property
    def unused_input_names(self) -> list[str]:
        return ["num_patches"]


@dataclass(frozen=True)
class Family:
    """One family.

    Attributes:
        tokens: that its tokenizer has beside the pieces of words.
        config: of the model, from the ids of its tokens and the rows of its vocabulary.
        processor: from its tokenizer.
        named: attributes of the tokenizer that hold tokens.
    """

    tokens: tuple[str, ...]
    config: Callable[[dict[str, int], dict[str, Any]], PreTrainedConfig]
    processor: Callable[[PreTrainedTokenizerBase], ProcessorMixin]
    named: dict[str, str] | None = None

    def save(
        self,
        folder: Path,
        *,
        spare: int = SPARE,
        reserved: tuple[str, ...] = (),
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> Path:
        """Write a model with random weights, and its processor.

        Args:
            spare: rows of its vocabulary that no token has.
            reserved: tokens that its tokenizer holds in reserve.
            tokenizer: of the pieces of words; by default one that knows `<pose6D>` already.
        """
        tokenizer = copy.deepcopy(tokenizer or project_tokenizer())
        bare = set(tokenizer.get_vocab())
        added = [AddedToken(t, special=True, normalized=False) for t in (*self.tokens, *reserved) if t not in bare]
        tokenizer.add_tokens(added, special_tokens=True)
        if self.named:
            tokenizer = type(tokenizer).from_pretrained(
                _saved(tokenizer, folder / "tokenizer"), extra_special_tokens=self.named
            )
        processor = self.processor(tokenizer)
        rows = len(tokenizer) + spare
        text = {
            **TEXT,
            "vocab_size": rows,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        }
        config = self.config({t: tokenizer.convert_tokens_to_ids(t) for t in self.tokens}, text)
        if isinstance(processor, ImageProcessorAlone):
            AutoProcessor.register(type(config), type(processor), exist_ok=True)
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(config).float()
        with torch.no_grad():  # a small model at the usual 0.02 answers nearly the same to everything
            for weight in model.parameters():
                if weight.dim() >= 2:
                    weight.normal_(std=0.2)
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        return folder


def _saved(tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
    tokenizer.save_pretrained(folder)
    return folder


def _of(module: str, name: str) -> Any:
    return getattr(import_module(f"transformers.models.{module}"), name)


def _pil(module: str, name: str) -> Any:
    return _of(f"{module}.image_processing_pil_{module}", f"{name}ImageProcessorPil")


def _clip(side: int = 28) -> Any:
    return _pil("clip", "CLIP")(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


def _llava_processor(tokenizer: PreTrainedTokenizerBase, **changes: Any) -> ProcessorMixin:
    values = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return transformers.LlavaProcessor(_clip(), tokenizer, chat_template=VICUNA, **{**values, **changes})


def _qwen(kind: str, patch: int, **vision: Any) -> Family:
    def config(ids: dict[str, int], text: dict[str, Any]) -> PreTrainedConfig:
        section = [1, 1, 2] if kind != "Qwen3" else [2, 1, 1]
        rope = {"rope_type": "default", "mrope_section": section, "rope_theta": 1e4}
        if kind == "Qwen3":
            rope["mrope_interleaved"] = True
        return getattr(transformers, f"{kind}VLConfig")(
            text_config={**text, "rope_parameters": rope},
            vision_config={"num_heads": 4, "hidden_size": 32, "patch_size": patch, **vision},
            image_token_id=ids["<|image_pad|>"],
            video_token_id=ids["<|video_pad|>"],
            vision_start_token_id=ids["<|vision_start|>"],
            vision_end_token_id=ids["<|vision_end|>"],
        )

    def processor(tokenizer: PreTrainedTokenizerBase) -> ProcessorMixin:
        side = 2 * patch
        images = _pil("qwen2_vl", "Qwen2VL")(patch_size=patch, min_pixels=side**2, max_pixels=(4 * patch) ** 2 + 99)
        return GridProcessor(images, tokenizer, chat_template=QWEN, image_token="<|image_pad|>")

    tokens = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    return Family(tokens, config, processor)


def _clip_config(side: int = 28, **changes: Any) -> PreTrainedConfig:
    return transformers.CLIPVisionConfig(**CLIP, image_size=side, **changes)


def _siglip_config(side: int = 56) -> PreTrainedConfig:
    return transformers.SiglipVisionConfig(**CLIP, image_size=side)


FAMILIES: dict[str, Family] = {
    "llava": Family(
        ("<image>",),
        lambda ids, text: transformers.LlavaConfig(
            vision_config=_clip_config(),
            text_config=transformers.LlamaConfig(**text),
            image_token_index=ids["<image>"],
            vision_feature_layer=-2,
        ),
        _llava_processor,
    ),
    "llava of gemma2": Family(  # soft caps and sliding windows
        ("<image>",),
        lambda ids, text: transformers.LlavaConfig(
            vision_config=_clip_config(),
            text_config=transformers.Gemma2Config(**text, sliding_window=8, final_logit_softcapping=3.0),
            image_token_index=ids["<image>"],
            vision_feature_layer=-2,
        ),
        _llava_processor,
    ),
    "vipllava": Family(
        ("<image>",),
        lambda ids, text: transformers.VipLlavaConfig(
            vision_config=_clip_config(),
            text_config=transformers.LlamaConfig(**text),
            image_token_index=ids["<image>"],
            vision_feature_layers=[-2, -1],
        ),
        _llava_processor,
    ),
    "llava_next": Family(
        ("<image>",),
        lambda ids, text: transformers.LlavaNextConfig(
            vision_config=_clip_config(),
            text_config=transformers.MistralConfig(**text, sliding_window=None),
            image_token_index=ids["<image>"],
            image_grid_pinpoints=[[28, 56], [56, 28]],
            vision_feature_layer=-2,
        ),
        lambda tokenizer: transformers.LlavaNextProcessor(
            _pil("llava_next", "LlavaNext")(
                size={"shortest_edge": 28},
                crop_size={"height": 28, "width": 28},
                image_grid_pinpoints=[[28, 56], [56, 28]],
            ),
            tokenizer,
            patch_size=14,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=VICUNA,
        ),
    ),
    "qwen2_vl": _qwen("Qwen2", 14, depth=2, embed_dim=32),
    "qwen2_5_vl": _qwen(
        "Qwen2_5_", 14, depth=2, intermediate_size=48, out_hidden_size=32, fullatt_block_indexes=[0, 1], window_size=112
    ),
    "qwen3_vl": _qwen(
        "Qwen3",
        16,
        depth=3,
        intermediate_size=48,
        out_hidden_size=32,
        num_position_embeddings=16,
        deepstack_visual_indexes=[0, 1],
    ),
    "idefics3": Family(
        ("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"),
        lambda ids, text: transformers.Idefics3Config(
            vision_config=dict(CLIP, image_size=56),
            text_config=transformers.LlamaConfig(**text).to_dict(),
            image_token_id=ids["<image>"],
            scale_factor=2,
        ),
        lambda tokenizer: transformers.Idefics3Processor(
            _pil("idefics3", "Idefics3")(size={"longest_edge": 112}, max_image_size={"longest_edge": 56}),
            tokenizer,
            image_seq_len=4,
            chat_template=IDEFICS,
        ),
    ),
    "smolvlm": Family(
        ("<image>", "<end_of_utterance>"),
        lambda ids, text: transformers.SmolVLMConfig(
            vision_config=dict(CLIP, image_size=56),
            text_config=transformers.LlamaConfig(**text).to_dict(),
            image_token_id=ids["<image>"],
            scale_factor=2,
        ),
        lambda tokenizer: SplitProcessor(
            _pil("smolvlm", "SmolVLM")(size={"longest_edge": 112}, max_image_size={"longest_edge": 56}),
            tokenizer,
            chat_template=IDEFICS,
        ),
    ),
    "gemma3": Family(
        ("<start_of_image>", "<image_soft_token>", "<end_of_image>", "<start_of_turn>", "<end_of_turn>"),
        lambda ids, text: transformers.Gemma3Config(
            vision_config=_siglip_config(),
            text_config=transformers.Gemma3TextConfig(
                **text,
                sliding_window=8,
                layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            ),
            image_token_index=ids["<image_soft_token>"],
            boi_token_index=ids["<start_of_image>"],
            eoi_token_index=ids["<end_of_image>"],
            mm_tokens_per_image=4,
        ),
        lambda tokenizer: transformers.Gemma3Processor(
            _pil("gemma3", "Gemma3")(size={"height": 56, "width": 56}),
            tokenizer,
            image_seq_length=4,
            chat_template=GEMMA,
        ),
        named={"boi_token": "<start_of_image>", "image_token": "<image_soft_token>", "eoi_token": "<end_of_image>"},
    ),
    "internvl": Family(
        ("<IMG_CONTEXT>",),
        lambda ids, text: transformers.InternVLConfig(
            vision_config=dict(CLIP, image_size=[56, 56], patch_size=[14, 14]),
            text_config=transformers.Qwen2Config(**{k: v for k, v in text.items() if k != "head_dim"}),
            image_token_id=ids["<IMG_CONTEXT>"],
            image_seq_length=4,
        ),
        lambda tokenizer: TileProcessor(
            _pil("got_ocr2", "GotOcr2")(
                size={"height": 56, "width": 56}, crop_to_patches=True, min_patches=1, max_patches=3
            ),
            tokenizer,
            chat_template=INTERN,
            image_token="<IMG_CONTEXT>",
        ),
    ),
    "aya_vision": Family(
        ("<image>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_LINE_BREAK|>", "TILE", "TILE_GLOBAL", "<|IMG_PATCH|>"),
        lambda ids, text: transformers.AyaVisionConfig(
            vision_config=_siglip_config(),
            text_config=transformers.Cohere2Config(**text, sliding_window=8, logit_scale=0.25),
            image_token_index=ids["<|IMG_PATCH|>"],
            downsample_factor=2,
        ),
        lambda tokenizer: transformers.AyaVisionProcessor(
            _pil("got_ocr2", "GotOcr2")(size={"height": 56, "width": 56}, crop_to_patches=False),
            tokenizer,
            patch_size=14,
            img_size=56,
            downsample_factor=2,
            chat_template=VICUNA,
        ),
    ),
    "ovis2": Family(
        ("<image>", "<IMG_ATOM>", "<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"),
        lambda ids, text: transformers.Ovis2Config(
            vision_config=dict(CLIP, image_size=56, hidden_stride=2, vocab_size=40, num_visual_indicator_tokens=5),
            text_config=transformers.Qwen2Config(**{k: v for k, v in text.items() if k != "head_dim"}),
            image_token_id=ids["<IMG_ATOM>"],
            visual_indicator_token_ids=[
                ids[t] for t in ("<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")
            ],
            hidden_size=32,
            vocab_size=text["vocab_size"],
        ),
        lambda tokenizer: transformers.Ovis2Processor(
            _pil("ovis2", "Ovis2")(size={"height": 56, "width": 56}, crop_to_patches=False),
            tokenizer,
            chat_template=VICUNA,
            image_seq_length=4,
        ),
    ),
    "llava of qwen3": Family(
        ("<image>",),
        lambda ids, text: transformers.LlavaConfig(
            vision_config=_siglip_config(28),
            text_config=transformers.Qwen3Config(**text),
            image_token_index=ids["<image>"],
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
        ),
        lambda tokenizer: _llava_processor(
            tokenizer, vision_feature_select_strategy="full", num_additional_image_tokens=0
        ),
    ),
    "llava of lfm2": Family(  # a hybrid of convolutions and attention, behind LLaVA's projector
        ("<image>",),
        lambda ids, text: transformers.LlavaConfig(
            vision_config=_clip_config(),
            text_config=transformers.Lfm2Config(
                **{k: v for k, v in text.items() if k != "head_dim"},
                layer_types=["conv", "full_attention", "conv"],
                block_multiple_of=16,
            ),
            image_token_index=ids["<image>"],
            vision_feature_layer=-2,
        ),
        _llava_processor,
    ),
}


class SplitProcessor(ImageProcessorAlone):
    """Of SmolVLM: as many tokens for each tile of a picture, and for the whole of it."""

    def _process_images(self, images: Any, **kwargs: Any) -> Any:
        return super()._process_images(images, **kwargs, return_row_col_info=True)

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs: Any) -> str:
        rows, columns = (
            int([number for chat in image_inputs[name] for number in chat][image_idx]) for name in ("rows", "cols")
        )
        return self.image_token * 4 * (rows * columns + 1)

    @property
    def unused_input_names(self) -> list[str]:
        return ["rows", "cols"]
