"""What makes a stage restartable: a folder that belongs to one set of settings, and a journal of the images done."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
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


class OutputFolder:
    """The output of one set of settings, held by one process at a time.

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
        if not settings_file.is_file() and self.path.is_dir() and any(self.path.iterdir()):
            raise InputError(
                f"--out {self.path}: holds files that prepare did not write; give a new or an empty folder"
            )
        if settings_file.is_file():
            self._settle(read_yaml(settings_file))
        (self.path / JOURNAL_FOLDER).mkdir(parents=True, exist_ok=True)
        self._lock = open(self.path / JOURNAL_FOLDER / "lock", "w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise InputError(f"--out {self.path}: another prepare is writing there; wait for it to end") from error
        save_config(self.settings, settings_file)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.close()

    def _settle(self, earlier: dict[str, Any]) -> None:
        differing = sorted(name for name in self.settings if earlier.get(name) != self.settings[name])
        if not differing:
            return
        if not self.overwrite:
            name = differing[0]
            raise InputError(
                f"--out {self.path}: was prepared with {name} {earlier.get(name)}, not {self.settings[name]}; "
                "give another folder, or --overwrite to drop what is there"
            )
        for split in self.splits():
            shutil.rmtree(self.path / split, ignore_errors=True)
        shutil.rmtree(self.path / JOURNAL_FOLDER, ignore_errors=True)
        for file in (self.rejects_file, self.summary_file):
            file.unlink(missing_ok=True)

    def splits(self) -> list[str]:
        """The splits that have been begun here, by this run or by earlier ones."""
        return sorted(path.stem for path in (self.path / JOURNAL_FOLDER).glob("*.jsonl"))

    def journal(self, split: str) -> Journal:
        if split not in self._journals:
            self._journals[split] = Journal(self.path / JOURNAL_FOLDER / f"{split}.jsonl", self.path / split)
        return self._journals[split]

    def metadata_file(self, split: str) -> Path:
        return self.path / split / METADATA_FILE


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

    def append(self, results: Iterable[ImageResult]) -> None:
        values = [asdict(result) for result in results]
        if values:
            append_jsonl(self._path, values)
            self._lines.update((value["key"], json.dumps(value)) for value in values)


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
