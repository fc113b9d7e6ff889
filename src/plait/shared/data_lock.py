"""The lock of a shared List or Dict: for their operations, and for users.

An operation that its process did not live to end has not happened; nobody needs to be told. A user
who died while holding the lock may have left half of what he wanted to do: that is told to the next
user, however many operations came in between. So the lock's cell has words that say whether a user
has died there.
"""

from __future__ import annotations

import errno
import os
from types import FrameType

from plait.errors import OwnerDied
from plait.shared import libc
from plait.shared.cells import DEATHS, NEWS, SINCE, STATE, TASK, WHO, new_cell
from plait.shared.lock_calls import FOREVER, caller
from plait.shared.locks import RLock

__all__ = ["DataLock"]

BROKEN_WHO, BROKEN_SINCE, BROKEN_TASK = range(STATE, STATE + 3)
"""Words of its cell: who died there. NEWS says that a user did, and that no user knows yet."""


class DataLock(RLock):
    """An ``RLock`` that is taken for each operation, too, by those who tell nobody of a death.

    Who holds it for an operation alone does not note himself in WHO: that is how users are told
    apart.
    """

    __slots__ = ()

    def __init__(self, label: str) -> None:
        self._set_up(new_cell(self._kind, label, recursive=True), "raise")

    def wait(self, code: int) -> None:
        """Take it for one operation, where the first try came to this code. Tells of no death."""
        if code == errno.EBUSY:
            code = self._wait(caller(3), FOREVER)
        if code == errno.EOWNERDEAD:
            self._inherit()
        elif code:
            raise OSError(code, os.strerror(code))

    def _acquire_slowly(self, code: int, frame: FrameType, timeout: float) -> bool:
        if code and not super()._acquire_slowly(code, frame, timeout):
            return False
        try:
            if self._words[NEWS]:
                self._tell_of_death()
        except BaseException as error:
            self._let_go(error)
            raise
        return True

    def _inherit(self) -> None:
        """Take over from an owner that has ended; note if it was a user."""
        words = self._words
        if words[WHO]:
            words[BROKEN_WHO], words[BROKEN_SINCE] = words[WHO], words[SINCE]
            words[BROKEN_TASK] = words[TASK]
            words[NEWS] = 1
            words[WHO] = 0
        words[DEATHS] += 1
        libc.consistent(self._mutex)

    def _tell_of_death(self) -> None:
        words = self._words
        words[SINCE], words[TASK] = words[BROKEN_SINCE], words[BROKEN_TASK]
        words[WHO] = words[BROKEN_WHO]
        holder = self._cell.holder
        words[NEWS] = words[WHO] = 0
        raise OwnerDied.of(self._cell.label, *holder)
