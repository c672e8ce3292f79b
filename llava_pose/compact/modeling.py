"""The compact LLaVA: any vision tower, a projector that may merge patches, and any causal language model, whole.

It is an ordinary image-text-to-text model of transformers and knows nothing of poses: ``get_image_features`` gives image
tokens, ``forward`` takes them back as ``mm_encoder_outputs``, and logits come from the language model's own forward, with
whatever it does to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast

from llava_pose.compact.configuration import CompactLlavaConfig

_NO_CODE = {"trust_remote_code": False}


def space_to_depth(maps: Tensor, block: int) -> Tensor:
    """Join each block x block cells: (batch, rows, columns, c) -> (batch, rows / block, columns / block, c block^2).

    Raises:
        ValueError: rows or columns are no multiple of the block.
    """
    if block == 1:
        return maps
    batch, rows, columns, channels = maps.shape
    if rows % block or columns % block:
        raise ValueError(
            f"a map of {rows}x{columns} patches cannot be merged {block}x{block}: choose another image size"
        )
    maps = maps.reshape(batch, rows // block, block, columns // block, block, channels)
    return maps.permute(0, 1, 3, 2, 4, 5).reshape(batch, rows // block, columns // block, block * block * channels)


class CompactLlavaProjector(nn.Module):
    """LLaVA's two-layer projector behind an optional merge of m x m patches into one token.

    With m = 1 and no norm its parameters are LLaVA's own, by name and shape.
    """

    def __init__(self, config: CompactLlavaConfig):
        super().__init__()
        self.merge = config.vision_merge
        size = config.patch_channels * self.merge**2
        self.norm = nn.LayerNorm(size) if config.projector_norm else nn.Identity()
        self.linear_1 = nn.Linear(size, config.text_config.hidden_size, bias=config.multimodal_projector_bias)
        self.act = ACT2FN[config.projector_hidden_act]
        self.linear_2 = nn.Linear(
            config.text_config.hidden_size, config.text_config.hidden_size, bias=config.multimodal_projector_bias
        )

    def forward(self, patches: Tensor) -> Tensor:
        """(batch, rows, columns, channels) -> (batch, tokens, hidden size), tokens in row-major order."""
        tokens = space_to_depth(patches, self.merge).flatten(1, 2)
        return self.linear_2(self.act(self.linear_1(self.norm(tokens.to(self.linear_1.weight.dtype)))))


class CompactLlavaPreTrainedModel(PreTrainedModel):
    """The base class of both classes below."""

    config: CompactLlavaConfig
    config_class = CompactLlavaConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")  # type: ignore[assignment]  # as LLaVA has it
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012  # transformers reads it as a list
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True


class CompactLlavaModel(CompactLlavaPreTrainedModel):
    """Vision tower, projector and language model. The tower may be a transformer or a convolutional network."""

    def __init__(self, config: CompactLlavaConfig):
        super().__init__(config)
        self.vision_tower = AutoModel.from_config(config.vision_config, **_NO_CODE)
        self.multi_modal_projector = CompactLlavaProjector(config)
        # not language_model, by which transformers takes names of weights for those of older checkpoints
        self.causal_lm = AutoModelForCausalLM.from_config(config.text_config, **_NO_CODE)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the language model's token embedding."""
        return self.causal_lm.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Put another in its place."""
        self.causal_lm.set_input_embeddings(value)

    def get_decoder(self) -> nn.Module:
        """Return the language model's blocks, without its output layer."""
        return self.causal_lm.get_decoder()

    def extract_patches(self, pixel_values: Tensor) -> Tensor:
        """Return what the tower sees, before the projector: (batch, 3, height, width) -> (batch, rows, columns, channels).

        Several feature layers are joined along the channels; finer maps of a convolutional tower are folded onto the grid
        of the coarsest.
        """
        return tower_patches(self.vision_tower, self.config, pixel_values)

    def get_image_features(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Return image tokens as transformers' LLaVA does: ``pooler_output`` is a list, one (tokens, hidden size) a picture."""
        tokens = self.multi_modal_projector(self.extract_patches(pixel_values))
        return BaseModelOutputWithPooling(pooler_output=cast(Any, list(tokens)))

    def embed(
        self,
        input_ids: Tensor | None,
        pixel_values: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        mm_encoder_outputs: dict[str, Any] | None = None,
    ) -> Tensor:
        """Return token embeddings with image tokens in their places, (batch, length, hidden size).

        Raises:
            ValueError: neither or both of ids and embeddings, both pixels and image tokens, or image tokens in the text and
                pictures do not match.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        seen = (mm_encoder_outputs or {}).get("image")
        if pixel_values is not None:
            if seen is not None:
                raise ValueError("give pixel_values or mm_encoder_outputs, not both")
            seen = self.get_image_features(pixel_values)
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        if seen is None:
            return inputs_embeds
        if input_ids is None:
            raise ValueError("pictures need input_ids, which say where their tokens are")
        tokens = torch.cat(list(seen.pooler_output))
        at_image = input_ids == self.config.image_token_id
        if int(at_image.sum()) != len(tokens):
            raise ValueError(
                f"{int(at_image.sum())} image tokens in the text, but {len(seen.pooler_output)} images of {len(tokens)} "
                "tokens together: the processor's settings do not fit the model's"
            )
        return inputs_embeds.masked_scatter(at_image[..., None], tokens.to(inputs_embeds.dtype))

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        mm_encoder_outputs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Return the last hidden states, as the language model's own base does."""
        return self.causal_lm.base_model(
            inputs_embeds=self.embed(input_ids, pixel_values, inputs_embeds, mm_encoder_outputs),
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            **kwargs,
        )


def first_patches(tower: nn.Module, config: CompactLlavaConfig, pixel_values: Tensor) -> Tensor | None:
    """Return a tower's patches before its first layer, as :func:`tower_patches`; None where they are no list of tokens."""
    features = tower(pixel_values, output_hidden_states=True, return_dict=True).hidden_states[0]
    return _as_map(features, config, pixel_values.shape[-2:]) if features.dim() == 3 else None


def tower_patches(tower: nn.Module, config: CompactLlavaConfig, pixel_values: Tensor) -> Tensor:
    """Return a tower's patches of pictures as the config has them: (batch, rows, columns, channels)."""
    hidden_states = tower(pixel_values, output_hidden_states=True, return_dict=True).hidden_states
    layers = config.vision_feature_layer
    layers = [layers] if isinstance(layers, int) else list(layers)
    maps = [_as_map(hidden_states[layer], config, pixel_values.shape[-2:]) for layer in layers]
    rows = min(m.shape[1] for m in maps)
    return torch.cat([space_to_depth(m, m.shape[1] // rows) for m in maps], -1)


def _as_map(features: Tensor, config: CompactLlavaConfig, image_size: torch.Size) -> Tensor:
    if features.dim() == 4:  # a map: (batch, channels, rows, columns), or with the channels last
        one, two, three = features.shape[1:]
        height, width = image_size
        channels_last = one * width == two * height and two * width != three * height
        return features if channels_last else features.permute(0, 2, 3, 1)
    if config.vision_feature_select_strategy == "full":
        return features[:, None]  # class token and all, as one row
    patch = config.vision_config.patch_size
    rows, columns = (side // size for side, size in zip(image_size, _pair(patch), strict=True))
    while rows * columns > features.shape[1] and rows % 2 == columns % 2 == 0:  # later stages have larger patches
        rows, columns = rows // 2, columns // 2
    return features[:, features.shape[1] - rows * columns :].unflatten(1, (rows, columns))


def _pair(size: int | Sequence[int]) -> Sequence[int]:
    """Return a patch's height and width, of one number or of several, of which the first may be pictures of a film."""
    return (size, size) if isinstance(size, int) else size[-2:]


class CompactLlavaForConditionalGeneration(CompactLlavaPreTrainedModel, GenerationMixin):
    """The compact LLaVA with the language model's own output layer; ``generate`` works as for LLaVA."""

    accepts_loss_kwargs = False

    def __init__(self, config: CompactLlavaConfig):
        super().__init__(config)
        self.model = CompactLlavaModel(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """Return the language model's output layer."""
        return self.model.causal_lm.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Put another in its place."""
        self.model.causal_lm.set_output_embeddings(new_embeddings)

    def get_image_features(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Return what :meth:`CompactLlavaModel.get_image_features` does."""
        return self.model.get_image_features(pixel_values, **kwargs)

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As transformers', but a language model numbers the places of a whole text itself: a RoBERTa begins with another."""
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(*args, **kwargs)  # type: ignore[misc]  # its annotation names self twice
        mask = inputs.get("attention_mask")
        if not inputs.get("use_cache") and (mask is None or bool(mask.all())):
            inputs.pop("position_ids", None)
        return inputs

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        mm_encoder_outputs: dict[str, Any] | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Return the language model's output: logits of the positions to keep, and all else that it gives.

        Args:
            mm_encoder_outputs: ``{"image": get_image_features(…)}`` in place of pixels.
            The others are LLaVA's.

        Raises:
            ValueError: see :meth:`CompactLlavaModel.embed`.
        """
        return self.model.causal_lm(
            inputs_embeds=self.model.embed(input_ids, pixel_values, inputs_embeds, mm_encoder_outputs),
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )


__all__ = ["CompactLlavaForConditionalGeneration", "CompactLlavaModel", "CompactLlavaProjector"]
