"""What makes a stage restartable: a folder that belongs to one set of settings, and a journal of the images done.

Several machines may work in one folder, each on its shard (:mod:`data_prep.prepare.shards`). A shard has a journal of its own::

    .lock                               held by a whole run alone, or by any number of shards together
    .prepare/<split>.jsonl              the journal
    .prepare/shards/2-of-8/             lock and journals of a shard, until the next whole run takes them over
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from data_prep.prepare.image import ImageResult
from data_prep.prepare.shards import Shard
from llava_pose.data.records import METADATA_FILE, drop_torn_line
from llava_pose.errors import InputError
from llava_pose.utils.files import append_whole
from llava_pose.utils.output_folder import (
    LOCK_NAME,
    changed_settings,
    keep_settings,
    own_folder,
    settings_file,
    write_settings,
)

JOURNAL_FOLDER = ".prepare"
SHARDS_FOLDER = "shards"
_FLUSH_SECONDS = 0.5  # of work that a kill may cost; forcing lines to disk costs time, too


class OutputFolder:
    """The output of one set of settings, held by one process, or by one of each shard, at a time (a context manager).

    Raises:
        InputError: on entering, if the folder holds something else, output of other settings, or is in use.
    """

    def __init__(
        self, path: str | Path, settings: Mapping[str, Any], *, overwrite: bool, shard: Shard | None = None
    ) -> None:
        self.path = Path(path)
        self.settings = dict(settings)
        self.overwrite = overwrite
        self.shard = shard
        self.rejects_file = self.path / "rejects.jsonl"
        self.summary_file = self.path / "summary.json"
        self._journals: dict[str, Journal] = {}
        self._held = ExitStack()
        self._folder = self.path / JOURNAL_FOLDER
        self._own = self._folder if shard is None else self._folder / SHARDS_FOLDER / shard.folder

    def __enter__(self) -> OutputFolder:
        with ExitStack() as held:
            if self.shard is None:
                held.enter_context(own_folder(self.path, "--out", "prepare"))
                self._settle()
                self._take_over_shards()
            else:
                held.enter_context(own_folder(self.path, "--out", "prepare of all shards", shared=True))
                with own_folder(self._folder, "--out", "prepare", wait=True):
                    self._settle()
                    held.enter_context(own_folder(self._own, "--out", f"prepare of {self.shard}"))
            self._held = held.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for journal in self._journals.values():
            journal.close()
        self._held.__exit__(kind, error, trace)

    def _settle(self) -> None:
        """Make the folder that of these settings."""
        file = settings_file(self.path, "prepare")
        if self.overwrite and self.splits() and file.is_file() and changed_settings(file, self.settings):
            self._drop()
            write_settings(file, "prepare", self.settings)
            return
        others = {entry.name for entry in self.path.iterdir()} - {LOCK_NAME, JOURNAL_FOLDER, file.name}
        begun = bool(others or self.splits() or any(self._folder.glob(f"{SHARDS_FOLDER}/*")))
        remedy = "give another folder, or --overwrite to drop what is there"
        keep_settings(self.path, "--out", "prepare", self.settings, begun=begun, remedy=remedy)

    def _drop(self) -> None:
        self.rejects_file.unlink(missing_ok=True)
        self.summary_file.unlink(missing_ok=True)
        for split in self.splits():
            # the journals last: a run that is stopped here finds the rest to drop by them
            shutil.rmtree(self.path / split, ignore_errors=True)
            for journal in [self._journal_file(split), *self._shard_journals(split)]:
                journal.unlink(missing_ok=True)

    def _take_over_shards(self) -> None:
        """What shards have done stands in the journal from now on; a run that is stopped here does it again, to no harm."""
        for split in self.splits():
            shard_journals = self._shard_journals(split)
            if not shard_journals:
                continue
            drop_torn_line(self._journal_file(split))
            for path in shard_journals:
                append_whole(self._journal_file(split), b"".join(line for _, line in _whole_lines(path)))
            for path in shard_journals:
                path.unlink()
        shutil.rmtree(self._folder / SHARDS_FOLDER, ignore_errors=True)

    def splits(self) -> list[str]:
        """The splits that have been begun here, by this run, by earlier ones or by shards."""
        begun = [*self._folder.glob("*.jsonl"), *(self._folder / SHARDS_FOLDER).glob("*/*.jsonl")]
        return sorted({path.stem for path in begun})

    def journal(self, split: str) -> Journal:
        if split not in self._journals:
            earlier = None if self.shard is None else self._journal_file(split)
            self._journals[split] = Journal(self._own / f"{split}.jsonl", self.path / split, earlier=earlier)
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
        return self._folder / f"{split}.jsonl"

    def _shard_journals(self, split: str) -> list[Path]:
        """In the order in which they were written: of two lines for one image the later holds."""
        found = (self._folder / SHARDS_FOLDER).glob("*/*.jsonl")
        return sorted((path for path in found if path.stem == split), key=lambda path: (path.stat().st_mtime_ns, path))


class Journal:
    """One line for each image done; of two lines for one image the later holds. A killed writer costs the last line.

    In memory is only where the lines begin.

    Args:
        path: the file; made if it is not there.
        images: the folder that the records' file names start from.
        earlier: another journal, which is read and not written, for what this one does not know.
    """

    def __init__(self, path: Path, images: Path, *, earlier: Path | None = None) -> None:
        self._path = path
        self._images = images
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        drop_torn_line(path)
        self._places = _places(path)
        self._file = open(path, "rb")  # noqa: SIM115 (closed by close)
        self._earlier_places: dict[str, int] = {}
        self._earlier_file = None
        if earlier is not None and earlier.is_file():
            self._earlier_places = _places(earlier)
            self._earlier_file = open(earlier, "rb")  # noqa: SIM115 (closed by close)

    def close(self) -> None:
        self._file.close()
        if self._earlier_file is not None:
            self._earlier_file.close()

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
        """What became of an image; None if it is not done."""
        for places, file in ((self._places, self._file), (self._earlier_places, self._earlier_file)):
            if key in places and file is not None:
                file.seek(places[key])
                return ImageResult(**json.loads(file.readline()))
        return None

    def results(self) -> Iterator[ImageResult]:
        """What became of every image done, in the order in which they were first done."""
        for key in list(self._places):
            result = self.get(key)
            if result is not None:
                yield result

    def append(self, results: Iterable[ImageResult]) -> None:
        """Write results and force them to disk."""
        lines = [(result.key, f"{result.to_json()}\n".encode()) for result in results]
        if not lines:
            return
        place = self._path.stat().st_size
        append_whole(self._path, b"".join(line for _, line in lines))
        for key, line in lines:
            self._places[key] = place
            place += len(line)


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


def _whole_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Where each line begins, and the line; without a last one that was cut off."""
    place = 0
    with open(path, "rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield place, line
            place += len(line)


def _places(path: Path) -> dict[str, int]:
    """Key -> where its last line begins.

    Raises:
        InputError: a line is none that prepare has written.
    """
    places = {}
    for number, (place, line) in enumerate(_whole_lines(path), start=1):
        try:
            places[json.loads(line)["key"]] = place
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(
                f"{path}:{number}: the journal is damaged; delete the line, and its image is done again"
            ) from error
    return places


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
