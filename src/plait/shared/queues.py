"""Queues for threads and processes, whose items survive those who put and take them.

A queue is a robust mutex and some words in a cell (cells.py), and a region of its own in which the
pickled items lie (stores.py). Whoever puts or takes pickles outside the lock, and writes within it;
what counts is the last, single write. Who has to wait sleeps on a word (``Bell``) and takes no CPU;
once a second it looks by itself, for the one who was to wake it may have been killed.
"""

from __future__ import annotations

import errno
import os
import pickle
import platform
import queue
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

from plait.errors import DeadlockError
from plait.shared import libc
from plait.shared.cells import STATE, Cell, cell_at, label_of, new_cell, only_one, settle
from plait.shared.ledgers import Ledger
from plait.shared.memory import HEAD_BYTES, Region
from plait.shared.rings import Keeper, Ring
from plait.shared.sections import is_running, me
from plait.shared.stacks import Stack
from plait.shared.stores import AREAS_AT, Area, Record, Store, decode, encode
from plait.spin import Spin

__all__ = ["LifoQueue", "PriorityQueue", "Queue", "ShutDown"]

if TYPE_CHECKING or not hasattr(queue, "ShutDown"):

    class ShutDown(Exception):
        """The queue has been shut down: ``queue.ShutDown``, where Python has it (3.13)."""

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
QUEUE = 20
"""The kind of its cells."""
LAYOUT, MAXSIZE, CLOSED = range(STATE, STATE + 3)
GETTERS, PUTTERS, JOINERS = range(STATE + 3, STATE + 9, 2)
RINGS, EXPECTED, AWAKE = range(3)
OPEN, DRAINING, DROPPED = 0, 1, 2
EVERYBODY = 0x7FFF_FFFF
NOTHING = None, True
MAIN = b"__main__"
_dumps, _loads = pickle.dumps, pickle.loads


class Bell:
    """A word on which threads of any process sleep until another one rings.

    To ring for nobody is to cost nothing, so who is about to sleep is counted, and so are those
    among them who are known to have woken: all, when a ring wakes nobody. A killed sleeper is one
    that no ring finds. Who waits says so first, then looks once more, then sleeps; who changes
    something does so first, then sees whether somebody waits.

    To be woken while the mutex is held would mean to go back to sleep on that, and often on the
    CPU of who holds it; so ``Queue._ring`` wakes after it is unlocked.
    """

    def __init__(self, cell: Cell, word: int, mutex: Any) -> None:
        self.mutex = mutex
        self.spin: Spin = Spin()
        self._address = cell.address_of(word)
        offset = cell.offset + libc.MUTEX_BYTES + 8 * word
        self._halves = cell.arena.region.words(offset, 16, "I")

    def expect(self) -> int:
        """Say, with the mutex held, that somebody is about to sleep; returns what to wait with."""
        halves = self._halves
        halves[EXPECTED] = (halves[EXPECTED] + 1) & 0xFFFF_FFFF
        return halves[RINGS]

    def is_awaited(self) -> bool:
        """Whether anybody may be asleep."""
        halves = self._halves
        return halves[EXPECTED] != halves[AWAKE]

    def begin(self) -> int:
        """Begin to ring, with the mutex held: who is not yet asleep will not go to sleep."""
        halves = self._halves
        halves[RINGS] = (halves[RINGS] + 1) & 0xFFFF_FFFF
        return halves[EXPECTED]

    def finish(self, expected: int, count: int) -> None:
        """Wake so many of the sleepers that were expected when the ringing began."""
        if not libc.wake_word(self._address, count):
            self._halves[AWAKE] = expected

    def wait(self, number: int, seconds: float) -> bool:
        """Sleep until it rings after ``expect`` returned that; False: the time is up."""
        return libc.wait_word(self._address, number, seconds)


