"""A pool of processes for commands that work item by item: results in order, nothing left running after a kill."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import TypeVar

Item = TypeVar("Item")
Shared = TypeVar("Shared")
Result = TypeVar("Result")


def default_workers() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_processes(
    function: Callable[[Item, Shared], Result],
    items: Sequence[Item],
    shared: Shared,
    *,
    workers: int,
    most_items_a_task: int = 16,
) -> Iterator[Result]:
    """Yield ``function(item, shared)`` of every item, in their order; with one worker, in this process.

    Args:
        function: a module's function; items, ``shared`` and results are pickled between processes. Results should be
            small: those that are not taken yet are kept.
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
        yield from pool.map(partial(_apply, function, shared), items, chunksize=chunk)


def _apply(function: Callable[[Item, Shared], Result], shared: Shared, item: Item) -> Result:
    return function(item, shared)


def _exit_with_parent() -> None:
    """Let a worker end with its parent: one that is killed with -9 cannot stop its workers, which would wait for ever.

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
