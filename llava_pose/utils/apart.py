"""Work on a stranger's file, done in a process of its own that has limits of memory and of time.

A file of a few kilobytes can ask its reader for any amount of both, in more ways than can be looked for before it is read.
A child of this process reads it first; if it does not come back, nothing is read here.
"""

from __future__ import annotations

import ctypes
import faulthandler
import logging
import os
import pickle
import select
import signal
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, TypeVar

logger = logging.getLogger(__name__)
Result = TypeVar("Result")
_LONGEST_WAIT = 10  # times the seconds of computing, where a machine has much else to do
_STILL = 20  # seconds without computing, after which a child waits for what will not come
_TRIES = 3
_WHOLE = b"."  # after the last byte of what the child says
_PARENT_DIED = 1  # Linux's PR_SET_PDEATHSIG


class TooMuchError(Exception):
    """The child came to an end before its work: it had no more memory or time, or the reader itself has died."""


def apart(work: Callable[[], Result], *, memory: int, seconds: int) -> Result:
    """Do some work in a forked child within limits, and return what it returns.

    Only on Linux: elsewhere a fork is not safe, and the work is done here, without limits. On Linux, too, a lock that another
    thread holds just then stays locked in the child for ever (fork(2)): one that stands still is ended, and another tries.

    Args:
        work: what is to be done, once or more often. It must not use a GPU; what it returns or raises is pickled.
        memory: bytes that it may take beside what this process has.
        seconds: of computing that it may take.

    Raises:
        TooMuchError: the child did not come to its end.
        Exception: whatever the work raises.
    """
    if sys.platform != "linux":
        return work()
    said = None
    for _ in range(_TRIES):
        said = _said_by_a_child(work, memory, seconds)
        if said is not None:
            break
        logger.debug("a child stood still and was ended")
    if not said:
        raise TooMuchError(f"it takes more than {seconds} seconds or {memory / (1 << 30):.0f} GiB to read")
    done, result = pickle.loads(said)  # of the child, which is this program
    if not done:
        raise result
    return result


def _said_by_a_child(work: Callable[[], object], memory: int, seconds: int) -> bytes | None:
    """Return what one child says of the work, as :func:`_hear` does."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():  # later Pythons warn of other threads
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        _be_the_child(writer, work, memory, seconds)
    os.close(writer)
    try:
        return _hear(reader, child, seconds * _LONGEST_WAIT)
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)
        with suppress(ChildProcessError):  # somebody else has waited for it
            os.waitpid(child, 0)


def _hear(reader: int, child: int, seconds: float) -> bytes | None:
    """Return what the child says before it ends: nothing where it dies or takes too long, None where it stands still."""
    blocks: list[bytes] = []
    waited = still = computed = 0  # counted by rounds: a machine that sleeps meanwhile costs one
    while waited < seconds:
        if select.select([reader], [], [], 1.0)[0]:
            block = os.read(reader, 1 << 20)
            if not block:
                said = b"".join(blocks)
                return said[:-1] if said.endswith(_WHOLE) else b""
            blocks.append(block)
            continue
        before, computed = computed, _computed(child)
        waited, still = waited + 1, still + 1 if computed == before else 0
        if still > _STILL:
            return None
    return b""


def _computed(child: int) -> int:
    """Return the ticks of a processor that a child has had, in its own code and in the system's."""
    with suppress(OSError, IndexError):  # it has ended, which the pipe tells
        after_name = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
        return int(after_name[11]) + int(after_name[12])
    return 0


def _be_the_child(writer: int, work: Callable[[], object], memory: int, seconds: int) -> NoReturn:
    """Say what came of the work, and end without a trace in the parent's terminal and files."""
    try:
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(3):
            os.dup2(nothing, descriptor)
        faulthandler.disable()
        _limit(memory, seconds)
        said = _outcome(work)
        with open(writer, "wb") as pipe:
            if said:
                pipe.write(said + _WHOLE)
    finally:
        os._exit(0)


def _outcome(work: Callable[[], object]) -> bytes:
    try:
        return pickle.dumps((True, work()))
    except BaseException as error:  # noqa: BLE001 (the parent raises it)
        # torch's own error of memory is known by its words alone
        if isinstance(error, MemoryError) or "memory" in str(error):
            return b""
        raised: Any = error
    try:
        if not isinstance(raised, Exception):
            raise TypeError
        pickle.loads(pickle.dumps(raised))  # some errors can be written and not read
    except Exception:  # noqa: BLE001
        raised = RuntimeError(f"{type(raised).__name__}: {raised}"[:4000])
    return pickle.dumps((False, raised))


def _limit(memory: int, seconds: int) -> None:
    import resource

    ctypes.CDLL(None).prctl(_PARENT_DIED, signal.SIGKILL)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + memory
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
