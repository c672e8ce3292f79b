"""A checkpoint's files, looked at before anything is built of them: they are somebody else's.

No code of a checkpoint runs: its files are JSON, text and safetensors, ``trust_remote_code`` is always False, and pickles
are passed by. A ``config.json`` can still ask for a network of any size; :func:`bounded_by_weights` lets none grow past the
weights that are there to fill it.
"""

from __future__ import annotations

import codecs
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)
from transformers import PreTrainedConfig

from llava_pose.data.jsonl import parse_json
from llava_pose.errors import InputError
from llava_pose.model.rotation import DECODING
from llava_pose.utils.files import (
    file_digest,
    is_regular,
    read_bytes,
    read_text,
    shortened,
    unsafe_name,
    weights_digest,
)

CONFIG_FILE = "config.json"
ADAPTER_CONFIG = "adapter_config.json"
CALIBRATION = "calibration.json"
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")  # NAME or OWNER/NAME; whatever else is not there is a path
WEIGHTS_FILE, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
# what every call of from_pretrained is given
NO_CODE: dict[str, Any] = {"trust_remote_code": False}
SAFE: dict[str, Any] = {**NO_CODE, "use_safetensors": True}
# fields of any model's config that say how large or how many weights are; each is a whole number or a list of such
_SIZES = frozenset(
    (
        *("hidden_size", "hidden_sizes", "embed_dim", "embedding_size", "intermediate_size", "vocab_size"),
        *("num_hidden_layers", "num_layers", "depths", "num_attention_heads", "num_key_value_heads", "num_heads"),
        *("head_dim", "num_channels", "patch_size", "image_size", "pose_head_hidden_size", "vision_feature_size"),
        *("pose_head_attention_heads",),
        *("vision_merge", "head_hidden_size", "feature_size", "vertices", "poses", "dims", "clutter_size"),
    )
)
_LONGEST_HEADER = 100_000_000  # bytes, as safetensors has it
_MOST_LABELS = 100_000  # each is given a name as the config is read
# fields that would have others' code fetched, or another network built than this one; llava-pose writes none of them
_ONLY: dict[str, tuple[Any, ...]] = {
    "attn_implementation": (None, "eager", "sdpa"),  # any other can be a kernel from the hub
    "experts_implementation": (None, "eager"),
    "quantization_config": (None,),
    "is_encoder_decoder": (None, False),
}
_SPARE_TENSORS, _SPARE_ELEMENTS = 10_000, 100_000_000  # of modules that a checkpoint need not hold
MOST_BYTES = 1 << 26  # of a file that is not weights, and is read whole: 64 MiB; the largest tokenizers have 35
# what transformers, tokenizers and PEFT read whole; what is not among them they do not open, or read as weights
_READ_WHOLE = frozenset((".json", ".jinja", ".txt", ".model", ".bpe", ".vocab", ".tiktoken", ".spm"))
TRAINER_STATE = "trainer_state.json"
_OBJECTS = (
    *("config.json", "generation_config.json", "tokenizer_config.json", "processor_config.json"),
    *("preprocessor_config.json", "special_tokens_map.json", "added_tokens.json", "adapter_config.json"),
)


@dataclass(frozen=True)
class StoredWeights:
    """The amount of a folder's weights.

    Attributes:
        size: bytes of all files.
        tensors: how many there are.
    """

    size: int
    tensors: int


@contextmanager
def blaming(what: str) -> Iterator[None]:
    """Turn whatever goes wrong, while others' code reads others' files, into a sentence that begins with ``what``.

    tokenizers, PEFT and transformers raise errors of any kind at a file that is not right.

    Args:
        what: the folder or the option, and after a colon what cannot be done.

    Raises:
        InputError: something went wrong.
    """
    try:
        yield
    except InputError as error:
        if str(error).startswith(what.partition(":")[0]):
            raise
        raise InputError(f"{what} ({error})") from error
    except Exception as error:
        raise InputError(f"{what} ({first_sentence(error)})") from error


def first_sentence(error: BaseException) -> str:
    """An exception's message on one line, cut to what fits into another."""
    text = " ".join(str(error).split())
    if "trust_remote_code" in text:
        return "it wants to run Python code that it brings along, and no checkpoint's code is run here"
    if "Weights only load failed" in text:  # torch goes on to say how the file can be run none the less
        return "it is a pickle of more than weights, or a damaged one, and no pickle's code is run here"
    return text[:200] or type(error).__name__


def read_json_object(path: Path, *, most: int = MOST_BYTES) -> dict[str, Any]:
    """The object in a JSON file of a checkpoint.

    Raises:
        InputError: the file cannot be read, or holds something else.
    """
    text = read_text(path, remedy="is this a whole checkpoint?", most=most)
    try:
        value = parse_json(text)
    except ValueError as error:
        raise InputError(f"{path}: cannot be read, for it is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: must hold a JSON object, not {shortened(str(value))}; is this a checkpoint's?")
    return value


