"""Models of a few thousand parameters, built in memory, and a processor to go with them.

Their weights are larger than a real initialisation's: at its 0.02 so small a model answers nearly the same to everything,
and a test could not tell right from wrong.
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from transformers import (
    CLIPVisionConfig,
    ConvNextConfig,
    LlamaConfig,
    LlamaTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    ViTImageProcessor,
)

from llava_pose.backbones.tiny import tiny_tokenizer
from llava_pose.compact import CompactLlavaConfig, CompactLlavaForConditionalGeneration, CompactLlavaProcessor
from llava_pose.data.conversation import IMAGE_TOKEN
from llava_pose.model import LlavaPoseConfig, LlavaPoseForConditionalGeneration, LlavaPoseProcessor
from llava_pose.model.processing import CHAT_TEMPLATES, POSE_ADDED_TOKEN

# ids in a model that no tokenizer goes with
VOCABULARY, PAD_ID, IMAGE_ID, POSE_ID = 40, 0, 3, 4
IMAGE_SIDE = 64
CONVNEXT_STRIDE = 32
CONVNEXT_CHANNELS = (4, 6, 8, 12)
CLIP_PATCH = 16


def convnext_config() -> ConvNextConfig:
    return ConvNextConfig(
        hidden_sizes=list(CONVNEXT_CHANNELS),
        depths=[1, 1, 1, 1],
        image_size=IMAGE_SIDE,
        initializer_range=0.3,
        layer_scale_init_value=0.5,
    )


def clip_config() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=IMAGE_SIDE,
        patch_size=CLIP_PATCH,
    )


def small_model(
    *,
    vision: PreTrainedConfig | None = None,
    seed: int = 0,
    vocabulary: int = VOCABULARY,
    image_id: int = IMAGE_ID,
    pose_id: int = POSE_ID,
    tied: bool = False,
    **changes: Any,
) -> LlavaPoseForConditionalGeneration:
    """A compact LLaVA with pose parts in evaluation mode, its new modules drawn at a size that shows: ConvNeXt (its last
    layer, 2 x 2 patches of a 64-pixel picture) and a Llama of two layers, unless told otherwise.
    """
    text = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
        tie_word_embeddings=tied,
        pad_token_id=PAD_ID,
    )
    ours = {field.name for field in dataclasses.fields(LlavaPoseConfig)}
    values: dict[str, Any] = {"vision_feature_layer": -1, "projector_norm": True}
    values |= {name: value for name, value in changes.items() if name not in ours}
    if vision is None:
        vision = convnext_config()
        values.setdefault("vision_feature_size", CONVNEXT_CHANNELS[-1])
    config = CompactLlavaConfig(
        vision_config=vision, text_config=text, image_token_index=image_id, tie_word_embeddings=tied, **values
    )
    pose_config = {
        "pose_head_hidden_size": 16,
        "pose_head_attention_heads": 2,
        "pose_head_pooled_features": True,
        "image_places": 4,
        "connector": "multi_modal_projector",
        **{name: value for name, value in changes.items() if name in ours},
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlavaPoseForConditionalGeneration(
            CompactLlavaForConditionalGeneration(config),
            LlavaPoseConfig(
                pose_token_id=pose_id,
                image_token_id=image_id,
                hidden_size=32,
                embedding_size=32,
                pooled_size=config.patch_channels,
                **pose_config,
            ),
        )
        model.draw_weights()
        for module in (model.connector, model.pose_head):
            for parameter in module.parameters():
                if parameter.dim() == 2:
                    torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    return model.eval()


@functools.cache
def project_tokenizer() -> LlamaTokenizer:
    """The tiny base's tokenizer with all tokens of both templates. Read only: it is made once for all tests."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = tiny_tokenizer(Path(folder))
    image, *marks = (AddedToken(t, special=True, normalized=False) for t in (IMAGE_TOKEN, "<|im_start|>", "<|im_end|>"))
    tokenizer.add_tokens([image, POSE_ADDED_TOKEN, *marks], special_tokens=True)
    return tokenizer


def small_processor(
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    template: str = "vicuna",
    patch_size: int = CONVNEXT_STRIDE,
    side: int = IMAGE_SIDE,
    **changes: Any,
) -> LlavaPoseProcessor:
    """The processor of the small models; ``template`` is a name of ``CHAT_TEMPLATES`` or a template itself."""
    return LlavaPoseProcessor(
        CompactLlavaProcessor(
            image_processor=ViTImageProcessor(size={"height": side, "width": side}),
            tokenizer=tokenizer or project_tokenizer(),
            chat_template=CHAT_TEMPLATES.get(template, template),
            **{"patch_size": patch_size, "vision_feature_select_strategy": "default", **changes},
        )
    )


def model_for(processor: LlavaPoseProcessor, **changes: Any) -> LlavaPoseForConditionalGeneration:
    """A small model that knows the processor's tokens."""
    return small_model(
        vocabulary=-(-len(processor.tokenizer) // 64) * 64,
        image_id=processor.processor.image_token_id,
        pose_id=processor.pose_token_id,
        **changes,
    )
