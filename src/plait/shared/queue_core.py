"""What a queue is inside: its words, its locks, the steps that are done under them, and waiting.

Used by queues.py, whose classes add what users call. What counts is the last, single write of each
step. Who has to wait sleeps on a word (bells.py) and takes no CPU; once a second it looks by
itself, for the one who was to wake it may have been killed.
"""

from __future__ import annotations

import errno
import platform
import queue
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

from plait.errors import DeadlockError
from plait.shared import libc
from plait.shared.bells import EVERYBODY, Bell
from plait.shared.cells import STATE, Cell, settle
from plait.shared.guards import lock_slowly
from plait.shared.ledgers import Ledger
from plait.shared.rings import Keeper, Ring
from plait.shared.sections import is_running, me
from plait.shared.stores import Area, Record, Store

if TYPE_CHECKING:
    from plait.shared.memory import Region

__all__ = [
    "CLOSED",
    "DRAINING",
    "DROPPED",
    "LAYOUT",
    "LOOK_S",
    "MAXSIZE",
    "OPEN",
    "QueueCore",
    "ShutDown",
]

if TYPE_CHECKING or not hasattr(queue, "ShutDown"):

    class ShutDown(Exception):
        """The queue has been shut down: ``queue.ShutDown``, where Python has it (3.13)."""

        __module__ = "plait.shared"

else:
    ShutDown = queue.ShutDown

LOOK_S = 1.0
"""Who waits looks by itself after so long: who was to wake it may have been killed."""
LOCK_S = 0.1
"""The C library waits for a mutex no longer, or Ctrl-C would wait, too."""
TRIES = 20
"""So often a mutex that is taken is tried before going to sleep: it is held for microseconds."""
IS_ORDERED = platform.machine() == "x86_64"
"""Whether each CPU sees the writes of another one in the order in which they were made.

Then who puts and who takes need not shut each other out: a mutex for each. Elsewhere it is one for
both.
"""
LAYOUT, MAXSIZE, CLOSED = range(STATE, STATE + 3)
GETTERS, PUTTERS, JOINERS = range(STATE + 3, STATE + 9, 2)
OPEN, DRAINING, DROPPED = 0, 1, 2
NOTHING = None, True


