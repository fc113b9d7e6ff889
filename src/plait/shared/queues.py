"""Queues for threads and processes, whose items survive those who put and take them.

A queue is a robust mutex and some words in a cell (cells.py), and a region of its own in which the
pickled items lie (stores.py). Whoever puts or takes pickles outside the lock, and writes within it.
How, stands in queue_core.py.
"""

from __future__ import annotations

import errno
import pickle
import queue
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from plait.shared import libc
from plait.shared.bells import EVERYBODY
from plait.shared.cells import cell_at, key_of, label_of, new_cell, only_one
from plait.shared.memory import HEAD_BYTES, Region
from plait.shared.queue_core import (
    CLOSED,
    DRAINING,
    DROPPED,
    LAYOUT,
    MAXSIZE,
    OPEN,
    QueueCore,
    ShutDown,
)
from plait.shared.stacks import Stack
from plait.shared.stores import AREAS_AT, Area, Record, Store, decode, encode
from plait.wire import MAIN

__all__ = ["LifoQueue", "PriorityQueue", "Queue", "ShutDown"]

QUEUE = 20
"""The kind of its cells."""
_dumps, _loads = pickle.dumps, pickle.loads


class Queue(QueueCore):
    """A queue for threads and processes, as ``queue.Queue``, that can be sent to any of them.

    ``for item in queue`` takes items out as they come, in as many workers as do so, and ends in
    all of them when ``queue.shutdown()`` was called and the queue is empty.

    It is all that ``multiprocessing`` has as Queue, JoinableQueue and SimpleQueue, by these names
    too. There is no thread that writes items: an item is in the queue when ``put`` returns.

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

    # --- As in multiprocessing -----------------------------------------------------------

    def close(self) -> None:
        """Do nothing: nothing depends on whether a process still puts items.

        To tell getters that there will be no more items: ``shutdown``.
        """

    def join_thread(self) -> None:
        """Return at once: what was put is in the queue, there is no thread to wait for."""

    def cancel_join_thread(self) -> None:
        """Do nothing: no thread is waited for when the program ends, and no item gets lost."""

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

    def _put_record(self, record: Record, timeout: float) -> None:
        """Put an item that is pickled. Raises as ``put``; for pipes.py."""
        self._wait(self._putters, True, timeout, queue.Full, self._add, record, None)
        if self._getters.is_awaited():
            self._ring(self._getters)

    def _get_record(self, timeout: float) -> Record:
        """Take an item out as it is, pickled. Raises as ``get``; for pipes.py."""
        record = self._locked(self._get_mutex, self._take)
        if record is None:
            record = self._wait(self._getters, True, timeout, queue.Empty, self._take)
        if self._putters.is_awaited():
            self._ring(self._putters)
        self._shrink()
        data, kind = record
        return data, kind

    def _wait_item(self, timeout: float) -> bool:
        """Wait for an item, or for the end, but leave it there; False: none came; for pipes.py."""
        try:
            self._wait(self._getters, True, timeout, queue.Empty, self._has_news)
        except queue.Empty:
            return False
        if self._getters.is_awaited():  # we were woken in their place
            self._ring(self._getters)
        return True

    def _do_locked(self, step: Callable[..., Any], *args: Any) -> Any:
        """Do something with the mutex held; for pipes.py."""
        return self._locked(self._get_mutex, step, *args)

    def __iter__(self) -> Iterator[Any]:
        """Take items out as they come, until the queue has been shut down and is empty.

        >>> queue = Queue()
        >>> queue.put_many("ab")
        >>> queue.shutdown()
        >>> [item for item in queue]
        ['a', 'b']
        """
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

    found = only_one(key_of(place), make)
    assert isinstance(found, cls)
    return found


if libc.is_supported:
    _try_lock, _unlock = libc.try_lock, libc.unlock
