"""Locks for threads and processes that tell of dead owners, and of deadlocks.

A lock is a robust mutex in shared memory (libc.py): the kernel frees it when its owner ends. Beside
it stands who took it, where and when. Waiting takes no CPU: the kernel wakes one when the lock is
free. A wait that lasts looks around for a deadlock each second (deadlocks.py).
"""

from __future__ import annotations

import errno
import math
import os
import threading
from time import monotonic, monotonic_ns
from types import FrameType
from typing import Any, Self

from plait.errors import DeadlockError, OwnerDied
from plait.shared import libc
from plait.shared.cells import DEATHS, WHO, Cell, arrive, label_of, new_cell, settle
from plait.shared.deadlocks import Lookout
from plait.shared.lock_calls import FOREVER, LockCalls, caller
from plait.shared.seats import IDLE, Seat

__all__ = ["LOOK_S", "Lock", "RLock", "SelfLocked"]

LOOK_S = 1.0
"""A wait that has lasted so long looks for a deadlock, again and again."""
SIGNAL_S = 0.1
"""The thread that hears of signals lets the C library wait for no longer, or Ctrl-C would wait."""
LOCK, RLOCK = 1, 2


class Lock(LockCalls):
    """A lock for threads and processes, as ``threading.Lock``, that can be sent to any of them.

    It belongs to the thread that acquired it, and only that one can release it (a
    ``threading.Lock`` lets anybody do so): so its death can be noticed, and a thread that waits
    for itself, too.

    Args:
        name: what it is called in messages.
        on_owner_death: "raise": if a process or thread ends while it holds the lock, the next one
            to acquire it gets ``OwnerDied``, and does not have it; the lock is free. "ignore": the
            next one has it, as if it had been released.

    Raises:
        OwnerDied: by ``acquire``, once for each death.
        DeadlockError: by ``acquire``, where the thread has the lock already, or waits in a cycle.
        SharedDataGone: when it arrives after all who had it have ended.

    >>> lock = Lock("results")
    >>> with lock:
    ...     lock.locked()
    True
    """

    __slots__ = (
        "__weakref__",
        "_cell",
        "_mutex",
        "_new_site",
        "_on_owner_death",
        "_words",
    )
    _kind, _recursive = LOCK, False

    def __init__(self, name: str = "", *, on_owner_death: str = "raise") -> None:
        if on_owner_death not in ("raise", "ignore"):
            raise ValueError(f'on_owner_death={on_owner_death!r} must be "raise" or "ignore"')
        cell = new_cell(self._kind, label_of(type(self), name), recursive=self._recursive)
        self._set_up(cell, on_owner_death)

    def _set_up(self, cell: Cell, on_owner_death: str) -> None:
        self._cell = cell
        self._mutex, self._words = cell.mutex, cell.words
        self._new_site = cell.arena.new_site
        self._prepare(cell, recursive=self._recursive)
        self._on_owner_death = on_owner_death
        settle(cell, self)

    # --- As in threading; acquire, release and ``with`` are in lock_calls.py ---------------

    def locked(self) -> bool:
        """Return whether anybody has it now."""
        return self._cell.owner != 0

    def _refuse(self) -> None:
        what = self._cell.label
        raise RuntimeError(f"cannot release {what}: this thread has not acquired it")

    def __repr__(self) -> str:
        owner = self._cell.owner
        state = f"held by {self._cell.holder}" if owner else "unlocked"
        return f"<plait.shared {self._cell.label}: {state}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return arrive, (type(self), self._cell.place, self._on_owner_death)

    # --- What a Condition asks of a lock; the names are threading's ------------------------

    def _is_owned(self) -> bool:
        """Whether the calling thread has it."""
        return self._cell.is_mine

    def _release_save(self) -> int:
        """Release it however often it was acquired, and return how often that was."""
        if not self._is_owned():
            self.release()  # tells that it cannot be
        depth = self._cell.depth if self._recursive else 1
        self._words[WHO] = 0  # as in release
        for _ in range(depth):
            _unlock(self._mutex)
        return depth

    def _acquire_restore(self, depth: int) -> None:
        """Acquire it as often as it was before."""
        self._acquire_at(caller(1))
        for _ in range(depth - 1):
            _try_lock(self._mutex)

    def _acquire_at(self, frame: FrameType) -> bool:
        """Acquire it for somebody else than the caller: for who stands at this place."""
        if code := _try_lock(self._mutex):
            return self._acquire_slowly(code, frame, FOREVER)
        self._cell.note_holder(frame)
        return True

    # --- Where it is not free ------------------------------------------------------------

    def _acquire_slowly(self, code: int, frame: FrameType, timeout: float) -> bool:
        """Wait for it as long as may be; the first try came to this code.

        0: this thread has it, and there is news, which a class that writes NEWS has to tell.
        """
        first = code
        try:
            if code == errno.EBUSY and timeout != 0.0:
                code = self._wait(frame, timeout)
            if code == errno.EDEADLK and timeout != 0.0:
                raise DeadlockError.alone(self._cell.label, self._cell.holder.stack)
            if code in (errno.EBUSY, errno.EDEADLK, errno.ETIMEDOUT):
                return False
            if code == errno.EOWNERDEAD:
                self._inherit()
            elif code:
                raise OSError(code, os.strerror(code))
            self._cell.note_holder(frame)
            return True
        except BaseException as error:  # as in acquire, for those who come from elsewhere
            if first != errno.EDEADLK:
                self._let_go(error)
            raise

    def _wait(self, frame: FrameType, timeout: float) -> int:
        started, started_ns = monotonic(), monotonic_ns()
        until = math.inf if timeout == FOREVER else started + timeout
        hears_signals = threading.current_thread() is threading.main_thread()
        longest = min(SIGNAL_S, LOOK_S) if hears_signals else LOOK_S
        look_at = started + LOOK_S
        seat = lookout = None
        try:
            while True:
                now = monotonic()
                code = libc.lock_until(
                    self._mutex, max(0.0, min(until - now, look_at - now, longest))
                )
                now = monotonic()
                if code != errno.ETIMEDOUT or now >= until:
                    return code
                if now >= look_at:
                    look_at = now + LOOK_S
                    seat = seat or self._sit_down(frame, started_ns, ends=until < math.inf)
                    # Greenlets of one thread are one owner to others: no cycle can be told there.
                    if seat is not None and until == math.inf and libc.is_own is None:
                        lookout = lookout or Lookout(seat)
                        lookout.look()
        finally:
            if seat is not None:
                seat.mode[0] = IDLE

    def _sit_down(self, frame: FrameType, since_ns: int, *, ends: bool) -> Seat | None:
        """Say that this thread waits here; None: all seats are taken, and it waits unseen."""
        try:
            seat = self._cell.arena.seat()
        except RuntimeError:
            return None
        seat.wait_for(self._cell.offset, frame, since_ns, ends=ends or libc.is_own is not None)
        return seat

    def _let_go(self, error: BaseException) -> None:
        """Release it, if that was locked in an acquire which comes to nothing by this error."""
        if self._cell.is_mine:
            if not libc.consistent(self._mutex):  # and that was to be told
                error.add_note(str(OwnerDied.of(self._cell.label, *self._cell.holder)))
            libc.unlock(self._mutex)

    def _inherit(self) -> None:
        """Take over from an owner that has ended: tell of it, or go on."""
        holder = self._cell.holder
        libc.consistent(self._mutex)
        self._words[WHO] = 0
        self._words[DEATHS] += 1
        if self._on_owner_death == "raise":
            libc.unlock(self._mutex)
            raise OwnerDied.of(self._cell.label, *holder)


