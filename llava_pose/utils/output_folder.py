"""One owner for every output: a second command that would write to the same place is refused."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from llava_pose.errors import InputError
from llava_pose.utils.files import cannot_write, is_disk_full, writing_to

logger = logging.getLogger(__name__)
_held: weakref.WeakSet[IO[Any]] = weakref.WeakSet()


def _leave_to_parent() -> None:
    """Close the locks that a forked child has inherited: a worker outlives a killed run for seconds, and would keep them."""
    for file in list(_held):
        file.close()


os.register_at_fork(after_in_child=_leave_to_parent)
LOCK_NAME = ".lock"  # in a folder that a command owns
_HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


def require_other(
    option: str, outputs: Iterable[str | os.PathLike[str]], inputs: Iterable[str | os.PathLike[str]]
) -> None:
    """Refuse outputs that would replace what they are made of.

    Args:
        option: the option that named the outputs, for messages.
        outputs: all files that are written, those beside the one that was named as well.
        inputs: the files that are read; links are followed.

    Raises:
        InputError: an output is one of the inputs.
    """
    read = {os.path.realpath(path) for path in inputs}
    for path in outputs:
        if os.path.realpath(path) in read:
            raise InputError(f"{option} {os.fspath(path)}: is one of the files that are read; name another")


@contextmanager
def own_file(path: str | os.PathLike[str], option: str, what: str) -> Iterator[None]:
    """Own a file that is written to, until the block ends. Its lock stands beside it as ``.NAME.lock``.

    Args:
        option: the option that named it, for messages.
        what: the command, for messages.

    Raises:
        InputError: another process owns it, it is a folder, or nothing can be written there.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{option} {path}: this is a folder; name a file in it")
    if path.exists() and not path.is_file():
        raise InputError(f"{option} {path}: this is not a regular file; name another")
    # one file has one lock, also where a symbolic link gives it a second name
    with _locked(_beside(Path(os.path.realpath(path))), path, option, what):
        yield


@contextmanager
def own_new_folder(path: str | os.PathLike[str], option: str, what: str) -> Iterator[None]:
    """Own a folder that is to be moved to its place whole, until the block ends. Its lock stands beside it as ``.NAME.lock``.

    Raises:
        InputError: another process owns it, something is there already, or nothing can be written there.
    """
    path = Path(path).absolute()
    with _locked(_beside(path), path, option, what):
        if path.exists() and not (path.is_dir() and is_unused(path)):
            raise InputError(f"{option} {path}: is there already; give a new folder")
        yield


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def is_unused(folder: Path) -> bool:
    """Return whether a folder is not there, or holds nothing but the lock of its owner."""
    return not folder.exists() or all(entry.name == LOCK_NAME for entry in folder.iterdir())


@contextmanager
def own_folder(
    path: str | os.PathLike[str], option: str, what: str, *, shared: bool = False, wait: bool = False
) -> Iterator[None]:
    """Own a folder that is written to, until the block ends; it is made if it is not there. Its lock is ``.lock`` in it.

    Args:
        option: the option that named it, for messages.
        what: the command, for messages.
        shared: other commands that share it as well may own it at the same time.
        wait: for the moment that another process needs it, in place of a refusal.

    Raises:
        InputError: another process owns it, it is a file, or nothing can be written there.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise InputError(f"{option} {path}: this is a file; give a folder")
    with _locked(path / LOCK_NAME, path, option, what, shared=shared, wait=wait):
        yield


@contextmanager
def _locked(
    lock: Path, path: Path, option: str, what: str, *, shared: bool = False, wait: bool = False
) -> Iterator[None]:
    """Hold a lock that goes with the process, however it ends. A full disk, met by whatever its owner writes, is an error
    that names the path.
    """
    place = f"{option} {path}"
    is_new = not lock.parent.exists()
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    while True:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            file = open(lock, "a+")  # noqa: SIM115 (held until the end)
        except OSError as error:
            if is_disk_full(error):
                raise cannot_write(path, error) from error
            raise InputError(f"{place}: cannot write there ({error.strerror or error}); choose another path") from error
        with file:
            try:
                fcntl.flock(file, kind if wait else kind | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in _HELD:
                    raise InputError(
                        f"{place}: another {what} is writing there; wait for it to end, or choose another path"
                    ) from error
                logger.warning(
                    f"{place}: this file system has no locks ({error.strerror}); see to it that no other command "
                    "writes there"
                )
            if not _is_file_at(lock, file):
                continue  # its last holder took it away after it was opened here: whoever comes next makes another
            _held.add(file)
            try:
                with writing_to(path):
                    yield
            finally:
                if not shared or _is_last(file):
                    lock.unlink(missing_ok=True)
                if is_new:  # a command that was refused leaves no empty folder behind
                    with suppress(OSError):
                        lock.parent.rmdir()
            return


def _is_last(file: IO[Any]) -> bool:
    """Return whether nobody else holds a shared lock, as its holder leaves."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is_file_at(path: Path, file: IO[Any]) -> bool:
    """Return whether an open file is the one that stands at the path now."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
