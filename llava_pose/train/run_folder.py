"""The folder of a training run: one owner at a time, the settings beside the result, and done only when it is done."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainingArguments

from llava_pose.data.jsonl import read_jsonl
from llava_pose.errors import InputError
from llava_pose.train.checkpoints import (
    COMPLETE_MARK,
    CompleteCheckpoints,
    checkpoint_folders,
    last_complete_checkpoint,
)
from llava_pose.train.trainer import last_loss
from llava_pose.train.training_arguments import REFUSED
from llava_pose.utils.distributed import first_process_holds, from_first_process, is_first_process, process_count
from llava_pose.utils.files import file_digest, is_regular, sync_folder, weights_digest, write_json
from llava_pose.utils.output_folder import differing, own_folder, require_not_a_persons, write_settings
from llava_pose.utils.yaml_files import as_written, read_yaml

logger = logging.getLogger(__name__)
BEGUN_WITH = "trained_on.json"  # what a run was begun with beside its settings: its samples and the number of processes
DONE_MARK = "training_done.json"  # there once the run has ended
LOG = "metrics.jsonl"
_WRITTEN = ("*.safetensors", "*config.json", "tokenizer.json", "predictions.jsonl", LOG)  # of what a run leaves behind
# what may change between a run and its going on: where it is, how it is watched, and what does not touch the weights
MAY_DIFFER = frozenset(
    (
        *("output_dir", "resume", "report_to", "run_name", "project", "disable_tqdm", "use_cpu", "cache_dir"),
        *("cache_features", "system", "ddp_find_unused_parameters", "ddp_timeout", "ddp_backend", "ddp_bucket_cap_mb"),
        *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers", "skip_memory_metrics"),
        *("dataloader_prefetch_factor", "dataloader_multiprocessing_context", "enable_jit_checkpoint"),
        *("include_num_input_tokens_seen", "torch_empty_cache_steps", "dry_run"),
    )
)
MAY_DIFFER_BEGINNINGS = ("logging_", "log_", "save_", "predict_")
PATHS = frozenset(("model", "data", "train_json", "val_json", "backbone", "cad"))
# fields that say nothing of what a run is: where a process is, and what has its default in every run
_LEFT_OUT = frozenset(("local_rank", *REFUSED))
_REMEDY = "choose another --output-dir, or start over with --no-resume"


class RunFolder:
    """The folder of one run, as :func:`own_run` gives it.

    Attributes:
        folder: the path.
        is_done: whether the run ended at its last step, and is not to start over.
    """

    def __init__(
        self,
        kind: str,
        arguments: tuple[Any, ...],
        files: Mapping[str, Path],
        may_differ: Collection[str],
        base: str | None,
    ):
        self.folder = Path(arguments[-1].output_dir)
        self.settings_file = self.folder / f"{kind.replace('-', '_')}.yaml"
        self._kind = kind
        self._arguments = arguments
        self._resume: bool = arguments[-1].resume
        self._files = files
        self._base = base
        self._may_differ = may_differ
        self._digests: dict[str, str] = {}
        self._base_digest: str | None = None
        self.is_done = False

    def look(self) -> None:
        """Find out whether the run is done or can go on. All processes get the same answer.

        Raises:
            InputError: the folder holds a run of another kind, with other settings, other samples or another number of
                processes.
        """
        # the digests are taken before anything reads the samples and the base
        self._digests, self._base_digest, self.is_done = from_first_process(self._look)
        if self.is_done:
            logger.info(
                f"{self.folder}: this run has ended; start over with --no-resume, or choose another --output-dir"
            )

    def _look(self) -> tuple[dict[str, str], str | None, bool]:
        digests = {name: file_digest(file) for name, file in self._files.items() if file.is_file()}
        base = None
        with suppress(OSError):  # loading it says what is wrong
            base = weights_digest(Path(self._base)) if self._base and Path(self._base).is_dir() else None
        done = (self.folder / DONE_MARK).is_file()
        # a folder without a whole checkpoint holds nothing to go on with: any run may start in it
        if self._resume and (done or any(self.folder.glob(f"checkpoint-*/{COMPLETE_MARK}"))):
            self._require_same_settings()
            self._require_begun_with(digests, base, process_count(), done)
        elif not self._is_a_run():
            require_not_a_persons(self.settings_file, self._kind)
            self._require_no_model()
        return digests, base, done and self._resume

    def _require_same_settings(self) -> None:
        file = self.settings_file
        if not file.is_file():
            raise InputError(
                f"{self.folder}: holds a run of another kind, for {file.name} is not there, which every run of this kind "
                "begins with; choose another --output-dir"
            )
        changes = differing(self._decisive(read_yaml(file)), self._decisive(as_written(settings_of(self._arguments))))
        if changes is not None:
            raise InputError(f"{self.folder}: its run was begun {changes} ({file.name} says so); {_REMEDY}")

    def _decisive(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings that must not change, paths written out; a field that was not written down had its default."""
        fields = (field for part in self._arguments for field in dataclasses.fields(part))
        settings = {**{f.name: f.default for f in fields if f.default is not dataclasses.MISSING}, **settings}
        may_differ = MAY_DIFFER | _LEFT_OUT | set(self._may_differ)
        return {
            name: str(Path(value).resolve()) if name in PATHS and _is_there(value) else value
            for name, value in settings.items()
            if name not in may_differ and not name.startswith(MAY_DIFFER_BEGINNINGS)
        }

    def _require_begun_with(self, digests: Mapping[str, str], base: str | None, processes: int, done: bool) -> None:
        file = self.folder / BEGUN_WITH
        begun = read_yaml(file) if file.is_file() else {}
        for name, digest in digests.items():
            if begun.get(name, digest) != digest:
                raise InputError(
                    f"{self.folder}: its run was begun when {self._files[name]} held other samples; {_REMEDY}"
                )
        if base is not None and (begun.get("base_digest") or base) != base:
            raise InputError(f"{self.folder}: its run was begun when {self._base} held other weights; {_REMEDY}")
        were = begun.get("processes", processes)
        if were != processes and not done:  # they share out each batch, and each draws random numbers of its own
            raise InputError(
                f"{self.folder}: its run was begun by {_count(were)}, not by {_count(processes)}; start it by as many again, "
                f"{_REMEDY}"
            )

    def _require_no_model(self) -> None:
        """Refuse a folder in which no run has begun and which holds a model none the less: a base, or another's weights."""
        for pattern in _WRITTEN:
            for file in self.folder.glob(pattern):
                raise InputError(
                    f"{self.folder}: holds {file.name}, which no run of this kind has written and this one would replace; "
                    "choose another --output-dir"
                )

    def _is_a_run(self) -> bool:
        """Return whether a run, of whatever settings, has begun here."""
        marks = (self.folder / name for name in (BEGUN_WITH, DONE_MARK))
        return any(mark.is_file() for mark in marks) or bool(checkpoint_folders(self.folder))

    def begin(self, trainer: Trainer) -> str | None:
        """Write down what the run is, and return the checkpoint that it goes on from, if there is one. Waits for all."""
        trainer.add_callback(CompleteCheckpoints(trainer.accelerator))
        checkpoint = from_first_process(self._begin)
        if checkpoint is not None:
            logger.info(f"going on from {checkpoint}")
        return checkpoint

    def _begin(self) -> str | None:
        if not self._resume:
            self._start_over()
        checkpoint = last_complete_checkpoint(self.folder)
        log = self.folder / LOG
        if log.exists() and not is_regular(log):
            raise InputError(f"{log}: is no regular file, and the run writes its log there; take it away")
        for where, entry in read_jsonl(log, whole_lines_only=True) if log.exists() else ():
            if type(entry.get("step")) is not int:
                raise InputError(f"{where}: is no line of a run's log, for it has no step; take it out")
        self.write_settings()
        if checkpoint is None:
            begun = {"base_digest": self._base_digest, "processes": process_count(), **self._digests}
            write_json(self.folder / BEGUN_WITH, begun)
        return None if checkpoint is None else str(checkpoint)

    def _start_over(self) -> None:
        """Killed, a run that started over goes on from its own checkpoints and no others, and is not taken for done."""
        (self.folder / DONE_MARK).unlink(missing_ok=True)
        for checkpoint in checkpoint_folders(self.folder):
            shutil.rmtree(checkpoint)

    def write_settings(self) -> None:
        """Write the settings beside the result, as a recipe that runs again. For the first process; the others do nothing."""
        if is_first_process():
            write_settings(self.settings_file, self._kind, settings_of(self._arguments), replace=True)

    def unusual_settings(self) -> dict[str, Any]:
        """Return what decides about the weights and is not the default; paths are left out."""
        usual = {field.name: field.default for part in self._arguments for field in dataclasses.fields(part)}
        decisive = self._decisive(as_written(settings_of(self._arguments)))
        return {name: value for name, value in decisive.items() if name not in PATHS and value != usual[name]}

    def finish(self, trainer: Trainer, **facts: Any) -> None:
        """Mark the run as done, once all that it has written is on the disk. Waits for all.

        Args:
            facts: what the mark holds beside the steps and the last loss.
        """
        if trainer.is_world_process_zero():
            sync_folder(self.folder)
            state = trainer.state
            if state.best_metric is not None:
                facts |= {"best_step": state.best_global_step, "best": state.best_metric}
            loss = last_loss(self.folder / LOG)
            write_json(self.folder / DONE_MARK, {"steps": state.global_step, "loss": loss, **facts})
        trainer.accelerator.wait_for_everyone()


