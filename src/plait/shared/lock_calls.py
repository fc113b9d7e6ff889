"""What most users of a lock wait for: to lock and unlock what is free, and to note by whom.

It is there twice: in Python, here, and in C (``_fast.c``), for where that was built. Both write
the same to shared memory, so processes with the one and with the other can share a lock. What takes
longer they leave to methods of Lock, in locks.py, where the attributes are that they use.
"""

from __future__ import annotations

import errno
import sys
import threading
from time import monotonic_ns
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from plait import compiled
from plait.running import get_task
from plait.shared import libc
from plait.shared.cells import NEWS, SINCE, TASK, WHO

if TYPE_CHECKING:
    from collections.abc import Callable

    from plait.shared.cells import Cell

__all__ = ["FOREVER", "LockCalls", "caller", "check_timeout"]

FOREVER = -1.0
_frame = sys._getframe  # noqa: SLF001  it is documented

if libc.is_supported:
    _try_lock, _unlock = libc.try_lock, libc.unlock


def caller(depth: int) -> FrameType:
    """Return the frame so far outside of the caller's, or the outermost there is."""
    try:
        return _frame(depth + 1)
    except ValueError:  # a thread or greenlet begins with what asks
        frame = _frame(1)
        while frame.f_back is not None:
            frame = frame.f_back
        return frame


def check_timeout(blocking: bool, timeout: float) -> None:  # noqa: FBT001
    """Raise what threading does for times that make no sense."""
    if timeout != FOREVER:
        if not blocking:
            raise ValueError("can't specify a timeout for a non-blocking call")
        if not timeout >= 0:  # nor is NaN
            raise ValueError("timeout value must be a non-negative number")
        if timeout > threading.TIMEOUT_MAX:
            raise OverflowError("timeout value is too large")


class _InPython:
    __slots__ = ("_depths", "_once", "_site")

    _mutex: Any
    _words: memoryview[int]
    _new_site: Callable[[int, FrameType], int]
    _acquire_slowly: Callable[[int, FrameType, float], bool]
    _let_go: Callable[[BaseException], None]
    _refuse: Callable[[], None]

    def _prepare(self, cell: Cell, *, recursive: bool) -> None:
        """Have it be for the mutex of a cell."""
        self._site = cell.arena.sites.get
        self._depths: memoryview[int] | None = None
        self._once = 0
        if recursive:
            self._depths, self._once = cell.depth_view()

    def acquire(self, blocking: bool = True, timeout: float = FOREVER) -> bool:  # noqa: FBT001, FBT002
        """Acquire the lock; False if it is not to be had (in ``timeout`` seconds).

        Args:
            blocking: whether to wait for it.
            timeout: in seconds; -1: for ever.
        """
        if timeout != FOREVER:
            check_timeout(blocking, timeout)
        try:
            frame = _frame(1)
        except ValueError:  # a thread or greenlet begins with this very function
            frame = _frame()
        return self._take(frame, timeout if blocking else 0.0)

    def release(self) -> None:
        """Release it (once). Raises RuntimeError where the calling thread does not have it."""
        # Who takes it next may be killed before that is noted: no other is to be named then.
        if self._depths is None or self._depths[0] == self._once:
            self._words[WHO] = 0
        if _unlock(self._mutex):
            self._refuse()

    def __enter__(self) -> bool:
        try:
            frame = _frame(1)
        except ValueError:
            frame = _frame()
        return self._take(frame, FOREVER)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._depths is None or self._depths[0] == self._once:
            self._words[WHO] = 0
        if _unlock(self._mutex) and error is None:  # an error that is on its way tells more
            self._refuse()

    def _take(self, frame: FrameType, timeout: float) -> bool:
        """Lock it, and note that who stands at this place did so."""
        code = 0
        try:
            if (code := _try_lock(self._mutex)) or self._words[NEWS]:
                return self._acquire_slowly(code, frame, timeout)
            words = self._words
            key = id(frame.f_code) + frame.f_lasti
            who = self._site(key) or self._new_site(key, frame)
            words[SINCE] = monotonic_ns()
            words[TASK] = get_task()
            words[WHO] = who
            return True
        except BaseException as error:  # Ctrl-C, before our caller can know that it has it
            if code != errno.EDEADLK:
                self._let_go(error)
            raise


if TYPE_CHECKING or compiled.fast is None:
    LockCalls = _InPython
else:

    class LockCalls(compiled.fast.LockCalls):
        """The same in C."""

        __slots__ = ()

        _check_timeout = staticmethod(check_timeout)

        def _prepare(self, cell: Cell, *, recursive: bool) -> None:
            depth, once = cell.depth_address() if recursive else (0, 0)
            self._bind(cell.address, cell.address_of(0), depth, once, cell.arena.sites, cell.words)
