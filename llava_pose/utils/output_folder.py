"""One owner for every output: a second command that would write to the same place is refused."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from llava_pose.errors import InputError
from llava_pose.utils.files import cannot_write, is_disk_full

logger = logging.getLogger(__name__)
_held: weakref.WeakSet[IO[Any]] = weakref.WeakSet()


def _leave_to_parent() -> None:
    """Close the locks that a forked child has inherited: a worker outlives a killed run for seconds, and would keep them."""
    for file in list(_held):
        file.close()


os.register_at_fork(after_in_child=_leave_to_parent)
LOCK_NAME = ".lock"  # in a folder that a command owns
_HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


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
    with _locked(path.with_name(f".{path.name}.lock"), f"{option} {path}", what, shared=False):
        yield


@contextmanager
def own_folder(path: str | os.PathLike[str], option: str, what: str, *, shared: bool = False) -> Iterator[None]:
    """Own a folder that is written to, until the block ends; it is made if it is not there. Its lock is ``.lock`` in it.

    Args:
        option: the option that named it, for messages.
        what: the command, for messages.
        shared: other commands that share it as well may own it at the same time.

    Raises:
        InputError: another process owns it, it is a file, or nothing can be written there.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise InputError(f"{option} {path}: this is a file; give a folder")
    with _locked(path / LOCK_NAME, f"{option} {path}", what, shared=shared):
        yield


@contextmanager
def _locked(lock: Path, place: str, what: str, *, shared: bool) -> Iterator[None]:
    """Hold a lock that goes with the process, however it ends."""
    while True:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            file = open(lock, "a+")  # noqa: SIM115 (held until the end)
        except OSError as error:
            if is_disk_full(error):
                raise cannot_write(lock, error) from error
            raise InputError(f"{place}: cannot write there ({error.strerror}); choose another path") from error
        with file:
            try:
                fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
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
                yield
            finally:
                if not shared:
                    lock.unlink(missing_ok=True)
            return


def _is_file_at(path: Path, file: IO[Any]) -> bool:
    """Return whether an open file is the one that stands at the path now."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