@contextmanager
def own_run(
    kind: str,
    *arguments: Any,
    samples: str | Path,
    validation: str | Path | None = None,
    base: str | None = None,
    may_differ: Collection[str] = (),
) -> Iterator[RunFolder]:
    """Own the output folder of a run until the block ends, and look at what it holds.

    Args:
        kind: of the run; its settings are ``KIND.yaml`` in the folder.
        arguments: dataclasses of settings, the last of them a ``RunArguments``.
        samples: the file that lists what there is to learn from; pictures are others.
        validation: the file of the samples that it is evaluated on, if there is one.
        base: the folder of the weights that the run begins with, if it is one.
        may_differ: fields of this kind of run that do not touch the weights.

    Raises:
        InputError: another process owns the folder, or it holds another run. It names what differs and the remedy.
    """
    files = {"digest": Path(samples)} | ({} if validation is None else {"val_digest": Path(validation)})
    run = RunFolder(kind, arguments, files, may_differ, base)
    with first_process_holds(own_folder(run.folder, "--output-dir", kind)):
        run.look()
        yield run


def settings_of(arguments: tuple[Any, ...]) -> dict[str, Any]:
    """Return what a run is: every field of ours, and each of TrainingArguments' that differs from its default."""
    theirs = {field.name: field.default for field in dataclasses.fields(TrainingArguments)}
    ours = {
        name
        for part in arguments
        for kind in type(part).__mro__
        if kind is not TrainingArguments
        for name in inspect.get_annotations(kind)
    }
    settings: dict[str, Any] = {}
    for part in arguments:
        for name in (field.name for field in dataclasses.fields(part) if field.init):
            value = getattr(part, name)
            if name == "report_to" and isinstance(value, list):  # TrainingArguments make it one of the recipe's word
                value = value[0] if len(value) == 1 else value or "none"
            plain = isinstance(value, str | int | float | bool | list | dict)
            if name not in _LEFT_OUT and (name in ours or (plain and value != theirs[name])):
                settings[name] = str(value) if isinstance(value, Path) else value
    return settings


def _count(processes: int) -> str:
    return "one process" if processes == 1 else f"{processes} processes"


def _is_there(value: object) -> bool:
    """Return whether a setting is the path of something; in a file that somebody has changed it may be anything."""
    return isinstance(value, str) and value != "" and Path(value).exists()
