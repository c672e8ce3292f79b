"""A benchmark's systems run one after another, each in a folder of its own; then the table of those that are done.

``OUTPUT_DIR/NAME`` holds what a system writes, ``predictions.jsonl`` last, and beside it ``system.yaml``, the settings that it
was begun with, and ``system_done.json``. A benchmark that is started again goes on with the system it was at, and refuses one
whose settings have changed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

from eval.benchmark.entries import DONE_MARK, Entry
from eval.benchmark.scope import BenchmarkConfig, known_and_novel
from eval.systems.system import asked_records, write_answers
from eval.tables import TablesConfig, make_and_show
from llava_pose.errors import InputError, NonFiniteLossError
from llava_pose.utils.command import steps_of_a_whole
from llava_pose.utils.distributed import (
    broadcast,
    first_process_holds,
    is_first_process,
    join_processes,
    several_processes,
)
from llava_pose.utils.files import write_json
from llava_pose.utils.output_folder import changed_settings, is_begun, own_folder, write_settings

logger = logging.getLogger(__name__)
SETTINGS_FILE = "system.yaml"
Failures = dict[str, InputError | NonFiniteLossError]


def run_entries(config: BenchmarkConfig, entries: Sequence[Entry]) -> None:
    """Run, or go on with, the systems that are asked for, and make the table of all of the list that are done.

    A system whose input is bad, or whose loss is no number, does not keep the others from running, unless several processes
    run them. One that is not asked for and was made with other settings than the list now has is not in the table.

    Raises:
        InputError: one was begun with other settings (nothing has run then), or, at the end, some did not run.
        NonFiniteLossError: at the end, the first that did not run had such a loss.
    """
    join_processes()
    chosen = [entry for entry in entries if config.only is None or entry.name in config.only]
    with first_process_holds(own_folder(config.output_dir, "--output-dir", "benchmark")):
        for entry in chosen:
            changed = _changed_settings(entry)
            if changed:
                raise InputError(
                    f"{entry.folder}: was begun {changed}; give the system another name, or delete the folder to run it anew"
                )
            _require_above(entry, chosen)
        with steps_of_a_whole():
            failed = _run_all(chosen)
        make_table(config, [entry for entry in entries if entry.done and not _is_outdated(entry)])
    if failed:
        name, error = next(iter(failed.items()))
        raise type(error)(f"{len(failed)} of {len(chosen)} systems did not run; the first, {name}: {error}")


def _run_all(chosen: Sequence[Entry]) -> Failures:
    """Return what went wrong, by the system's name."""
    failed: Failures = {}
    for number, entry in enumerate(chosen, start=1):
        which = f"system {number} of {len(chosen)}, {entry.name} ({entry.kind})"
        if broadcast(entry.done):
            logger.info(f"{which}: is done")
            continue
        logger.info(which)
        try:
            _run(entry)
        except (InputError, NonFiniteLossError) as error:
            if several_processes():
                raise  # the other processes may be waiting for this one, and would for ever
            logger.warning(f"{which}: {error}")
            failed[entry.name] = error
    return failed


def _run(entry: Entry) -> None:
    began = time.monotonic()
    if is_first_process():
        entry.folder.mkdir(parents=True, exist_ok=True)
        file = entry.folder / SETTINGS_FILE
        write_settings(file, "benchmark", entry.settings, replace=is_begun(entry.folder, file))
    write_answers(entry.system, asked_records(entry.options), entry.folder)
    broadcast(None)
    if is_first_process():
        # of this start alone: a run that was stopped has spent more
        write_json(entry.folder / DONE_MARK, {"seconds": round(time.monotonic() - began, 1)})


def _require_above(entry: Entry, chosen: Sequence[Entry]) -> None:
    """Refuse a system that begins with one which is not, or not any more, what the list says of it."""
    above = entry.above
    if above is None or above in chosen or entry.done:
        return
    changed = _changed_settings(above)
    if not above.done or changed:
        why = f"was made {changed}" if changed else "has not run"
        raise InputError(f"--only {entry.name}: it begins with '{above.name}', which {why}; run that one, too")


def _is_outdated(entry: Entry) -> bool:
    changed = _changed_settings(entry)
    if changed:
        logger.warning(f"{entry.folder}: was made {changed}, and is left out of the table; run the system anew")
    return changed is not None


def _changed_settings(entry: Entry) -> str | None:
    """Return, of a system that has been begun, what it was begun with and the list does not say any more, in words."""
    file = entry.folder / SETTINGS_FILE
    if not file.is_file() or not is_begun(entry.folder, file):
        return None
    return changed_settings(file, entry.settings)


def _novel(config: BenchmarkConfig) -> list[str] | None:
    """Return the categories that table 2 is of: all that were predicted, or of these the ones that are not known."""
    if config.table != 2:
        return None
    return known_and_novel(config)[1] if config.predict_known else ["all"]


def make_table(config: BenchmarkConfig, done: Sequence[Entry]) -> None:
    """Make the report's table of the systems that are done, and show it."""
    if not done or not is_first_process():
        return
    oracles = [entry.title for entry in done if entry.oracle]
    make_and_show(
        TablesConfig(
            predictions=[str(entry.predictions) for entry in done],
            table=config.table,
            out=str(Path(config.output_dir) / f"table{config.table}.md"),
            oracle=oracles or None,
            novel=_novel(config),
            data=config.data,
            split=config.split,
        )
    )
