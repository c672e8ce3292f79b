"""The samples of a train.json as they are read, each checked; :mod:`llava_pose.data.dataset` makes training samples of them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from itertools import pairwise
from typing import IO, Any

import numpy as np

from llava_pose.data.conversation import validate_sample
from llava_pose.data.jsonl import parse_json
from llava_pose.errors import InputError, joined
from llava_pose.utils.files import open_regular, read_text

_MOST_BYTES = 1 << 36  # of a train.json: 69 thousand million
_LONGEST_LINE = 1 << 26  # bytes of a sample that is read for itself


def read_samples(path: str | os.PathLike[str]) -> Sequence[dict[str, Any]]:
    """The samples of a train.json, each checked.

    Of a file with a sample a line, as ``llava-pose instruct`` writes it, no sample stays in memory (:class:`LinesOfSamples`).

    Raises:
        InputError: the file cannot be read, is no JSON array, is empty, or a sample is malformed.
    """
    faults: list[InputError] = []
    lines = _checked_lines(path, faults)
    samples: Any = _all_samples(path) if lines is None else lines
    if lines is None:
        for index, sample in enumerate(samples):
            _check(sample, f"{path}, sample {index}", faults)
    if faults:
        raise joined(faults, f"{path}: {len(faults)} of {len(samples)} samples cannot be learned from")
    return samples


class LinesOfSamples(Sequence[dict[str, Any]]):
    """Samples that stand one a line in a file, each read when it is asked for.

    What a process holds is where the lines end. The text is the system's cache of the file, which all processes on a machine
    share: those of the other GPUs, and the workers that load samples, whether forked or spawned.
    """

    def __init__(self, path: str | os.PathLike[str], ends: np.ndarray) -> None:
        """
        Args:
            ends: (samples + 1,) bytes, where the first line starts, and where each ends.
        """
        self._path, self._ends = os.path.abspath(path), ends
        self._file: IO[bytes] = open_regular(path)
        self._state = self._state_of_file()

    def _state_of_file(self) -> tuple[int, int]:
        state = os.fstat(self._file.fileno())
        return state.st_size, state.st_mtime_ns

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(len(self))[index]]
        start, end = map(int, self._ends[range(len(self))[index] :][:2])
        try:
            return json.loads(os.pread(self._file.fileno(), end - start, start).strip().removesuffix(b","))
        except ValueError as error:
            raise InputError(f"{self._path}: was changed since it was read; start again") from error

    def __getstate__(self) -> tuple[str, np.ndarray, tuple[int, int]]:
        return self._path, self._ends, self._state

    def __setstate__(self, state: tuple[str, np.ndarray, tuple[int, int]]) -> None:
        path, ends, was = state
        self.__init__(path, ends)  # type: ignore[misc]
        if self._state != was:
            raise InputError(f"{path}: was changed since it was read; start again")


def _checked_lines(path: str | os.PathLike[str], faults: list[InputError]) -> LinesOfSamples | None:
    """Return the samples of a file that has one a line, between a line with "[" and one with "]"; None of any other file.

    Args:
        faults: gets what is wrong with samples.
    """
    found: list[InputError] = []
    try:
        with open_regular(path) as file:
            if file.readline(3) != b"[\n":
                return None
            ends = [file.tell()]
            lines = iter(lambda: file.readline(_LONGEST_LINE), b"")
            for line, following in pairwise(lines):
                is_last = following.strip() == b"]"
                text = line.strip()
                if text.endswith(b",") == is_last:
                    return None
                sample = parse_json(text.removesuffix(b",").decode())
                _check(sample, f"{path}, sample {len(ends) - 1}", found)
                ends.append(ends[-1] + len(line))
                if is_last:
                    if next(lines, None) is not None:
                        return None
                    break
            else:
                return None
        samples = LinesOfSamples(path, np.array(ends))
    except (OSError, ValueError):  # which reading the whole says in a sentence
        return None
    faults += found
    return samples


def _all_samples(path: str | os.PathLike[str]) -> list[Any]:
    text = read_text(path, remedy="make it with llava-pose instruct", most=_MOST_BYTES)
    try:
        samples = parse_json(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}: not valid JSON ({error.msg} at line {error.lineno}); the file may be cut off"
        ) from error
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error}); make it with llava-pose instruct") from error
    if not isinstance(samples, list) or not samples:
        raise InputError(
            f"{path}: expected a JSON array of samples that is not empty; make it with llava-pose instruct"
        )
    return samples


def _check(sample: Any, where: str, faults: list[InputError]) -> None:
    try:
        if not isinstance(sample, dict):
            raise InputError(f"{where} is no JSON object")
        validate_sample(sample, where=where)
    except InputError as error:
        faults.append(error.with_traceback(None))
