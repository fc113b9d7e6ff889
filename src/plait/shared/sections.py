"""Short steps on shared words, one at a time, that are put in order if whoever took one was killed.

A semaphore, say, keeps its numbers in the words of a cell (cells.py). To change them it runs a
function in a section: under the cell's mutex. A process may be killed between any two words that
it writes there; the next one to come is told so by the mutex and first runs a repair, which makes
of what it finds the state before the step, or after it. Ctrl-C in the midst of it is treated alike.
"""

from __future__ import annotations

import errno
import math
import os
import sys
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from plait.shared import libc
from plait.shared.guards import lock_slowly
from plait.shared.whereabouts import start_of

if TYPE_CHECKING:
    from plait.shared.cells import Cell

__all__ = [
    "Section",
    "end_of",
    "futex_of",
    "is_running",
    "me",
    "nothing",
]

T = TypeVar("T")
START_BITS = 40


class Section:
    """What a cell's mutex guards: functions that run there do so one at a time.

    ``with`` would not do: Ctrl-C may come between its last line and the release, and would leave
    the mutex locked. In ``finally`` nothing comes between.

    Args:
        cell: has the mutex.
        repair: puts in order what a dead process has left half done.
    """

    def __init__(self, cell: Cell, repair: Callable[[], object]) -> None:
        self._cell = cell
        self._mutex = cell.mutex
        self._repair = repair

    def run(self, step: Callable[..., T], *args: Any) -> T:
        """Run a function, which shall be short and wait for nothing."""
        is_inner = False
        try:
            if code := libc.try_lock(self._mutex):
                is_inner = self._enter(code)
            return step(*args)
        except BaseException:  # Ctrl-C, between two words perhaps
            if not is_inner and self._cell.is_mine:
                self._repair()
            raise
        finally:
            if not is_inner:
                libc.unlock(self._mutex)  # has no effect where we do not have it

    def _enter(self, code: int) -> bool:
        """Wait for the mutex; True if this thread has it already: a signal's handler runs."""
        code = lock_slowly(self._mutex, code)
        if code == errno.EOWNERDEAD:
            self._repair()
        return code == errno.EDEADLK


def futex_of(cell: Cell, word: int) -> int:
    """Return the address of the half of a word that changes, to wait on it."""
    return cell.address_of(word) + (4 if sys.byteorder == "big" else 0)


def nothing() -> None:
    """Repair what is in order after each word."""


def end_of(timeout: float | None) -> float:
    """Return when so many seconds are over; None: never."""
    return math.inf if timeout is None else monotonic() + timeout


# --- Processes, as words -----------------------------------------------------------------

_me = 0


def me() -> int:
    """Return what tells this process from all others, later ones with its number too."""
    global _me
    if not _me:
        pid = os.getpid()
        _me = pid << START_BITS | start_of(pid, pid)
    return _me


def is_running(process: int) -> bool:
    """Whether the process that was given this word by ``me`` is there; 0 is nobody's.

    Where that cannot be found out it is taken to be there.
    """
    pid = process >> START_BITS
    return pid != 0 and start_of(pid, pid) in (-1, process & ((1 << START_BITS) - 1))


def _forget_me() -> None:
    global _me
    _me = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_me)
