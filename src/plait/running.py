"""Which task the calling thread runs; shared data notes that beside who holds what.

It is one word for each thread: the number of the task, from 1, and how many more there are that it
may be as well, where tiny tasks run without a look between them; 0: none.
"""

from __future__ import annotations

import itertools
import threading
from contextvars import ContextVar

from plait.compiled import fast

__all__ = [
    "begin_task",
    "begin_tasks",
    "end_tasks",
    "get_task",
    "inside",
    "pool_numbers",
    "set_task",
    "text_of_task",
]

# The pools of this process in whose tasks the current code runs, by number: the task's own pool,
# the pool of the task that called that one, and so on. A call from there must not wait for a
# place that one of these tasks holds. It is a context variable, for it is to follow a call into
# helper threads (``amap``, ``asyncio.to_thread``).
inside: ContextVar[frozenset[int]] = ContextVar("plait_inside", default=frozenset())
pool_numbers = itertools.count(1)

MORE_BITS = 40
MOST_MORE = (1 << 64 - MORE_BITS) - 1

if fast is not None:
    set_task, get_task = fast.set_task, fast.get_task
else:

    class _Here(threading.local):
        word = 0

    _here = _Here()

    def set_task(word: int, /) -> None:
        """Note which task the calling thread runs."""
        _here.word = word

    def get_task() -> int:
        """Return which task the calling thread runs."""
        return _here.word


def begin_task(index: int) -> None:
    """Note that the calling thread runs a task from now on, by its index."""
    set_task(index + 1)


def begin_tasks(first: int, count: int) -> None:
    """Note that it runs so many, one of which it is."""
    set_task(min(max(0, count - 1), MOST_MORE) << MORE_BITS | first + 1)


def end_tasks() -> None:
    """Note that it runs none."""
    set_task(0)


def text_of_task(word: int) -> str:
    """Return what a word says, as messages tell it: task 12.

    >>> text_of_task(13), text_of_task(3 << MORE_BITS | 13), text_of_task(0)
    ('task 12', 'one of tasks 12 to 15', '')
    """
    more, number = word >> MORE_BITS, word & (1 << MORE_BITS) - 1
    if not number:
        return ""
    return f"one of tasks {number - 1} to {number - 1 + more}" if more else f"task {number - 1}"
