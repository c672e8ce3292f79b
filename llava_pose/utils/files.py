"""Files: opened only where they are regular, named only inside their folder, written whole or not at all.

A file name in a data set is somebody else's text. :func:`unsafe_name` says why it must not be used, and :func:`inside`
turns one that may into a path. Reading goes through :func:`open_regular`, so that a FIFO or a device under the name of a
picture neither blocks a command nor has no end.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any

from llava_pose.errors import InputError

LONGEST_NAME = 255  # bytes of one part of a path, on every file system in use
_LONG = 1 << 26  # bytes of a file that may be nothing but a hole
LONGEST_PLAIN_NAME = 200  # bytes of a name that suffixes, numbers and the marks of temporary files are added to
MOST_BYTES = (
    1 << 28
)  # of a file that is read whole: 268 million; lists, settings, meshes and annotations are far smaller
_BLOCK = 1 << 20  # bytes that are read at a time
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
# how safetensors and torch.save say that a disk is full: they have no errno
_NO_ROOM_WORDS = (
    "No space left on device",
    "os error 28",
    "Disk quota exceeded",
    "PytorchStreamWriter failed",
    "unexpected pos",
)


class DiskFullError(InputError):
    """A file could not be written because its disk has no room left; the message names the file and what is free."""


def is_regular(path: str | os.PathLike[str]) -> bool:
    """Return whether a regular file is there. A name that no file can have is answered with False, never with an error."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):  # the second for a name with a NUL
        return False


def open_regular(path: str | os.PathLike[str], mode: str = "rb", **kwargs: Any) -> IO[Any]:
    """Open a file as ``open`` does, but a regular one only.

    Raises:
        OSError: as ``open`` does; also for a FIFO, a socket, a device or a folder, and for a name with a NUL.
    """
    try:
        return open(path, mode, opener=_open_if_regular, **kwargs)
    except ValueError as error:
        if "\0" not in os.fspath(path):
            raise
        raise OSError(errno.EINVAL, "the name holds a NUL character", str(path)) from error


def _open_if_regular(path: str, flags: int) -> int:
    # without O_NONBLOCK, opening a FIFO waits for somebody to open its other end
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0), 0o666)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    raise OSError(errno.EINVAL, "it is not a regular file", path)


def read_bytes(path: str | os.PathLike[str], *, most: int = MOST_BYTES) -> bytes:
    """Return the content of a regular file of at most so many bytes; a sparse file of any size is made in no time.

    Raises:
        OSError: as :func:`open_regular`, or the file is larger.
    """
    with open_regular(path) as file:
        _require_at_most(most, file, path)
        return file.read()


def _require_at_most(most: int, file: IO[Any], path: str | os.PathLike[str]) -> None:
    if os.fstat(file.fileno()).st_size > most:
        raise OSError(errno.EFBIG, f"it has more than {_size(most)}", str(path))


def read_text(
    path: str | os.PathLike[str], *, name: str | None = None, remedy: str = "check the path", most: int = MOST_BYTES
) -> str:
    """Return the text of a UTF-8 file; the mark that Windows puts in front of it is no text.

    Args:
        name: what messages call the file; by default its path.
        remedy: what the person can do, for messages.
        most: bytes that it may have.

    Raises:
        InputError: the file cannot be read, is too large or is not UTF-8.
    """
    content = bytearray()
    try:
        with open_regular(path) as file:
            _require_at_most(most, file, path)
            while block := file.read(_BLOCK):
                if block.count(0) == _BLOCK:  # the hole of a sparse file, which may be as long as it likes
                    raise InputError(f"{name or path}: is not UTF-8 text, it holds a hole of zeros; {remedy}")
                content += block
        return content.decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{name or path}: cannot be read ({error.strerror}); {remedy}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(
            f"{name or path}: cannot be read, for line {line} is not UTF-8 text; save the file as UTF-8"
        ) from error


def unsafe_name(name: str) -> str | None:
    """Return why a relative path from a data set must not be used, in words, or None if it may be.

    Refused are paths that lead out of their folder on any system (absolute, with a drive letter, with ``..``) and those
    that are no plain text or too long to be a file name.
    """
    if not name.strip():
        return "is empty"
    if holds_controls(name):
        return "holds control characters"
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    if posix.is_absolute() or windows.anchor or ".." in posix.parts or ".." in windows.parts:
        return "leads out of its folder"
    if not posix.parts:
        return "names no file"
    try:
        longest = max(len(part.encode("utf-8")) for part in posix.parts)
    except UnicodeEncodeError:
        return "is not UTF-8 text"
    return f"is longer than {LONGEST_NAME} bytes" if longest > LONGEST_NAME else None


