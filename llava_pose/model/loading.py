"""Load a checkpoint folder, strictly: every weight the model needs is in it, and none is left over."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from llava_pose.errors import InputError
from llava_pose.model.configuration import LlavaPoseConfig
from llava_pose.model.modeling import LlavaPoseForConditionalGeneration
from llava_pose.model.processing import LlavaPoseProcessor

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
LOADING_ERRORS = (OSError, ValueError, RuntimeError, SafetensorError)  # of from_pretrained, at a file that is not right


def load_processor(path: str | os.PathLike[str]) -> LlavaPoseProcessor:
    """The processor of a base or checkpoint (folder or hub id).

    Raises:
        InputError: there is none.
    """
    try:
        return LlavaPoseProcessor.from_pretrained(path)
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:  # the last two of JSON of another shape
        raise InputError(f"{path}: no LLaVA-pose processor there ({first_sentence(error)})") from error


def load_model(
    path: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str = "auto",
    **kwargs: Any,
) -> nn.Module:
    """A LLaVA-pose model in evaluation mode: a full checkpoint, or an adapter on its base.

    A folder is an adapter if and only if it holds adapter_config.json; its name plays no part.

    Args:
        path: folder or hub id.
        base: the base of an adapter, if it is not where the adapter's config says.
        kwargs: for ``from_pretrained`` (a quantization_config, say).

    Raises:
        InputError: it cannot be read, or weights are missing, left over or of another shape.
    """
    folder = Path(path)
    if folder.exists() and not (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file():
        raise InputError(f"{path}: neither config.json nor {ADAPTER_CONFIG} is in it; is this a checkpoint folder?")
    if (folder / ADAPTER_CONFIG).is_file():
        model = _load_adapter(folder, base, dtype, kwargs)
    else:
        model = load_full(path, dtype=dtype, **kwargs)
    if device is not None:
        model = model.to(device)
    return model.eval()


def load_full(path: str | os.PathLike[str], *, dtype: torch.dtype | str = "auto", **kwargs: Any) -> PreTrainedModel:
    """A model that is whole in one folder.

    Raises:
        InputError: it cannot be read, or weights are missing, left over or of another shape.
    """
    try:
        # not by AutoConfig, which knows the types of other systems only where their modules have been imported
        found = PreTrainedConfig.get_config_dict(path)[0].get("model_type")
    except LOADING_ERRORS as error:
        raise InputError(f"{path}: cannot load the model ({first_sentence(error)})") from error
    if found != LlavaPoseConfig.model_type:  # transformers would build a model of its default size, of billions
        raise InputError(
            f"{path}: a {found or 'nameless'} model, not a llava_pose one; give a checkpoint of llava-pose train, or make "
            "a base with llava-pose assemble"
        )
    try:
        # mismatched sizes are "ignored" so that they are listed, and refused by name below
        model, info = LlavaPoseForConditionalGeneration.from_pretrained(
            path, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
        )
    except LOADING_ERRORS as error:
        raise InputError(f"{path}: cannot load the model ({first_sentence(error)})") from error
    require_complete(info, path)
    return model


def require_complete(info: dict[str, Any], path: str | os.PathLike[str], *, may_miss: tuple[str, ...] = ()) -> None:
    """Refuse a load that left a weight at random or unread.

    Args:
        info: transformers' loading info.
        may_miss: prefixes of weights that the folder need not have.

    Raises:
        InputError: naming the folder and the first weights concerned.
    """
    missing = sorted(key for key in info["missing_keys"] if not key.startswith(may_miss or ("\0",)))
    problems = {
        "are missing": missing,
        "are not of this model": sorted(info["unexpected_keys"]),
        "are of another shape": sorted(
            f"{key} ({tuple(stored)} instead of {tuple(wanted)})" for key, stored, wanted in info["mismatched_keys"]
        ),
    }
    for what, keys in problems.items():
        if keys:
            raise InputError(
                f"{path}: {len(keys)} weights {what}: {', '.join(keys[:3])}{', …' if len(keys) > 3 else ''}"
            )


def require_model_type(folder: str | os.PathLike[str], model_type: str, remedy: str) -> None:
    """Refuse a checkpoint of another system: its weights would be missing one by one.

    Raises:
        InputError: the folder has no config.json, or one of another ``model_type``.
    """
    try:
        found = PreTrainedConfig.get_config_dict(folder)[0].get("model_type")
    except LOADING_ERRORS as error:
        raise InputError(f"{folder}: no checkpoint can be read there ({first_sentence(error)})") from error
    if found != model_type:
        kind, wanted = (str(name).replace("_", " ") for name in (found or "nameless", model_type))
        raise InputError(f"{folder}: a {kind} model, not a {wanted}; {remedy}")


def _load_adapter(
    folder: Path, base: str | os.PathLike[str] | None, dtype: torch.dtype | str, kwargs: dict[str, Any]
) -> nn.Module:
    from peft import PeftConfig, PeftModelForCausalLM, get_peft_model_state_dict

    try:
        config = PeftConfig.from_pretrained(folder, inference_mode=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{folder / ADAPTER_CONFIG}: cannot be read ({first_sentence(error)})") from error
    base = base or config.base_model_name_or_path
    if base is None or (Path(base).is_absolute() and not Path(base).is_dir()):
        raise InputError(f"{folder}: the adapter's base {base} is not there; say where it is with --base")
    weights = folder / ADAPTER_WEIGHTS
    if not weights.is_file():
        raise InputError(f"{weights}: no such file; the checkpoint is incomplete")
    try:
        with safe_open(weights, framework="pt") as file:
            stored = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(f"{weights}: cannot be read ({first_sentence(error)})") from error
    full = load_full(base, dtype=dtype, **kwargs)
    try:
        model = PeftModelForCausalLM(full, config)
    except ValueError as error:  # it finds nothing of what it adapts
        raise InputError(f"{folder}: the adapter does not fit its base {base} ({first_sentence(error)})") from error
    # before loading: PEFT passes some of these by, and fails on others without a name
    expected = {
        key: tuple(value.shape) for key, value in get_peft_model_state_dict(model, save_embedding_layers=False).items()
    }
    info = {
        "missing_keys": expected.keys() - stored.keys(),
        "unexpected_keys": stored.keys() - expected.keys(),
        "mismatched_keys": [
            (key, stored[key], shape) for key, shape in expected.items() if stored.get(key, shape) != shape
        ],
    }
    require_complete(info, f"{weights} on the base {base}")
    model.load_adapter(folder, "default")
    return model


def underlying_model(model: nn.Module) -> LlavaPoseForConditionalGeneration:
    """The LLaVA-pose model itself, whether or not an adapter is wrapped round it."""
    while not isinstance(model, LlavaPoseForConditionalGeneration):
        model = model.get_base_model() if hasattr(model, "get_base_model") else model.module
    return model


def first_sentence(error: BaseException) -> str:
    """An exception's message on one line, cut to what fits into another."""
    return " ".join(str(error).split())[:200] or type(error).__name__
