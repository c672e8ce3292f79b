"""Load a checkpoint folder, strictly: every weight the model needs is in it, and none is left over."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, PreTrainedModel
from transformers.integrations import deepspeed, is_deepspeed_zero3_enabled
from transformers.utils import cached_file

from llava_pose.compact import CompactLlavaConfig
from llava_pose.errors import InputError
from llava_pose.model.adapter_config import base_of, read_adapter_config
from llava_pose.model.checkpoint_files import (
    ADAPTER_CONFIG,
    CONFIG_FILE,
    SAFE,
    blaming,
    bounded_by_weights,
    read_config,
    require_finite,
    stored_shapes,
)
from llava_pose.model.configuration import POSE_CONFIG, LlavaPoseConfig
from llava_pose.model.modeling import (
    POSE_PARTS,
    POSE_WEIGHTS,
    LlavaPoseForConditionalGeneration,
    pose_parts,
    pose_state,
)
from llava_pose.model.processing import LlavaPoseProcessor
from llava_pose.model.processors import picture_to_try
from llava_pose.model.trial import on_meta, try_apart
from llava_pose.utils.files import is_regular, shortened

ADAPTER_WEIGHTS = "adapter_model.safetensors"
_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # of the pose parts
_BEFORE = "llava_pose"  # the model_type of checkpoints from before there were backbones


def load_model(
    path: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str = "auto",
    **kwargs: Any,
) -> LlavaPoseForConditionalGeneration:
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


def load_full(
    path: str | os.PathLike[str], *, dtype: torch.dtype | str = "auto", **kwargs: Any
) -> LlavaPoseForConditionalGeneration:
    """A model that is whole in one folder.

    Raises:
        InputError: it cannot be read, or weights are missing, left over, of another shape or not finite.
    """

    def attempt() -> None:
        _require_pose_folder(path)
        built(path)

    try_apart(path, CONFIG_FILE, attempt)
    folder = _require_pose_folder(path)
    return _with_pose_parts(_load_backbone(path, os.fspath(path), dtype, kwargs), folder, dtype)


def _require_pose_folder(path: str | os.PathLike[str]) -> Path:
    """The folder with the files of the pose parts; a hub id's are fetched."""
    found = read_config(path)["model_type"]
    if found == _BEFORE:
        raise InputError(
            f"{path}: a checkpoint of an older LLaVA-pose, whose backbone was no model of its own; make its base again with "
            "llava-pose assemble, and train on that"
        )
    folder = Path(path)
    if not folder.is_dir():
        names = (POSE_CONFIG, POSE_WEIGHTS)
        files = [cached_file(os.fspath(path), name, _raise_exceptions_for_missing_entries=False) for name in names]
        folder = Path(str(files[0])).parent if all(files) else folder
    if not (folder / POSE_CONFIG).exists():
        raise InputError(
            f"{path}: a {found} model without pose parts, for {POSE_CONFIG} is not in it; give a checkpoint of llava-pose "
            "train, or make a base with llava-pose assemble"
        )
    return folder


def load_vision_backbone(
    path: str | os.PathLike[str], *, dtype: torch.dtype | str = "auto", named: str | None = None, **kwargs: Any
) -> PreTrainedModel:
    """An image-text-to-text model of transformers, whole.

    Args:
        named: what a message calls it, if not by its path.

    Raises:
        InputError: it cannot be read, or weights are missing, left over, of another shape or not finite.
    """
    named = named or os.fspath(path)
    with blaming(f"{named}: cannot be loaded"):
        try_apart(path, CONFIG_FILE, lambda: built(path))
    return _load_backbone(path, named, dtype, kwargs)


