"""Mutexes and waits for greenlets: they own a mutex, and let others go on while they wait for it.

Used by libc.py where gevent or eventlet make greenlets of threads. To the kernel all greenlets of a
thread are one owner. So for each mutex that is held by this process it is noted here which
greenlet holds it, and how often. Nobody can wake a greenlet that waits for another process: it
looks again and again, after pauses that get longer.
"""

from __future__ import annotations

import ctypes
import errno
import math
import os
from collections.abc import Callable
from time import monotonic
from typing import Any

__all__ = ["GreenMutexes", "wait_word"]

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.000_5, 0.02


class GreenMutexes:
    """What libc.py does with mutexes, for greenlets.

    Args:
        try_lock, unlock: what does it for threads.
        current: returns the greenlet that runs.
        sleep: lets others run for some seconds.
    """

    def __init__(
        self,
        try_lock: Callable[[Any], int],
        unlock: Callable[[Any], int],
        current: Callable[[], Any],
        sleep: Callable[[float], object],
    ) -> None:
        self._try_lock = try_lock
        self._unlock = unlock
        self._current = current
        self._sleep = sleep
        self._owners: dict[int, tuple[Any, int]] = {}  # by address: who has it, and how often
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._owners.clear)

    def try_lock(self, mutex: Any) -> int:
        """Lock a mutex: 0, EBUSY, EDEADLK; or EOWNERDEAD, and then it is locked, too."""
        at, me = _address(mutex), self._current()
        code = self._try_lock(mutex)
        if code == errno.EBUSY:
            return code
        owner, depth = self._owners.get(at, (None, 0))
        if code == errno.EOWNERDEAD or owner is None:
            if code != errno.EDEADLK:
                self._owners[at] = (me, 1)
            return code
        if owner is me:
            if not code:
                self._owners[at] = (me, depth + 1)
            return code
        # Another greenlet of this thread has it.
        if not code:
            self._unlock(mutex)
        return self._take_over(mutex, depth) if owner.dead else errno.EBUSY

    def _take_over(self, mutex: Any, depth: int) -> int:
        """Have what a greenlet held that has ended, as the kernel does it with threads."""
        for _ in range(depth - 1):
            self._unlock(mutex)
        self._owners[_address(mutex)] = (self._current(), 1)
        return errno.EOWNERDEAD

    def unlock(self, mutex: Any) -> int:
        """Unlock a mutex: 0, or EPERM where another greenlet holds it, or none."""
        at = _address(mutex)
        owner, depth = self._owners.get(at, (None, 0))
        if owner is not None:
            if owner is not self._current():
                return errno.EPERM
            if depth > 1:
                self._owners[at] = (owner, depth - 1)
            else:
                del self._owners[at]
        return self._unlock(mutex)

    def lock_until(self, mutex: Any, seconds: float) -> int:
        """Lock a mutex, and wait so long for it: 0, EOWNERDEAD, ETIMEDOUT or EDEADLK."""
        pauses = _Pauses(self._sleep, seconds)
        while (code := self.try_lock(mutex)) == errno.EBUSY:
            if not pauses.pause():
                return errno.ETIMEDOUT
        return code

    def is_own(self, mutex: Any) -> bool:
        """Whether the greenlet that runs holds a mutex which its thread holds."""
        return self._owners.get(_address(mutex), (None, 0))[0] is self._current()


def wait_word(
    sleep: Callable[[float], object], address: int, value: int, seconds: float | None
) -> bool:
    """Wait while a word has this value; False: time is up."""
    word = ctypes.c_uint.from_address(address)
    pauses = _Pauses(sleep, math.inf if seconds is None else seconds)
    while word.value == value:
        if not pauses.pause():
            return False
    return True


class _Pauses:
    """Let others run, for longer each time, until so many seconds are over."""

    def __init__(self, sleep: Callable[[float], object], seconds: float) -> None:
        self._sleep = sleep
        self._until = monotonic() + seconds
        self._next_s = FIRST_PAUSE_S

    def pause(self) -> bool:
        """Pause once; False: the time is over."""
        left_s = self._until - monotonic()
        if left_s <= 0:
            return False
        self._sleep(min(self._next_s, left_s))
        self._next_s = min(2 * self._next_s, LONGEST_PAUSE_S)
        return True


def _address(mutex: Any) -> int:
    return ctypes.addressof(mutex._obj)  # noqa: SLF001  documented: what byref refers to
