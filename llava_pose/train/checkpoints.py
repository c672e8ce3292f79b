"""Checkpoints of a run that goes on: marked whole only when they are on the disk, and looked at before one is trusted."""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any, cast

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import safe_globals
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from llava_pose.errors import InputError
from llava_pose.model.checkpoint_files import TRAINER_STATE, blaming, read_json_object, stored_shapes
from llava_pose.train.saved_states import STATES, damage_of_states, damage_of_trainer_state
from llava_pose.utils.distributed import sum_over_processes
from llava_pose.utils.files import is_regular, sync_folder, unsafe_name, write_json

logger = logging.getLogger(__name__)
COMPLETE_MARK = "complete.json"  # in a checkpoint, once it is whole
SET_ASIDE = "damaged-"  # what the name of a damaged checkpoint begins with
_NEVER_READ = "training_args.bin"  # a pickle that transformers writes, and nothing reads
# what DeepSpeed's states name beside tensors; it reads them without torch's restrictions
_OF_DEEPSPEED = frozenset(
    (
        "deepspeed.runtime.fp16.loss_scaler.LossScaler",
        "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
        "deepspeed.runtime.zero.config.ZeroStageEnum",
        "deepspeed.utils.tensor_fragment.fragment_address",
    )
)


class CompleteCheckpoints(TrainerCallback):
    """Marks a checkpoint whole once every process has written its part and it is on the disk, so that a torn one is never
    resumed from. The mark names every file and its size.
    """

    def __init__(self, accelerator: Any):
        self._accelerator = accelerator

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # a run that is stopped on its way loses nothing, whoever stops it and however seldom it saves
        control.should_save |= control.should_training_stop and state.global_step < state.max_steps
        # what has been summed up for the log is in no checkpoint: log it before, or a resumed run would log other means
        # (an evaluation has the losses before it for the same reason: the next line begins after both)
        control.should_log |= control.should_save or control.should_evaluate

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        folder = Path(cast(str, args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        self._accelerator.wait_for_everyone()
        if state.is_local_process_zero:  # of each machine: a file is in the memory of the one that wrote it
            sync_folder(folder)
        self._accelerator.wait_for_everyone()
        if state.is_world_process_zero:
            write_json(folder / COMPLETE_MARK, {"step": state.global_step, "files": _sizes(folder)})


class StopAtSignal(TrainerCallback):
    """Stops a run after the step in which SIGTERM comes, as a cluster sends it before it takes a machine away.

    All processes stop after the same step, also where the signal reaches only one of them.
    """

    def __init__(self) -> None:
        self._asked = False
        self._handler_before: Any = signal.SIG_DFL

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._handler_before = signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, *_: Any) -> None:
        self._asked = True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        asked = sum_over_processes(torch.tensor(float(self._asked), device=args.device))
        control.should_training_stop |= bool(asked > 0)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        signal.signal(signal.SIGTERM, self._handler_before)


def _sizes(folder: Path) -> dict[str, int]:
    """The size of every file under a folder, by its path from there."""
    paths = (Path(root, name) for root, _, names in os.walk(folder) for name in names)
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}
    return {name: size for name, size in sorted(sizes.items()) if name != COMPLETE_MARK}


def checkpoint_folders(output_dir: Path) -> list[Path]:
    """Return the checkpoints that a run has written: real folders named checkpoint-N, and nothing that a user put beside."""
    named = output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
    pattern = rf"{PREFIX_CHECKPOINT_DIR}-[0-9]+"
    return [path for path in named if re.fullmatch(pattern, path.name) and path.is_dir() and not path.is_symlink()]


def last_complete_checkpoint(output_dir: Path) -> Path | None:
    """The newest checkpoint that is whole. Torn ones are removed; those that are marked whole and are not any more are set
    aside under another name, so that they are neither taken again nor counted among those that are kept.
    """
    steps = {int(folder.name.rpartition("-")[2]): folder for folder in checkpoint_folders(output_dir)}
    for step, folder in sorted(steps.items(), reverse=True):
        if not (folder / COMPLETE_MARK).is_file():
            logger.warning(f"{folder}: was not written to its end; removed")
            shutil.rmtree(folder)
        elif (reason := damage_of(folder, step)) is not None:
            aside = folder.with_name(f"{SET_ASIDE}{folder.name}")
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
            logger.warning(f"{folder}: is damaged ({reason}); set aside as {aside.name}, and not gone on from")
        else:
            return folder
    if steps:
        logger.warning(f"{output_dir}: no checkpoint in it is whole; the run starts over")
    return None


def damage_of(folder: Path, step: int) -> str | None:
    """Return why a checkpoint that is marked whole cannot be gone on from, or None if it can.

    Nothing of it is run, and no weight is read: sizes are compared with the mark's, headers are opened, pickles may name
    only what torch and DeepSpeed write, and the states of optimiser and schedule must be finite numbers.
    """
    try:
        with blaming("it cannot be read"):
            return _damage(folder, step)
    except InputError as error:
        return f"{error}"


def _damage(folder: Path, step: int) -> str | None:
    for root, folders, names in os.walk(folder):
        for path in (Path(root, name) for name in (*folders, *names)):
            # a link could lead to files that are looked at by nobody here, and a FIFO would block whoever reads it
            if path.is_symlink() or not (path.is_dir() or is_regular(path)):
                return f"{path.relative_to(folder)} is no regular file"
    there = _sizes(folder)
    for name, size in read_json_object(folder / COMPLETE_MARK).get("files", {}).items():
        if there.get(name) != size:
            has = f"has {there[name]} bytes instead of {size}" if name in there else "is missing"
            return f"{name} {has}"
    if not any(name.endswith(".safetensors") for name in there):
        return "it has no weights"
    if TrainerState.load_from_json(str(folder / TRAINER_STATE)).global_step != step:
        return f"{TRAINER_STATE} is of another step"
    reasons = ((name, _damage_of_file(folder / name)) for name in there)
    return next((f"{name} {reason}" for name, reason in reasons if reason is not None), None)


def _damage_of_file(path: Path) -> str | None:
    if path.suffix == ".safetensors":
        stored_shapes(path)
    elif path.name == "latest":  # DeepSpeed's, names a folder of states beside it
        name = path.read_text(encoding="utf-8").strip()
        return "leads out of its folder" if unsafe_name(name) or "/" in name else None
    elif path.name == TRAINER_STATE:
        return damage_of_trainer_state(path)
    elif path.suffix in (".pt", ".pth", ".bin") and path.name != _NEVER_READ:
        with safe_globals():  # numpy's arrays, of random states
            strange = set(torch.serialization.get_unsafe_globals_in_checkpoint(path)) - _OF_DEEPSPEED
        if strange:
            return f"wants to run {min(strange)}"
        if path.name in STATES and (reason := damage_of_states(path)) is not None:
            return f"is damaged, for {reason}"
    return None
