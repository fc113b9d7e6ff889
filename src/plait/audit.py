"""Check, at the end of every run, that each of its tasks is settled, and settled once.

Used by runs.py, which notes each stretch of final outcomes here. A run that lost a task, or
counted one twice, must never look like one that went well: ``check`` raises InternalError.
To note a stretch takes half a microsecond.
"""

from __future__ import annotations

from collections.abc import Iterable

from plait.errors import InternalError

__all__ = ["Audit"]


class Audit:
    """The numbers of the tasks that are settled, as intervals; those that touch are joined.

    >>> audit = Audit()
    >>> audit.add(0, 3)
    >>> audit.add(5, 5)
    >>> audit.check(10)
    Traceback (most recent call last):
    ...
    plait.errors.InternalError: plait lost track of its tasks: 3 to 4 have no outcome, of 10 that \
were taken from the input. This is a fault of plait, not of your function. Please report it, with \
the call and the versions of plait and Python.
    """

    def __init__(self) -> None:
        # Both hold the same intervals, if none overlap; if some do, _ends has them all.
        self._ends: dict[int, int] = {}  # by first number
        self._firsts: dict[int, int] = {}  # by the number after the last
        self._doubles: list[tuple[int, int]] = []  # that begin where another one does

    def add(self, first: int, count: int) -> None:
        """Note that ``count`` tasks from number ``first`` on are settled."""
        end = first + count
        if first in self._ends:
            self._doubles.append((first, end))
            return
        first = self._firsts.pop(first, first)
        end = self._ends.pop(end, end)
        self._ends[first] = end
        self._firsts[end] = first

    def is_settled(self, number: int) -> bool:
        """Whether a task is settled."""
        return any(first <= number < end for first, end in self._ends.items())

    def check(self, total: int, *, may_lack: bool = False) -> None:
        """Raise InternalError unless tasks 0 to ``total`` are settled, each once.

        With ``may_lack`` some may be missing: the run was stopped, or the input got shorter.
        """
        if self._ends == {0: total} and not self._doubles:  # as good as always
            return
        missing, doubled, due = [], [], 0
        for first, end in sorted([*self._ends.items(), *self._doubles]):
            if first > due:
                missing.append((due, first))
            elif first < due:
                doubled.append((first, min(due, end)))
            due = max(due, end)
        if due < total:
            missing.append((due, total))
        unknown = [(total, due)] if due > total else []
        if doubled or unknown or (missing and not may_lack):
            raise InternalError(total, _numbers(missing), _numbers(doubled), _numbers(unknown))


def _numbers(intervals: Iterable[tuple[int, int]]) -> list[range]:
    return [range(first, end) for first, end in intervals]
