"""Where a lane's finished tasks arrive when threads of this process run them."""

from __future__ import annotations

import threading
from contextlib import suppress
from queue import Empty, SimpleQueue

from plait.host import monotonic
from plait.outcome import Finished

__all__ = ["Inbox"]


class Inbox:
    """Finished tasks on their way from workers to the one thread that waits for them.

    Counts chunks: submitted, claimed by a worker, finished. A chunk that nobody claimed
    before the inbox closed is never run; one that was claimed always finishes.

    In the thread that waits an exception may come from outside at any moment (Ctrl-C, another
    signal handler's), and what is in its hands then is lost. So it is the workers that count what
    they began and ended, and ``close`` goes by that.
    """

    def __init__(self) -> None:
        self._arrived: SimpleQueue[Finished | BaseException | None] = SimpleQueue()
        self._lock = threading.Lock()  # guards the counts
        self._submitted = 0
        self._claimed = 0
        self._ended = 0  # of these
        self._taken = 0  # of these, by who waits
        self.is_closed = False

    @property
    def pending(self) -> int:
        """How many chunks were submitted, and their ends not taken."""
        return (self._claimed if self.is_closed else self._submitted) - self._taken

    def count(self, chunks: int) -> None:
        """Count chunks that were submitted (or, if negative, were not after all)."""
        with self._lock:
            self._submitted += chunks

    def claim(self) -> bool:
        """Ask, as a worker, whether to run a chunk of this lane."""
        with self._lock:
            if not self.is_closed:
                self._claimed += 1
            return not self.is_closed

    def put(self, arrived: Finished | BaseException | None) -> None:
        """Deliver finished tasks, the error that there will be none, or None to wake up."""
        if isinstance(arrived, Finished) and arrived.is_last:
            with self._lock:
                self._ended += 1
        self._arrived.put(arrived)

    def take(self, timeout: float | None = None) -> list[Finished]:
        """Block until something arrives; empty when nothing is pending or time is up."""
        if not self.pending:
            return []
        finished: list[Finished] = []
        try:
            arrived = self._arrived.get(timeout=timeout)
            while True:
                if isinstance(arrived, BaseException):
                    raise arrived
                if arrived is None:
                    return finished
                finished.append(arrived)
                if arrived.is_last:
                    self._taken += 1
                arrived = self._arrived.get_nowait()
        except Empty:
            return finished

    def close(self, patience_s: float | None = None) -> list[Finished]:
        """Let nothing new start, wait for what runs, up to so many seconds, and return it."""
        deadline = None if patience_s is None else monotonic() + patience_s
        with self._lock:
            self.is_closed = True
        finished: list[Finished] = []
        while self._ended < self._claimed:
            left = None if deadline is None else max(0.0, deadline - monotonic())
            finished += self._take_one(left)
            if left == 0.0:
                return finished
        while not self._arrived.empty():
            finished += self._take_one(0.0)
        self._taken = self._claimed  # also what was lost by an exception from outside
        return finished

    def _take_one(self, timeout: float | None) -> list[Finished]:
        """Return what arrives next, unless that is an error: others come after it."""
        with suppress(Empty):
            arrived = self._arrived.get(timeout=timeout)
            if isinstance(arrived, Finished):
                self._taken += arrived.is_last
                return [arrived]
        return []
