"""What the tasks of the report share: systems listed in one YAML, each trained and predicted in a folder of its own.

``OUTPUT_DIR/NAME`` holds what a system's stage writes, ``predictions.jsonl`` last, and beside it ``system.yaml``, the settings
that it was begun with, and ``system_done.json``. A task that is started again goes on with the system it was at, and refuses
one whose settings have changed.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import logging
import re
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from eval.systems.record_choice import category_of
from llava_pose import cli
from llava_pose.data.records import METADATA_FILE, ObjectRecord, read_records
from llava_pose.errors import InputError, NonFiniteLossError
from llava_pose.pose import categories
from llava_pose.utils.config import fill_config, require, require_folder
from llava_pose.utils.distributed import (
    broadcast,
    first_process_holds,
    is_first_process,
    join_processes,
    several_processes,
)
from llava_pose.utils.files import file_digest, read_text, write_json
from llava_pose.utils.output_folder import changed_settings, is_begun, own_folder, write_settings

logger = logging.getLogger(__name__)
SETTINGS_FILE, DONE_MARK = "system.yaml", "system_done.json"


@dataclass(frozen=True)
class Stage:
    """A kind of system: the module, imported when one is asked for, its config class, and its function over it.

    The config has the fields data, output_dir, system, predict_split and predict_categories; ``train_categories`` if it is
    trained, and ``task`` ("pose" or "joint") where it matters. The function trains, or goes on, or sees that it is done,
    predicts, and returns the path of predictions.jsonl.
    """

    module: str
    config_class: str
    function: str = "run"


STAGES: Mapping[str, Stage] = {
    "classifier": Stage("eval.systems.classifier.command", "ClassifierConfig"),
    "trained-classifier": Stage("eval.systems.classifier.trained", "TrainedClassifierConfig"),
    "neural-mesh": Stage("eval.systems.neural_mesh.command", "NeuralMeshRunConfig"),
    "llava-pose": Stage("eval.systems.llava_pose", "LlavaPoseSystemConfig"),
    "predictions": Stage("eval.systems.predictions_file", "ReadyPredictionsConfig"),
}
# what the task says to every stage, so that the options of a system cannot
_GIVEN = ("data", "output_dir", "system", "train_categories", "predict_split", "predict_categories", "task")
_ENTRY = ("name", "kind", "oracle", "options")


@dataclass
class TaskConfig:
    """Options that all tasks have."""

    data: str | None = field(default=None, metadata={"help": "the prepared folder"})
    output_dir: str | None = field(default=None, metadata={"help": "a folder of each system's name goes there"})
    systems: list[dict] = field(
        default_factory=list,
        metadata={"help": "in the YAML file: a list of {name, kind, options}; kinds: " + ", ".join(STAGES)},
    )
    defaults: dict | None = field(
        default=None,
        metadata={"help": "in the YAML file: for a kind, options of all its systems that do not say other"},
    )
    only: list[str] | None = field(default=None, metadata={"help": "run these systems of the list; default: all"})
    predict_split: str = field(default="val", metadata={"help": "split to predict"})

    def __post_init__(self) -> None:
        require(self.data, "--data")
        require(self.output_dir, "--output-dir")
        if not self.systems:
            raise InputError("systems: there is none; list them in a YAML file and give it with --config")


@dataclass(frozen=True)
class Scope:
    """What a system is trained on and predicts: canonical names; None for all."""

    train_categories: list[str] | None
    predict_categories: list[str] | None
    task: str


@dataclass(frozen=True)
class System:
    """One system of the list, with its stage's config.

    Attributes:
        oracle: trained on what the others are tested on, too.
        settings: what decides its predictions, as ``system.yaml`` holds it.
        above: the system of the list that it begins with.
    """

    name: str
    kind: str
    oracle: bool
    folder: Path
    config: Any
    settings: dict[str, Any]
    above: System | None = None

    @property
    def predictions(self) -> Path:
        return self.folder / "predictions.jsonl"

    @property
    def done(self) -> bool:
        return (self.folder / DONE_MARK).is_file() and self.predictions.is_file()

    def run(self) -> Path:
        stage = STAGES[self.kind]
        return getattr(import_module(stage.module), stage.function)(self.config)


def read_split(config: TaskConfig, split: str) -> list[ObjectRecord]:
    """The records of a split of the task's data.

    Raises:
        InputError: there is no such folder or split, or no object in it.
    """
    require_folder(config.data, "--data", "make it with llava-pose prepare")
    records = read_records(config.data, split)
    if not records:
        raise InputError(f"{config.data}/{split}: there is no object in it; choose another split")
    return records


def names_in(records: Sequence[ObjectRecord]) -> set[str]:
    """The canonical names of the records' categories."""
    return {category_of(record).name for record in records}


