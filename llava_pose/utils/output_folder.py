"""One owner for every output, and one set of settings: a second command that would write to the same place is refused, and
so is one that would go on with an output under other settings.

A command owns its file or folder (:func:`own_file`, :func:`own_folder`), and calls :func:`keep_settings` before it writes. A
run that was stopped goes on under the same settings, which stand as ``WHAT.yaml`` in a folder and as ``NAME.settings.yaml``
beside a file, so that no two outputs share them.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import shutil
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from llava_pose.errors import InputError
from llava_pose.utils.files import cannot_write, is_disk_full, open_regular, sync_folder, writing_to
from llava_pose.utils.yaml_files import as_written, read_yaml, save_config

logger = logging.getLogger(__name__)
_held: weakref.WeakSet[IO[Any]] = weakref.WeakSet()


def _leave_to_parent() -> None:
    """Close the locks that a forked child has inherited: a worker outlives a killed run for seconds, and would keep them."""
    for file in list(_held):
        file.close()


os.register_at_fork(after_in_child=_leave_to_parent)
LOCK_NAME = ".lock"  # in a folder that a command owns
DIGEST = "_digest"  # how the name of a setting ends that stands for the content of what is read
_MARK = "# llava-pose "  # how a settings file begins, which a person's own recipe does not
_LONGEST_SHOWN = 300  # characters of a setting in a message
_HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


def require_other(
    option: str, outputs: Iterable[str | os.PathLike[str]], inputs: Iterable[str | os.PathLike[str]]
) -> None:
    """Refuse outputs that would replace what they are made of.

    Args:
        option: the option that named the outputs, for messages.
        outputs: all files that are written, those beside the one that was named as well.
        inputs: the files that are read, and folders of which any file may be; links are followed.

    Raises:
        InputError: an output is one of the inputs, or in one of them.
    """
    # not Path.resolve, which raises RuntimeError where links lead to each other
    read = {Path(os.path.realpath(path)) for path in inputs}
    for path in outputs:
        place = Path(os.path.realpath(path))
        if place in read:
            raise InputError(f"{option} {os.fspath(path)}: is one of the files that are read; name another")
        if not read.isdisjoint(place.parents):
            raise InputError(f"{option} {os.fspath(path)}: is in a folder of files that are read; name another place")


def require_together(option: str, out: str | os.PathLike[str], beside: Iterable[str | os.PathLike[str]]) -> None:
    """Refuse to replace files that nobody has named, which go with an output, where the output itself is not there yet: then
    they are of another command.

    Raises:
        InputError: naming the first that is there.
    """
    if os.path.lexists(out):
        return
    for path in beside:
        if os.path.lexists(path):
            raise InputError(
                f"{option} {os.fspath(out)}: would replace {os.fspath(path)}, which is of something else, for "
                f"{Path(out).name} is not there; choose another {option}, or move that file away"
            )


def require_suffix(option: str, path: str | os.PathLike[str], *suffixes: str) -> None:
    """Refuse the name of an output that does not say what is written there.

    A slip among the options would otherwise replace a photograph or a recipe.

    Raises:
        InputError: the name ends in none of the suffixes, or is a folder's.
    """
    if Path(path).is_dir():
        raise InputError(f"{option} {os.fspath(path)}: this is a folder; name a file in it")
    if Path(path).suffix.lower() not in suffixes:
        raise InputError(f"{option} {os.fspath(path)}: give a name that ends in {' or '.join(suffixes)}")


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
def own_new_folder(path: str | os.PathLike[str], option: str, what: str) -> Iterator[Path]:
    """Own a folder that is to be new, and yield where to write it. It comes to its place whole, as the block ends well, or not
    at all. Its lock stands beside it as ``.NAME.lock``.

    Raises:
        InputError: another process owns it, something is there already, or nothing can be written there.
    """
    path = Path(os.path.realpath(path))  # no folder can take the place of a link
    with _locked(_beside(path), path, option, what):
        if os.path.lexists(path) and not (path.is_dir() and is_unused(path)):
            raise InputError(f"{option} {path}: is there already; give a new folder")
        beside = path.with_name(f".{path.name}.unfinished")  # always the same: what a killed run has left is taken away
        shutil.rmtree(beside, ignore_errors=True)
        try:
            written = beside / path.name
            written.mkdir(parents=True)
            yield written
            sync_folder(written)
            os.replace(written, path)
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def is_unused(folder: Path) -> bool:
    """Return whether a folder is not there, or holds nothing but the lock of its owner and what a killed one has left."""
    return not folder.exists() or not any(held_in(folder))


def held_in(folder: Path) -> Iterator[str]:
    """Yield the names in a folder, but for its owner's lock and the half of a file that a killed owner was writing."""
    for entry in folder.iterdir():
        if entry.name != LOCK_NAME and not re.fullmatch(r"\..+\.\d+\.tmp", entry.name):
            yield entry.name


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


