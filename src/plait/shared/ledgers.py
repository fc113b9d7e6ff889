"""How many items of a queue each process has taken, for task_done and join (queues.py)."""

from __future__ import annotations

import os
from weakref import WeakSet

from plait.shared.memory import HEAD_BYTES, Region
from plait.shared.sections import is_running, me

__all__ = ["Ledger"]

UNKNOWN = -1


class Ledger:
    """How many items each process has taken that are not done, in the queue's region.

    A process that has ended has nothing any more. The first line is everybody's: what more
    processes have than there are lines for, and what was done before it was taken.
    """

    LINES = 256

    def __init__(self, region: Region) -> None:
        self.words = region.words(HEAD_BYTES, 16 * self.LINES, "q")
        self.line = UNKNOWN
        _ledgers.add(self)

    def note_taken(self) -> None:
        """Say that this process has taken an item."""
        if self.line == UNKNOWN:
            self.find_line()
        self.words[self.line + 1] += 1

    def note_done(self) -> None:
        """Say that an item is done, by whomever it was taken."""
        if self.line > 0 and self.words[self.line + 1] > 0:
            self.words[self.line + 1] -= 1
            return
        lines = range(2, 2 * self._used(), 2)
        line = next((line for line in lines if self.words[line + 1] > 0), 0)
        self.words[line + 1] -= 1

    def unfinished(self) -> int:
        """Return how many are not done."""
        return sum(self.words[1 : 2 * self._used() : 2])

    def settle(self) -> None:
        """Have items of processes that have ended count as done."""
        for line in range(2, 2 * self._used(), 2):
            if self.words[line + 1] and not is_running(self.words[line]):
                self.words[line + 1] = 0

    def forget_line(self) -> None:
        """Find the line of this process anew: it is another one now."""
        self.line = UNKNOWN

    def _used(self) -> int:
        free = (n for n in range(1, self.LINES) if not self.words[2 * n])
        return next(free, self.LINES)

    def find_line(self) -> None:
        """Find or take the line of this process."""
        self.line = self._find_line()

    def _find_line(self) -> int:
        used = self._used()
        if used == self.LINES:
            self.settle()
        for line in range(2, 2 * used, 2):
            is_left = not self.words[line + 1] and not is_running(self.words[line])
            if is_left or self.words[line] == me():
                self.words[line] = me()
                return line
        if used == self.LINES:
            return 0
        self.words[2 * used] = me()
        return 2 * used


_ledgers: WeakSet[Ledger] = WeakSet()


def _forget_lines() -> None:
    for ledger in _ledgers:
        ledger.forget_line()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_lines)
