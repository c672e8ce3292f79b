"""Load a checkpoint folder, strictly: every weight the model needs is in it, and none is left over."""

from __future__ import annotations

import os
import string
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import nn
from transformers import AutoImageProcessor

from llava_pose.data.conversation import IMAGE_TOKEN, POSE_ANSWER, POSE_QUESTIONS, POSE_TOKEN
from llava_pose.errors import InputError
from llava_pose.model.checkpoint_files import (
    ADAPTER_CONFIG,
    CONFIG_FILE,
    NO_CODE,
    SAFE,
    building,
    loading,
    read_config,
    read_json_object,
    require_finite,
    stored_shapes,
)
from llava_pose.model.configuration import LlavaPoseConfig
from llava_pose.model.modeling import LlavaPoseForConditionalGeneration
from llava_pose.model.processing import CHAT_TEMPLATES, LlavaPoseProcessor
from llava_pose.model.trial import on_meta, try_apart
from llava_pose.utils.files import is_regular, shortened

ADAPTER_WEIGHTS = "adapter_model.safetensors"
MAX_INPUT_SIDE = 4096  # pixels of a tower's input
MAX_IMAGE_TOKENS = 65536
MAX_GROWTH = 100  # tokens that a tokenizer makes of a letter, or letters that it makes of the tokens of one
# all that llava-pose train sets of a LoRA, and what changes its arithmetic and no more; the rest must be as PEFT has it
_LORA_FIELDS = frozenset(
    (
        *("r", "lora_alpha", "lora_dropout", "target_modules", "modules_to_save", "task_type", "inference_mode"),
        *("base_model_name_or_path", "revision", "peft_version", "use_rslora", "use_dora"),
    )
)


def load_processor(path: str | os.PathLike[str]) -> LlavaPoseProcessor:
    """The processor of a base or checkpoint (folder or hub id), tried on a picture and a question.

    Raises:
        InputError: there is none, its sizes are out of bounds, or its chat template is not one of llava-pose assemble's.
    """
    try_apart(path, "tokenizer.json and processor_config.json", lambda: _processor(path))
    return _processor(path)


def _processor(path: str | os.PathLike[str]) -> LlavaPoseProcessor:
    with loading(f"{path}: no LLaVA-pose processor there"):
        processor = LlavaPoseProcessor.from_pretrained(path, **NO_CODE)
    # a template is a program: one that is not known may never end
    if processor.chat_template not in CHAT_TEMPLATES.values():
        raise InputError(
            f"{path}: chat_template.jinja is not one of llava-pose assemble's ({', '.join(CHAT_TEMPLATES)}); copy that of "
            "the base that the checkpoint was trained on"
        )
    with loading(f"{path}: the processor cannot be used; take its files from the base again"):
        _try(processor)
    return processor


def _try(processor: LlavaPoseProcessor) -> None:
    for name, least in (("patch_size", 1), ("vision_merge", 1), ("num_additional_image_tokens", 0)):
        number = getattr(processor, name)
        if not isinstance(number, int) or not least <= number <= MAX_INPUT_SIDE:
            raise ValueError(f"{name} is {shortened(str(number))}")
    if not all(0 < side <= MAX_INPUT_SIDE for side in processor.image_size):
        raise ValueError(f"the size of a picture is {processor.image_size}, not between 1 and {MAX_INPUT_SIDE} pixels")
    if not 0 < processor.count_image_tokens(*processor.image_size) <= MAX_IMAGE_TOKENS:
        raise ValueError("the size of a picture, patch_size and vision_merge do not fit each other")
    pixels = processor.image_processor([picture_to_try()], return_tensors="pt")["pixel_values"]
    if pixels.shape != (1, 3, *processor.image_size) or not torch.isfinite(pixels).all():
        raise ValueError(
            f"the image processor makes {tuple(pixels.shape)} numbers of a picture, or some that are not finite"
        )
    words = {"object": "object", "pose": POSE_TOKEN}
    processor.encode_chat(
        [
            {"role": "user", "content": f"{IMAGE_TOKEN}\n{POSE_QUESTIONS[0].format(**words)}"},
            {"role": "assistant", "content": POSE_ANSWER.format(**words)},
        ]
    )
    try_text(processor.tokenizer)


def try_text(tokenizer: Any) -> None:
    """Tokenise a text of every plain letter and sign, and turn the tokens into text again.

    Raises:
        ValueError: they become far more tokens, or far more text, than they are.
    """
    letters = f"{string.ascii_letters} {string.digits} {string.punctuation}"
    ids = tokenizer(letters, add_special_tokens=True)["input_ids"]
    text = tokenizer.decode(ids)
    if max(len(ids), len(text)) > MAX_GROWTH * len(letters):
        raise ValueError(f"it makes {len(ids)} tokens of {len(letters)} letters, and {len(text)} letters of these")


def load_image_processor(path: str | os.PathLike[str]) -> Any:
    """The image processor of a vision model, tried on a picture.

    Raises:
        InputError: it makes nothing of the picture, or takes more memory or time for it than any does.
    """

    def attempt() -> None:
        with loading(f"{path}: its image processor cannot be used"):
            AutoImageProcessor.from_pretrained(path, **NO_CODE)([picture_to_try()], return_tensors="pt")

    try_apart(path, "preprocessor_config.json", attempt)
    return AutoImageProcessor.from_pretrained(path, **NO_CODE)


def picture_to_try() -> Image.Image:
    """A small picture of one colour."""
    return Image.new("RGB", (8, 8), (90, 120, 150))


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