def settings_file(output: str | os.PathLike[str], what: str) -> Path:
    """Return where the settings of an output stand: ``WHAT.yaml`` in a folder, ``NAME.settings.yaml`` beside a file."""
    output = Path(output)
    if output.is_dir():
        return output / f"{what.replace('-', '_')}.yaml"
    return output.with_name(f"{output.name}.settings.yaml")


def keep_settings(
    output: str | os.PathLike[str],
    option: str,
    what: str,
    settings: Any,
    *,
    begun: bool | None = None,
    remedy: str | None = None,
) -> None:
    """Write down the settings of an output that is new, and refuse one that was begun with others. Its owner calls this.

    Args:
        output: the file, or the folder, which is there.
        option: the option that named it, for messages.
        what: the command.
        settings: a mapping or a dataclass of all that decides what the output holds. How fast it is made and where it is
            does not; what is read does, by the digest of its content, under a name that ends in ``_digest``.
        begun: whether the output holds something already; by default, whether anything is in it.
        remedy: what the person can do, for messages.

    Raises:
        InputError: the output was begun with other settings, each of which is named, or is somebody else's.
    """
    output = Path(output)
    file = settings_file(output, what)
    if not (is_begun(output, file) if begun is None else begun):
        write_settings(file, what, settings)
        return
    if not file.is_file():
        raise InputError(
            f"{option} {output}: holds something that {what} did not write, for {file.name} is not there; choose another "
            f"{option}"
        )
    changes = changed_settings(file, settings)
    if changes is not None:
        remedy = remedy or f"choose another {option}, or delete what is there to begin anew"
        raise InputError(f"{option} {output}: was begun {changes}; {remedy}")


def changed_settings(file: Path, settings: Any) -> str | None:
    """Return how the settings in a file differ from these, as :func:`differing` does."""
    return differing(read_yaml(file), as_written(settings))


def differing(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Return how settings differ, as "with seed 0, not 3, and before the records changed"; None where they do not.

    One that is not there is None.
    """
    earlier, now = _flat(earlier), _flat(now)
    names = [name for name in {**now, **earlier} if earlier.get(name) != now.get(name)]
    parts = [
        f"with {name} {_shown(earlier.get(name))}, not {_shown(now.get(name))}"
        for name in names
        if not name.endswith(DIGEST)
    ]
    inputs = [f"the {name.removesuffix(DIGEST).replace('_', ' ')}" for name in names if name.endswith(DIGEST)]
    if inputs:
        parts.append(f"before {' and '.join(inputs)} changed")
    return ", and ".join(parts) or None


def write_settings(file: Path, what: str, settings: Any, *, replace: bool = False) -> None:
    """Write settings whole, with a first line that says whose they are.

    Args:
        replace: whatever is there may be replaced.

    Raises:
        InputError: a file is there that no command has written.
    """
    if not replace:
        require_not_a_persons(file, what)
    save_config(
        settings, file, heading=f"{_MARK}{what} made this output with these settings, and goes on with no others"
    )


def require_not_a_persons(file: Path, what: str) -> None:
    """Raise InputError where the settings would replace a file that no command has written, such as somebody's recipe."""
    if not file.exists():
        return
    try:
        with open_regular(file) as there:
            is_ours = there.readline(len(_MARK)) == _MARK.encode()
    except OSError:
        is_ours = False
    if not is_ours:
        raise InputError(
            f"{file}: is there and was not written by {what}, which keeps its settings under that name; rename the file, or "
            "choose another output"
        )


def is_begun(output: Path, settings: Path) -> bool:
    """Return whether a file or folder holds anything, but for the settings and the lock of its owner."""
    if output.is_dir():
        return any(name != settings.name for name in held_in(output))
    return output.exists() and output.stat().st_size > 0


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Settings within settings as ``options.seed``."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{before}{name}.") if isinstance(value, Mapping) else {f"{before}{name}": value}
    return flat


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"
