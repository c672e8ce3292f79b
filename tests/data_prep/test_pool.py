"""The pool of processes that prepare and render work with."""

from __future__ import annotations

import operator
import os

import pytest

from data_prep.pool import default_workers, map_processes


@pytest.mark.parametrize(("workers", "most"), [(1, 16), (2, 16), (3, 1)])
def test_results_come_in_the_order_of_the_items(workers: int, most: int) -> None:
    items = list(range(10))
    results = map_processes(operator.sub, items, 100, workers=workers, most_items_a_task=most)
    assert list(results) == [item - 100 for item in items]


def test_one_item_needs_no_other_process() -> None:
    assert list(map_processes(_process_id, ["a"], None, workers=8)) == [os.getpid()]
    assert list(map_processes(_process_id, [], None, workers=0)) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_the_function_comes_through(workers: int) -> None:
    with pytest.raises(ZeroDivisionError):
        list(map_processes(operator.floordiv, [4, 2, 1], 0, workers=workers))


def test_default_workers_are_the_cores_that_this_process_may_use() -> None:
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system has no affinity to cores")
    before = os.sched_getaffinity(0)
    assert default_workers() == len(before)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert default_workers() == 1
    finally:
        os.sched_setaffinity(0, before)


def _process_id(item: str, shared: None) -> int:
    return os.getpid()
