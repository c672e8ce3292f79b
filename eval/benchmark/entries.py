"""The systems of a benchmark's list, each made and checked before any of them runs."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.benchmark.scope import BenchmarkConfig, Scope
from eval.systems.system import KINDS, PREDICTIONS, System, load_kind
from llava_pose.data.records import METADATA_FILE
from llava_pose.errors import InputError
from llava_pose.utils.config import fill_config
from llava_pose.utils.files import file_digest

DONE_MARK = "system_done.json"
_FIELDS = ("name", "title", "kind", "oracle", "options")
_FILES = ("file", "answers", "train_json")  # options that name files, whose content decides the predictions as well


@dataclass(frozen=True)
class Entry:
    """One system of the list.

    Attributes:
        name: the name of its folder.
        title: the name in the tables.
        oracle: trained on what the others are tested on, too.
        folder: all that it writes.
        options: the dataclass that it is made of.
        settings: what decides its predictions.
        above: the system of the list that it begins with.
    """

    name: str
    title: str
    kind: str
    oracle: bool
    folder: Path
    options: Any
    system: System
    settings: dict[str, Any]
    above: Entry | None = None

    @property
    def predictions(self) -> Path:
        return self.folder / PREDICTIONS

    @property
    def done(self) -> bool:
        return (self.folder / DONE_MARK).is_file() and self.predictions.is_file()


def build_entries(config: BenchmarkConfig, scope_of: Callable[[bool], Scope]) -> list[Entry]:
    """Make the systems of the list.

    Args:
        scope_of: what a system is trained on and predicts, given whether it is an oracle.

    Raises:
        InputError: an entry of the list makes no sense; the message names system and field.
    """
    for kind in config.defaults or {}:
        _require_kind(kind, "defaults")
    records = {
        f"{split}_records_digest": file_digest(Path(config.data) / split / METADATA_FILE)
        for split in sorted({"train", config.split})
    }
    entries: list[Entry] = []
    for number, values in enumerate(config.systems, start=1):
        name = _check(values, number, {entry.name for entry in entries})
        entries.append(_build(config, name, values, scope_of, records, entries))
    unknown = sorted(set(config.only or ()) - {entry.name for entry in entries})
    if unknown:
        known = ", ".join(entry.name for entry in entries)
        raise InputError(f"--only {unknown[0]}: there is no such system in the list; choose among {known}")
    return entries


def _check(values: Any, number: int, taken: set[str]) -> str:
    """Return the name of an entry that has what it needs and nothing else."""
    where = f"systems, number {number}"
    if not isinstance(values, Mapping) or not isinstance(values.get("name"), str):
        raise InputError(f"{where}: expected a mapping with a name, a kind and options, not {values!r}")
    name = values["name"]
    if not re.fullmatch(r"\w[\w.+-]*", name):
        raise InputError(f"{where}: the name {name!r} must do for a folder: letters, digits, and . + - _ between them")
    if name in taken:
        raise InputError(f"{where}: the name {name!r} is taken by a system above it; names must be unique")
    for key in values:
        if key not in _FIELDS:
            near = difflib.get_close_matches(str(key), _FIELDS, n=1)
            hint = f"did you mean '{near[0]}'?" if near else "the system's own fields stand under options"
            raise InputError(f"system '{name}': there is no field '{key}'; {hint}")
    if not isinstance(values.get("title", ""), str):
        raise InputError(f"system '{name}': the title must be text, not {values['title']!r}")
    if not isinstance(values.get("options") or {}, Mapping):
        raise InputError(f"system '{name}': options must be 'field: value' lines, not {values['options']!r}")
    if not isinstance(values.get("oracle", False), bool):
        raise InputError(f"system '{name}': oracle must be true or false, not {values['oracle']!r}")
    _require_kind(values.get("kind"), f"system '{name}'")
    return name


def _require_kind(kind: Any, where: str) -> None:
    if not isinstance(kind, str) or kind not in KINDS:
        raise InputError(f"{where}: there is no kind {kind!r}; choose one of {', '.join(KINDS)}")


def _build(
    config: BenchmarkConfig,
    name: str,
    values: Mapping[str, Any],
    scope_of: Callable[[bool], Scope],
    records: Mapping[str, str],
    above: Sequence[Entry],
) -> Entry:
    kind, oracle, title = values["kind"], bool(values.get("oracle", False)), values.get("title", name)
    scope = dataclasses.asdict(scope_of(oracle))
    if config.table == 1:
        del scope["train_categories"]  # which each probe may be told
    folder = Path(config.output_dir) / name
    given = {"data": config.data, "output_dir": str(folder), "system": title, "split": config.split, **scope}
    options = {**((config.defaults or {}).get(kind) or {}), **(values.get("options") or {})}
    twice = sorted(given.keys() & options.keys())
    if twice:
        raise InputError(f"system '{name}': the option '{twice[0]}' is set by the benchmark; take it out")
    decisive = {key: value for key, value in options.items() if key != "cache_dir"}
    settings = {"kind": kind, "options": decisive, "split": config.split, **scope, **records}
    for option in _FILES:
        if isinstance(options.get(option), str) and Path(options[option]).is_file():
            settings[f"{option}_digest"] = file_digest(options[option])
    used = _resolve_names(options, above)
    if used is not None:
        if used.oracle and not oracle:
            raise InputError(
                f"system '{name}': begins with '{used.name}', an oracle, which is trained on what is to be predicted; "
                "say oracle: true of this one as well, or take another system"
            )
        text = json.dumps(used.settings, sort_keys=True)
        settings["system_above_digest"] = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    options_class, system_class = load_kind(kind)
    filled: Any
    fields = {f.name for f in dataclasses.fields(options_class) if f.init}
    given = {key: value for key, value in given.items() if key in fields}
    try:
        filled = fill_config(options_class, {**options, **given}, source="options")
        return Entry(name, title, kind, oracle, folder, filled, system_class(filled), settings, used)
    except InputError as error:
        raise InputError(f"system '{name}': {error}") from error


def _resolve_names(options: dict[str, Any], above: Sequence[Entry]) -> Entry | None:
    """Put folders in place of names: a checkpoint, or a tower to assemble a base on, may be a system above that trains it.

    Returns:
        That system; what it is trained on, and how, decides this one's predictions, too.
    """
    by_name = {entry.name: entry for entry in above}
    used = by_name.get(str(options.get("checkpoint")))
    if used is not None:
        options["checkpoint"] = str(used.folder)
        return used
    assemble = options.get("assemble")
    used = by_name.get(str(assemble.get("vision"))) if isinstance(assemble, Mapping) else None
    if used is not None:
        options["assemble"] = {**dict(assemble or {}), "vision": str(used.folder / "backbone")}
    return used
