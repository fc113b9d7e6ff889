"""The lock of a shared List or Dict: for their operations, and for users.

An operation that its process did not live to end has not happened; nobody needs to be told. A user
who died while holding the lock may have left half of what he wanted to do: that is told to the next
user, however many operations came in between. So the lock's cell has words that say whether it is
held by a user, and whether one has died there.
"""

from __future__ import annotations

import errno
import os
import threading
from types import FrameType, TracebackType

from plait.errors import OwnerDied
from plait.shared import libc
from plait.shared.cells import DEATHS, SINCE, STATE, TASK, WHO, new_cell
from plait.shared.lock_calls import FOREVER, caller, check_timeout
from plait.shared.locks import RLock

__all__ = ["DataLock"]

HELD, BROKEN, BROKEN_WHO, BROKEN_SINCE, BROKEN_TASK = range(STATE, STATE + 5)
"""Words of its cell: how often a user holds it; whether one died there, and who that was."""


class DataLock(RLock):
    """An ``RLock`` that is taken for each operation, too, by those who tell nobody of a death."""

    def __init__(self, label: str) -> None:
        self._set_up(new_cell(self._kind, label, recursive=True), "raise")

    def acquire(self, blocking: bool = True, timeout: float = FOREVER) -> bool:  # noqa: FBT001, FBT002
        """Acquire the lock, as ``RLock.acquire`` does."""
        check_timeout(blocking, timeout)
        return self._acquire(caller(1), timeout if blocking else 0.0)

    def release(self) -> None:
        """Release it. Raises RuntimeError where the calling thread does not have it."""
        words = self._words
        if self._cell.owner != threading.get_native_id() or not words[HELD]:
            self._refuse()
        words[HELD] -= 1
        _unlock(self._mutex)

    def __enter__(self) -> bool:
        return self._acquire(caller(1), FOREVER)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def _acquire(self, frame: FrameType, timeout: float) -> bool:
        code = _try_lock(self._mutex)
        if code and not self._acquire_slowly(code, frame, timeout):
            return False
        if self._words[BROKEN]:
            self._tell_of_death()
        if not code:
            self._cell.note_holder(frame)
        self._words[HELD] += 1
        return True

    def wait(self, code: int) -> None:
        """Take it for one operation, where the first try came to this code. Tells of no death."""
        if code == errno.EBUSY:
            code = self._wait(caller(3), FOREVER)
        if code == errno.EOWNERDEAD:
            self._inherit()
        elif code:
            raise OSError(code, os.strerror(code))

    def _inherit(self) -> None:
        """Take over from an owner that has ended; note if it was a user."""
        words = self._words
        if words[HELD]:
            words[BROKEN_WHO], words[BROKEN_SINCE] = words[WHO], words[SINCE]
            words[BROKEN_TASK] = words[TASK]
            words[BROKEN] = 1
            words[HELD] = 0
        words[DEATHS] += 1
        libc.consistent(self._mutex)

    def _tell_of_death(self) -> None:
        words = self._words
        words[SINCE], words[TASK] = words[BROKEN_SINCE], words[BROKEN_TASK]
        words[WHO] = words[BROKEN_WHO]
        holder = self._cell.holder
        words[BROKEN] = 0
        _unlock(self._mutex)
        raise OwnerDied.of(self._cell.label, *holder)


if libc.is_supported:
    _try_lock, _unlock = libc.try_lock, libc.unlock
