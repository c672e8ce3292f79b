"""What makes a stage restartable: a folder that belongs to one set of settings, and a journal of the images done."""

from __future__ import annotations

import fcntl
import json
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from data_prep.prepare_image import ImageResult
from llava_pose.config import read_yaml, save_config
from llava_pose.errors import InputError
from llava_pose.records import METADATA_FILE, append_jsonl, drop_torn_line, read_jsonl

SETTINGS_FILE = "prepare.yaml"
JOURNAL_FOLDER = ".prepare"
_FLUSH_SECONDS = 0.2


class OutputFolder:
    """The output of one set of settings, held by one process at a time (a context manager).

    Raises:
        InputError: on entering, if the folder holds something else, output of other settings, or is in use.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any], *, overwrite: bool) -> None:
        self.path = Path(path)
        self.settings = dict(settings)
        self.overwrite = overwrite
        self.rejects_file = self.path / "rejects.jsonl"
        self.summary_file = self.path / "summary.json"
        self._journals: dict[str, Journal] = {}

    def __enter__(self) -> OutputFolder:
        settings_file = self.path / SETTINGS_FILE
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"--out {self.path}: is a file; give a folder")
        ours = {SETTINGS_FILE, JOURNAL_FOLDER}
        if self.path.is_dir():
            found = {entry.name for entry in self.path.iterdir()}
            if found and not found & ours:
                raise InputError(f"--out {self.path}: holds files that prepare did not write; give a new folder")
        self._lock()
        try:
            if self.splits():
                self._settle(read_yaml(settings_file) if settings_file.is_file() else {})
            save_config(self.settings, settings_file)
        except BaseException:
            self._lock_file.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock_file.close()

    def _lock(self) -> None:
        """The lock goes with the process, however it ends."""
        folder = self.path / JOURNAL_FOLDER
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock_file = open(folder / "lock", "w")  # noqa: SIM115 (held until __exit__)
        except OSError as error:
            raise InputError(
                f"--out {self.path}: cannot write there ({error.strerror}); give another folder"
            ) from error
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock_file.close()
            raise InputError(f"--out {self.path}: another prepare is writing there; wait for it to end") from error

    def _settle(self, earlier: dict[str, Any]) -> None:
        differing = [name for name in self.settings if earlier.get(name) != self.settings[name]]
        if not differing:
            return
        if not self.overwrite:
            name = differing[0]
            raise InputError(
                f"--out {self.path}: was prepared with {name} {earlier.get(name)}, not {self.settings[name]}; "
                "give another folder, or --overwrite to drop what is there"
            )
        self.rejects_file.unlink(missing_ok=True)
        self.summary_file.unlink(missing_ok=True)
        for split in self.splits():
            # the journal last: a run that is stopped here finds the rest to drop by it
            shutil.rmtree(self.path / split, ignore_errors=True)
            self._journal_file(split).unlink()

    def splits(self) -> list[str]:
        """The splits that have been begun here, by this run or by earlier ones."""
        return sorted(path.stem for path in (self.path / JOURNAL_FOLDER).glob("*.jsonl"))

    def journal(self, split: str) -> Journal:
        if split not in self._journals:
            self._journals[split] = Journal(self._journal_file(split), self.path / split)
        return self._journals[split]

    @contextmanager
    def journals(self) -> Iterator[JournalWriter]:
        """To write results with; what was added stands in the journals at the end, also after an error."""
        writer = JournalWriter(self)
        try:
            yield writer
        finally:
            writer.flush()

    def metadata_file(self, split: str) -> Path:
        return self.path / split / METADATA_FILE

    def _journal_file(self, split: str) -> Path:
        return self.path / JOURNAL_FOLDER / f"{split}.jsonl"


class Journal:
    """One line for each image done; of two lines for one image the later holds. A killed writer costs the last line."""

    def __init__(self, path: Path, images: Path) -> None:
        self._path = path
        self._images = images
        self._lines: dict[str, str] = {}
        path.touch()
        drop_torn_line(path)
        for _, value in read_jsonl(path):
            self._lines[value["key"]] = json.dumps(value)

    def is_current(self, key: str, stamp: Sequence[int]) -> bool:
        """Whether an image is done, from files as they are now, and what was written is still there."""
        result = self.get(key)
        if result is None or result.stamp != list(stamp):
            return False
        return all(
            _size(self._images / record["file_name"]) == size
            for record, size in zip(result.records, result.sizes, strict=True)
        )

    def get(self, key: str) -> ImageResult | None:
        line = self._lines.get(key)
        return None if line is None else ImageResult(**json.loads(line))

    def results(self) -> Iterator[ImageResult]:
        return (ImageResult(**json.loads(line)) for line in self._lines.values())

    def append(self, results: Iterable[ImageResult]) -> None:
        values = [asdict(result) for result in results]
        if values:
            append_jsonl(self._path, values)
            self._lines.update((value["key"], json.dumps(value)) for value in values)


class JournalWriter:
    """Gathers results for a moment before they are forced to disk."""

    def __init__(self, folder: OutputFolder) -> None:
        self._folder = folder
        self._waiting: dict[str, list[ImageResult]] = {}
        self._flushed = time.monotonic()

    def add(self, split: str, result: ImageResult) -> None:
        self._waiting.setdefault(split, []).append(result)
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        for split, results in self._waiting.items():
            self._folder.journal(split).append(results)
        self._waiting = {}
        self._flushed = time.monotonic()


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
