"""Work on a stranger's file in a process of its own, which has a limit of memory and of time.

A file of three megabytes can ask its reader for any amount of both (one array named by thousands of parts, parts within
parts, thousands of materials), in more ways than can be looked for before it is read.
"""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar

from llava_pose.errors import InputError

Result = TypeVar("Result")


class TooMuchError(InputError):
    """The process came to an end before its work: it had no more memory or time, or the reader itself has died."""


def apart(work: Callable[[], Result], *, memory: int, seconds: int) -> Result:
    """Return what the work returns.

    Args:
        work: is done in a copy of this process, so that it may hold anything; its result is pickled.
        memory: bytes that it may take beside what this process has.
        seconds: of computing.

    Raises:
        TooMuchError: it did not come to its end.
        Exception: whatever the work raises.
    """
    forks = multiprocessing.get_context(
        "fork"
    )  # of a reader that has to be imported anew each file would take a second
    receiver, sender = forks.Pipe(duplex=False)
    process = forks.Process(target=_work, args=(work, sender, memory, seconds))
    process.start()
    sender.close()
    try:
        done, result = receiver.recv()
    except EOFError as error:
        raise TooMuchError("it takes too much memory or time to read") from error
    finally:
        process.kill()
        process.join()
        receiver.close()
    if not done:
        raise result
    return result


def _work(work: Callable[[], object], sender: Connection, memory: int, seconds: int) -> None:
    with suppress(OSError, ValueError):  # where the system has no such limits
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        most = pages * resource.getpagesize() + memory
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    try:
        sender.send((True, work()))
    except Exception as error:  # noqa: BLE001 (whatever it is, the other process raises it)
        sender.send((False, error))