def load_full(
    path: str | os.PathLike[str], *, dtype: torch.dtype | str = "auto", **kwargs: Any
) -> LlavaPoseForConditionalGeneration:
    """A model that is whole in one folder.

    Raises:
        InputError: it cannot be read, or weights are missing, left over, of another shape or not finite.
    """
    try_apart(path, CONFIG_FILE, lambda: _built(path))
    _require_ours(path)
    with loading(f"{path}: cannot load the model"), building(path):
        # mismatched sizes are "ignored" so that they are listed, and refused by name below
        loaded: Any = LlavaPoseForConditionalGeneration.from_pretrained(
            path, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, **SAFE, **kwargs
        )
    model, info = loaded
    require_complete(info, path)
    require_finite(model, path)
    _require_layers(model.config, path)
    return model


def _built(path: str | os.PathLike[str]) -> nn.Module:
    """The model without its weights."""
    _require_ours(path)
    return on_meta(path, LlavaPoseForConditionalGeneration)


def _require_ours(path: str | os.PathLike[str]) -> None:
    # not by AutoConfig, which knows the types of other systems only where their modules have been imported
    values = read_config(path)
    found = values["model_type"]
    if found != LlavaPoseConfig.model_type:  # transformers would build a model of its default size, of billions
        raise InputError(
            f"{path}: a {found} model, not a llava_pose one; give a checkpoint of llava-pose train, or make "
            "a base with llava-pose assemble"
        )
    for part in ("text_config", "vision_config"):
        kind = values[part].get("model_type") if isinstance(values.get(part), dict) else None
        if not isinstance(kind, str) or kind == found:  # one within the other would have no end
            raise InputError(f"{path}: {CONFIG_FILE} has no {part} with a model_type; take it from the base again")


def _require_layers(config: LlavaPoseConfig, path: str | os.PathLike[str]) -> None:
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
    with loading(f"{file}: cannot be read"):
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


def _load_adapter(
    folder: Path, base: str | os.PathLike[str] | None, dtype: torch.dtype | str, kwargs: dict[str, Any]
) -> nn.Module:
    from peft import PeftModelForCausalLM, get_peft_model_state_dict

    try_apart(folder, ADAPTER_CONFIG, lambda: _adapt(folder, base))
    config = read_adapter_config(folder)
    base = base_of(folder, config, base)
    weights = folder / ADAPTER_WEIGHTS
    if not is_regular(weights):
        raise InputError(f"{weights}: no such file; the checkpoint is incomplete")
    stored = stored_shapes(weights)
    ranks = {shape[0] for key, shape in stored.items() if ".lora_A." in key}
    if ranks and ranks != {config.r}:  # before PEFT makes weights of that rank
        raise InputError(f"{folder / ADAPTER_CONFIG}: r is {config.r}, and the rank of the weights {max(ranks)}")
    full = load_full(base, dtype=dtype, **kwargs)
    with loading(f"{folder}: the adapter does not fit its base {base}"):  # nothing is there of what it adapts, say
        model = PeftModelForCausalLM(full, config)
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
    with loading(f"{weights}: cannot be loaded"):
        model.load_adapter(folder, "default")
    require_finite(model, weights, only=".default")
    return model


def _adapt(folder: Path, base: str | os.PathLike[str] | None) -> None:
    """Put the adapter's layers into its base, all without weights: its targets are patterns, which may never match."""
    from peft import PeftModelForCausalLM

    config = read_adapter_config(folder)
    base = base_of(folder, config, base)
    if Path(base).is_dir():
        PeftModelForCausalLM(cast(Any, _built(base)), config, low_cpu_mem_usage=True)


def require_tower(model: nn.Module, processor: LlavaPoseProcessor, path: str | os.PathLike[str]) -> None:
    """Show a picture to the tower: what it gives must be as many image tokens as the processor puts into a chat.

    Raises:
        InputError: it gives another number, or cannot look at it.
    """
    inner = unwrap_model(model)
    pixels = processor.image_processor([picture_to_try()], return_tensors="pt")["pixel_values"]
    with (
        loading(f"{path}: its vision tower cannot be used; take {CONFIG_FILE} from the base again"),
        torch.no_grad(),
    ):
        tower = inner.model.vision_tower
        patches = inner.model.extract_patches(pixels.to(tower.device, tower.dtype), at_rest=True)
        tokens = inner.model.multi_modal_projector(patches).shape[1]
    wanted = processor.count_image_tokens(*processor.image_size)
    if tokens != wanted:
        raise InputError(
            f"{path}: the tower makes {tokens} image tokens of a picture, and the processor counts {wanted} by its patch_size "
            "and vision_merge; copy the processor's files from the base that the checkpoint was trained on"
        )


def require_fit(model: nn.Module, processor: LlavaPoseProcessor, path: str | os.PathLike[str]) -> None:
    """Refuse a processor of another model: its tokens would mean something else, or nothing.

    Raises:
        InputError: their image or pose tokens are not the same, or not of the vocabulary.
    """
    config = unwrap_model(model).config
    for name in ("image_token_id", "pose_token_id"):
        ours, theirs = getattr(config, name), getattr(processor, name)
        if ours != theirs or not 0 <= theirs < config.text_config.vocab_size:
            raise InputError(
                f"{path}: {name} is {shortened(str(ours))} in the model's config and {theirs} in the processor; copy the "
                "processor's files from the base that the checkpoint was trained on"
            )


def unwrap_model(model: nn.Module) -> LlavaPoseForConditionalGeneration:
    """The LLaVA-pose model itself, whether or not an adapter is wrapped round it."""
    inner: Any = model
    while not isinstance(inner, LlavaPoseForConditionalGeneration):
        inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner.module
    return inner
