"""A small random model of any kind that transformers has, its config shrunk by what its fields are called."""

from __future__ import annotations

import re
from typing import Any

import torch
from transformers import CONFIG_MAPPING, MODEL_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)

SIDE, PATCH = 64, 16  # pixels
_LAYERS = 2

# name of a field -> its small value; the first that matches it whole
_SMALL: tuple[tuple[str, Any], ...] = (
    (r"num_key_value_heads|num_kv_heads|n_head_kv|num_query_groups|.*_kv_heads|.*_key_value_heads|kv_n_heads", 2),
    (r"rotary_dim", 8),
    (r"qk_head_dim", 16),  # with places and without
    (r".*kv_shared_layers", 0),
    (r"linear_num_key_heads|.*num_k_heads", 2),
    (r"mamba_num_heads|mamba_n_heads|.*mamba_heads", 8),
    (r"n_mamba_heads", 2),
    (r".*attention_heads|n_heads?|num_heads|.*_num_heads|.*_n_heads|linear_num_value_heads|.*num_v_heads", 4),
    (r"mamba_d_head|mamba_head_dim|mamba_headdim", 8),
    (r".*head_dim|d_kv|kv_channels|attention_head_size|d_head|head_size|.*_head_dim", 8),
    (r"num_experts_per_tok|.*experts_per_tok.*|moe_topk|.*top_k.*|moe_k|num_selects|moe_top_k", 2),
    (r"num_groups", 4),
    (r"n_group|topk_group|num_expert_group.*|n_expert_groups|.*n_groups|mamba_ngroups|num_limited_groups", 1),
    (r"n_shared_experts|num_shared_experts|.*shared_experts", 1),
    (r".*num_experts|n_routed_experts|num_local_experts|num_routed_experts|.*_experts", 4),
    (r"first_k_dense_replace|num_dense_layers|.*dense_layers", 1),
    (r".*lora_rank|.*lora_dim|.*_rank", 16),
    (r"sliding_window|attention_window_size|attention_chunk_size|.*sliding_window.*|window", 8),
    (r".*window_size", 2),
    (r"chunk_size|mamba_chunk_size|.*chunk_size", 16),
    (r"time_step_rank|mamba_dt_rank", 4),
    (r".*state_size|.*d_state|ssm_state_dim", 8),
    (r"lru_width|mamba_d_ssm|mamba_intermediate_size", 64),
    (r".*intermediate_size.*|.*ffn_dim|n_inner|d_ff|.*ffn_hidden_size|dim_ff|.*ff_dim|.*mlp_dim|d_inner|ffn_size", 64),
    (
        r"hidden_size|.*_hidden_size|.*_in_dim|.*_input_size|d_model|n_embd|.*embed_dim|dim|.*_dim_model|embedding_size|width|.*_proj_dim",
        32,
    ),
    (r".*hidden_size.*|hidden_dim|projection_dim|num_features|.*output_dim|out_dim|.*out_hidden.*|decoder_dim", 32),
    (r"max_position_embeddings|n_positions|.*max_seq.*|max_sequence_length|seq_length|max_.*length|n_ctx", 1024),
    (r".*num.*_layers|n_layers?|.*_layers|depth|.*num_blocks|.*_depth", _LAYERS),
    (r"image_size|img_size|input_size", SIDE),
    (r"initializer_range|init_std", 0.2),
    (r".*num_queries|num_latents|.*query_tokens|.*_queries", 8),
)
_KEYS = ("num_key_value_heads", "num_kv_heads")
_PLACES = r".*feature_layers?|.*_indexes|.*indices|.*layer_ids|.*block_ids"  # of layers
_WIDTHS = r"(hidden|embed|encoder_hidden|decoder_hidden|neck_hidden)_(sizes|dims?)|dims"  # of stages
_CHANGES: dict[str, dict[str, Any]] = {
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "zamba": {"attention_hidden_size": 64, "attention_head_dim": 16},
    "zamba2": {"attention_hidden_size": 64, "attention_head_dim": 16},
    "bamba": {"attn_layer_indices": [1]},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "mamba2": {"num_heads": 8},
    "reformer": {"axial_pos_embds": False},
    "nemotron_h_omni": {"video_temporal_patch_size": None},
}


