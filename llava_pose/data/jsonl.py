"""Files of JSON lines from outside: read line by line within bounds, appended to, and mended where a line is torn."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from llava_pose.errors import InputError
from llava_pose.utils.files import append_whole, open_regular, write_atomic

_LONGEST_LINE = 1 << 26  # bytes of a JSON line: 67 million

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def parse_json(text: str) -> Any:
    """JSON from anybody's file.

    Raises:
        ValueError: it is no JSON, is nested too deeply to be read, or escapes half of a letter, which no file could be
            written with again.
    """
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if _SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError("it escapes half of a letter, a lone surrogate") from error
    return value


def read_jsonl(
    path: str | os.PathLike[str],
    *,
    whole_lines_only: bool = False,
    on_bad_line: Callable[[InputError], None] | None = None,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Pairs of ("file:line", object) from a JSON Lines file; blank lines are passed over.

    Args:
        whole_lines_only: pass over a last line without a line end, which a killed writer leaves behind.
        on_bad_line: is given the error of a line that is not a JSON object, and reading goes on after it; by default it
            is raised.

    Raises:
        InputError: the file cannot be read or a line is not a JSON object; the message names file and line.
    """
    try:
        with open_regular(path) as file:
            # bytes: a writer may have been killed in the middle of a letter
            for number, line in enumerate(iter(lambda: file.readline(_LONGEST_LINE + 1), b""), start=1):
                if len(line) > _LONGEST_LINE:
                    raise InputError(
                        f"{path}:{number}: the line has more than {_LONGEST_LINE >> 20} MiB; check the path"
                    )
                if not line.strip() or (whole_lines_only and not line.endswith(b"\n")):
                    continue
                where = f"{path}:{number}"
                try:
                    value = _object_of_line(line, where)
                except InputError as error:
                    if on_bad_line is None:
                        raise
                    on_bad_line(InputError(str(error)))  # which, never raised, keeps neither the frames nor the line
                    continue
                yield where, value
    except OSError as error:
        raise InputError(f"{path}: cannot read the file ({error.strerror}); check the path") from error


def _object_of_line(line: bytes, where: str) -> dict[str, Any]:
    try:
        text = line.decode("utf-8-sig")  # the mark that Windows puts in front is no text
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: cannot read the line (not UTF-8 text); check the path") from error
    try:
        value = parse_json(text)
    except ValueError as error:
        reason = getattr(error, "msg", error)
        raise InputError(f"{where}: not valid JSON ({reason}); the file may be cut off") from error
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected a JSON object, found a {type(value).__name__}")
    return value


def write_jsonl(path: str | os.PathLike[str], values: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON Lines atomically. NaN is refused: it is no JSON."""
    write_atomic(path, "".join(json.dumps(v, ensure_ascii=False, allow_nan=False) + "\n" for v in values))


def append_jsonl(path: str | os.PathLike[str], values: Iterable[Mapping[str, Any]]) -> None:
    """Append lines and force them to disk, all or none of them.

    A process that is killed meanwhile may leave a torn line, which :func:`drop_torn_line` takes away.

    Raises:
        InputError: the file cannot be written, or its disk is full.
    """
    text = "".join(json.dumps(v, ensure_ascii=False, allow_nan=False) + "\n" for v in values)
    append_whole(path, text.encode("utf-8"))


def drop_torn_line(path: str | os.PathLike[str]) -> None:
    """Cut a last line that has no line end, the trace of a writer that was killed; without a file, do nothing."""
    if not Path(path).exists():
        return
    with open(path, "r+b") as file:
        content = file.read()
        if content and not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)


def resume_jsonl(path: str | os.PathLike[str], first_field: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ("file:line", object) of each line that an earlier run has left, and then cut a torn last line.

    Nothing is cut before the caller has taken every line, which it does not if one is not its own.

    Args:
        path: the file; one that is not there has no lines.
        first_field: the field that each line begins with, by which a torn line is known that stands alone.

    Raises:
        InputError: the file cannot be read, or holds something else.
    """
    if not Path(path).exists():
        return
    count = 0
    for count, line in enumerate(read_jsonl(path, whole_lines_only=True), start=1):  # noqa: B007
        yield line
    if not count:
        begins = b'{"%b": ' % first_field.encode()
        with open_regular(path) as file:
            start = file.read(len(begins))
        if not begins.startswith(start):
            raise InputError(f"{path}: holds no line of this command's; choose another file")
    drop_torn_line(path)
