"""Load a checkpoint folder, strictly: every weight the model needs is in it, and none is left over."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel

from llava_pose.errors import InputError
from llava_pose.model.modeling import LlavaPoseForConditionalGeneration
from llava_pose.model.processing import LlavaPoseProcessor

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def load_processor(path: str | os.PathLike[str]) -> LlavaPoseProcessor:
    """The processor of a base or checkpoint (folder or hub id).

    Raises:
        InputError: there is none.
    """
    try:
        return LlavaPoseProcessor.from_pretrained(path)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: no LLaVA-pose processor there ({_first_sentence(error)})") from error


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
        model, info = LlavaPoseForConditionalGeneration.from_pretrained(
            path, dtype=dtype, output_loading_info=True, **kwargs
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{path}: cannot load the model ({_first_sentence(error)})") from error
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
        "are of another shape": sorted(str(key) for key in info["mismatched_keys"]),
    }
    for what, keys in problems.items():
        if keys:
            raise InputError(
                f"{path}: {len(keys)} weights {what}: {', '.join(keys[:3])}{', …' if len(keys) > 3 else ''}"
            )


def _load_adapter(
    folder: Path, base: str | os.PathLike[str] | None, dtype: torch.dtype | str, kwargs: dict[str, Any]
) -> nn.Module:
    from peft import PeftModel, get_peft_model_state_dict

    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"{folder / ADAPTER_CONFIG}: cannot be read ({error})") from error
    base = base or config.get("base_model_name_or_path")
    if base is None or (Path(base).is_absolute() and not Path(base).is_dir()):
        raise InputError(f"{folder}: the adapter's base {base} is not there; say where it is with --base")
    weights = folder / ADAPTER_WEIGHTS
    if not weights.is_file():
        raise InputError(f"{weights}: no such file; the checkpoint is incomplete")
    model = PeftModel.from_pretrained(load_full(base, dtype=dtype, **kwargs), folder)
    with safe_open(weights, framework="pt") as file:
        stored = set(file.keys())
    expected = set(get_peft_model_state_dict(model))
    if stored != expected:
        odd = sorted(stored ^ expected)
        raise InputError(f"{weights}: {len(odd)} weights do not fit the adapter's config: {', '.join(odd[:3])}")
    return model


def underlying_model(model: nn.Module) -> LlavaPoseForConditionalGeneration:
    """The LLaVA-pose model itself, whether or not an adapter is wrapped round it."""
    while not isinstance(model, LlavaPoseForConditionalGeneration):
        model = model.get_base_model() if hasattr(model, "get_base_model") else model.module
    return model


def _first_sentence(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
