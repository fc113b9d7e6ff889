"""Locks for moments, between processes: for what is written in order, as texts and seats are."""

from __future__ import annotations

import errno
import os
from typing import Any

from plait.shared import libc

__all__ = ["Guard", "lock_slowly"]

PATIENCE_S = 10.0


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
        if code := libc.try_lock(self.mutex):
            # EDEADLK: Ctrl-C came between its being locked and noted: it is ours.
            lock_slowly(self.mutex, code)

    __enter__ = lock

    def __exit__(self, *_: object) -> None:
        libc.unlock(self.mutex)


def lock_slowly(mutex: Any, code: int, piece_s: float = PATIENCE_S) -> int:
    """Lock a mutex of which a first try came to this code, and wait as long as that takes.

    The C library waits for no longer than a piece at a time.

    Returns:
        0; EOWNERDEAD: its owner had ended, and it is declared to be in order again; EDEADLK: this
        thread had it already.
    """
    while code in (errno.EBUSY, errno.ETIMEDOUT):
        code = libc.lock_until(mutex, piece_s)
    if code == errno.EOWNERDEAD:
        libc.consistent(mutex)
    elif code not in (0, errno.EDEADLK):
        raise OSError(code, os.strerror(code))
    return code
