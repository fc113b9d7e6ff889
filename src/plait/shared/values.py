"""A number that several workers have: Value, Counter.

It is a lock with a number beside it, in the same cell (cells.py). A number is written by one store
of the CPU: whoever reads finds the old one or the new one, whoever is killed and when.

Used by programs.
"""

from __future__ import annotations

import os
import struct
import threading
from time import monotonic_ns
from typing import Any, Generic, TypeVar

from plait.shared import libc
from plait.shared.cells import SINCE, STATE, WHO, Cell
from plait.shared.kinds import code_of, store_number
from plait.shared.lock_calls import FOREVER, caller
from plait.shared.locks import SelfLocked

__all__ = ["Counter", "Value"]

T = TypeVar("T", bound=float)

NUMBER, CODE = STATE, STATE + 1
"""The words of a value's cell: its number, and the code of its kind."""


class _ThisThread(threading.local):
    """Keeps what the system's number of the calling thread is: to ask for it is a system call."""

    def __init__(self) -> None:
        # Where threads are greenlets, that one of this thread has it does not say which.
        self.tid = threading.get_native_id() if libc.is_own is None else -1


_this_thread = _ThisThread()


def _forget_after_fork() -> None:
    global _this_thread
    _this_thread = _ThisThread()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)


class _Number(SelfLocked, Generic[T]):
    """What Value and Counter have in common: a lock, its number, and what is done at one stroke."""

    def _begin(self, code: str, initial: T) -> None:
        self._words[CODE] = ord(code)
        self._find_number()
        self._store(initial)

    def _set_up(self, cell: Cell, on_owner_death: str) -> None:
        super()._set_up(cell, on_owner_death)
        if cell.words[CODE]:  # it has arrived; a new one begins after this
            self._find_number()

    def _find_number(self) -> None:
        code = chr(self._words[CODE])
        at = self._cell.offset + libc.MUTEX_BYTES + 8 * NUMBER
        region = self._cell.arena.region
        part = memoryview(region.memory)[at : at + struct.calcsize(code)]
        self._number: memoryview[Any] = part.cast(code)  # type: ignore[call-overload]
        self._owner = libc.owner_word(region.words(self._cell.offset, libc.MUTEX_BYTES, "I"))

    def _store(self, number: T) -> None:
        store_number(self._number, 0, number, self._cell)

    @property
    def value(self) -> T:
        """The number. To read it takes no lock."""
        number: T = self._number[0]
        return number

    def add(self, n: T | int = 1) -> T:
        """Add to the number, and return what it is then; nobody comes in between.

        Raises OverflowError, and leaves it as it is, where the sum does not fit into its kind.
        """
        holder = self._begin_stroke()
        try:
            self._store(self._number[0] + n)
            sum_: T = self._number[0]
            return sum_
        finally:
            self._words[WHO] = holder
            libc.unlock(self._mutex)

    def _exchange(self, number: T) -> T:
        holder = self._begin_stroke()
        try:
            before: T = self._number[0]
            self._store(number)
            return before
        finally:
            self._words[WHO] = holder
            libc.unlock(self._mutex)

    def _begin_stroke(self) -> int:
        """Acquire the lock for our caller's moment; return who is to be noted after it.

        To note who has it, where and since when would take longer than all the rest. So for this
        moment nobody is noted, instead of whoever had it before: that may be this thread, which
        is within its ``with value:`` and has to be noted again.

        The end of it is written out by each caller: before a function of C Python does not look
        for signals, and Ctrl-C cannot leave it locked.
        """
        try:
            holder = 0
            if code := libc.try_lock(self._mutex):
                self._acquire_slowly(code, caller(2), FOREVER)  # which notes us
            else:
                holder = self._words[WHO]
            self._words[WHO] = 0
            return holder
        except BaseException as error:  # Ctrl-C, before our caller can know that it has it
            self._let_go(error)
            raise

    def _inherit(self) -> None:
        if not self._words[WHO]:  # it ended within a stroke, a moment after that began
            self._words[SINCE] = monotonic_ns()
        super()._inherit()

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, {self.value}>"


class Value(_Number[T]):
    """A number for threads and processes, as ``multiprocessing.Value``, that can be sent to any.

    It is an RLock, too: ``with value:`` keeps others from writing, and from ``add`` and its kind,
    and tells, by ``OwnerDied``, where a process has died within. What only reads does not wait.

    Args:
        kind: int (64 bits), float or bool, or a code of ``struct``, one of ``?bBhHiIqQfd``.
        initial: what it is at first; zero if it is not given.
        name: what it is called in messages.
        on_owner_death: "raise" or "ignore", as in Lock.
        lock: as in multiprocessing, but True and False are the same: what only reads needs no lock,
            and it is the lock itself, so another one is a TypeError.

    Raises:
        OverflowError: for a number that does not fit into the kind.
        OwnerDied, DeadlockError: by all that writes, as in Lock.

    >>> value = Value(int, 5, "found")
    >>> with value:
    ...     value.value *= 2
    >>> value.add(1), value.value
    (11, 11)
    """

    def __init__(
        self,
        kind: type[T] | str,
        initial: T | None = None,
        name: str = "",
        *,
        on_owner_death: str = "raise",
        lock: bool = True,
    ) -> None:
        code = code_of(kind)
        super().__init__(name, on_owner_death, lock)
        first: Any = 0 if initial is None else initial
        self._begin(code, first)

    @property
    def value(self) -> T:
        """The number. To read it takes no lock; to write it waits for who has the lock."""
        number: T = self._number[0]
        return number

    @value.setter
    def value(self, number: T) -> None:
        # This thread has it already in every `with value: value.value += 1`.
        if self._owner[0] & libc.OWNER_MASK == _this_thread.tid:
            try:
                self._number[0] = number
            except (TypeError, ValueError):
                self._store(number)
            return
        holder = self._begin_stroke()
        try:
            self._store(number)
        finally:
            self._words[WHO] = holder
            libc.unlock(self._mutex)

    def exchange(self, number: T) -> T:
        """Write a number, and return the one before; nobody comes in between."""
        return self._exchange(number)

    def compare_exchange(self, expected: T, number: T) -> bool:
        """Write a number if it is (still) the expected one; return whether it was."""
        holder = self._begin_stroke()
        try:
            is_it = bool(self._number[0] == expected)
            if is_it:
                self._store(number)
            return is_it
        finally:
            self._words[WHO] = holder
            libc.unlock(self._mutex)


class Counter(_Number[int]):
    """A whole number that several workers count up; it is changed by ``add`` alone.

    So ``counter.value += 1``, which loses what others add in between, cannot be written.

    >>> counter = Counter()
    >>> counter.add(), counter.add(2), counter.reset(), counter.value
    (1, 3, 3, 0)
    """

    def __init__(self, initial: int = 0, name: str = "", *, on_owner_death: str = "raise") -> None:
        super().__init__(name, on_owner_death, lock=True)
        self._begin("q", initial)

    def reset(self, number: int = 0) -> int:
        """Begin anew, at zero or another number; return what it had come to."""
        return self._exchange(number)