def require_small_files(folder: Path) -> None:
    """Refuse files of a checkpoint that are read whole and have more than :data:`MOST_BYTES`, for a sparse one costs nothing,
    and pipes and devices under their names, which may have no end.

    Raises:
        InputError: naming the first.
    """
    for file in sorted((*folder.iterdir(), *folder.glob("additional_chat_templates/*"))):
        if file.name == TRAINER_STATE:  # of a run, whose log may be as long as it likes; nothing is loaded of it
            continue
        if file.suffix not in _READ_WHOLE or file.is_dir() or not file.exists():
            continue
        if not is_regular(file):
            raise InputError(f"{file}: is not a regular file; take it from its source again")
        if file.stat().st_size > MOST_BYTES:
            raise InputError(
                f"{file}: has more than {MOST_BYTES >> 20} MiB, which no such file of a checkpoint needs; take it from its "
                "source again"
            )


def require_objects(folder: Path) -> None:
    """Refuse JSON files of a checkpoint that transformers reads and that hold no object, or lead it to another file.

    Raises:
        InputError: naming the first.
    """
    for file in (folder / name for name in _OBJECTS):
        if not is_regular(file):
            continue
        values = read_json_object(file)
        if read_bytes(file, most=MOST_BYTES).startswith(codecs.BOM_UTF8):
            raise InputError(f"{file}: begins with a byte order mark, which transformers refuses; save it without one")
        if values.get("gguf_file") is not None:  # opened wherever it is; the other names of files are not believed
            raise InputError(f"{file}: gguf_file names another file to read; take it out")


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The config of a checkpoint (folder or hub id) as JSON, its sizes checked; nothing is built of it.

    Raises:
        InputError: there is none, or a size is no whole number, negative or more than the folder's weights can fill.
    """
    folder = Path(path)
    if folder.is_dir():
        file = folder / CONFIG_FILE
        most: float
        if (folder / ADAPTER_CONFIG).exists():
            raise InputError(f"{path}: holds an adapter, not a whole model; make one of it with llava-pose merge")
        values, most = read_json_object(file), stored_weights(folder).size
    else:
        if not _HUB_ID.fullmatch(os.fspath(path)):
            raise InputError(f"{path}: cannot load the model (there is no such folder); check the path")
        with blaming(f"{path}: cannot load the model"):
            values, most = PreTrainedConfig.get_config_dict(path)[0], math.inf
        file = Path(path, CONFIG_FILE)
    if not isinstance(values.get("model_type"), str):
        raise InputError(f"{file}: names no model_type; is this a checkpoint's?")
    if values.get("transformers_weights") not in (None, WEIGHTS_FILE, WEIGHTS_INDEX):
        raise InputError(f"{file}: transformers_weights names another file of weights than {WEIGHTS_FILE}; take it out")
    _require_fields(values, str(file), "", most)
    return values


def _require_fields(values: Mapping[str, Any], file: str, above: str, most: float) -> None:
    for key, value in values.items():
        name = f"{above}{key}"
        allowed = _ONLY.get(key.removeprefix("_").removesuffix("_internal"))
        if allowed is not None and value not in allowed:
            raise InputError(
                f"{file}: {name} is {shortened(str(value))}, which cannot be used here; give another model"
            )
        if key == "num_labels" and not (value is None or (isinstance(value, int) and value <= _MOST_LABELS)):
            raise InputError(
                f"{file}: {name} is {shortened(str(value))}, not a whole number up to {_MOST_LABELS}; take it out"
            )
        if key == "max_position_embeddings" and not (value is None or isinstance(value, int)):
            raise InputError(
                f"{file}: {name} is {shortened(str(value))}, not a whole number; take the model from its source again"
            )
        if isinstance(value, dict):
            _require_fields(value, file, f"{name}.", most)
        elif key in _SIZES and value is not None:
            for number in value if isinstance(value, list) else [value]:
                if not isinstance(number, int) or isinstance(number, bool) or number < 0:
                    raise InputError(
                        f"{file}: {name} is {shortened(str(number))}, not a whole number; take the model from its source again"
                    )
                if number > most:
                    raise InputError(
                        f"{file}: {name} is {number}, more than the weights beside it can fill; take the model from its "
                        "source again"
                    )


def stored_weights(folder: Path) -> StoredWeights:
    """Return how much the safetensors files of a folder hold, by their headers.

    Raises:
        InputError: there are none, one cannot be read, or the index leads out of the folder.
    """
    files = [folder / WEIGHTS_FILE]
    index = folder / WEIGHTS_INDEX
    if not is_regular(files[0]):
        if not is_regular(index):
            pickles = any(folder.glob("*.bin"))
            why = "; weights in pickles (*.bin) are not read, convert them to safetensors" if pickles else ""
            raise InputError(f"{folder}: cannot load the model (no {WEIGHTS_FILE} is in it{why})")
        files = [folder / name for name in _names_in(index)]
    tensors = 0
    for file in files:
        if not is_regular(file):
            raise InputError(f"{file}: no such file; the checkpoint is incomplete")
        tensors += len(stored_shapes(file))
    return StoredWeights(sum(file.stat().st_size for file in files), tensors)


def _names_in(index: Path) -> list[str]:
    """The files that an index of weights names, each in the index's folder."""
    places = read_json_object(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise InputError(f"{index}: has no weight_map; the checkpoint is incomplete")
    names = set()
    for name in places.values():
        reason = unsafe_name(name) if isinstance(name, str) else "is no text"
        if reason is not None:
            raise InputError(
                f"{index}: the file name {shortened(str(name))} {reason}; take the model from its source again"
            )
        names.add(name)
    return sorted(names)


def stored_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights in a safetensors file, by its header alone.

    Raises:
        InputError: the file is not there, or is not whole.
    """
    try:
        with safe_open(file, framework="pt") as weights:
            return {key: tuple(weights.get_slice(key).get_shape()) for key in weights.keys()}  # noqa: SIM118
    except (OSError, RuntimeError, MemoryError, SafetensorError) as error:
        # safetensors maps the file whole, for which a process with limits may have no addresses (llava_pose.model.trial)
        if isinstance(error, MemoryError) or "memory" in str(error):
            shapes = _shapes_of_header(file)
            if shapes is not None:
                return shapes
        raise InputError(f"{file}: cannot be read ({first_sentence(error)}); is the file whole?") from error


def _shapes_of_header(file: Path) -> dict[str, tuple[int, ...]] | None:
    """Return names and shapes without mapping the file; None where its header and its size do not agree."""
    with (
        suppress(OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError),
        file.open("rb") as opened,
    ):
        length = int.from_bytes(opened.read(8), "little")
        if length > _LONGEST_HEADER:
            return None
        header = json.loads(opened.read(length))
        header.pop("__metadata__", None)
        end = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
        if file.stat().st_size == 8 + length + end:
            return {name: tuple(map(int, tensor["shape"])) for name, tensor in header.items()}
    return None


def settings_of_checkpoint(checkpoint: str, base: str | None) -> dict[str, Any]:
    """Return what of a checkpoint decides an answer, as the settings of an output hold it.

    Args:
        checkpoint: a folder or a hub id.
        base: the base of an adapter, if it has moved.
    """
    folder = Path(checkpoint)
    return {
        "checkpoint": str(folder.resolve()) if folder.exists() else checkpoint,
        "base": base,
        "decoding": DECODING,
        "weights_digest": weights_digest(folder),
        "base_digest": _base_digest(folder, base),
        # only where there is one: an output of a checkpoint that was never calibrated is gone on with
        **({"calibration_digest": file_digest(folder / CALIBRATION)} if (folder / CALIBRATION).is_file() else {}),
    }


def _base_digest(checkpoint: Path, base: str | None) -> str | None:
    """Return the digest of the base of an adapter, where it is a folder; None otherwise."""
    adapter = checkpoint / ADAPTER_CONFIG
    if not adapter.is_file():
        return None
    try:
        return weights_digest(Path(base or read_json_object(adapter)["base_model_name_or_path"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None  # loading it says what is wrong


@contextmanager
def bounded_by_weights(path: str | os.PathLike[str]) -> Iterator[None]:
    """While it lasts, no network grows past what the folder's weights can fill: a config must not cost memory or minutes.

    transformers builds on the meta device first, where a weight has a size and takes no memory; it is stopped there. A hub
    id has no weights to compare with yet, and is not bounded.

    Raises:
        InputError: the network that the config describes is larger than its weights.
    """
    if not Path(path).is_dir():
        yield
        return
    stored = stored_weights(Path(path))
    tensors = elements = 0

    def count(module: nn.Module, name: str, value: torch.Tensor | None) -> None:
        nonlocal tensors, elements
        if value is None or not value.is_meta:
            return
        tensors, elements = tensors + 1, elements + value.numel()
        # a stored byte is at most two weights, of four bits each
        if tensors > 2 * stored.tensors + _SPARE_TENSORS or elements > 2 * stored.size + _SPARE_ELEMENTS:
            raise InputError(
                f"{path}: {CONFIG_FILE} describes a larger model than its {stored.tensors} weights fill; take the model "
                "from its source again"
            )

    hooks = [register_module_parameter_registration_hook(count), register_module_buffer_registration_hook(count)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def require_finite(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    only: str = "",
    remedy: str = "train again with a lower learning rate, or take an older checkpoint",
) -> None:
    """Refuse weights that are no numbers: whatever they touch is none either.

    Args:
        only: weights with this in their names.

    Raises:
        InputError: naming the first.
    """
    for name, weight in model.state_dict().items():
        if only in name and weight.is_floating_point() and weight.numel():
            least, most = torch.aminmax(weight)  # one pass; NaN comes through
            if not (math.isfinite(least) and math.isfinite(most)):
                raise InputError(f"{path}: the weight {name} is not finite; {remedy}")
