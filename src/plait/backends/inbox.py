"""Where a lane's finished tasks arrive when threads of this process run them."""

from __future__ import annotations

import threading
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from plait.errors import PlaitError
from plait.host import monotonic

if TYPE_CHECKING:
    from plait.outcome import Finished

__all__ = ["Inbox"]


class Inbox:
    """Finished tasks on their way from workers to the one thread that waits for them.

    Counts chunks: submitted, claimed by a worker, finished. A chunk that nobody claimed
    before the inbox closed is never run; one that was claimed always finishes.
    """

    def __init__(self) -> None:
        self._arrived: SimpleQueue[Finished | PlaitError | None] = SimpleQueue()
        self._lock = threading.Lock()  # guards the three below
        self._claimed = 0
        self.is_closed = False
        self.pending = 0

    def count(self, chunks: int) -> None:
        """Count chunks that were submitted (or, if negative, were not after all)."""
        with self._lock:
            self.pending += chunks

    def claim(self) -> bool:
        """Ask, as a worker, whether to run a chunk of this lane."""
        with self._lock:
            if not self.is_closed:
                self._claimed += 1
            return not self.is_closed

    def put(self, arrived: Finished | PlaitError | None) -> None:
        """Deliver finished tasks, the error that there will be none, or None to wake up."""
        self._arrived.put(arrived)

    def take(self, timeout: float | None = None) -> list[Finished]:
        """Block until something arrives; empty when nothing is pending or time is up."""
        if not self.pending:
            return []
        finished: list[Finished] = []
        try:
            arrived = self._arrived.get(timeout=timeout)
            while True:
                if isinstance(arrived, PlaitError):
                    raise arrived
                if arrived is None:
                    return finished
                finished.append(arrived)
                if arrived.is_last:
                    self._count_down()
                arrived = self._arrived.get_nowait()
        except Empty:
            return finished

    def _count_down(self) -> None:
        with self._lock:
            self.pending -= 1
            self._claimed -= 1

    def close(self, patience_s: float | None = None) -> list[Finished]:
        """Let nothing new start, wait for what runs, up to so many seconds, and return it."""
        deadline = None if patience_s is None else monotonic() + patience_s
        with self._lock:
            self.is_closed = True
            self.pending = self._claimed
        finished: list[Finished] = []
        while self.pending:
            left = None if deadline is None else max(0.0, deadline - monotonic())
            finished += self.take(left)
            if left == 0.0:
                break
        return finished
