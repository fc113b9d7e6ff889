"""Where a lane's finished tasks arrive when threads of this process run them."""

from __future__ import annotations

import threading
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Protocol

from plait.host import monotonic

if TYPE_CHECKING:
    from plait.errors import PlaitError
    from plait.outcome import Finished

__all__ = ["Inbox"]


class Progress(Protocol):
    """How far a worker is with its chunk."""

    has_claimed: bool
    done: int


class Inbox:
    """Finished tasks on their way from workers to the one thread that waits for them.

    It counts chunks: submitted, claimed by a worker, finished. A chunk that nobody claimed
    before the inbox closed is never run. A claimed chunk always finishes.

    The worker counts, when it delivers. A signal handler may raise an exception anywhere in the
    thread that waits, so that thread changes no count.
    """

    def __init__(self) -> None:
        self._bell: SimpleQueue[None] = SimpleQueue()  # holds a token while there is news
        self._lock = threading.Lock()  # guards everything below
        self._arrived: list[Finished] = []
        self._unfinished = 0
        self._claimed = 0
        self._error: PlaitError | None = None
        self.is_closed = False

    @property
    def pending(self) -> int:
        """How many chunks did not finish, or finished and were not taken yet."""
        return max(0, self._unfinished) + len(self._arrived)

    def count(self, chunks: int) -> None:
        """Count chunks that were submitted (or, if negative, were not after all)."""
        with self._lock:
            self._unfinished += chunks

    def claim(self, worker: Progress | None = None) -> bool:
        """Ask, as a worker, whether to run a chunk of this lane."""
        with self._lock:
            if self.is_closed:
                return False
            # Nothing is called between these two, so no exception from outside divides them.
            self._claimed += 1
            if worker is not None:
                worker.has_claimed = True
        return True

    def put(self, finished: Finished, worker: Progress | None = None) -> None:
        """Deliver finished tasks, and note in ``worker`` that they are delivered."""
        tasks = len(finished.values)
        with self._lock:
            # As above: all of this happens, or nothing.
            chunks = 1 if finished.is_last else 0
            self._unfinished -= chunks
            self._claimed -= chunks
            if worker is not None:
                worker.done += tasks
            self._arrived += (finished,)
        self.wake()

    def fail(self, error: PlaitError) -> None:
        """Have ``take`` raise the reason why there are no workers."""
        self._error = error
        self.wake()

    def wake(self) -> None:
        """Have ``take`` return."""
        if self._bell.empty():
            self._bell.put(None)

    def take(self, timeout: float | None = None) -> list[Finished]:
        """Block until something arrives; empty when nothing is pending or time is up."""
        if not self._arrived:
            if self._unfinished <= 0:
                return []
            if self._error is None:
                with suppress(Empty):
                    self._bell.get(timeout=timeout)
        finished = self._collect()
        if self._error is not None and not finished and self._unfinished > 0:
            raise self._error
        return finished

    def _collect(self) -> list[Finished]:
        with self._lock:
            finished, self._arrived = self._arrived, []
        return finished

    def close(self, patience_s: float | None = None) -> list[Finished]:
        """Let nothing new start, wait for what runs, up to so many seconds, and return it."""
        deadline = None if patience_s is None else monotonic() + patience_s
        with self._lock:
            self.is_closed = True
            self._unfinished = self._claimed
        while self._unfinished > 0:
            left = None if deadline is None else deadline - monotonic()
            if left is not None and left <= 0:
                break
            with suppress(Empty):
                self._bell.get(timeout=left)
        return self._collect()
