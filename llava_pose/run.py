"""What every training run has, whatever it trains: settings that must hold, how they are written down, and where it goes on."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from llava_pose.config import require_seed
from llava_pose.errors import InputError


@dataclass
class RunConfig(TrainingArguments):
    """transformers' TrainingArguments with the defaults that all runs share."""

    output_dir: str | None = field(default=None, metadata={"help": "checkpoints, the log and the result go there"})
    resume: bool = field(default=True, metadata={"help": "go on from the last whole checkpoint in output_dir"})
    save_total_limit: int | None = field(default=2, metadata={"help": "checkpoints kept"})
    report_to: str = field(default="none", metadata={"help": "tensorboard, wandb, …"})
    remove_unused_columns: bool = field(default=False, metadata={"help": "must stay false"})
    use_cpu: bool = field(default=False, metadata={"help": "leave a GPU alone; without one it is always so"})
    disable_tqdm: bool = field(default=False, metadata={"help": "no progress bar"})

    def __post_init__(self) -> None:
        if self.remove_unused_columns:
            raise InputError(
                "remove_unused_columns: must stay false, or samples reach the collator without their names"
            )
        if self.save_total_limit is not None and self.save_total_limit < 2:
            raise InputError(
                "save_total_limit: must be at least 2; the one before is deleted before the new one is whole"
            )
        for name in ("per_device_train_batch_size", "gradient_accumulation_steps"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: must be at least 1, not {getattr(self, name)}")
        if not 0 <= self.learning_rate < math.inf:
            raise InputError(f"learning_rate: must be a number that is not negative, not {self.learning_rate}")
        if self.max_steps <= 0 and not 0 < self.num_train_epochs < math.inf:
            raise InputError(f"num_train_epochs: must be over 0, not {self.num_train_epochs}, or max_steps given")
        require_seed(self.seed)
        if self.output_dir and Path(self.output_dir).is_file():
            raise InputError(f"--output_dir {self.output_dir}: is a file; give a folder")
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        self.dataloader_pin_memory = self.dataloader_pin_memory and not self.use_cpu
        super().__post_init__()

    def require(self, *options: str) -> None:
        """Check options that have no default; each is named in the error as it is spelt here.

        Raises:
            InputError: one is not given.
        """
        for option in options:
            if not getattr(self, option.replace("-", "_")):
                raise InputError(f"the option --{option} is needed; see --help")

    def resolved(self) -> dict[str, Any]:
        """What this run is: every field of ours, and each of TrainingArguments' that differs from its default."""
        ours = {name for kind in type(self).__mro__ if issubclass(kind, RunConfig) for name in kind.__annotations__}
        reference = {f.name: f.default for f in dataclasses.fields(TrainingArguments)}
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.init}
        if isinstance(self.report_to, list):  # TrainingArguments made it of the one word that a recipe has
            values["report_to"] = {0: "none", 1: "".join(self.report_to)}.get(len(self.report_to), "all")
        return {
            name: str(value) if isinstance(value, Path) else value
            for name, value in values.items()
            if name in ours or (name in reference and value != reference[name] and _is_plain(value))
        }


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float | bool | list | dict)
