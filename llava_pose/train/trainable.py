"""What trains: all of the language model, LoRA on it, or nothing; the tower on request; projector and head always."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from llava_pose.errors import InputError
from llava_pose.model.modeling import LlavaPoseForConditionalGeneration

ALWAYS_TUNED = (
    "multi_modal_projector",
    "pose_head",
    "pose_encoder",
    "pose_token_embedding",
    "pose_token_output",
)


def nf4_config() -> BitsAndBytesConfig:
    """Return how QLoRA keeps the base: the language model's blocks in four bits, all that is round them as it is."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16 if torch.cuda.is_available() else torch.float32,
        # names from the root: bitsandbytes matches their beginning
        llm_int8_skip_modules=[
            "model.vision_tower",
            "model.multi_modal_projector",
            "pose_head",
            "pose_encoder",
            "lm_head",
        ],
    )


def lora_targets(model: LlavaPoseForConditionalGeneration) -> str:
    """A regular expression for every linear layer of the language model's blocks, and for nothing else.

    Anchored on the language model: a suffix such as "q_proj" would also match layers of the vision tower.
    """
    prefix = "model.language_model.layers."
    names = {
        name.removeprefix(prefix).partition(".")[2]
        for name, module in model.named_modules()
        if name.startswith(prefix) and isinstance(module, nn.Linear)
    }
    return rf"{re.escape(prefix)}\d+\.({'|'.join(re.escape(name) for name in sorted(names))})"


def add_lora(
    model: LlavaPoseForConditionalGeneration, *, r: int, alpha: float, dropout: float, tune_vision: bool
) -> nn.Module:
    """Wrap LoRA round the language model; projector, head and the `<pose6D>` rows train beside it.

    Raises:
        InputError: an adapter landed outside the language model.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=r,
        lora_alpha=alpha,  # type: ignore[arg-type]  # PEFT says int, and only divides it
        lora_dropout=dropout,
        target_modules=lora_targets(model),
        modules_to_save=[*ALWAYS_TUNED, *(["vision_tower"] if tune_vision else [])],
        task_type="CAUSAL_LM",
    )
    wrapped = get_peft_model(model, config)
    strays = [n for n, _ in wrapped.named_parameters() if "lora_" in n and ".language_model.layers." not in n]
    if strays:
        raise InputError(f"LoRA landed outside the language model: {strays[0]}")
    return wrapped


def freeze_for(
    model: LlavaPoseForConditionalGeneration, *, language: str, tune_embeddings: bool, tune_vision: bool
) -> None:
    """Set requires_grad for a run without LoRA."""
    model.requires_grad_(False)
    for name in ALWAYS_TUNED:
        _find(model, name).requires_grad_(True)
    if language == "full":
        model.model.language_model.requires_grad_(True)
        model.lm_head.requires_grad_(True)
        if not tune_embeddings:
            model.get_input_embeddings().requires_grad_(False)
            if model.config.tie_word_embeddings:
                model.lm_head.requires_grad_(False)
    if tune_vision:
        model.model.vision_tower.requires_grad_(True)


def train_in_float32(model: nn.Module) -> None:
    """Raise what trains to float32: in bfloat16 most updates of a small learning rate round to nothing."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()


def _find(model: LlavaPoseForConditionalGeneration, name: str) -> nn.Module:
    return getattr(model, name) if hasattr(model, name) else getattr(model.model, name)


def part_of(parameter_name: str) -> str:
    """The part with a learning rate of its own that a parameter belongs to.

    Returns:
        "new" (projector, pose head, pose encoder, the vectors of `<pose6D>`), "vision" (the tower) or "language".
    """
    if any(f"{name}." in parameter_name for name in ALWAYS_TUNED):
        return "new"
    return "vision" if "vision_tower." in parameter_name else "language"


def count_parameters(model: nn.Module) -> dict[str, Any]:
    """Trainable and all parameters, under ZeRO-3 too, where a shard knows its full size."""
    sizes = [(int(getattr(p, "ds_numel", p.numel())), p.requires_grad) for p in model.parameters()]
    return {"trainable": sum(n for n, tuned in sizes if tuned), "all": sum(n for n, _ in sizes)}