class Queue:
    """A queue for threads and processes, as ``queue.Queue``, that can be sent to any of them.

    Items are pickled (with cloudpickle, where pickle alone does not do). Those of one producer come
    out in the order in which it put them. A process that is killed, at whatever moment, blocks
    nobody: what it was about to put is in the queue or not, whole; what it had taken is gone with
    it, and counts as done for ``join``, unless ``redeliver`` is set.

    Args:
        maxsize: how many items it may hold; ``put`` waits while there are so many. 0: any number.
        name: what it is called in messages.
        redeliver: keep each item until the process that took it has called ``task_done()``; if it
            ends before, the item is given out again, before all others. So each item is worked on
            at least once; twice, if its consumer dies after the work and before ``task_done()``.
            ``task_done()`` is for the item that the calling thread took first of those it has not
            done; for its process's, if it has none. After ``shutdown()`` getters wait for items
            that other processes have not done, as they may come back. Deaths are noticed within a
            second of a getter's waiting.

    Raises:
        SharedDataGone: when it arrives after all who had it have ended.

    >>> queue = Queue()
    >>> queue.put("a letter")
    >>> queue.get()
    'a letter'
    >>> queue.shutdown()
    >>> list(queue)
    []
    """

    def __init__(self, maxsize: int = 0, *, name: str = "", redeliver: bool = False) -> None:
        label = label_of(type(self), name)
        cell = new_cell(QUEUE, label)
        cell.words[MAXSIZE] = max(0, maxsize)
        put_cell = new_cell(QUEUE, label) if self._has_two_sides(redeliver) else cell
        region = Region.create(AREAS_AT - HEAD_BYTES, "queue")
        self._set_up(cell, put_cell, region, redeliver=redeliver)
        self._store.attach()  # which makes the first area, before anybody else can

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

    # --- As in queue ---------------------------------------------------------------------

    def put(self, item: object, block: bool = True, timeout: float | None = None) -> None:  # noqa: FBT001, FBT002
        """Put an item; while the queue is full, wait for room.

        Args:
            item: anything that can be pickled, by cloudpickle if need be.
            block: whether to wait.
            timeout: for how many seconds; None: for ever.

        Raises:
            queue.Full: there is no room (in time).
            ShutDown: the queue has been shut down.
            NotPicklable: the item cannot travel.
        """
        if timeout is not None:
            _check(block, timeout)
        try:  # as in encode, which does the rest
            data = _dumps(item, 5)
        except Exception:  # noqa: BLE001  cloudpickle may do better
            data = MAIN
        record = encode(item) if MAIN in data else (data, 0)
        code = 0  # as in _locked, which would take a tenth more time
        try:
            code = _try_lock(self._put_mutex)
            if code or self._adder.layout != self._words[LAYOUT]:
                code = self._prepare(code, self._put_mutex, self._adder)
            if self._words[CLOSED] or self.maxsize or not self._adder.add(record, item):
                is_put = self._add(record, item)
            else:
                is_put = True
        finally:
            if code != errno.EDEADLK:
                _unlock(self._put_mutex)
        if not is_put:
            self._wait(self._putters, block, timeout, queue.Full, self._add, record, item)
        if self._getters.is_awaited():
            self._ring(self._getters)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:  # noqa: FBT001, FBT002
        """Take the next item out; while there is none, wait for one.

        Raises:
            queue.Empty: there is none (in time).
            ShutDown: there is none, and there will be none, as the queue has been shut down.
        """
        if timeout is not None:
            _check(block, timeout)
        code = 0  # as in _locked
        try:
            code = _try_lock(self._get_mutex)
            if code or self._store.layout != self._words[LAYOUT]:
                code = self._prepare(code, self._get_mutex, self._store)
            record = self._store.take()
        finally:
            if code != errno.EDEADLK:
                _unlock(self._get_mutex)
        if record is None:
            record = self._wait(self._getters, block, timeout, queue.Empty, self._take)
        if self._putters.is_awaited():
            self._ring(self._putters)
        if self._store.is_large:
            self._shrink()
        data, kind = record  # as in decode
        return decode(record) if kind else _loads(data)

    def put_nowait(self, item: object) -> None:
        """Put an item if there is room for it. Raises as ``put(item, block=False)``."""
        self.put(item, block=False)

    def get_nowait(self) -> Any:
        """Take the next item out if there is one. Raises as ``get(block=False)``."""
        return self.get(block=False)

    def qsize(self) -> int:
        """Return how many items there are now.

        >>> queue = LifoQueue()
        >>> queue.put_many("abc")
        >>> queue.qsize(), queue.get()
        (3, 'c')
        """
        size: int = self._locked(self._get_mutex, self._size)
        return size

    def empty(self) -> bool:
        """Return whether there is no item now."""
        return self.qsize() == 0

    def full(self) -> bool:
        """Return whether there are as many items as there may be, now."""
        return 0 < self.maxsize <= self.qsize()

    @property
    def is_shutdown(self) -> bool:
        """Whether it has been shut down."""
        return self._words[CLOSED] != OPEN

    @property
    def unfinished_tasks(self) -> int:
        """How many items were put that are not done; ``join`` waits until there are none."""
        count: int = self._locked(self._get_mutex, self._unfinished)
        return max(0, count)

    def task_done(self) -> None:
        """Say that an item that was taken is done. Raises ValueError where there is none."""
        if not self._locked(self._get_mutex, self._finish):
            raise ValueError("task_done() called too many times")
        if self._joiners.is_awaited() and self._locked(self._get_mutex, self._is_done):
            self._ring(self._joiners, EVERYBODY)
        if self._keeper and self._words[CLOSED] and self._getters.is_awaited():
            self._ring(self._getters, EVERYBODY)  # they wait for what others have not done

    def join(self) -> None:
        """Wait until each item that was put is done, or its consumer has ended.

        With ``redeliver``, until each item is done; there has to be a consumer left.

        >>> queue = Queue()
        >>> queue.put(1)
        >>> queue.get()
        1
        >>> queue.task_done()
        >>> queue.join()
        """
        self._look()
        self._wait(self._joiners, True, None, queue.Empty, self._is_done)

    def shutdown(self, immediate: bool = False) -> None:  # noqa: FBT001, FBT002
        """Have no more items put; who waits to put is told (ShutDown), here and everywhere.

        Getters go on until the queue is empty, and are told then.

        Args:
            immediate: drop what is in the queue now.
        """
        self._locked_both(self._close, DROPPED if immediate else DRAINING)
        for bell in (self._getters, self._putters, self._joiners):
            self._ring(bell, EVERYBODY)

    # --- More than there -----------------------------------------------------------------

    def put_many(self, items: Iterable[object]) -> None:
        """Put items one after another, with one lock for as many as there is room for.

        Raises:
            ShutDown: the queue has been shut down: the first of the items may be in it.
            NotPicklable: one of them cannot travel: none has been put.
        """
        waiting = [(encode(item), item) for item in items]
        waiting.reverse()
        while waiting:
            self._wait(self._putters, True, None, queue.Full, self._add_many, waiting)
            if self._getters.is_awaited():
                self._ring(self._getters, EVERYBODY)

    def get_many(
        self,
        most: int,
        block: bool = True,  # noqa: FBT001, FBT002
        timeout: float | None = None,
    ) -> list[Any]:
        """Take out what there is, up to so many items; while there is none, wait for one.

        Raises as ``get``.

        >>> queue = Queue()
        >>> queue.put_many("abc")
        >>> queue.get_many(2)
        ['a', 'b']
        """
        if most < 1:
            raise ValueError(f"most={most!r} must be 1 or more")
        _check(block, timeout)
        records: list[Record] | None = self._locked(self._get_mutex, self._take_many, most)
        if records is None:
            records = self._wait(self._getters, block, timeout, queue.Empty, self._take_many, most)
        if self._putters.is_awaited():
            self._ring(self._putters, len(records))
        self._shrink()
        return [decode(record) for record in records]

    def put_record(self, record: Record, timeout: float) -> None:
        """Put an item that is pickled. Raises as ``put``; for pipes.py."""
        self._wait(self._putters, True, timeout, queue.Full, self._add, record, None)
        if self._getters.is_awaited():
            self._ring(self._getters)

    def get_record(self, timeout: float) -> Record:
        """Take an item out as it is, pickled. Raises as ``get``; for pipes.py."""
        record = self._locked(self._get_mutex, self._take)
        if record is None:
            record = self._wait(self._getters, True, timeout, queue.Empty, self._take)
        if self._putters.is_awaited():
            self._ring(self._putters)
        self._shrink()
        data, kind = record
        return data, kind

    def wait_item(self, timeout: float) -> bool:
        """Wait for an item, or for the end, but leave it there; False: none came; for pipes.py."""
        try:
            self._wait(self._getters, True, timeout, queue.Empty, self._has_news)
        except queue.Empty:
            return False
        if self._getters.is_awaited():  # we were woken in their place
            self._ring(self._getters)
        return True

    def do_locked(self, step: Callable[..., Any], *args: Any) -> Any:
        """Do something with the mutex held; for pipes.py."""
        return self._locked(self._get_mutex, step, *args)

    def __iter__(self) -> Iterator[Any]:
        """Take items out as they come, until the queue has been shut down and is empty."""
        while True:
            try:
                item = self.get()
            except ShutDown:
                return
            yield item

    def __repr__(self) -> str:
        state = ", shut down" if self.is_shutdown else ""
        return f"<plait.shared {self._cell.label}: {self.qsize()} items{state}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrive, (
            type(self),
            self._cell.place,
            self._put_cell.place,
            self._region.place,
            self._redeliver,
        )

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
        return self._store.size() > 0 or self.is_shutdown

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
        while code in (errno.EBUSY, errno.ETIMEDOUT):
            code = libc.lock_until(mutex, LOCK_S)
        if code == errno.EOWNERDEAD:
            libc.consistent(mutex)  # all is in order after each single write
        elif code == errno.EDEADLK:
            raise DeadlockError.alone(self._cell.label, "")
        elif code:
            raise OSError(code, os.strerror(code))

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


