"""Conditions, semaphores, events and barriers, for threads and processes.

Their state is words in shared memory, changed in sections (sections.py). Who waits sleeps on such
a word, or on that of its seat (arena.py), until another changes it. A process may be killed at any
moment, also just before it would have woken others: so each sleeper looks around once a second,
for what it has missed and for who has died. Else a wait costs no CPU; Ctrl-C ends it at once.
"""

# A condition may use of a lock what is for nobody else, by the names that threading has for it.
# ruff: noqa: SLF001

from __future__ import annotations

import math
from collections.abc import Callable
from threading import BrokenBarrierError
from time import monotonic
from types import FrameType, TracebackType
from typing import Any

from plait.errors import DeadlockError, OwnerDied
from plait.shared import libc
from plait.shared.arena import DEATHS, SEATS, STATE, Cell, Seat, cell_at, known, new_cell, whoami
from plait.shared.locks import LOOK_S, Lock, RLock, caller
from plait.shared.sections import Section, futex_of, is_running, me

__all__ = ["Barrier", "BoundedSemaphore", "Condition", "Event", "Semaphore"]

CONDITION, SEMAPHORE, BOUNDED_SEMAPHORE, EVENT, BARRIER = range(10, 15)


def _label(cls: type[Any], name: str) -> str:
    return f"{cls.__name__} {name!r}" if name else cls.__name__


def _arrive(cls: type[Any], place: Any, *args: Any) -> Any:
    """Return the object of this process for a cell that was made by another, perhaps."""
    where, offset = place
    found = known.get((where.ident, offset))
    if found is None:
        found = object.__new__(cls)
        found._set_up(cell_at(place, cls.__name__), *args)
    assert isinstance(found, cls)
    return found


def _settle(cell: Cell, thing: object) -> None:
    """Have this be the one object for its cell in this process."""
    known[cell.arena.region.ident, cell.offset] = thing


def _end_of(timeout: float | None) -> float:
    return math.inf if timeout is None else monotonic() + timeout


def _nothing() -> None:
    """Repair what is in order after each word."""


# --- Condition ---------------------------------------------------------------------------

TICKETS = STATE
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
        self._set_up(new_cell(CONDITION, _label(type(self), name)), lock)

    def _set_up(self, cell: Cell, lock: Lock) -> None:
        self._cell, self._lock = cell, lock
        self._section = Section(cell, _nothing)
        self.acquire, self.release, self.locked = lock.acquire, lock.release, lock.locked
        _settle(cell, self)

    def __enter__(self) -> bool:
        return self._lock._acquire_at(caller(1))

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
        until, frame = _end_of(timeout), _outside(caller(1))
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
        except BaseException:  # whatever it is, it goes on: but not with what others wait for
            if self._section.run(self._leave, seat, outer):
                self._section.run(self._tell, 1)
            raise
        return self._section.run(self._leave, seat, outer) or is_called

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
        until = _end_of(timeout)
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
        self._section.run(self._tell, n)

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
        return _arrive, (type(self), self._cell.place, self._lock)

    # --- Who waits: each in its seat, with a ticket; word: 0 waits, 1 is told to go on ------

    def _next_ticket(self) -> int:
        """Take a number; who waits has the lock, so it is alone here."""
        words = self._cell.words
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

    def _tell(self, n: int) -> None:
        """Tell so many to go on; in the section, as the next two."""
        for _, seat in self._queue():
            if n <= 0:
                break
            if not seat.word:
                seat.word = 1
                # One that the kernel has woken lives. Another one may be on its way to sleep.
                if libc.wake_word(seat.word_address, 1) or seat.is_alive:
                    n -= 1
                else:
                    seat.ticket = 0

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


# --- Semaphore ---------------------------------------------------------------------------

