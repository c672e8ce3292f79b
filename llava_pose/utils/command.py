"""One way a command is made of a config and a function, and one way it ends: exit codes, and what comes next."""

from __future__ import annotations

import errno
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Generic, Protocol

from llava_pose.errors import InputError, RunError
from llava_pose.utils.config import ConfigT, parse_config
from llava_pose.utils.files import is_disk_full, printable
from llava_pose.utils.other_packages import quiet_others

_NEXT = logging.getLogger("llava_pose.next")

STEP_VARIABLE = "LLAVA_POSE_STEP"  # set by a script whose steps are commands, and which says itself what comes next


# what any look at a path can end in, also at one that is only asked whether it is there
_BAD_PATH = (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOTDIR)


_ENDLESS = re.compile(r"(\S{4096})\S+")  # longer than any path


class _PrintableRecord(logging.LogRecord):
    """A log line as :func:`_for_a_terminal` shows it, whoever writes it."""

    def getMessage(self) -> str:
        return _for_a_terminal(super().getMessage())


def _for_a_terminal(text: str) -> str:
    """Return a text without the control characters and the endless words that a data set or a checkpoint may hold."""
    return _ENDLESS.sub(r"\1…", printable(text))


def run_main(run: Callable[[], Any]) -> int:
    """Run a command's work and turn its end into an exit code: 0 done, 2 bad input or usage, 1 stopped by the
    user or come to nothing.

    Any other exception passes through with its traceback, which ends a process with 1.
    """
    quiet_others()
    logging.setLogRecordFactory(_PrintableRecord)  # transformers, for one, has a handler of its own
    if not logging.getLogger().handlers:
        handler = logging.StreamHandler(sys.stderr)
        logging.basicConfig(level=logging.INFO, handlers=[handler], format="%(message)s")
        for chatty in ("httpx", "trimesh"):  # a line for every request, for every mesh
            logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        try:
            with steps_of_a_whole() if os.environ.get(STEP_VARIABLE) else nullcontext():
                run()
        finally:
            sys.stdout.flush()  # what a closed pipe does not take must not be met at the interpreter's end
    except InputError as error:
        return _fail(f"{error}", 2)
    except RunError as error:
        return _fail(f"{error}", 1)
    except KeyboardInterrupt:
        return _fail("stopped; run the same command again to go on", 1, prefix="")
    except BrokenPipeError:
        # whoever read the output, such as head, has enough; the interpreter would complain as it flushes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _BAD_PATH and error.filename:
            return _fail(f"{error.filename}: cannot be used ({error.strerror}); give another path", 2)
        if not is_disk_full(error):
            raise
        where = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
        return _fail(f"{where}the disk is full; make room and run the same command again, which goes on from here", 1)
    return 0


def say_next(command: str) -> None:
    """Log the command that goes on from here; not where this one is a step of a larger whole, which says so itself."""
    _NEXT.info(f"next: {command}")


@contextmanager
def steps_of_a_whole() -> Iterator[None]:
    """Let no command that runs inside say what comes next."""
    level = _NEXT.level
    _NEXT.setLevel(logging.WARNING)
    try:
        yield
    finally:
        _NEXT.setLevel(level)


def _fail(message: str, code: int, *, prefix: str = "error: ") -> int:
    sys.stderr.write(f"{prefix}{_for_a_terminal(message)}\n")
    return code


class Main(Protocol):
    """The main function of a command."""

    def __call__(self, argv: Sequence[str] | None = None) -> int: ...


@dataclass(frozen=True)
class Command(Generic[ConfigT]):
    """A command: the main function of its words, and its config and its work for whoever calls it from Python.

    Attributes:
        config_class: the dataclass of its options; :func:`fill_config` fills it from a mapping.
        run: its work; it raises what :func:`run_main` turns into exit codes.
    """

    config_class: type[ConfigT]
    run: Callable[[ConfigT], Any]
    prog: str
    description: str
    example: str
    positional: str | None = None

    def __call__(self, argv: Sequence[str] | None = None) -> int:
        return run_main(lambda: self.run(self._parsed(argv)))

    def _parsed(self, argv: Sequence[str] | None) -> ConfigT:
        texts = {"prog": self.prog, "description": self.description, "example": self.example}
        return parse_config(self.config_class, argv, positional=self.positional, **texts)


def command(
    config_class: type[ConfigT],
    run: Callable[[ConfigT], Any],
    *,
    prog: str,
    description: str,
    example: str,
    positional: str | None = None,
) -> Command[ConfigT]:
    """Make the main function of a command: words become its config, and its end an exit code."""
    return Command(config_class, run, prog, description, example, positional)
