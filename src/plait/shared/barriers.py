"""Barriers: all wait until all are here, or one of them has died.

Each thread that waits has a mark in the barrier's table, at the number of its seat (seats.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from threading import BrokenBarrierError
from time import monotonic
from typing import Any

from plait.shared import libc
from plait.shared.cells import STATE, Cell, arrive, label_of, new_cell, settle
from plait.shared.locks import LOOK_S
from plait.shared.seats import SEATS, Seat
from plait.shared.sections import Section, end_of, futex_of
from plait.shared.whereabouts import whoami

__all__ = ["Barrier"]

BARRIER = 14
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
        cell = new_cell(BARRIER, label_of(type(self), name))
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
        settle(cell, self)

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
        until = end_of(self._timeout if timeout is None else timeout)
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
        return arrive, (type(self), self._cell.place, self._action, self._timeout)

    # --- Those who wait ------------------------------------------------------------------

    def _come(self, seat: Seat) -> int:
        """Be one of those who wait; return how many came before."""
        arena = self._cell.arena
        mark = arena.texts.label(whoami()) << 44 | (seat.start & START_MASK) << 8 | WAITS
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
            pid, _, name = self._cell.arena.texts.at(why >> 8).partition(" ")
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
        index = self.n_waiting
        # More than all: the last one was killed before it could say so. That is seen soon.
        if words[NOW] & LOW == ACTING or index >= words[PARTIES]:
            return None
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
