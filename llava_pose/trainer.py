"""transformers' Trainer with what poses need: counts over the whole step, the terms in the log, checkpoints that are whole."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from llava_pose.collator import SAMPLE_NAMES
from llava_pose.config import write_json
from llava_pose.tuning import is_new_module

logger = logging.getLogger(__name__)
COMPLETE_MARK = "complete.json"


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite; the message names the samples of the batch."""


class PoseTrainer(Trainer):
    """Trainer for LLaVA-pose models."""

    def __init__(self, *args: Any, new_module_learning_rate: float | None = None, **kwargs: Any):
        """
        Args:
            new_module_learning_rate: for projector, pose head and encoder; None: that of the run.
        """
        super().__init__(*args, **kwargs)
        self.new_module_learning_rate = new_module_learning_rate
        self.model_accepts_loss_kwargs = True  # also behind PEFT, whose wrapper's signature does not say so
        self._terms: dict[str, list[torch.Tensor]] = {}

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, torch.Tensor | int | None]:
        """As Trainer's, and the number of poses in the step goes into each batch, as that of the tokens does."""
        batches, tokens = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches:
            poses = torch.tensor(float(sum(batch["pose_targets"].shape[0] for batch in batches)), device=device)
            if self.args.average_tokens_across_devices and self.args.world_size > 1:
                poses = self.accelerator.gather(poses).sum()
            for batch in batches:
                batch["num_poses_in_batch"] = poses.clamp_min(1.0)
        return batches, tokens

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The model's loss; one that is not finite stops the run.

        Raises:
            NonFiniteLossError: naming the samples.
        """
        names = inputs.pop(SAMPLE_NAMES, [])
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        if not torch.isfinite(loss):
            raise NonFiniteLossError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1} in a batch of {', '.join(names)}; "
                "lower the learning rate, or look at these samples with llava-pose inspect"
            )
        for name, value in outputs.loss_terms.items():
            self._terms.setdefault(name, []).append(value)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the unweighted terms of the loss: their sums over micro-batches are means over the step."""
        if "loss" in logs and self._terms:
            for name, values in self._terms.items():
                mean = torch.stack(values).mean() * self.args.gradient_accumulation_steps * self.args.world_size
                logs[f"loss_{name}"] = round(float(mean), 6)
            self._terms = {}
        super().log(logs, *args, **kwargs)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """As Trainer's, with a learning rate of their own for the new modules."""
        if self.optimizer is None and self.new_module_learning_rate is not None:
            source = self.model if model is None else model
            decayed = set(self.get_decay_parameter_names(source))
            groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
            for name, parameter in source.named_parameters():
                if parameter.requires_grad:
                    groups.setdefault((is_new_module(name), name in decayed), []).append(parameter)
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, source)
            self.optimizer = optimizer_class(
                [
                    {
                        "params": parameters,
                        "weight_decay": self.args.weight_decay if decay else 0.0,
                        "lr": self.new_module_learning_rate if new else self.args.learning_rate,
                    }
                    for (new, decay), parameters in sorted(groups.items(), key=lambda item: item[0])
                ],
                **options,
            )
        return super().create_optimizer(model)


class CompleteCheckpoints(TrainerCallback):
    """Marks a checkpoint whole once every process has written its part, so that a torn one is never resumed from."""

    def __init__(self, accelerator: Any):
        self._accelerator = accelerator

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._accelerator.wait_for_everyone()
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            write_json(folder / COMPLETE_MARK, {"step": state.global_step})


class LossHistory(TrainerCallback):
    """Keeps the log as log.jsonl beside the run, the same file whether or not the run was stopped in between."""

    def __init__(self, path: Path):
        self._path = path

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero or not logs or "loss" not in logs:
            return
        kept = [entry for entry in _read_log(self._path) if entry["step"] < state.global_step]
        lines = [*kept, {"step": state.global_step, **logs}]
        self._path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def _read_log(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            logger.warning(f"{path}: passed over a torn line")
    return entries


def last_complete_checkpoint(output_dir: Path) -> Path | None:
    """The newest checkpoint that was written whole; torn ones are removed."""
    complete: list[tuple[int, Path]] = []
    for folder in sorted(output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*")):
        step = folder.name.rpartition("-")[2]
        if not step.isdigit():
            continue
        if (folder / COMPLETE_MARK).is_file():
            complete.append((int(step), folder))
        else:
            logger.warning(f"{folder}: was not written to its end; removed")
            shutil.rmtree(folder)
    return max(complete)[1] if complete else None