def is_plain_name(name: str) -> bool:
    """Return whether a name can be that of one file or folder of a data set, also with a suffix or a number behind it."""
    if unsafe_name(name) is not None or name != name.strip() or any(sign in name for sign in "/\\"):
        return False
    return len(name.encode("utf-8")) <= LONGEST_PLAIN_NAME


def inside(folder: str | os.PathLike[str], name: str) -> Path:
    """Return the path of a file that a data set names, which lies in its folder also where symbolic links are followed.

    Args:
        folder: the folder that the name is relative to; it may be a symbolic link itself.

    Raises:
        InputError: the name leads out of the folder, or cannot be a file's.
    """
    reason = unsafe_name(name)
    path = Path(folder) / name
    # not Path.resolve, which raises RuntimeError where links lead to each other
    if reason is None and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        reason = "leads out of its folder by a symbolic link"
    if reason is not None:
        raise InputError(f"{os.fspath(folder)}: the file name {shortened(name)} {reason}; mend the data set")
    return path


def of_split(prepared: str | os.PathLike[str], name: str) -> tuple[Path, str]:
    """Return the folder that holds a file of prepared data and its name there, as :func:`inside` takes them.

    The folder of a split may be a symbolic link to another disk: a file of it has to lie in it, not in the prepared folder.

    Args:
        name: of the file from the prepared folder on, such as train/car/n1_00.JPEG.
    """
    split, _, rest = name.partition("/")
    return (Path(prepared) / split, rest) if rest and unsafe_name(name) is None else (Path(prepared), name)


def shortened(text: str, length: int = 80) -> str:
    """Return the text quoted, without characters that a terminal would act on, and cut to a length for a message."""
    return repr(text if len(text) <= length else f"{text[:length]}…")


def printable(text: str) -> str:
    """Return the text with control characters, but for line ends and tabs, written as escapes.

    What a data set or a model says must not move a terminal's cursor, hide lines or set its title. JSON stays JSON.
    """
    if text.isprintable():
        return text
    return "".join(c if c in "\n\t" or _can_be_shown(c) else f"\\u{ord(c):04x}" for c in text)


def _can_be_shown(character: str) -> bool:
    # half a surrogate pair, which JSON can hold, cannot be written to a terminal or given to another program
    return not _is_control(character) and not "\ud800" <= character <= "\udfff"


def holds_controls(text: str) -> bool:
    """Return whether a text holds characters that a line of a table, a name or a terminal cannot be trusted with."""
    return any(map(_is_control, text))


def _is_control(character: str) -> bool:
    """Controls, separators of lines, and marks that are not seen or reverse the order in which text is shown."""
    joins = character in "\u200c\u200d"  # which letters of some scripts, and emoji, need
    return unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp") and not joins


def file_digest(path: str | os.PathLike[str]) -> str:
    """Return BLAKE2b of a file's content, 128 bits in hexadecimal: whether it is what it was.

    Raises:
        OSError: as :func:`open_regular`.
        InputError: the file is a hole: one of any size is made in no time, and would be read for hours.
    """
    digest = hashlib.blake2b(digest_size=16)
    with open_regular(path, "rb") as file:
        if _is_hollow(file.fileno()):
            raise InputError(
                f"{os.fspath(path)}: hardly anything of the file is there, the rest is a hole; copy it again"
            )
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _is_hollow(descriptor: int) -> bool:
    """Return whether a long file is a hole, but for a sixteenth at most; a disk that compresses makes holes of zeros."""
    size, there, end = os.fstat(descriptor).st_size, 0, 0
    try:
        while _LONG < size != end:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
            end = os.lseek(descriptor, start, os.SEEK_HOLE)
            there += end - start
    except OSError as error:
        if error.errno != errno.ENXIO:  # which says that there is nothing but a hole up to the end
            return False
    os.lseek(descriptor, 0, os.SEEK_SET)
    return size > max(_LONG, 16 * there)


