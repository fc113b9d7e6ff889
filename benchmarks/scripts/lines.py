"""A fresh script: tasks that print many lines each, by one way or another.

Each way imports what it needs and nothing else, as a script would.
"""

from __future__ import annotations

import sys
from functools import partial

LINES = 1_000  # of each task


def print_lines(task: int, *, is_flushed: bool = False) -> None:
    for number in range(LINES):
        print("task", task, "line", number, flush=is_flushed)


def by_loop(tasks: range) -> None:
    for task in tasks:
        print_lines(task)


def by_plait(tasks: range) -> None:
    import plait

    plait.map(print_lines, tasks, backend="processes", max_workers=2)


def by_executor(tasks: range) -> None:
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(2) as executor:
        list(executor.map(print_lines, tasks))


def by_pool(tasks: range, *, is_flushed: bool = False) -> None:
    from multiprocessing import get_context

    # Closed, not terminated as by ``with``: that would lose what is not flushed.
    pool = get_context("fork").Pool(2)
    pool.map(partial(print_lines, is_flushed=is_flushed), tasks)
    pool.close()
    pool.join()


def by_flushing_pool(tasks: range) -> None:
    by_pool(tasks, is_flushed=True)


if __name__ == "__main__":
    globals()[f"by_{sys.argv[1]}"](range(int(sys.argv[2])))