class RLock(Lock):
    """A lock that its owner can acquire again, as ``threading.RLock``, for threads and processes.

    It has to be released as often as it was acquired. Arguments and errors are those of ``Lock``.

    >>> lock = RLock()
    >>> with lock, lock:
    ...     lock.locked()
    True
    """

    __slots__ = ()
    _kind, _recursive = RLOCK, True

    def _recursion_count(self) -> int:
        """Return how often the calling thread has it."""
        return self._cell.depth if self._is_owned() else 0


class SelfLocked(RLock):
    """Data that is its own lock; multiprocessing's has one beside it."""

    __slots__ = ()

    def __init__(self, name: str, on_owner_death: str, lock: object) -> None:
        """``lock`` is there for those who come from multiprocessing: True or False."""
        if lock is not True and lock is not False:
            what = type(self).__name__
            raise TypeError(
                f"lock={lock!r} must be True or False: a shared {what} is its own lock. Hold it by "
                f"`with {what.lower()}:`, or hold your own lock around what belongs together"
            )
        super().__init__(name, on_owner_death=on_owner_death)

    def get_obj(self) -> Any:
        """Return what is shared, as those of multiprocessing do: itself, without waiting."""
        return self

    def get_lock(self) -> Self:
        """Return its lock, as those of multiprocessing do: it is its own lock, an RLock."""
        return self

    @property
    def lock(self) -> Self:
        """Its lock: itself."""
        return self


if libc.is_supported:
    _try_lock, _unlock = libc.try_lock, libc.unlock
