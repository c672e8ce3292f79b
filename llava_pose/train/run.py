"""What every training run has, whatever it trains: settings that must hold, how they are written down, and where it goes on."""

from __future__ import annotations

import dataclasses
import functools
import math
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import TrainingArguments

from llava_pose.data.records import METADATA_FILE
from llava_pose.errors import InputError
from llava_pose.utils.config import as_written, read_yaml, require_seed
from llava_pose.utils.distributed import leave_at_exit
from llava_pose.utils.files import file_digest, sync_folder, write_json

TRAINED_ON = "trained_on.json"  # in output_dir: the digest of the file of samples that a run was begun with
DONE_MARK = "training_done.json"  # in output_dir, once the run has ended
COMPLETE_MARK = "complete.json"  # in a checkpoint, once it is whole
# what may change between a run and its going on: where it is, how it is watched, and what does not touch the weights
MAY_DIFFER = frozenset(
    [
        "output_dir",
        "resume",
        "report_to",
        "run_name",
        "project",
        "disable_tqdm",
        "use_cpu",
        "cache_dir",
        "cache_features",
        "system",
        "ddp_find_unused_parameters",
        "ddp_timeout",
        "ddp_backend",
        "local_rank",
        "dataloader_num_workers",
        "dataloader_pin_memory",
        "dataloader_persistent_workers",
        "dataloader_prefetch_factor",
    ]
)
MAY_DIFFER_BEGINNINGS = ("logging_", "log_", "save_", "predict_")
PATHS = frozenset(("model", "data", "train_json", "backbone", "cad"))


@dataclass
class RunConfig(TrainingArguments):
    """transformers' TrainingArguments with the defaults that all runs share."""

    sampling_strategies: ClassVar[tuple[str, ...]] = ("random", "sequential")

    data: str | None = field(
        default=None, metadata={"help": "the prepared folder, which paths of pictures are relative to"}
    )
    output_dir: str | None = field(default=None, metadata={"help": "checkpoints, the log and the result go there"})
    resume: bool = field(default=True, metadata={"help": "go on from the last whole checkpoint in output_dir"})
    save_total_limit: int | None = field(default=2, metadata={"help": "checkpoints kept"})
    report_to: str = field(default="none", metadata={"help": "tensorboard, wandb, …"})
    train_sampling_strategy: str = field(
        default="random",
        metadata={"help": "the order of an epoch: random, or sequential (the order of the samples' file)"},
    )
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
        if self.dataloader_num_workers < 0:
            raise InputError(f"dataloader_num_workers: must not be negative, not {self.dataloader_num_workers}")
        if getattr(self.eval_strategy, "value", self.eval_strategy) not in ("no", False):
            raise InputError(
                f"eval_strategy {getattr(self.eval_strategy, 'value', self.eval_strategy)}: a run evaluates nothing while it "
                "trains; leave it at no, and predict with its checkpoints and score that"
            )
        if self.train_sampling_strategy not in self.sampling_strategies:
            raise InputError(
                f"train_sampling_strategy {self.train_sampling_strategy}: not for this kind of run; choose one of "
                f"{', '.join(self.sampling_strategies)}"
            )
        require_seed(self.seed)
        _require_reporters(self.report_to)
        if self.output_dir and Path(self.output_dir).is_file():
            raise InputError(f"--output_dir {self.output_dir}: is a file; give a folder")
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        for name in ("bf16", "fp16"):
            if getattr(self, name) and self.use_cpu:
                raise InputError(f"{name}: half precision is for a GPU, and this run is on the CPU; set it to false")
        self.dataloader_pin_memory = self.dataloader_pin_memory and not self.use_cpu
        super().__post_init__()  # which joins the processes of a launcher
        leave_at_exit()

    @property
    def training_file(self) -> Path:
        """The file that lists what there is to learn from; pictures are others."""
        return Path(self.data) / "train" / METADATA_FILE

    @functools.cached_property
    def training_digest(self) -> str | None:
        """A digest of that file as it is when first asked for, which is before anything reads it; None if it is not there."""
        return file_digest(self.training_file) if self.training_file.is_file() else None

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


def require_same_recipe(config: RunConfig, file: Path, *, may_differ: Collection[str] = ()) -> None:
    """Refuse to go on with a run, or to take an ended one for done, of another kind, under another recipe or on other samples
    than it was begun with.

    A folder without a whole checkpoint holds nothing to go on with: any recipe may start in it.

    Args:
        file: the recipe beside the run, as :meth:`RunConfig.resolved` gave it to ``save_config``.
        may_differ: fields of this kind of run that do not touch the weights.

    Raises:
        InputError: naming what differs and what to do.
    """
    output = Path(config.output_dir)
    begun = (output / DONE_MARK).is_file() or any(output.glob(f"checkpoint-*/{COMPLETE_MARK}"))
    digest = config.training_digest
    if not (config.resume and begun):
        return
    if not file.is_file():
        raise InputError(
            f"{output}: holds a run of another kind, for {file.name} is not there, which every run of this kind begins with; "
            "choose another output_dir"
        )
    defaults = {
        f.name: f.default for f in dataclasses.fields(config)
    }  # a field that was not written down had its default
    earlier, now = ({**defaults, **values} for values in (read_yaml(file), as_written(config.resolved())))
    for name in sorted(earlier.keys() | now.keys()):
        if name in MAY_DIFFER or name in may_differ or name.startswith(MAY_DIFFER_BEGINNINGS):
            continue
        was, wanted = earlier.get(name), now.get(name)
        if was != wanted and not (name in PATHS and was and wanted and _same_path(was, wanted)):
            raise InputError(
                f"{output}: its run was begun with {name} {was!r}, not {wanted!r} ({file.name} says so); choose another "
                "output_dir, or start it over with resume false"
            )
    seen = output / TRAINED_ON
    if digest is not None and seen.is_file() and read_yaml(seen).get("digest") != digest:
        raise InputError(
            f"{output}: its run was begun when {config.training_file} held other samples; choose another output_dir, or start "
            "it over with resume false"
        )


def start_over(config: RunConfig) -> None:
    """Take away what a run without ``resume`` must not leave behind: killed, it goes on from its own checkpoints and no
    others, and is not taken for done. For one process; the others wait.
    """
    output = Path(config.output_dir)
    (output / DONE_MARK).unlink(missing_ok=True)
    for checkpoint in output.glob("checkpoint-*"):
        if checkpoint.name.removeprefix("checkpoint-").isdigit():
            shutil.rmtree(checkpoint)


def mark_done(output: Path, values: Mapping[str, Any]) -> None:
    """Mark a run as ended, once all that it has written is on the disk. For one process."""
    sync_folder(output)
    write_json(output / DONE_MARK, dict(values))


def _same_path(one: str, other: str) -> bool:
    return Path(one).resolve() == Path(other).resolve()


def _require_reporters(report_to: str | list[str] | None) -> None:
    from transformers.integrations import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

    names = report_to if isinstance(report_to, list) else [report_to or "none"]
    for name in set(names) - {"none", "all"}:
        if name not in INTEGRATION_TO_CALLBACK:
            raise InputError(f"report_to {name}: not known; choose none or one of {', '.join(INTEGRATION_TO_CALLBACK)}")
        if name not in get_available_reporting_integrations():
            raise InputError(f"report_to {name}: is not installed; install its package, or leave report_to at none")


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float | bool | list | dict)