def build_systems(config: TaskConfig, scope_of: Callable[[bool], Scope]) -> list[System]:
    """The systems of the list, each option checked before any of them runs.

    Args:
        scope_of: what a system is trained on and predicts, given whether it is the oracle.

    Raises:
        InputError: an entry of the list makes no sense; the message names system and field.
    """
    for kind in config.defaults or {}:
        _require_kind(kind, "defaults")
    digests = {
        f"{split}_records_digest": file_digest(Path(config.data) / split / METADATA_FILE)
        for split in sorted({"train", config.predict_split})
    }
    systems: list[System] = []
    for number, entry in enumerate(config.systems, start=1):
        name = _check_entry(entry, number, {system.name for system in systems})
        kind, oracle = entry["kind"], bool(entry.get("oracle", False))
        scope = scope_of(oracle)
        options = {**((config.defaults or {}).get(kind) or {}), **(entry.get("options") or {})}
        folder = Path(config.output_dir) / name
        shared = {"train_categories": scope.train_categories, "predict_categories": scope.predict_categories}
        shared |= {"predict_split": config.predict_split, "task": scope.task}
        settings = {"kind": kind, "options": dict(options), **shared, **digests}
        for option in ("file", "train_json"):
            if isinstance(options.get(option), str) and Path(options[option]).is_file():
                settings[f"{option}_digest"] = file_digest(options[option])
        used = _resolve_names(options, systems)
        if used is not None:
            if used.oracle and not oracle:
                raise InputError(
                    f"system '{name}': begins with '{used.name}', an oracle, which is trained on what is to be predicted; "
                    "say oracle: true of this one as well, or take another system"
                )
            settings["system_above_digest"] = _digest_of(json.dumps(used.settings, sort_keys=True).encode())
        given = {"data": config.data, "output_dir": str(folder), "system": name, **shared}
        stage_config = _stage_config(name, kind, options, given)
        systems.append(System(name, kind, oracle, folder, stage_config, settings, used))
    unknown = sorted(set(config.only or ()) - {system.name for system in systems})
    if unknown:
        known = ", ".join(system.name for system in systems)
        raise InputError(f"--only {unknown[0]}: there is no such system in the list; choose among {known}")
    return systems


def _check_entry(entry: Any, number: int, taken: set[str]) -> str:
    """The name of an entry that has what it needs and nothing else."""
    where = f"systems, number {number}"
    if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
        raise InputError(f"{where}: expected a mapping with a name, a kind and options, not {entry!r}")
    name = entry["name"]
    if not re.fullmatch(r"\w[\w.+-]*", name):
        raise InputError(f"{where}: the name {name!r} must do for a folder: letters, digits, and . + - _ between them")
    if name in taken:
        raise InputError(f"{where}: the name {name!r} is taken by a system above it; names must be unique")
    for key in entry:
        if key not in _ENTRY:
            near = difflib.get_close_matches(str(key), _ENTRY, n=1)
            hint = f"did you mean '{near[0]}'?" if near else "the stage's own fields stand under options"
            raise InputError(f"system '{name}': there is no field '{key}'; {hint}")
    if not isinstance(entry.get("options") or {}, Mapping):
        raise InputError(f"system '{name}': options must be 'field: value' lines, not {entry['options']!r}")
    if not isinstance(entry.get("oracle", False), bool):
        raise InputError(f"system '{name}': oracle must be true or false, not {entry['oracle']!r}")
    _require_kind(entry.get("kind"), f"system '{name}'")
    return name


def _require_kind(kind: Any, where: str) -> None:
    if not isinstance(kind, str) or kind not in STAGES:
        raise InputError(f"{where}: there is no kind {kind!r}; choose one of {', '.join(STAGES)}")


def _resolve_names(options: dict[str, Any], above: Sequence[System]) -> System | None:
    """A checkpoint, or a tower to assemble a base on, may be named as the system above that trains it.

    Returns:
        That system; what it is trained on, and how, decides this one's predictions, too.
    """
    by_name = {system.name: system for system in above}
    used = by_name.get(str(options.get("checkpoint")))
    if used is not None:
        options["checkpoint"] = str(used.folder)
        return used
    assemble = options.get("assemble")
    used = by_name.get(str(assemble.get("vision"))) if isinstance(assemble, Mapping) else None
    if used is not None:
        options["assemble"] = {**assemble, "vision": str(used.folder / "backbone")}
    return used


