"""The choice of what trains: all of the language model, LoRA on it, or nothing; the tower on request; connector and pose parts.

The parts are the backbone's own: its decoder, its encoder of images, and the connector, which is what is neither.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from llava_pose.errors import InputError
from llava_pose.model.checkpoint_files import CONFIG_FILE, blaming
from llava_pose.model.loading import built
from llava_pose.model.modeling import POSE_PARTS, LlavaPoseForConditionalGeneration
from llava_pose.model.trial import try_apart
from llava_pose.train.arguments import ModelArguments


def nf4_config(base: str) -> BitsAndBytesConfig:
    """Return how QLoRA keeps a base: the language model's blocks in four bits, all that is round them as it is.

    Raises:
        InputError: its config cannot be read.
    """
    with blaming(f"{base}: cannot load the model"):
        try_apart(base, CONFIG_FILE, lambda: built(base))
        model = built(base)
    blocks = f"{blocks_prefix(model)}."
    beside = {
        name for name, module in model.named_modules() if isinstance(module, nn.Linear) and not name.startswith(blocks)
    }
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,  # the scales of 64 weights each are kept in eight bits, too
        bnb_4bit_compute_dtype=torch.bfloat16 if torch.cuda.is_available() else torch.float32,
        llm_int8_skip_modules=sorted(beside),
    )


def blocks_prefix(vlm: Any) -> str:
    """Return the name in a backbone of the list of its language model's blocks.

    Raises:
        InputError: the language model has no such list.
    """
    decoder = vlm.get_decoder()
    lists = [name for name, module in decoder.named_children() if isinstance(module, nn.ModuleList) and len(module)]
    if not lists:
        raise InputError(
            f"{type(decoder).__name__}: has no list of blocks, which LoRA would go on; train it --language full"
        )
    # of several, such as those of a few dense layers first, the one that holds most
    largest = max(lists, key=lambda name: sum(p.numel() for p in getattr(decoder, name).parameters()))
    return f"{_name_in(vlm, decoder)}.{largest}"


def _name_in(vlm: nn.Module, part: nn.Module) -> str:
    return next(name for name, module in vlm.named_modules() if module is part)


def lora_targets(vlm: Any) -> str:
    """Return a regular expression for every linear layer of the language model's blocks, and for nothing else.

    Anchored on the language model: a suffix such as "q_proj" would also match layers of the vision tower.
    """
    prefix = f"{blocks_prefix(vlm)}."
    names = {
        name.removeprefix(prefix).partition(".")[2]
        for name, module in vlm.named_modules()
        if name.startswith(prefix) and isinstance(module, nn.Linear)
    }
    return rf"{re.escape(prefix)}\d+\.({'|'.join(re.escape(name) for name in sorted(names))})"


def connector_modules(vlm: Any) -> list[str]:
    """Return the names in a backbone of the modules with weights that belong to neither tower nor language model."""
    parts = [
        module
        for module in (vlm.get_encoder(modality="image"), vlm.get_decoder(), vlm.get_output_embeddings())
        if module
    ]
    known = {id(module) for part in parts for module in part.modules()}
    found: list[str] = []

    def search(name: str, module: nn.Module) -> None:
        inside = {id(each) for each in module.modules()}
        if not inside & known:
            if any(True for _ in module.parameters()):
                found.append(name)
        elif id(module) not in known:
            for child_name, child in module.named_children():
                search(f"{name}.{child_name}".removeprefix("."), child)

    search("", vlm)
    return found


def add_lora(
    model: LlavaPoseForConditionalGeneration, *, r: int, alpha: float, dropout: float, tune_vision: bool
) -> LlavaPoseForConditionalGeneration:
    """Put LoRA on the language model; connector, pose parts and the `<pose6D>` vectors train beside it.

    The adapter is one of the backbone, as PEFT makes it; what trains whole is saved in it.

    Raises:
        InputError: an adapter landed outside the language model.
    """
    from peft import LoraConfig, get_peft_model

    vlm = model.vlm
    blocks = blocks_prefix(vlm)
    whole = connector_modules(vlm)
    if tune_vision:
        whole.append(_name_in(vlm, model.tower))
    config = LoraConfig(
        r=r,
        lora_alpha=alpha,  # type: ignore[arg-type]  # PEFT says int, and only divides it
        lora_dropout=dropout,
        target_modules=lora_targets(vlm),
        modules_to_save=whole or None,
        task_type="CAUSAL_LM",
    )
    model.backbone = get_peft_model(vlm, config)
    strays = [n for n, _ in vlm.named_parameters() if "lora_" in n and not n.startswith(f"{blocks}.")]
    if strays:
        raise InputError(f"LoRA landed outside the language model: {strays[0]}")
    return model


def freeze_for(
    model: LlavaPoseForConditionalGeneration, *, language: str, tune_embeddings: bool, tune_vision: bool
) -> None:
    """Set requires_grad for a run without LoRA."""
    vlm = model.vlm
    tower, decoder, embedding, output = (
        model.tower,
        model.decoder,
        vlm.get_input_embeddings(),
        vlm.get_output_embeddings(),
    )
    model.requires_grad_(True)  # what is left of the backbone is its connector
    tower.requires_grad_(tune_vision)
    for part in (decoder, embedding, output):
        part.requires_grad_(language == "full")
    if language == "full" and not tune_embeddings:
        embedding.requires_grad_(False)  # and a tied output layer with it


def choose_what_trains(model: LlavaPoseForConditionalGeneration, arguments: ModelArguments) -> None:
    """Put LoRA on the language model, or set requires_grad, as the arguments of a run have it."""
    if arguments.language == "lora":
        add_lora(
            model,
            r=arguments.lora_r,
            alpha=arguments.lora_alpha,
            dropout=arguments.lora_dropout,
            tune_vision=arguments.tune_vision,
        )
    else:
        freeze_for(
            model,
            language=arguments.language,
            tune_embeddings=arguments.tune_embeddings,
            tune_vision=arguments.tune_vision,
        )


def train_in_float32(model: nn.Module) -> None:
    """Raise what trains to float32: in bfloat16 most updates of a small learning rate round to nothing."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()


def parts_of(model: LlavaPoseForConditionalGeneration) -> dict[str, str]:
    """Return, for each parameter by name, the part with a learning rate of its own that it belongs to.

    Returns:
        "new" (connector and pose parts), "vision" (the tower) or "language".
    """
    of_tower = {id(parameter) for parameter in model.tower.parameters()}
    language = (model.decoder, model.vlm.get_input_embeddings(), model.vlm.get_output_embeddings())
    of_language = {id(parameter) for part in language for parameter in part.parameters()}
    found = {}
    for name, parameter in model.named_parameters():
        ours = name.partition(".")[0] in POSE_PARTS
        part = "vision" if id(parameter) in of_tower else "language" if id(parameter) in of_language else "new"
        found[name] = "new" if ours else part
    return found


def count_parameters(model: nn.Module) -> dict[str, Any]:
    """Return trainable and all parameters, under ZeRO-3 too, where a shard knows its full size."""
    sizes = [(int(getattr(p, "ds_numel", p.numel())), p.requires_grad) for p in model.parameters()]
    return {"trainable": sum(n for n, tuned in sizes if tuned), "all": sum(n for n, _ in sizes)}
