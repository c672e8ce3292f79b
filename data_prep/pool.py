"""A pool of processes for stages that work item by item: results in order, a bounded number of them waiting, nothing
left running after a kill."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Shared = TypeVar("Shared")
Result = TypeVar("Result")

_TASKS_AHEAD = 4  # for each worker: enough that none waits, few enough that results do not pile up


def default_workers() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_processes(
    function: Callable[[Item, Shared], Result],
    items: Sequence[Item],
    shared: Shared,
    *,
    workers: int,
    most_items_a_task: int = 16,
) -> Iterator[Result]:
    """``function(item, shared)`` of every item, in their order; with one worker, in this process.

    Args:
        function: a module's function; items, ``shared`` and results are pickled between processes. However slowly results
            are taken, at most a few tasks for each worker are waiting.
        workers: processes; 0 for :func:`default_workers`.
        most_items_a_task: that a worker gets at once; fewer where an item takes long.

    Raises:
        concurrent.futures.process.BrokenProcessPool: a worker died.
        Whatever the function raises.
    """
    workers = min(workers or default_workers(), len(items))
    if workers <= 1:
        yield from (function(item, shared) for item in items)
        return
    chunk = max(1, min(most_items_a_task, len(items) // (4 * workers)))
    # spawn: forking a process that has started threads (torch, a progress bar) can hang the child
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_exit_with_parent) as pool:
        try:
            tasks = (items[start : start + chunk] for start in range(0, len(items), chunk))
            ahead: deque[Future[list[Result]]] = deque()
            for task in islice(tasks, _TASKS_AHEAD * workers):
                ahead.append(pool.submit(_apply, function, task, shared))
            while ahead:
                results = ahead.popleft().result()
                for task in islice(tasks, 1):
                    ahead.append(pool.submit(_apply, function, task, shared))
                yield from results
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _apply(function: Callable[[Item, Shared], Result], items: Sequence[Item], shared: Shared) -> list[Result]:
    return [function(item, shared) for item in items]


def _exit_with_parent() -> None:
    """A parent that is killed with -9 cannot stop its workers, which would wait for work forever.

    Ctrl-C reaches the whole group of processes; the parent's answer to it is enough.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