def _stage_config(name: str, kind: str, options: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
    stage = STAGES[kind]
    config_class = getattr(import_module(stage.module), stage.config_class)
    twice = sorted(set(_GIVEN) & options.keys())
    if twice:
        raise InputError(f"system '{name}': the option '{twice[0]}' is set by the task; take it out")
    fields = {f.name for f in dataclasses.fields(config_class) if f.init}
    values = {**options, **{key: value for key, value in given.items() if key in fields}}
    try:
        return fill_config(config_class, values, source="options")
    except InputError as error:
        raise InputError(f"system '{name}': {error}") from error


def _digest_of(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def run_task(table: int, config: TaskConfig, systems: Sequence[System]) -> None:
    """Run, or go on with, the systems that are asked for, and make the table of all of the list that are done.

    A system whose input is bad, or whose loss is no number, does not keep the others from running, unless several processes
    run them. One that is not asked for and was made with other settings than the list now has is not in the table.

    Raises:
        InputError: one was begun with other settings (nothing has run then), or, at the end, some did not run.
        NonFiniteLossError: at the end, the first that did not run had such a loss.
    """
    join_processes()
    with first_process_holds(own_folder(config.output_dir, "--output-dir", "task")):
        failed, asked = _run_systems(config, systems)
        done = [system for system in systems if system.done and not _is_outdated(system)]
        make_table(table, done, Path(config.output_dir))
    if failed:
        name, error = next(iter(failed.items()))
        message = f"{len(failed)} of {asked} systems did not run; the first, {name}: {error}"
        raise type(error)(message)


def _run_systems(
    config: TaskConfig, systems: Sequence[System]
) -> tuple[dict[str, InputError | NonFiniteLossError], int]:
    """What went wrong, by the system's name, and how many were asked for."""
    chosen = [system for system in systems if config.only is None or system.name in config.only]
    for system in chosen:
        changed = _changed_settings(system)
        if changed:
            raise InputError(
                f"{system.folder}: was begun {changed}; give the system another name, or delete the folder to run it anew"
            )
        _require_above(system, chosen)
    failed: dict[str, InputError | NonFiniteLossError] = {}
    for number, system in enumerate(chosen, start=1):
        which = f"system {number} of {len(chosen)}, {system.name} ({system.kind})"
        if broadcast(system.done):
            logger.info(f"{which}: is done")
            continue
        logger.info(which)
        try:
            _run_system(system)
        except (InputError, NonFiniteLossError) as error:
            if several_processes():
                raise  # the other processes may be waiting for this one, and would for ever
            logger.warning(f"{which}: {error}")
            failed[system.name] = error
    return failed, len(chosen)


def _require_above(system: System, chosen: Sequence[System]) -> None:
    """What a system begins with must be as the list says, or what it is said to stand on would not be what it stands on."""
    above = system.above
    if above is None or above in chosen or system.done:
        return
    changed = _changed_settings(above)
    if not above.done or changed:
        why = f"was made {changed}" if changed else "has not run"
        raise InputError(f"--only {system.name}: it begins with '{above.name}', which {why}; run that one, too")


def _is_outdated(system: System) -> bool:
    changed = _changed_settings(system)
    if changed:
        logger.warning(f"{system.folder}: was made {changed}, and is left out of the table; run the system anew")
    return changed is not None


def _changed_settings(system: System) -> str | None:
    """Return, of a system that has been begun, what it was begun with and the list does not say any more, in words."""
    file = system.folder / SETTINGS_FILE
    if not file.is_file() or not is_begun(system.folder, file):
        return None
    return changed_settings(file, system.settings)


def _run_system(system: System) -> None:
    began = time.monotonic()
    if is_first_process():
        system.folder.mkdir(parents=True, exist_ok=True)
        file = system.folder / SETTINGS_FILE
        write_settings(file, "task", system.settings, replace=is_begun(system.folder, file))
    system.run()
    broadcast(None)
    if is_first_process():
        # of this start alone: a run that was stopped has spent more
        write_json(system.folder / DONE_MARK, {"seconds": round(time.monotonic() - began, 1)})


def make_table(table: int, systems: Sequence[System], output_dir: Path) -> None:
    """The report's table of the systems that are done, by ``llava-pose tables``.

    Raises:
        InputError: it refused the predictions.
    """
    if not systems or not is_first_process():
        return
    words = ["tables", *(str(system.predictions) for system in systems), "--table", str(table)]
    words += ["--out", str(output_dir / f"table{table}.md")]
    oracles = [system.name for system in systems if system.oracle]
    if oracles:
        words += ["--oracle", *oracles]
    if table == 2 and any(system.settings["predict_categories"] for system in systems):
        words += ["--novel", "all"]  # of what was predicted
    logger.info(f"{len(systems)} systems are done; their table: llava-pose {shlex.join(words)}")
    if cli.main(words) != 0:
        raise InputError(f"{output_dir}: no table could be made of the predictions; see the line above")


def check_known(names: Sequence[str] | None, file: str | None) -> set[str] | None:
    """Canonical names of a list, or of a file with a category a line; None if neither is given.

    Raises:
        InputError: both are given, the file cannot be read or holds nothing.
    """
    if names and file:
        raise InputError("--known and --known-file: give one of them")
    if file:
        text = read_text(file, name=f"--known-file {file}", remedy="give a text file")
        names = [line.strip() for line in text.splitlines() if line.strip()]
        if not names:
            raise InputError(f"--known-file {file}: there is no category in it; write one a line")
    return {categories.get(name, allow_custom=True).name for name in names} if names else None
