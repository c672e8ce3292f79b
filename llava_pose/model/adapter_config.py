"""The config of an adapter, which is somebody else's: only what llava-pose train writes of a LoRA is taken."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from llava_pose.errors import InputError
from llava_pose.model.checkpoint_files import ADAPTER_CONFIG, blaming, read_json_object
from llava_pose.utils.files import shortened

# all that llava-pose train sets of a LoRA, and what changes its arithmetic and no more; the rest must be as PEFT has it
_LORA_FIELDS = frozenset(
    (
        *("r", "lora_alpha", "lora_dropout", "target_modules", "modules_to_save", "task_type", "inference_mode"),
        *("base_model_name_or_path", "revision", "peft_version", "use_rslora", "use_dora"),
    )
)


def read_adapter_config(folder: Path) -> Any:
    """PEFT's config of a LoRA of llava-pose train.

    Raises:
        InputError: it cannot be read, or is of another kind of adapter.
    """
    from peft import LoraConfig

    file = folder / ADAPTER_CONFIG
    values = read_json_object(file)
    if values.get("peft_type") != "LORA":
        raise InputError(
            f"{file}: an adapter of the kind {shortened(str(values.get('peft_type')))}, not a LoRA of llava-pose train"
        )
    with blaming(f"{file}: cannot be read"):
        config, usual = LoraConfig.from_pretrained(str(folder), inference_mode=True), LoraConfig()
    for name, value in vars(config).items():
        if name not in _LORA_FIELDS and value != getattr(usual, name, value):
            raise InputError(
                f"{file}: {name} is {shortened(str(value))}, which llava-pose train does not write; take it out"
            )
    targets = config.target_modules
    # a regular expression of one choice and one repetition takes no time; with more of them it may never end
    simple = isinstance(targets, str) and targets.count("(") <= 1 and sum(map(targets.count, "+*{")) <= 1
    if not simple and not (isinstance(targets, set) and all(isinstance(name, str) for name in targets)):
        raise InputError(f"{file}: target_modules is {shortened(str(targets))}, which llava-pose train does not write")
    for name, least in (("r", 1), ("lora_alpha", 0), ("lora_dropout", 0)):
        number = getattr(config, name)
        if not isinstance(number, int | float) or not least <= number < float("inf"):
            raise InputError(f"{file}: {name} is {shortened(str(number))}, not a number from {least} on")
    if not isinstance(config.base_model_name_or_path, str | None):
        raise InputError(f"{file}: base_model_name_or_path is no text; say where the base is with --base")
    return config


def base_of(folder: Path, config: Any, base: str | os.PathLike[str] | None) -> str:
    """The base of an adapter: what is given, or what its config names.

    Raises:
        InputError: it is not there.
    """
    base = base or config.base_model_name_or_path
    if base is None or (Path(base).is_absolute() and not Path(base).is_dir()):
        raise InputError(f"{folder}: the adapter's base {base} is not there; say where it is with --base")
    return str(base)