class QueueCore:
    """All of a queue but what users call."""

    maxsize: int

    def _has_two_sides(self, redeliver: bool) -> bool:  # noqa: FBT001
        return IS_ORDERED and not redeliver

    def _set_up(self, cell: Cell, put_cell: Cell, region: Region, *, redeliver: bool) -> None:
        self._cell, self._put_cell, self._region = cell, put_cell, region
        self._redeliver, self._words = redeliver, cell.words
        self.maxsize = self._words[MAXSIZE]
        # One for who takes; one for who puts, or the same. Who needs both locks the latter first.
        # With each one goes a store, which is what is seen of the memory on that side.
        self._get_mutex, self._put_mutex = cell.mutex, cell.mutex
        self._ledger = Ledger(region)
        self._keeper: Keeper | None = None
        self._store = self._adder = self._new_store(Area(region, self._words, LAYOUT))
        if put_cell is not cell:
            self._put_mutex = put_cell.mutex
            self._adder = self._new_store(Area(region, self._words, LAYOUT))
        self._getters = Bell(cell, GETTERS, self._get_mutex)
        self._putters = Bell(cell, PUTTERS, self._put_mutex)
        self._joiners = Bell(cell, JOINERS, self._get_mutex)
        settle(cell, self)

    def _new_store(self, area: Area) -> Store:
        if self._redeliver:
            self._keeper = Keeper(area)
        return self._keeper or Ring(area, self._ledger)

    # --- What is done under the lock; None or False: not now -------------------------------

    def _add(self, record: Record, item: object) -> bool:
        if self._words[CLOSED]:
            raise ShutDown
        if 0 < self.maxsize <= self._adder.size():
            return False
        if not self._adder.add(record, item):
            nbytes = len(record[0]) + 1
            if self._put_mutex is self._get_mutex:
                self._adder.make_room(nbytes)
            else:
                self._locked(self._get_mutex, self._adder.make_room, nbytes)
            self._adder.add(record, item)
        return True

    def _add_many(self, waiting: list[tuple[Record, object]]) -> bool:
        """Add as many as there is room for; they leave the list, which is read from its end."""
        count = 0
        while waiting and self._add(*waiting[-1]):
            waiting.pop()
            count += 1
        return count > 0

    def _take(self) -> Record | None:
        record = self._store.take()
        if record is None and self._words[CLOSED] and not self._may_come_back():
            raise ShutDown
        return record

    def _may_come_back(self) -> bool:
        return self._keeper is not None and bool(self._keeper.takers() - {me()})

    def _take_many(self, most: int) -> list[Record] | None:
        record = self._take()
        if record is None:
            return None
        records = [record]
        while len(records) < most and self._store.size():
            record = self._take()
            assert record is not None
            records.append(record)
        return records

    def _has_news(self) -> bool:
        return self._store.size() > 0 or self._words[CLOSED] != OPEN

    def _size(self) -> int:
        return self._store.size()

    def _finish(self) -> bool:
        if self._keeper:
            return self._keeper.finish()
        if self._unfinished() <= 0:
            return False
        self._ledger.note_done()
        return True

    def _unfinished(self) -> int:
        if self._keeper:
            return self._keeper.unfinished()
        return self._store.size() + self._ledger.unfinished()

    def _is_done(self) -> bool:
        return self._unfinished() <= 0

    def _close(self, how: int) -> None:
        self._words[CLOSED] = max(how, self._words[CLOSED])
        if how == DROPPED:
            self._store.clear()

    # --- The lock, and waiting -------------------------------------------------------------

    def _locked(self, mutex: Any, step: Callable[..., Any], *args: Any) -> Any:
        """Do a step with a mutex held."""
        # Ctrl-C can come after each call, so the mutex is locked within the try, and unlocked by
        # a function of C, before which Python does not look for signals. It does at the beginning
        # of its own functions: a context manager would leave the mutex locked, now and then.
        store = self._adder if mutex is self._put_mutex else self._store
        code = 0
        try:
            code = _try_lock(mutex)
            if code or store.layout != self._words[LAYOUT]:
                code = self._prepare(code, mutex, store)
            return step(*args)
        finally:
            if code != errno.EDEADLK:
                _unlock(mutex)

    def _locked_both(self, step: Callable[..., Any], *args: Any) -> Any:
        """Do a step while nobody puts or takes."""
        if self._put_mutex is self._get_mutex:
            return self._locked(self._get_mutex, step, *args)
        return self._locked(self._put_mutex, self._locked, self._get_mutex, step, *args)

    def _prepare(self, code: int, mutex: Any, store: Store) -> int:
        """Have a mutex locked, after a first try, and see what others have changed."""
        if code:
            self._lock_slowly(code, mutex)
        if store.layout != self._words[LAYOUT]:
            store.attach()
        return 0

    def _lock_slowly(self, code: int, mutex: Any) -> None:
        for _ in range(TRIES):
            if code != errno.EBUSY:
                break
            code = _try_lock(mutex)
        if lock_slowly(mutex, code, LOCK_S) == errno.EDEADLK:
            raise DeadlockError.alone(self._cell.label, "")

    def _wait(
        self,
        bell: Bell,
        block: bool,  # noqa: FBT001
        timeout: float | None,
        failure: type[Exception],
        *step: Any,
    ) -> Any:
        """Do a step as soon as it can be done; before this raises in vain, it looks about."""
        deadline = None if timeout is None else monotonic() + timeout
        look = self._see_item if bell is self._getters else self._see_room
        if not block:
            self._look()
        while True:
            done = self._locked(bell.mutex, *step)
            if done:
                return done
            left = LOOK_S if deadline is None else min(LOOK_S, deadline - monotonic())
            if not block or left <= 0:
                raise failure
            sleep = partial(self._sleep, bell, left, *step)
            done, is_in_time = bell.spin.wait(look, sleep) or NOTHING
            if done:
                return done
            if not is_in_time:
                self._look()

    def _sleep(self, bell: Bell, seconds: float, *step: Any) -> tuple[Any, bool]:
        """Sleep until the bell rings; returns what the step did before, and whether it rang."""
        number = self._locked(bell.mutex, bell.expect)
        done = self._locked(bell.mutex, *step)  # for what came before rang for nobody
        return (done, True) if done else (None, bell.wait(number, seconds))

    def _see_item(self) -> tuple[Any, bool] | None:
        """Look for an item, without a lock; to be had or not."""
        return NOTHING if self._store.size() else None

    def _see_room(self) -> tuple[Any, bool] | None:
        return NOTHING if self._adder.size() < self.maxsize else None

    def _look(self) -> None:
        """See who has ended: what it had is given out again, or counts as done."""
        keeper = self._keeper
        if keeper is None:
            self._locked(self._get_mutex, self._ledger.settle)
            return
        dead = {who for who in self._locked(self._get_mutex, keeper.takers) if not is_running(who)}
        if dead:
            self._locked(self._get_mutex, keeper.give_again, dead)
            self._ring(self._getters, EVERYBODY)

    def _shrink(self) -> None:
        """Give much memory back, where nothing is left in it."""
        if self._store.is_large and self._store.is_idle():
            self._locked_both(self._shrink_now)

    def _shrink_now(self) -> None:
        if self._store.is_large and self._store.is_idle():
            self._store.make_room(0)

    def _ring(self, bell: Bell, count: int = 1) -> None:
        """Wake so many of those who wait for something to change, after it has."""
        expected = self._locked(bell.mutex, bell.begin)
        bell.finish(expected, count)


if libc.is_supported:
    _try_lock, _unlock = libc.try_lock, libc.unlock