# VALUE is what is to be had. It is BASE less all balances, and is made so again if a process was
# killed in between. A balance is what a process has acquired less what it has released; it stands
# in the table, in a row with what tells the process. MOVED: the row (plus one) that is being given
# back, whereby BASE becomes NEXT_BASE.
VALUE, BASE, BOUND, SLEEPERS, ROWS, MOVED, NEXT_BASE = range(STATE, STATE + 7)
NO_BOUND = 2**62


class Semaphore:
    """A semaphore for threads and processes, as ``threading.Semaphore``.

    Args:
        value: how many can acquire it before one has to release it.
        name: what it is called in messages.
        on_owner_death: "release": when a process has ended that acquired more than it released,
            the rest is released for it; who waits has it within a second. "ignore": it stays
            acquired. Say so where a process acquires what another one releases, as a signal: the
            end of the first would release it once more.

    Raises:
        ValueError: for a value below 0.
        SharedDataGone: when it arrives after all who had it have ended.

    >>> seats = Semaphore(2, "seats")
    >>> with seats:
    ...     seats
    <plait.shared Semaphore 'seats': value=1>
    """

    _kind = SEMAPHORE

    def __init__(self, value: int = 1, name: str = "", *, on_owner_death: str = "release") -> None:
        if value < 0:
            raise ValueError(f"value={value!r} must be 0 or more")
        if on_owner_death not in ("release", "ignore"):
            raise ValueError(f'on_owner_death={on_owner_death!r} must be "release" or "ignore"')
        cell = new_cell(self._kind, _label(type(self), name))
        words = cell.words
        words[VALUE] = words[BASE] = value
        words[BOUND] = value if self._kind == BOUNDED_SEMAPHORE else NO_BOUND
        self._set_up(cell, on_owner_death)

    def _set_up(self, cell: Cell, on_owner_death: str) -> None:
        self._cell = cell
        self._words = cell.words.cast("B").cast("q")
        self._table = cell.table
        self._keeps_balance = on_owner_death == "release"
        self._section = Section(cell, self._repair)
        self._address = futex_of(cell, VALUE)
        self._row = -1
        _settle(cell, self)

    def acquire(self, blocking: bool = True, timeout: float | None = None) -> bool:  # noqa: FBT001, FBT002
        """Take one; False if none is to be had (in ``timeout`` seconds).

        Args:
            blocking: whether to wait for it.
            timeout: in seconds; None: for ever.

        Raises:
            ValueError: for a timeout without waiting.

        >>> Semaphore(0).acquire(timeout=0.01)
        False
        """
        if not blocking and timeout is not None:
            raise ValueError("can't specify timeout for non-blocking acquire")
        if self._section.run(self._take):
            return True
        return self._wait(_end_of(timeout if blocking else 0.0))

    def release(self, n: int = 1) -> None:
        """Give back one, or ``n``, and wake as many who wait.

        Raises:
            ValueError: for ``n`` below 1. A ``BoundedSemaphore``: if there would be more than at
                first.

        >>> semaphore = Semaphore(0)
        >>> semaphore.release(2)
        >>> semaphore.get_value()
        2
        """
        if n < 1:
            raise ValueError(f"n={n!r} must be one or more")
        if not self._section.run(self._give, n):
            raise ValueError(f"{self._cell.label} released too many times")
        if self._words[SLEEPERS]:
            libc.wake_word(self._address, n)

    def get_value(self) -> int:
        """Return how many are to be had now, as ``multiprocessing.Semaphore`` does.

        >>> Semaphore(3).get_value()
        3
        """
        return self._words[VALUE]

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

    def __repr__(self) -> str:
        bound = self._words[BOUND]
        of = "" if bound == NO_BOUND else f"/{bound}"
        return f"<plait.shared {self._cell.label}: value={self.get_value()}{of}>"

    def __reduce__(self) -> tuple[Any, ...]:
        on_owner_death = "release" if self._keeps_balance else "ignore"
        return _arrive, (type(self), self._cell.place, on_owner_death)

    # --- In the section ------------------------------------------------------------------

    def _take(self) -> bool:
        words, table = self._words, self._table
        row = self._own_row() if self._keeps_balance else -1
        value = words[VALUE]  # no call from here on: a signal's handler cannot come between
        if value < 1:
            return False
        if row >= 0:
            table[row + 1] += 1
        words[VALUE] = value - 1
        return True

    def _give(self, n: int) -> bool:
        words, table = self._words, self._table
        row = self._own_row() if self._keeps_balance else -1
        value = words[VALUE]
        if value + n > words[BOUND]:
            return False
        if row >= 0:
            table[row + 1] -= n
        words[VALUE] = value + n
        return True

    def _count_sleeper(self, change: int) -> None:
        # One that is killed in its sleep stays counted; that costs a release in vain to wake it.
        self._words[SLEEPERS] += change

    def _own_row(self) -> int:
        """Return where the balance of this process is: the row's first word."""
        mine, row = me(), self._row
        if row < 0 or self._table[row] != mine:
            row = self._row = self._find_row(mine)
        return row

    def _find_row(self, mine: int) -> int:
        words, table = self._words, self._table
        rows = words[ROWS]
        owners = table[: 2 * rows : 2].tolist()
        if mine in owners:
            return 2 * owners.index(mine)
        if 0 in owners:
            row = 2 * owners.index(0)
        elif 2 * rows < len(table):
            row = 2 * rows
        else:
            row = self._row_of_a_dead(owners)
        table[row + 1] = 0
        table[row] = mine
        words[ROWS] = max(rows, row // 2 + 1)
        return row

    def _row_of_a_dead(self, owners: list[int]) -> int:
        for number, owner in enumerate(owners):
            if not is_running(owner):
                self._reap(2 * number, owner)
                return 2 * number
        raise RuntimeError(f"more than {len(owners)} processes use {self._cell.label}")

    def _reap(self, row: int, owner: int) -> int:
        """Give back what a process had that has ended; return how many. Its row is free then."""
        words, table = self._words, self._table
        if table[row] != owner:
            return 0
        balance, value = table[row + 1], words[VALUE]
        back = max(0, min(balance, words[BOUND] - value))
        words[NEXT_BASE] = words[BASE] - balance + back
        words[MOVED] = row + 1  # from here on it is done, by a repair if not by us
        words[VALUE] = value + back
        self._finish_move()
        return back

    def _finish_move(self) -> None:
        words, table = self._words, self._table
        row = words[MOVED] - 1
        words[BASE] = words[NEXT_BASE]
        table[row + 1] = 0
        table[row] = 0
        words[MOVED] = 0

    def _repair(self) -> None:
        if self._keeps_balance:
            words = self._words
            if words[MOVED]:
                self._finish_move()
            words[VALUE] = words[BASE] - sum(self._table[1 : 2 * words[ROWS] : 2])

    # --- Where none is to be had ---------------------------------------------------------

    def _wait(self, until: float) -> bool:
        look_at = monotonic() + LOOK_S
        self._section.run(self._count_sleeper, 1)
        try:
            while (now := monotonic()) < until:
                libc.wait_word(self._address, 0, min(until, look_at) - now)
                if self._section.run(self._take):
                    return True
                if monotonic() >= look_at:
                    self._look_for_dead()
                    look_at = monotonic() + LOOK_S
        finally:
            self._section.run(self._count_sleeper, -1)
        self._look_for_dead()
        return self._section.run(self._take)

    def _look_for_dead(self) -> None:
        """Give back what processes had that have ended."""
        rows = self._table[: 2 * self._words[ROWS]].tolist() if self._keeps_balance else []
        for row in range(0, len(rows), 2):
            if rows[row] and rows[row + 1] and not is_running(rows[row]):
                back = self._section.run(self._reap, row, rows[row])
                libc.wake_word(self._address, back)


class BoundedSemaphore(Semaphore):
    """A semaphore that has never more than at first, as ``threading.BoundedSemaphore``.

    Arguments and errors are those of ``Semaphore``; ``release`` raises ValueError, too, where
    nothing was acquired.

    >>> BoundedSemaphore(2).release()
    Traceback (most recent call last):
    ValueError: BoundedSemaphore released too many times
    """

    _kind = BOUNDED_SEMAPHORE


# --- Event -------------------------------------------------------------------------------

WORD = STATE  # how often it was set or cleared: it is set when that is odd


class Event:
    """An event for threads and processes, as ``threading.Event``.

    Args:
        name: what it is called in messages.

    Raises:
        SharedDataGone: when it arrives after all who had it have ended.

    >>> ready = Event()
    >>> ready.set()
    >>> ready.wait()
    True
    """

    def __init__(self, name: str = "") -> None:
        self._set_up(new_cell(EVENT, _label(type(self), name)))

    def _set_up(self, cell: Cell) -> None:
        self._cell, self._words = cell, cell.words
        self._section = Section(cell, _nothing)
        self._address = futex_of(cell, WORD)
        _settle(cell, self)

    def is_set(self) -> bool:
        """Return whether it is set.

        >>> Event().is_set()
        False
        """
        return self._words[WORD] & 1 == 1

    def set(self) -> None:
        """Set it, and wake all who wait.

        >>> Event().set()
        """
        if self._section.run(self._change, 1):
            libc.wake_word(self._address)

    def clear(self) -> None:
        """Have it be not set; those who were woken before go on all the same.

        >>> Event().clear()
        """
        self._section.run(self._change, 0)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set, also if it is cleared at once; False: the time was up before.

        Args:
            timeout: in seconds; None: for ever.

        >>> Event().wait(timeout=0.01)
        False
        """
        seen = self._words[WORD]
        if seen & 1:
            return True
        until = _end_of(timeout)
        while self._words[WORD] == seen:
            left = until - monotonic()
            if left <= 0:
                return False
            libc.wait_word(self._address, seen, min(left, LOOK_S))
        return True

    def __repr__(self) -> str:
        return f"<plait.shared {self._cell.label}: {'set' if self.is_set() else 'unset'}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrive, (type(self), self._cell.place)

    def _change(self, flag: int) -> bool:
        """Set or clear it (in the section); whether it was the other."""
        word = self._words[WORD]
        if word & 1 == flag:
            return False
        self._words[WORD] = (word + 1) & 0xFFFF_FFFF
        return True


# --- Barrier -----------------------------------------------------------------------------

# NOW is its state, above that why it is broken, or whose turn it is to act. PHASE changes when
# those who wait have to look. ENDING is nonzero while they are told, one after the other: what they
# are told, the state that comes then, and why. The table has a mark for each seat: one of AWAY to
# FAILS; above that who waits there, or why it is broken.
NOW, PARTIES, PHASE, ENDING = range(STATE, STATE + 4)
FILLING, ACTING, BROKEN = range(3)
AWAY, WAITS, PASSES, FAILS = range(4)
LOW = 0xFF
START_MASK = (1 << 36) - 1
ABORTED, LATE, ACTION_FAILED, RESET, DIED = range(1, 6)
REASONS = {
    ABORTED: "it was aborted",
    LATE: "not all came in time",
    ACTION_FAILED: "its action failed",
    RESET: "it was reset",
}


class Barrier:
    """A barrier for threads and processes, as ``threading.Barrier``.

    A process that is killed while it waits here breaks the barrier for the others, within a
    second: their ``BrokenBarrierError`` says which one it was.

    Args:
        parties: how many have to wait for all to go on.
        action: called by one of them before; it travels with the barrier.
        timeout: of ``wait``, where that is given none.
        name: what it is called in messages.

    Raises:
        ValueError: for less than one party.
        SharedDataGone: when it arrives after all who had it have ended.

    >>> barrier = Barrier(1, action=lambda: print("all are here"))
    >>> barrier.wait()
    all are here
    0
    """

    def __init__(
        self,
        parties: int,
        action: Callable[[], object] | None = None,
        timeout: float | None = None,
        name: str = "",
    ) -> None:
        if parties < 1:
            raise ValueError(f"parties={parties!r} must be one or more")
        cell = new_cell(BARRIER, _label(type(self), name))
        cell.words[PARTIES] = parties
        cell.table[:SEATS] = memoryview(bytes(8 * SEATS)).cast("q")
        self._set_up(cell, action, timeout)

    def _set_up(
        self, cell: Cell, action: Callable[[], object] | None, timeout: float | None
    ) -> None:
        self._cell, self._words, self._table = cell, cell.words, cell.table
        self._action, self._timeout = action, timeout
        self._section = Section(cell, self._repair)
        self._address = futex_of(cell, PHASE)
        _settle(cell, self)

    @property
    def parties(self) -> int:
        """How many have to wait for all to go on."""
        return self._words[PARTIES]

    @property
    def n_waiting(self) -> int:
        """How many wait now."""
        return sum(mark & LOW == WAITS for mark in self._marks())

    @property
    def broken(self) -> bool:
        """Whether it is broken: who waits now, or later, gets BrokenBarrierError."""
        return self._words[NOW] & LOW == BROKEN

    def wait(self, timeout: float | None = None) -> int:
        """Wait until all parties do; return a number below theirs, another one for each.

        Args:
            timeout: in seconds; when it is over, the barrier is broken. None: that of the barrier.

        Raises:
            BrokenBarrierError: the barrier is broken, or was reset meanwhile.

        >>> Barrier(2).wait(timeout=0.01)
        Traceback (most recent call last):
        threading.BrokenBarrierError: Barrier is broken: not all came in time
        """
        until = _end_of(self._timeout if timeout is None else timeout)
        seat = self._cell.arena.seat()
        try:
            index = self._come(seat)
            if self._words[NOW] == self._acting(seat):
                self._act(seat)
            else:
                self._sleep(seat, until)
            mark = self._table[seat.number]
        finally:
            self._section.run(self._go, seat)
        if mark & LOW == FAILS:
            raise self._error(mark >> 8)
        return index

    def reset(self) -> None:
        """Have it be as new; those who wait get BrokenBarrierError.

        >>> barrier = Barrier(2)
        >>> barrier.abort()
        >>> barrier.reset()
        >>> barrier.broken
        False
        """
        self._section.run(self._end, FAILS, FILLING, RESET)

    def abort(self) -> None:
        """Break it: who waits, now or later, gets BrokenBarrierError, until it is reset.

        >>> barrier = Barrier(2)
        >>> barrier.abort()
        >>> barrier
        <plait.shared Barrier: broken>
        """
        self._section.run(self._end, FAILS, BROKEN, ABORTED)

    def __repr__(self) -> str:
        state = "broken" if self.broken else f"waiters={self.n_waiting}/{self.parties}"
        return f"<plait.shared {self._cell.label}: {state}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrive, (type(self), self._cell.place, self._action, self._timeout)

    # --- Those who wait ------------------------------------------------------------------

    def _come(self, seat: Seat) -> int:
        """Be one of those who wait; return how many came before."""
        arena = self._cell.arena
        mark = arena.label(whoami()) << 44 | (seat.start & START_MASK) << 8 | WAITS
        while True:
            phase = self._words[PHASE]
            index = self._section.run(self._enter, seat, mark)
            if index is not None:
                return index
            # The others are complete, and their action runs: this one is of the next round.
            libc.wait_word(self._address, phase, LOOK_S)
            self._look_for_dead()

    def _sleep(self, seat: Seat, until: float) -> None:
        look_at = monotonic() + LOOK_S
        while True:
            phase = self._words[PHASE]
            if self._table[seat.number] & LOW != WAITS:
                return
            now = monotonic()
            if now >= until:
                if self._section.run(self._give_up, seat):
                    return
                until = math.inf  # all are here, and their action runs: that is waited for
            libc.wait_word(self._address, phase, min(until, look_at) - now)
            if monotonic() >= look_at:
                look_at = monotonic() + LOOK_S
                self._look_for_dead()

    def _act(self, seat: Seat) -> None:
        """Call the action, and let all go on. Should it fail: see _go."""
        if self._action is not None:
            self._action()
        self._section.run(self._pass, seat)

    def _look_for_dead(self) -> None:
        """Break it if one has ended that waits."""
        for number, mark in enumerate(self._marks()):
            if mark & LOW == WAITS and not self._is_there(number, mark):
                self._section.run(self._bury, number, mark)

    def _is_there(self, number: int, mark: int) -> bool:
        seat = self._cell.arena.seat_at(number)
        return seat.start & START_MASK == mark >> 8 & START_MASK and seat.is_alive

    def _marks(self) -> list[int]:
        return self._table[: len(self._cell.arena.tickets())].tolist()

    def _error(self, why: int) -> BrokenBarrierError:
        reason = REASONS.get(why & LOW, "it was broken")
        if why & LOW == DIED:
            pid, _, name = self._cell.arena.text(why >> 8).partition(" ")
            reason = f"{name or 'a party'} (pid {pid or 'unknown'}) ended while it waited"
        return BrokenBarrierError(f"{self._cell.label} is broken: {reason}")

    # --- In the section ------------------------------------------------------------------

    def _enter(self, seat: Seat, mark: int) -> int | None:
        words, table = self._words, self._table
        left = table[seat.number]
        if left & LOW == WAITS and left >> 8 & START_MASK != mark >> 8 & START_MASK:
            self._bury(seat.number, left)  # it was the seat of one that has ended
        if words[NOW] & LOW == BROKEN:
            raise self._error(words[NOW] >> 8)
        if words[NOW] & LOW == ACTING:
            return None
        index = self.n_waiting
        table[seat.number] = mark
        if index + 1 >= words[PARTIES]:
            if self._action is None:
                self._end(PASSES, FILLING, 0)
            else:
                words[NOW] = self._acting(seat)
        return index

    def _acting(self, seat: Seat) -> int:
        return (seat.number + 1) << 8 | ACTING

    def _go(self, seat: Seat) -> None:
        """Wait no more; if it was to let all go on, and has not, they must not wait for that."""
        is_waiting = self._table[seat.number] & LOW == WAITS
        if is_waiting and self._words[NOW] == self._acting(seat):
            self._end(FAILS, BROKEN, ACTION_FAILED)
        self._table[seat.number] = AWAY

    def _give_up(self, seat: Seat) -> bool:
        """Break it because the time is up; False: too late, all are here."""
        if self._table[seat.number] & LOW == WAITS:
            if self._words[NOW] & LOW == ACTING:
                return False
            self._end(FAILS, BROKEN, LATE)
        return True

    def _pass(self, seat: Seat) -> None:
        if self._table[seat.number] & LOW == WAITS:  # it was not broken while the action ran
            self._end(PASSES, FILLING, 0)

    def _bury(self, number: int, mark: int) -> None:
        if self._table[number] == mark:
            self._end(FAILS, BROKEN, mark >> 44 << 8 | DIED)

    def _end(self, outcome: int, then: int, why: int) -> None:
        """End the round: tell all who wait how it ended, and go over to a state."""
        self._words[ENDING] = why << 16 | then << 8 | outcome
        self._finish_end()

    def _finish_end(self) -> None:
        words, table = self._words, self._table
        why, then, outcome = words[ENDING] >> 16, words[ENDING] >> 8 & LOW, words[ENDING] & LOW
        for number, mark in enumerate(self._marks()):
            if mark & LOW == WAITS:
                table[number] = why << 8 | outcome
        words[NOW] = why << 8 | then
        words[PHASE] = (words[PHASE] + 1) & 0xFFFF_FFFF
        words[ENDING] = 0
        libc.wake_word(self._address)

    def _repair(self) -> None:
        if self._words[ENDING]:
            self._finish_end()
        self._look_for_dead()