def weights_digest(folder: Path) -> str | None:
    """Return a digest of the names and contents of a checkpoint's weights and configs; None where there are none.

    Raises:
        OSError, InputError: as :func:`file_digest`.
    """
    files = [path for kind in ("*.safetensors", "*config.json") for path in folder.glob(kind) if is_regular(path)]
    digests = [(path.name, file_digest(path)) for path in sorted(files)]
    return hashlib.blake2b(json.dumps(digests).encode(), digest_size=16).hexdigest() if digests else None


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """The name of a temporary file, which takes the place of another once the block that has written it ends well.

    Raises:
        InputError: the file cannot be written, or its disk is full (:class:`DiskFullError`).
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def atomic_file(path: str | os.PathLike[str], mode: str = "w") -> Iterator[IO[Any]]:
    """A file to write whole or not at all: a reader, or a run after a crash, never sees a half-written one.

    Args:
        mode: "w" for text (UTF-8) or "wb".

    Raises:
        InputError: the file cannot be written, or its disk is full (:class:`DiskFullError`).
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(temporary, mode, encoding=None if "b" in mode else "utf-8")  # noqa: SIM115, closed below
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        with writing_to(path), file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        try:
            os.replace(temporary, path)
        except OSError as error:
            raise cannot_write(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write a whole file or nothing.

    Raises:
        InputError: the file cannot be written.
    """
    with atomic_file(path, "wb") as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write JSON atomically, readable by a person. NaN is refused: it is no JSON."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def append_whole(path: str | os.PathLike[str], content: bytes) -> None:
    """Append to a file and force it to disk; if that fails, the file is as long as it was.

    Raises:
        InputError: the file cannot be written, or its disk is full.
    """
    try:
        # without a buffer, whose rest would be written as the file is closed, after it was cut to its length
        with open(path, "ab", buffering=0) as file:
            length = file.tell()
            try:
                left = memoryview(content)
                while left:
                    left = left[file.write(left) :]
                os.fsync(file.fileno())
            except OSError:
                os.ftruncate(file.fileno(), length)
                raise
    except OSError as error:
        raise cannot_write(path, error, need=len(content)) from error


def reserve(path: str | os.PathLike[str], size: int) -> None:
    """Make a file at least that many bytes long, with room on the disk for all of them.

    A file that is only declared so long dies by SIGBUS where a memory map of it meets a full disk.

    Raises:
        InputError: the disk has no room for it, or the file cannot be written.
    """
    try:
        Path(path).touch()
        with open(path, "r+b") as file:
            if size > 0 and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            elif size > os.fstat(file.fileno()).st_size:
                file.truncate(size)
    except OSError as error:
        raise cannot_write(path, error, need=size) from error


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Force every file under a folder, and the folders themselves, to disk, so that a mark written next is true."""
    for root, _, names in os.walk(folder):
        for path in [root, *filter(is_regular, (os.path.join(root, name) for name in names))]:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


@contextmanager
def writing_to(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn a full disk, met by whatever writes in this block, into an error that names the file or folder.

    Raises:
        DiskFullError: the disk became full.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if not is_disk_full(error):
            raise
        raise _disk_full(path, None) from error


def cannot_write(path: str | os.PathLike[str], error: OSError, *, need: int | None = None) -> InputError:
    """Return the error of a file that could not be written, for the caller to raise.

    Args:
        need: the bytes that were to be written, where they are known.
    """
    if is_disk_full(error):
        return _disk_full(path, need)
    return InputError(f"{os.fspath(path)}: cannot write the file ({error.strerror}); choose another path")


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error, or what it was raised from, says that a disk is full."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _NO_ROOM:
            return True
        if any(words in str(seen) for words in _NO_ROOM_WORDS):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _disk_full(path: str | os.PathLike[str], need: int | None) -> DiskFullError:
    asked = "" if need is None else f" for the {_size(need)} of it"
    return DiskFullError(
        f"{os.fspath(path)}: the disk is full, {_size(free_bytes(path))} are left{asked}; make room and run the same "
        "command again, which goes on where this one stopped"
    )


def free_bytes(path: str | os.PathLike[str]) -> int:
    """Return the free bytes of the disk that holds a path, or will."""
    place = Path(path).absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    return shutil.disk_usage(place).free


def _size(number: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} {unit}"
        number /= 1024
    return f"{number:.1f} GiB"