def _load_backbone(
    path: str | os.PathLike[str], named: str, dtype: torch.dtype | str, kwargs: dict[str, Any]
) -> PreTrainedModel:
    with blaming(f"{named}: cannot be loaded"), bounded_by_weights(path):
        _require_models(path)

        def load() -> Any:
            # mismatched sizes are "ignored" so that they are listed, and refused by name below
            return AutoModelForImageTextToText.from_pretrained(
                path, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, **SAFE, **kwargs
            )

        try:
            model, info = load()
        except Exception:
            # a BiT, say, makes tensors in a way that ZeRO-3 has no shards for while a model is built: such a model is
            # loaded whole by every process, and shared out when the training begins
            if not is_deepspeed_zero3_enabled():
                raise
            with _not_shared_out():
                model, info = load()
    require_complete(info, named)
    require_finite(model, named)
    if isinstance(model.config, CompactLlavaConfig):
        _require_layers(model.config, path)
    return model


@contextmanager
def _not_shared_out() -> Iterator[None]:
    """While it lasts, transformers loads models as if there were no ZeRO-3."""
    config = deepspeed._hf_deepspeed_config_weak_ref()  # type: ignore[misc]
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed.set_hf_deepspeed_config(config)


def built(path: str | os.PathLike[str]) -> PreTrainedModel:
    """An image-text-to-text model without its weights. For :func:`llava_pose.model.trial.try_apart`.

    Raises:
        InputError: its config is none of such a model's.
    """
    _require_models(path)
    return on_meta(path, AutoModelForImageTextToText)


def _require_models(path: str | os.PathLike[str]) -> None:
    """Refuse a config without the models that it is made of, or with itself in their place, which has no end."""
    values = read_config(path)
    found = values["model_type"]
    for part in ("text_config", "vision_config"):
        if part not in values and found != CompactLlavaConfig.model_type:
            continue
        kind = values[part].get("model_type") if isinstance(values.get(part), dict) else None
        if not isinstance(kind, str) or kind == found:
            raise InputError(f"{path}: {CONFIG_FILE} has no {part} with a model_type; take it from the base again")


def _with_pose_parts(
    backbone: PreTrainedModel, folder: Path, dtype: torch.dtype | str
) -> LlavaPoseForConditionalGeneration:
    """A backbone with the pose parts of a folder, strictly."""
    config, weights = pose_config_of(backbone, folder), folder / POSE_WEIGHTS
    model = LlavaPoseForConditionalGeneration(backbone, config)
    with blaming(f"{weights}: cannot be loaded"):
        state = load_file(weights)
    for name, weight in state.items():
        if weight.dtype not in _TYPES:
            raise InputError(
                f"{weights}: the weight {name} is of the type {str(weight.dtype).removeprefix('torch.')}, which none of "
                "llava-pose train is; take the checkpoint from its source again"
            )
    _set_pose_parts(model, state, weights, dtype)
    return model


def pose_config_of(backbone: PreTrainedModel, folder: Path) -> LlavaPoseConfig:
    """Return the config of a folder's pose parts, which fits a backbone and the weights beside it.

    Args:
        backbone: with weights or without.

    Raises:
        InputError: it cannot be read or does not fit, or the weights are missing, left over or of another shape.
    """
    config = LlavaPoseConfig.load(folder)
    rows, size = embedding_shape(backbone)
    file = folder / POSE_CONFIG
    for name in ("pose_token_id", "image_token_id"):
        if getattr(config, name) >= rows:
            raise InputError(f"{file}: {name} is {getattr(config, name)}, and the vocabulary has {rows} rows")
    if config.embedding_size != size:
        raise InputError(f"{file}: embedding_size is {config.embedding_size}, and the backbone's is {size}")
    names = {name for name, _ in backbone.base_model.named_modules()}
    if config.connector is not None and config.connector not in names:
        raise InputError(f"{file}: connector {shortened(config.connector)} is no module of the backbone")
    with torch.device("meta"), blaming(f"{file}: cannot be used"):  # no size is more than the weights beside it fill
        wanted = {name: tuple(weight.shape) for name, weight in pose_parts(config).state_dict().items()}
    weights = folder / POSE_WEIGHTS
    if not is_regular(weights):
        raise InputError(f"{weights}: no such file; the checkpoint is incomplete")
    require_complete(_differences(wanted, stored_shapes(weights)), weights)
    return config


