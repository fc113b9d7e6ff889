"""One thread per worker, all fed from one queue.

Threads share memory and cannot be killed, so there is nothing to carry, nothing to
watch and nobody to bury: a worker takes a chunk, runs it and puts what finished into
the inbox of the lane that the chunk came from.
"""

from __future__ import annotations

import os
import threading
import weakref
from queue import SimpleQueue
from typing import TYPE_CHECKING

from plait.backends.contract import Traits
from plait.backends.inbox import Inbox
from plait.errors import PoolClosed, WorkerStartError
from plait.outcome import Call, Chunk, Finished
from plait.worker import run_apart, run_together

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ThreadBackend"]


class ThreadBackend:
    """A pool of threads; they start when there is work for them."""

    traits = Traits(name="threads", queue_depth=2)

    def __init__(self, max_workers: int, initializer: Callable[[], object] | None = None) -> None:
        self.max_workers = max_workers
        self._initializer = initializer
        self._work: SimpleQueue[tuple[ThreadLane, Chunk] | None] = SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._lock = threading.Lock()  # guards the attributes below
        self._threads: list[threading.Thread] = []
        self._lanes: weakref.WeakSet[ThreadLane] = weakref.WeakSet()
        self._broken: WorkerStartError | None = None
        self._is_closed = False

    @property
    def is_usable(self) -> bool:
        """Whether new lanes can be opened."""
        return not self._is_closed and self._broken is None

    def open_lane(self, call: Call) -> ThreadLane:
        """Open a way for a function."""
        lane = ThreadLane(self, call)
        with self._lock:
            self._lanes.add(lane)
        return lane

    def enqueue(self, lane: ThreadLane, chunk: Chunk) -> None:
        """Put a chunk into the queue, and start a thread if none is free for it."""
        with self._lock:
            if self._is_closed:
                raise PoolClosed("This pool is closed; open a new one.")
            if self._broken is not None:
                raise self._broken
            self._work.put((lane, chunk))
            if len(self._threads) < self.max_workers and not self._idle.acquire(blocking=False):
                self._start_thread()

    def _start_thread(self) -> None:
        name = f"thread-{len(self._threads) + 1}"
        thread = threading.Thread(
            target=self._serve, args=(name,), name=f"plait-{name}", daemon=True
        )
        self._threads.append(thread)
        thread.start()

    def _serve(self, name: str) -> None:
        try:
            if self._initializer is not None:
                self._initializer()
        except BaseException as error:  # noqa: BLE001  whatever it is, no worker can work
            self._break(error)
            return
        while (job := self._work.get()) is not None:
            lane, chunk = job
            if lane.inbox.claim():
                lane.run(chunk, name)
            del job, lane, chunk  # an idle worker keeps no item alive
            self._idle.release()
        self._work.put(None)  # pass the end on to the next worker

    def _break(self, error: BaseException) -> None:
        broken = WorkerStartError(f"The initializer failed in a thread: {error!r}")
        broken.__cause__ = error
        with self._lock:
            self._broken = broken
            for lane in self._lanes:
                lane.inbox.put(broken)

    def close(self) -> None:
        """Let the queued work finish, then end the threads."""
        with self._lock:
            self._is_closed = True
        self._work.put(None)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def abandon(self) -> None:
        """In a forked child: the threads exist in the parent only."""
        self._is_closed = True
        self._threads = []


class ThreadLane:
    """One function's way through a pool of threads."""

    def __init__(self, backend: ThreadBackend, call: Call) -> None:
        self._backend = backend
        self._call = call
        self.inbox = Inbox()

    @property
    def pending(self) -> int:
        """How many chunks were submitted and have not finished."""
        return self.inbox.pending

    def submit(self, chunk: Chunk) -> None:
        """Queue a chunk."""
        self.inbox.count(1)
        try:
            self._backend.enqueue(self, chunk)
        except BaseException:
            self.inbox.count(-1)
            raise

    def run(self, chunk: Chunk, worker: str) -> None:
        """Run a chunk, as a worker, and deliver what finishes."""
        pid = os.getpid()
        if chunk.together:
            stretch = run_together(self._call, chunk.items)
            self.inbox.put(Finished.of(chunk, 0, stretch, worker, pid))
            return
        done = 0
        for stretch in run_apart(self._call, chunk.items, begin=lambda _: not self.inbox.is_closed):
            self.inbox.put(Finished.of(chunk, done, stretch, worker, pid))
            done += len(stretch.values)

    def wait_outcomes(self, timeout: float | None = None) -> list[Finished]:
        """Block until tasks finished."""
        return self.inbox.take(timeout)

    def wake(self) -> None:
        """Have ``wait_outcomes`` return."""
        self.inbox.put(None)

    def close(self) -> list[Finished]:
        """Drop what is queued and wait for what runs: a thread cannot be ended."""
        return self.inbox.close()
