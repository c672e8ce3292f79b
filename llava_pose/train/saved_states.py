"""The saved states of optimiser and schedule, looked at before they are loaded.

torch loads whatever a file holds and believes it: an average of another shape than its weight, or one that names more numbers
than it has, ends a later step in a segmentation fault, and a learning rate in words in a traceback.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from llava_pose.model.checkpoint_files import read_json_object
from llava_pose.utils.files import is_regular

STATES = (OPTIMIZER_NAME, SCHEDULER_NAME)
# states that an optimiser keeps for each number of a weight; others, such as Adafactor's rows, have shapes of their own
_AS_THE_WEIGHT = frozenset(("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer"))
# of trainer_state.json
_NUMBERS = ("max_steps", "num_train_epochs", "logging_steps", "save_steps", "eval_steps", "total_flos", "epoch")


def damage_of_states(file: Path) -> str | None:
    """Return why a file of states cannot have been written by a run, whatever its model is, or None.

    Tensors must be all there, each number once, and finite.
    """
    return _damage(_read(file), "", set())


def _read(file: Path) -> Any:
    return torch.load(file, map_location="cpu", weights_only=True, mmap=True)


def _damage(value: Any, name: str, seen: set[int]) -> str | None:
    """``seen``: lists and dictionaries that were looked at, for one that is in another twice may have no end."""
    if isinstance(value, torch.Tensor):
        if value.layout != torch.strided or not _is_dense(value):
            return f"{name} is a tensor whose numbers are not all there"
        # minima and maxima of NaN are NaN, and need no memory of the tensor's size
        if value.is_floating_point() and value.numel() and not all(map(math.isfinite, torch.aminmax(value))):
            return f"{name} is not finite"
    elif isinstance(value, float):
        return f"{name} is not a number" if math.isnan(value) else None  # the best loss before the first is infinite
    elif isinstance(value, Mapping | list | tuple) and id(value) not in seen:
        seen.add(id(value))
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        reasons = (_damage(item, f"{name}.{str(key)[:80]}".lstrip("."), seen) for key, item in items)
        return next((reason for reason in reasons if reason is not None), None)
    return None


def _is_dense(tensor: torch.Tensor) -> bool:
    """Say whether each place of memory is one number of the tensor, in whatever order its dimensions lie."""
    order = sorted(range(tensor.dim()), key=lambda dim: (tensor.stride(dim), tensor.shape[dim]), reverse=True)
    return tensor.permute(order).is_contiguous()


def damage_of_trainer_state(file: Path) -> str | None:
    """Return which field of a trainer_state.json is of a wrong type, or None."""
    state = read_json_object(file, most=file.stat().st_size)  # the log of a long run is long
    for name in _NUMBERS:
        if not isinstance(state.get(name), int | float | None):
            return f"has a {name} that is no number"
    log = state.get("log_history") or []
    if not isinstance(log, list) or not all(isinstance(entry, dict) for entry in log):
        return "has a log_history that is no list of entries"
    return None


def require_fitting_states(
    checkpoint: Path, optimizer: torch.optim.Optimizer, scheduler: torch.optim.lr_scheduler.LRScheduler
) -> None:
    """Compare the states of a checkpoint with what they are to be loaded into. No number of a tensor is read.

    Raises:
        ValueError: naming the first that does not fit.
    """
    files = [checkpoint / name for name in STATES]
    if not all(map(is_regular, files)):  # DeepSpeed has its own
        return
    saved, schedule = map(_read, files)
    _require_alike(schedule, scheduler.state_dict(), SCHEDULER_NAME)
    fresh = optimizer.state_dict()["param_groups"]
    if not isinstance(saved, dict) or not isinstance(saved.get("state"), dict):
        raise ValueError(f"{OPTIMIZER_NAME} is no optimiser's")
    # a schedule has written the first learning rate into the groups that were saved
    groups = [{"initial_lr": 0.0, **group} for group in fresh]
    _require_alike(saved.get("param_groups"), groups, f"{OPTIMIZER_NAME}: param_groups")
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for key, state in saved["state"].items():
        if not isinstance(key, int) or not 0 <= key < len(weights) or not isinstance(state, dict):
            raise ValueError(f"{OPTIMIZER_NAME} has a state of the weight {key!r}, which does not train")
        if isinstance(optimizer, torch.optim.Adam) and state and not {"step", "exp_avg", "exp_avg_sq"} <= state.keys():
            raise ValueError(f"{OPTIMIZER_NAME} has no whole state of the weight {key}")
        for name, value in state.items():
            _require_state(f"{OPTIMIZER_NAME}: {name} of the weight {key}", name, value, weights[key])


def _require_state(where: str, name: str, value: Any, weight: torch.Tensor) -> None:
    if name in _AS_THE_WEIGHT:
        if not isinstance(value, torch.Tensor) or value.shape != weight.shape or not value.is_floating_point():
            raise ValueError(f"{where} is {_kind(value)}, and not numbers of the shape {tuple(weight.shape)}")
    elif name == "step":
        one = isinstance(value, torch.Tensor) and value.numel() == 1 and not value.is_complex()
        if not one and not isinstance(value, int | float):
            raise ValueError(f"{where} is {_kind(value)}, and not one number")


def _require_alike(saved: Any, fresh: Any, where: str) -> None:
    """Names, lengths and types; numbers and what is not set stand for each other."""
    if isinstance(fresh, dict):
        if not isinstance(saved, dict) or not saved.keys() <= fresh.keys():
            raise ValueError(f"{where} has other names than {', '.join(map(str, fresh))}")
        for name, value in fresh.items():
            # a flag that an earlier torch had not has its default
            if name in saved or not isinstance(value, bool | None):
                _require_alike(saved.get(name, ""), value, f"{where}.{name}")
    elif isinstance(fresh, list | tuple):
        if not isinstance(saved, list | tuple) or len(saved) != len(fresh):
            raise ValueError(f"{where} is no list of {len(fresh)}")
        for index, value in enumerate(fresh):
            _require_alike(saved[index], value, f"{where}[{index}]")
    elif fresh is None or isinstance(fresh, int | float):
        if not isinstance(saved, int | float | None):
            raise ValueError(f"{where} is {_kind(saved)}, and not a number")
    elif not isinstance(saved, type(fresh)):
        raise ValueError(f"{where} is {_kind(saved)}")


def _kind(value: Any) -> str:
    return (
        f"a tensor {tuple(value.shape)} of {value.dtype}"
        if isinstance(value, torch.Tensor)
        else f"of the type {type(value).__name__}"
    )
