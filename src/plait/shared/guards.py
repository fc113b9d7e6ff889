"""A lock for moments, between processes: for what is written in order, as texts and seats are."""

from __future__ import annotations

import errno
import os

from plait.shared import libc

__all__ = ["Guard"]

GUARD_S = 10.0


class Guard:
    """A robust mutex for moments, ``with guard:``; where its owner died the next one goes on.

    What it guards has to be in order after each single write. Ctrl-C that comes right before
    ``__exit__`` leaves it locked, until its thread comes by again or ends. Where others cannot
    wait for that: ``try: guard.lock() ... finally: unlock(guard.mutex)``. Before a function of C
    Python does not look for signals, and to unlock what one has not locked does nothing.
    """

    def __init__(self, address: int) -> None:
        self.mutex = libc.mutex_at(address)

    def lock(self) -> None:
        """Lock it."""
        code = libc.try_lock(self.mutex)
        while code:
            if code == errno.EOWNERDEAD:
                libc.consistent(self.mutex)
                return
            if code == errno.EDEADLK:  # Ctrl-C came between its being locked and noted: it is ours
                return
            if code not in (errno.EBUSY, errno.ETIMEDOUT):
                raise OSError(code, os.strerror(code))
            code = libc.lock_until(self.mutex, GUARD_S)

    __enter__ = lock

    def __exit__(self, *_: object) -> None:
        libc.unlock(self.mutex)