def _set_pose_parts(
    model: LlavaPoseForConditionalGeneration, state: dict[str, torch.Tensor], file: Path, dtype: torch.dtype | str
) -> None:
    for name in POSE_PARTS:
        part = getattr(model, name)
        part.load_state_dict({k.partition(".")[2]: v for k, v in state.items() if k.partition(".")[0] == name})
        stored = next(weight.dtype for key, weight in state.items() if key.startswith(f"{name}."))
        part.to(stored if isinstance(dtype, str) else dtype)
        require_finite(part, file)


def _differences(wanted: Mapping[str, tuple[int, ...]], stored: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Compare names and shapes, and return what :func:`require_complete` takes."""
    return {
        "missing_keys": wanted.keys() - stored.keys(),
        "unexpected_keys": stored.keys() - wanted.keys(),
        "mismatched_keys": [
            (key, stored[key], shape) for key, shape in wanted.items() if stored.get(key, shape) != shape
        ],
    }


def load_weights(model: LlavaPoseForConditionalGeneration, folder: Path) -> None:
    """Put the weights of a checkpoint into a model that is built already, as a run that goes on does.

    Raises:
        InputError: they are not those of this model.
    """
    if not (folder / ADAPTER_CONFIG).is_file():
        model.load_state_dict(load_full(folder, dtype=torch.float32).state_dict())
        return
    from peft import set_peft_model_state_dict

    _require_adapter_weights(model, folder / ADAPTER_WEIGHTS, "")
    set_peft_model_state_dict(model.backbone, load_file(folder / ADAPTER_WEIGHTS))
    state = load_file(folder / POSE_WEIGHTS)
    wanted = {name: tuple(weight.shape) for name, weight in pose_state(model.state_dict()).items()}
    require_complete(_differences(wanted, {k: tuple(v.shape) for k, v in state.items()}), folder / POSE_WEIGHTS)
    model.load_state_dict({**model.state_dict(), **state})


def _require_layers(config: CompactLlavaConfig, path: str | os.PathLike[str]) -> None:
    """Refuse what the first question would ask for in vain: feature layers that the tower has not, and a language model whose
    config leads on to another's.
    """
    if config.text_config.get_text_config(decoder=True) is not config.text_config:
        raise InputError(
            f"{path}: {CONFIG_FILE}: text_config holds another model's config; take it from the base again"
        )
    layers = config.vision_feature_layer
    layers = layers if isinstance(layers, list | tuple) else [layers]
    tower = config.vision_config
    # transformers' towers say how deep they are in one of these two ways; others are believed
    depth = getattr(tower, "num_hidden_layers", None) or len(getattr(tower, "depths", None) or ()) or 1000
    if not layers or not all(isinstance(layer, int) and -depth - 1 <= layer <= depth for layer in layers):
        raise InputError(
            f"{path}: {CONFIG_FILE}: the tower has no vision_feature_layer {layers}; take it from the base again"
        )


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
    found = read_config(folder)["model_type"]
    if found != model_type:
        kind, wanted = (name.replace("_", " ") for name in (found, model_type))
        raise InputError(f"{folder}: a {kind} model, not a {wanted}; {remedy}")


def _load_adapter(
    folder: Path, base: str | os.PathLike[str] | None, dtype: torch.dtype | str, kwargs: dict[str, Any]
) -> LlavaPoseForConditionalGeneration:
    from peft import PeftModelForCausalLM

    try_apart(folder, ADAPTER_CONFIG, lambda: _adapt(folder, base))
    config = read_adapter_config(folder)
    base = base_of(folder, config, base)
    weights = folder / ADAPTER_WEIGHTS
    if not is_regular(weights):
        raise InputError(f"{weights}: no such file; the checkpoint is incomplete")
    ranks = {shape[0] for key, shape in stored_shapes(weights).items() if ".lora_A." in key}
    if ranks and ranks != {config.r}:  # before PEFT makes weights of that rank
        raise InputError(f"{folder / ADAPTER_CONFIG}: r is {config.r}, and the rank of the weights {max(ranks)}")
    if not (folder / POSE_CONFIG).exists():
        raise InputError(
            f"{folder}: an adapter without pose parts, for {POSE_CONFIG} is not in it; is it of llava-pose train?"
        )
    model = _with_pose_parts(load_vision_backbone(base, dtype=dtype, **kwargs), folder, dtype)
    with blaming(f"{folder}: the adapter does not fit its base {base}"):  # nothing is there of what it adapts, say
        model.backbone = PeftModelForCausalLM(model.vlm, config)
    _require_adapter_weights(model, weights, f" on the base {base}")
    with blaming(f"{weights}: cannot be loaded"):
        cast(Any, model.backbone).load_adapter(folder, "default")
    require_finite(model.backbone, weights, only=".default")
    return model


def _adapt(folder: Path, base: str | os.PathLike[str] | None) -> None:
    """Put the adapter's layers into its base, all without weights: its targets are patterns, which may never match."""
    from peft import PeftModelForCausalLM

    config = read_adapter_config(folder)
    base = base_of(folder, config, base)
    if Path(base).is_dir():
        PeftModelForCausalLM(cast(Any, built(base)), config, low_cpu_mem_usage=True)


def _require_adapter_weights(model: LlavaPoseForConditionalGeneration, file: Path, where: str) -> None:
    """Refuse an adapter's weights that PEFT would pass by, or fail on without a name."""
    from peft import get_peft_model_state_dict

    wanted = get_peft_model_state_dict(model.backbone, save_embedding_layers=False)
    shapes = {key: tuple(value.shape) for key, value in wanted.items()}
    require_complete(_differences(shapes, stored_shapes(file)), f"{file}{where}")


def require_tower(
    model: LlavaPoseForConditionalGeneration, processor: LlavaPoseProcessor, path: str | os.PathLike[str]
) -> None:
    """Show a picture to the tower: what it gives must be as many image tokens as the processor puts into a chat, and what the
    pose head is made for.

    Raises:
        InputError: it gives other numbers, or cannot look at it.
    """
    picture, device = picture_to_try(), next(model.tower.parameters()).device
    inputs = {name: value.to(device) for name, value in processor.picture_inputs(picture).items()}
    with (
        blaming(f"{path}: its vision tower cannot be used; take {CONFIG_FILE} from the base again"),
        torch.no_grad(),
    ):
        pictures = model.see_at_rest(inputs)
    tokens = len(pictures.tokens)
    wanted = int((processor.image_ids(picture) == model.pose_config.image_token_id).sum())
    if tokens != wanted:
        raise InputError(
            f"{path}: the tower makes {tokens} image tokens of a picture, and the processor puts {wanted} into a chat; copy "
            "the processor's files from the base that the checkpoint was trained on"
        )
    if pictures.pooled.shape[-1] != model.pose_config.pooled_size:
        raise InputError(
            f"{path}: pooled_size is {model.pose_config.pooled_size} in {POSE_CONFIG}, and a patch has "
            f"{pictures.pooled.shape[-1]} numbers; take {POSE_CONFIG} from the base again"
        )


def require_fit(
    model: LlavaPoseForConditionalGeneration, processor: LlavaPoseProcessor, path: str | os.PathLike[str]
) -> None:
    """Refuse a processor of another model: its tokens would mean something else, or nothing.

    Raises:
        InputError: their image or pose tokens are not the same.
    """
    config = model.pose_config
    remedy = "copy the processor's files from the base that the checkpoint was trained on"
    if config.pose_token_id != processor.pose_token_id:
        raise InputError(
            f"{path}: pose_token_id is {config.pose_token_id} in {POSE_CONFIG} and {processor.pose_token_id} in the "
            f"processor; {remedy}"
        )
    if config.image_token_id not in processor.image_ids(picture_to_try()):
        raise InputError(
            f"{path}: image_token_id is {config.image_token_id} in {POSE_CONFIG}, and no token of a picture in the "
            f"processor; {remedy}"
        )


def embedding_shape(backbone: PreTrainedModel) -> tuple[int, int]:
    """Rows of a backbone's vocabulary and numbers of a row, under ZeRO-3 too."""
    weight: Any = backbone.get_input_embeddings().weight
    rows, size = getattr(weight, "ds_shape", weight.shape)
    return int(rows), int(size)
