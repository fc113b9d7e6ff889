"""Semaphores: so many may, and who comes later waits; what a dead process had is given back."""

from __future__ import annotations

from time import monotonic
from typing import Any

from plait.shared import libc
from plait.shared.cells import STATE, Cell, arrive, label_of, new_cell, settle
from plait.shared.locks import LOOK_S
from plait.shared.sections import (
    Section,
    end_of,
    futex_of,
    is_running,
    me,
)

__all__ = ["BoundedSemaphore", "Semaphore"]

SEMAPHORE, BOUNDED_SEMAPHORE = 11, 12
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
        cell = new_cell(self._kind, label_of(type(self), name))
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
        settle(cell, self)

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
        return self._wait(end_of(timeout if blocking else 0.0))

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

    def locked(self) -> bool:
        """Return whether none is to be had now.

        >>> Semaphore(0).locked(), Semaphore(1).locked()
        (True, False)
        """
        return self.get_value() == 0

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
        return arrive, (type(self), self._cell.place, on_owner_death)

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
