"""Somebody who notices that a task takes long while the thread that waits is in that very task.

Used by quick.py and probe.py, which run the first tasks in the caller's thread. The sentinel is
one thread, asleep on a lock until somebody arms it; then it sleeps until it is time to look.
To arm it takes a microsecond, or ten where it has to be woken. It ends before this process is
forked, for a process with several threads is not to be forked (Python 3.12 warns of it).
"""

from __future__ import annotations

import os
import sys
import time
from _queue import SimpleQueue  # as in queue
from _thread import get_native_id, start_new_thread

from plait.clocks import monotonic

TYPE_CHECKING = False  # as in typing
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["LATE_S", "SLOW_S", "Sentinel", "Watch", "before_fork", "sentinel", "wait_gone"]

SLOW_S = 0.004
"""Of a task that has been running for so long it is worth knowing more."""
LATE_S = 0.02
"""One that has been running for so long may go on beside others."""
GONE_S = 0.05
"""How long the end of its thread is waited for."""


Watch = list[tuple[float, "Callable[[], object]"]]
"""When to call, and what: what is left of that."""


class Sentinel:
    """Calls what it was armed with, in its own thread, unless it is disarmed in time.

    One thing at a time: while a task of one thread is watched, those of others are not.
    """

    def __init__(self) -> None:
        self._bell: SimpleQueue[bool] = SimpleQueue()  # rung with whether the thread is to go on
        self._is_awake = False
        self._native_id = 0  # of its thread; 0: there is none
        self._watch: Watch | None = None

    def arm(
        self, on_late: Callable[[], object], on_slow: Callable[[], object] | None = None
    ) -> Watch | None:
        """Have something called after LATE_S; return what ``disarm`` wants, None if it is busy.

        And something else, perhaps, after SLOW_S. It is called in the sentinel's thread, and has
        to be brief.
        """
        if self._watch is not None:
            return None
        now = monotonic()
        watch = [(now + LATE_S, on_late)]
        if on_slow is not None:
            watch.insert(0, (now + SLOW_S, on_slow))
        self._watch = watch
        if not self._is_awake:
            self._is_awake = True
            if not self._native_id:
                if _are_threads_greenlets():  # one sees nothing while another is in a task
                    self.__init__()  # type: ignore[misc]
                    return None
                # Python takes the thread that imports it first for the main one (until 3.13).
                import threading  # noqa: F401

                self._native_id = -1
                try:
                    start_new_thread(self._serve, ())
                except RuntimeError:  # there is no room for a thread: nobody watches
                    self.__init__()  # type: ignore[misc]
                    return None
            self._bell.put(True)
        return watch

    def disarm(self, watch: Watch | None) -> None:
        """Watch that no more. What is called at this very moment may go on."""
        if self._watch is watch:
            self._watch = None
        if watch is not None:
            watch.clear()  # the thread that sleeps over it is not to keep alive what it refers to

    def _serve(self) -> None:
        self._native_id = get_native_id()
        while self._bell.get():
            while (watch := self._next()) is not None:
                self._look(watch)

    def _next(self) -> Watch | None:
        """Return what is to be watched; if there is nothing, fall asleep."""
        if self._watch is None:
            # Say so before looking again. The other order loses a watch: 1. there is none;
            # 2. somebody arms, sees that we are awake, and does not ring; 3. we sleep.
            self._is_awake = False
        return self._watch

    def _look(self, watch: Watch) -> None:
        try:
            left_s = watch[0][0] - monotonic()
            if left_s > 0:
                time.sleep(left_s)
                return
            if self._watch is not watch:  # this process is about to be forked
                return
            call = watch.pop(0)[1]
        except IndexError:  # it is disarmed
            return
        if not watch and self._watch is watch:
            self._watch = None
        try:
            call()
        except RuntimeError:  # no thread can be started: then all is as without a sentinel
            return

    def end(self) -> None:
        """End its thread, and wait until it is gone: this process will be forked.

        If it is a watched task that forks, that is not watched any more.
        """
        if not self._native_id:
            return
        self._watch = None
        self._bell.put(False)
        until = monotonic() + GONE_S
        while self._native_id < 0 and monotonic() < until:  # it is started, but has not run yet
            time.sleep(0.000_05)
        wait_gone(self._native_id)
        self.__init__()  # type: ignore[misc]

    def forget(self) -> None:
        """In a forked child: the thread was the parent's."""
        self.__init__()  # type: ignore[misc]


def _are_threads_greenlets() -> bool:
    if "greenlet" not in sys.modules:
        return False
    from plait.greenlets import are_threads

    return are_threads()


def wait_gone(native_id: int) -> None:
    """Wait until a thread that is ending is no thread of this process any more (on Linux).

    Python has no way to say when: its own locks are let go of a little before that.
    """
    until = monotonic() + GONE_S
    while os.path.exists(f"/proc/self/task/{native_id}") and monotonic() < until:  # noqa: PTH110
        time.sleep(0.000_05)


sentinel = Sentinel()

before_fork: list[Callable[[], object]] = []
"""What ends the threads that the sentinel's thread may have started.

Such a module may be imported by that very thread while a fork begins: a hook that it registered
with Python then would not be called any more.
"""


def _end_all() -> None:
    """End the sentinel's thread, then those that it started."""
    sentinel.end()
    for end in before_fork:
        end()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_end_all, after_in_child=sentinel.forget)