class LifoQueue(Queue):
    """A queue of which the last item comes first, as ``queue.LifoQueue``, also for processes.

    >>> queue = LifoQueue()
    >>> queue.put_many([1, 2, 3])
    >>> queue.get()
    3
    """

    def __init__(self, maxsize: int = 0, *, name: str = "") -> None:
        super().__init__(maxsize, name=name)

    def _has_two_sides(self, redeliver: bool) -> bool:  # noqa: FBT001, ARG002
        return False

    def _new_store(self, area: Area) -> Store:
        return Stack(area, self._ledger)


class PriorityQueue(LifoQueue):
    """A queue of which the smallest item comes first, as ``queue.PriorityQueue``.

    Those that are equal come in the order in which they were put. Items are compared by ``<`` while
    they are put: the new one with as many as the logarithm of their number, each of which is
    unpickled for it, under the queue's lock. So their class has to be importable, or travel by
    value, where items are put, and ``<`` must not use the queue.

    >>> queue = PriorityQueue()
    >>> queue.put_many([(2, "code"), (1, "eat"), (3, "sleep")])
    >>> queue.get()
    (1, 'eat')
    """

    def _new_store(self, area: Area) -> Store:
        return Stack(area, self._ledger, is_sorted=True)


def _check(block: bool, timeout: float | None) -> None:  # noqa: FBT001
    if timeout is not None and block and timeout < 0:
        raise ValueError("'timeout' must be a non-negative number")


def _arrive(
    cls: type[Queue],
    place: Any,
    put_place: Any,
    region_place: Any,
    redeliver: bool,  # noqa: FBT001
) -> Queue:
    def make() -> Queue:
        where, offset = place
        cell = cell_at(place, cls.__name__)
        is_one = put_place[0].ident == where.ident and put_place[1] == offset
        put_cell = cell if is_one else cell_at(put_place, cls.__name__)
        found = cls.__new__(cls)
        region = Region.at(region_place, cls.__name__)
        found._set_up(cell, put_cell, region, redeliver=redeliver)  # noqa: SLF001
        return found

    found = only_one(place, make)
    assert isinstance(found, cls)
    return found


if libc.is_supported:
    _try_lock, _unlock = libc.try_lock, libc.unlock
