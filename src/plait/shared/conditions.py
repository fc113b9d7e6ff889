"""Conditions: wait until another thread or process says that something has changed.

Each thread waits in its seat (seats.py), on a word of its own, with a ticket that says for what,
and who came first. The lock that belongs to the condition guards who comes; who leaves, and who is
told, is decided in a section (sections.py), as some leave without the lock.
"""

# A condition may use of a lock what is for nobody else, by the names that threading has for it.
# ruff: noqa: SLF001

from __future__ import annotations

import math
from collections.abc import Callable
from time import monotonic
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from plait.errors import DeadlockError, OwnerDied
from plait.shared import libc
from plait.shared.cells import DEATHS, STATE, Cell, arrive, label_of, new_cell, settle
from plait.shared.lock_calls import caller
from plait.shared.locks import LOOK_S, Lock, RLock
from plait.shared.sections import Section, end_of, nothing

if TYPE_CHECKING:
    from plait.shared.seats import Seat

__all__ = ["Condition"]

CONDITION = 10
TICKETS, ANY = STATE, STATE + 1  # how many were given out; whether anybody may wait to be told
CELL_SHIFT = 40  # a ticket: the condition's cell above, its number in the queue below


class Condition:
    """A condition variable for threads and processes, as ``threading.Condition``.

    Who waits longest is notified first. One that was killed while it waited is passed over; had it
    been notified already, another one is instead, within a second. If a process is killed that had
    the lock, and would have notified perhaps, all go on, within a second. So a ``wait`` may return
    without cause, as with every condition: look again whether what was waited for is true, or use
    ``wait_for``.

    Args:
        lock: a ``Lock`` or ``RLock`` of ``plait.shared``; without it, an ``RLock`` of its own.
            ``acquire``, ``release`` and ``locked`` are those of the lock.
        name: what it is called in messages.

    Raises:
        TypeError: for a lock that not all processes can have, as ``threading.Lock``.
        SharedDataGone: when it arrives after all who had it have ended.

    >>> condition = Condition()
    >>> with condition:
    ...     condition.notify()
    ...     condition.wait(timeout=0.01)
    False
    """

    def __init__(self, lock: Lock | None = None, name: str = "") -> None:
        if lock is None:
            lock = RLock(name)
        if not isinstance(lock, Lock):
            raise TypeError(
                f"lock={lock!r} must be a Lock or RLock of plait.shared: others are of one process"
            )
        self._set_up(new_cell(CONDITION, label_of(type(self), name)), lock)

    def _set_up(self, cell: Cell, lock: Lock) -> None:
        self._cell, self._lock = cell, lock
        self._section = Section(cell, nothing)
        self.acquire, self.release, self.locked = lock.acquire, lock.release, lock.locked
        settle(cell, self)

    def __enter__(self) -> bool:
        lock = self._lock
        had_it = lock._is_owned()
        try:
            return lock._acquire_at(caller(1))
        except BaseException:  # Ctrl-C, when we had it just acquired: nobody would release it
            if not had_it and lock._is_owned():
                lock.release()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._lock.__exit__(kind, error, traceback)

    def wait(self, timeout: float | None = None) -> bool:
        """Release the lock, wait to be notified, and acquire the lock again.

        Args:
            timeout: in seconds; None: for ever.

        Returns:
            False if the time was up before.

        Raises:
            RuntimeError: where the calling thread does not have the lock.
            OwnerDied: who held the lock ended. This thread has it now.
            DeadlockError: the lock is not to be had again. This thread does not have it.

        >>> condition = Condition()
        >>> with condition:
        ...     condition.wait(timeout=0)
        False
        """
        if not self._lock._is_owned():
            raise RuntimeError(f"cannot wait: this thread has not acquired {self._cell.label}")
        until, frame = end_of(timeout), _outside(caller(1))
        seat = self._cell.arena.seat()
        outer = seat.ticket  # of a wait in the midst of which a signal's handler runs: here
        try:
            seat.word = 0
            seat.ticket = self._next_ticket()
            deaths = self._lock._cell.words[DEATHS]
            depth = self._lock._release_save()
            try:
                is_called = self._sleep(seat, until, deaths)
            finally:
                self._acquire_again(depth, frame)
            return self._section.run(self._leave, seat, outer) or is_called
        except BaseException:  # whatever it is, it goes on: but not with what others wait for
            if self._section.run(self._leave, seat, outer):
                self._section.run(self._tell, 1)
            raise

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
        """Wait until a function, called with the lock held, returns what is true; return that.

        Args:
            predicate: called first, and after each notification.
            timeout: in seconds; None: for ever. When it is over, what was returned last is.

        Raises:
            RuntimeError, OwnerDied, DeadlockError: as ``wait``.

        >>> condition = Condition()
        >>> with condition:
        ...     condition.wait_for(lambda: "ready", timeout=1)
        'ready'
        """
        until = end_of(timeout)
        result = predicate()
        while not result and (now := monotonic()) < until:
            self.wait(None if until == math.inf else until - now)
            result = predicate()
        return result

    def notify(self, n: int = 1) -> None:
        """Wake so many of those who wait, those first that came first.

        Raises:
            RuntimeError: where the calling thread does not have the lock.

        >>> condition = Condition()
        >>> with condition:
        ...     condition.notify(2)
        """
        if not self._lock._is_owned():
            raise RuntimeError(f"cannot notify: this thread has not acquired {self._cell.label}")
        if self._cell.words[ANY] and not self._section.run(self._tell, n):
            self._cell.words[ANY] = 0

    def notify_all(self) -> None:
        """Wake all who wait.

        Raises:
            RuntimeError: where the calling thread does not have the lock.

        >>> condition = Condition()
        >>> with condition:
        ...     condition.notify_all()
        """
        self.notify(len(self._cell.arena.tickets()))

    def __repr__(self) -> str:
        return f"<plait.shared {self._cell.label}: {self._lock!r}, {len(self._queue())} waiting>"

    def __reduce__(self) -> tuple[Any, ...]:
        return arrive, (type(self), self._cell.place, self._lock)

    # --- Who waits: each in its seat, with a ticket; word: 0 waits, 1 is told to go on ------

    def _next_ticket(self) -> int:
        """Take a number; who waits has the lock, so it is alone here."""
        words = self._cell.words
        words[ANY] = 1
        words[TICKETS] += 1
        return self._cell.offset << CELL_SHIFT | words[TICKETS]

    def _queue(self) -> list[tuple[int, Seat]]:
        """Return the tickets of all who wait, the first one first, and their seats."""
        arena, offset = self._cell.arena, self._cell.offset
        queue = [
            (ticket, number)
            for number, ticket in enumerate(arena.tickets())
            if ticket and ticket >> CELL_SHIFT == offset
        ]
        queue.sort()
        return [(ticket, arena.seat_at(number)) for ticket, number in queue]

    def _tell(self, n: int) -> bool:
        """Tell so many to go on; whether others wait; in the section, as the next two."""
        for _, seat in self._queue():
            if not seat.word:
                if n <= 0:
                    return True
                seat.word = 1
                # One that the kernel has woken lives. Another one may be on its way to sleep.
                if libc.wake_word(seat.word_address, 1) or seat.is_alive:
                    n -= 1
                else:
                    seat.ticket = 0
        return False

    def _leave(self, seat: Seat, outer: int) -> bool:
        """Stop waiting; whether it was told to. An outer wait goes on, and looks for itself."""
        is_told = seat.word == 1
        seat.word = 1 if outer else 0
        seat.ticket = outer
        return is_told

    def _pass_on(self, seat: Seat, ticket: int) -> None:
        """Tell another one what one was told that has ended."""
        if seat.ticket == ticket and seat.word:
            self._tell(1)  # first: rather one too many than none
            seat.ticket = 0

    def _sleep(self, seat: Seat, until: float, deaths: int) -> bool:
        """Wait to be told; whether to go on anyway, as one that would have told may have died."""
        lock = self._lock._cell
        look_at = monotonic() + LOOK_S
        while not seat.word and (now := monotonic()) < until:
            libc.wait_word(seat.word_address, 0, min(until, look_at) - now)
            if monotonic() >= look_at:
                look_at = monotonic() + LOOK_S
                if lock.is_abandoned or lock.words[DEATHS] != deaths:
                    return True
                for ticket, other in self._queue():
                    if other.word and not other.is_alive:
                        self._section.run(self._pass_on, other, ticket)
        return False

    def _acquire_again(self, depth: int, frame: FrameType) -> None:
        """Acquire the lock, whatever comes, and raise that then: the caller will release it."""
        problem: BaseException | None = None
        while not self._lock._is_owned():
            try:
                self._lock._acquire_at(frame)
            except DeadlockError:
                raise
            except BaseException as error:  # a signal's handler may raise anything
                if problem is not None and not isinstance(error, OwnerDied):
                    raise  # Ctrl-C again: at once
                problem = error
        for _ in range(depth - 1):
            self._lock._acquire_at(frame)
        if problem is not None:
            raise problem


def _outside(frame: FrameType) -> FrameType:
    """Return the frame that called what is written here."""
    while frame.f_code.co_filename == __file__ and frame.f_back is not None:
        frame = frame.f_back
    return frame