def causal_kinds() -> list[str]:
    """Every kind of causal language model."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def picture_kinds() -> list[str]:
    """Every kind of model that answers to a picture and a text with a text."""
    return sorted(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)


def named_towers() -> set[str]:
    """Vision models by the names of their kinds alone."""
    images = set(MODEL_FOR_IMAGE_MAPPING_NAMES) - set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
    return images | {name for name in MODEL_MAPPING_NAMES if "vision" in name and name not in picture_kinds()}


def tower_kinds() -> list[str]:
    """Every kind of model that AutoModel has and that takes pixels, or has a vision model that does."""
    found = named_towers()
    for name in MODEL_MAPPING_NAMES:
        if name in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
            continue
        try:
            config = CONFIG_MAPPING[name]
            model: Any = MODEL_MAPPING[config]
            model = model[0] if isinstance(model, tuple) else model
            takes_pixels = model.main_input_name == "pixel_values" or "vision_config" in config.sub_configs
        except (ImportError, ValueError):  # its sounds need a package that is not here
            continue
        if takes_pixels:
            found.add(name)
    return sorted(found)


def shrunken(kind: str, tokenizer: Any, **changes: Any) -> PreTrainedConfig:
    """Return a small config of a kind, whose vocabulary is a tokenizer's with some rows to spare."""
    config_class = CONFIG_MAPPING[kind]
    return config_class(**{**_values(config_class(), tokenizer), **_CHANGES.get(kind, {}), **changes})


def _values(default: PreTrainedConfig, tokenizer: Any) -> dict[str, Any]:
    plain, values = default.to_dict(), {}
    depth = next((plain[n] for n in ("num_hidden_layers", "n_layer", "num_layers", "n_layers") if plain.get(n)), None)
    by_layer = {
        name: value
        for name, value in plain.items()
        if isinstance(value, list) and len(value) == depth and not name.startswith("_") and depth > 1
    }
    layers = max([_LAYERS, *(len(_each_kind(value)) for value in by_layer.values())])
    parts = {name: getattr(default, name) for name in default.sub_configs}
    for name, value in plain.items():
        part = parts.get(name)
        if (
            part is None
            and "vision" in name
            and issubclass(own := default.sub_configs.get(name, object), PreTrainedConfig)
        ):
            part = own()  # a model that can do without
        if isinstance(part, PreTrainedConfig):
            values[name] = type(part)(**_values(part, tokenizer)).to_dict()
        elif name in by_layer:
            kinds = _each_kind(value)
            values[name] = (kinds + [kinds[-1]] * layers)[:layers]
        elif (new := _small(name, value, tokenizer)) is not None:
            values[name] = layers if new == _LAYERS and value == depth else new
    if isinstance(plain.get("num_heads"), list) and isinstance(plain.get("embed_dim"), int):  # of the first stage
        values["embed_dim"] = plain["embed_dim"] // 4
    for name in _KEYS:  # as many as heads, or fewer
        if name in values and plain[name] in (plain.get("num_attention_heads"), plain.get("n_head")):
            values[name] = values.get("num_attention_heads", values.get("n_head"))
    size = values.get("head_dim") or 8
    for name in ("rope_parameters", "rope_scaling"):
        if isinstance(rope := plain.get(name), dict) and "mrope_section" in rope:
            half = int(size * rope.get("partial_rotary_factor", plain.get("partial_rotary_factor") or 1)) // 2
            values[name] = {**rope, "mrope_section": [half - half // 3 * 2, half // 3, half // 3]}
    return values


def _each_kind(values: list[Any]) -> list[Any]:
    """Return each value of a list once, in their order."""
    return [value for index, value in enumerate(values) if value not in values[:index]]


def _small(name: str, value: Any, tokenizer: Any) -> Any:
    """Return the small value of a field, None where it stays as it is."""
    if name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        return getattr(tokenizer, name)
    if "vocab_size" in name and isinstance(value, int):
        return rows(tokenizer)
    if re.fullmatch(r".*token_(id|index)", name):
        return 7 if isinstance(value, int) and value >= len(tokenizer) else None
    if re.fullmatch(_PLACES, name) and isinstance(value, list) and all(isinstance(one, int) for one in value):
        return _each_kind([max(-_LAYERS, min(one, _LAYERS - 1)) for one in value])
    if re.fullmatch(_WIDTHS, name) and isinstance(value, list) and not any(one % 4 for one in value):
        return [one // 4 for one in value]
    if name == "depths" and isinstance(value, list):
        return [min(1, one) if isinstance(one, int) else one for one in value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    for pattern, small in _SMALL:
        if re.fullmatch(pattern, name):
            return min(value, small) if value > 0 and name != "initializer_range" else None if value <= 0 else small
    return None


def rows(tokenizer: Any) -> int:
    """Return rows of the vocabulary: the tokenizer's, and 8 or more to spare."""
    return -(-(len(tokenizer) + 8) // 64) * 64


def drawn(model: PreTrainedModel) -> PreTrainedModel:
    """Return a model with weights that are large enough to answer unlike things unlike."""
    torch.manual_seed(0)
    model = model.float()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() >= 2 and weight.is_floating_point():
                weight.normal_(std=max(1, weight[0].numel()) ** -0.5)
    return model.eval()


__all__ = ["SIDE", "causal_kinds", "drawn", "named_towers", "picture_kinds", "shrunken", "tower_kinds"]
