"""Coroutines on an event loop: a loop of plait's own in a thread, or the caller's loop.

A worker here is a place at the table: at most ``max_workers`` coroutines run at once.
"""

from __future__ import annotations

import asyncio
import os
import threading
from typing import TYPE_CHECKING, Any

from plait.backends.contract import Traits
from plait.backends.inbox import Inbox
from plait.errors import PlaitError, PoolClosed, WorkerStartError
from plait.host import monotonic
from plait.outcome import Call, Chunk, Finished, Stretch

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["AsyncioBackend"]


class AsyncioBackend:
    """Runs coroutine functions; ``loop`` is the caller's, or None for one of its own."""

    traits = Traits(name="asyncio", takes_coroutines=True)

    def __init__(
        self,
        max_workers: int,
        initializer: Callable[[], object] | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.max_workers = max_workers
        self._initializer = initializer
        self._places = list(range(max_workers, 0, -1))  # free ones; only the loop touches it
        self._place_free = asyncio.Semaphore(max_workers)
        self._tasks: set[asyncio.Task[None]] = set()  # asyncio itself keeps no strong reference
        self._thread: threading.Thread | None = None
        self._loop = loop
        self._lock = threading.Lock()  # guards the starting of the loop
        self._refusal: PlaitError | None = None  # why no work is taken

    @property
    def is_usable(self) -> bool:
        """Whether new lanes can be opened."""
        return self._refusal is None

    def check_usable(self) -> None:
        """Raise the reason why no work can be taken, if there is one."""
        if self._refusal is not None:
            raise self._refusal

    def open_lane(self, call: Call) -> AsyncioLane:
        """Open a way for a coroutine function; starts the loop if need be."""
        with self._lock:
            self.check_usable()
            if self._loop is None:
                self._loop = self._start_loop()
            self._initialize()
        return AsyncioLane(self, call, self._loop)

    def _start_loop(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=loop.run_forever, name="plait-asyncio", daemon=True)
        self._thread.start()
        return loop

    def _initialize(self) -> None:
        initializer, self._initializer = self._initializer, None
        if initializer is None:
            return
        try:
            initializer()
        except Exception as error:
            self._refusal = WorkerStartError(f"The initializer failed: {error!r}")
            raise self._refusal from error

    def spawn(self, lane: AsyncioLane, chunk: Chunk) -> None:
        """Start a chunk on the loop, as a task of its own."""
        task = asyncio.get_running_loop().create_task(self._run(lane, chunk))
        self._tasks.add(task)
        lane.tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lane.tasks.discard)

    async def _run(self, lane: AsyncioLane, chunk: Chunk) -> None:
        async with self._place_free:
            if not lane.inbox.claim():
                return
            place = self._places.pop()
            try:
                await lane.run(chunk, f"coroutine-{place}")
            finally:
                self._places.append(place)

    def close(self) -> None:
        """End the loop, if it is plait's own, when its tasks are done."""
        with self._lock:
            self._refusal = PoolClosed("This pool is closed; open a new one.")
            loop, thread, self._thread = self._loop, self._thread, None
        if loop is None or thread is None:
            return
        asyncio.run_coroutine_threadsafe(_finish(set(self._tasks)), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

    def abandon(self) -> None:
        """In a forked child: the loop runs in the parent only."""
        self._refusal = PoolClosed("This pool belongs to the parent process; open a new one.")
        self._thread = None


class AsyncioLane:
    """One coroutine function's way through a loop."""

    def __init__(
        self, backend: AsyncioBackend, call: Call, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._backend = backend
        self._call = call
        self._loop = loop
        self.inbox = Inbox()
        self.tasks: set[asyncio.Task[None]] = set()

    @property
    def pending(self) -> int:
        """How many chunks were submitted and have not finished."""
        return self.inbox.pending

    def submit(self, chunk: Chunk) -> None:
        """Hand a chunk to the loop."""
        self._backend.check_usable()
        self.inbox.count(1)
        self._loop.call_soon_threadsafe(self._backend.spawn, self, chunk)

    async def run(self, chunk: Chunk, worker: str) -> None:
        """Await the tasks of a chunk one after the other, and deliver what finishes."""
        for place, item in enumerate(chunk.items):
            stretch = await self._run_task(item, is_last=place == len(chunk.items) - 1)
            self.inbox.put(Finished.of(chunk, place, stretch, worker, os.getpid()))
            if self.inbox.is_closed and not stretch.is_last:
                empty = Stretch([], {}, [])
                self.inbox.put(Finished.of(chunk, place + 1, empty, worker, os.getpid()))
                return

    async def _run_task(self, item: Any, *, is_last: bool) -> Stretch:
        errors: dict[int, BaseException] = {}
        value = None
        started = monotonic()
        try:
            fn = self._call.fn
            value = await (fn(*item) if self._call.style == "star" else fn(item))
        except BaseException as error:  # noqa: BLE001  also a cancelled task is that task's outcome
            errors[0] = error
        return Stretch([value], errors, [(started, monotonic() - started)], is_last)

    def wait_outcomes(self, timeout: float | None = None) -> list[Finished]:
        """Block until tasks finished."""
        return self.inbox.take(timeout)

    def wake(self) -> None:
        """Have ``wait_outcomes`` return."""
        self.inbox.put(None)

    def close(self) -> list[Finished]:
        """Cancel what runs, drop what does not, and wait until that is so."""
        self.inbox.is_closed = True
        if self.inbox.pending:
            self._loop.call_soon_threadsafe(self._cancel_tasks)
        return self.inbox.close()

    def _cancel_tasks(self) -> None:
        for task in self.tasks:
            task.cancel()


async def _finish(tasks: set[asyncio.Task[None]]) -> None:
    if tasks:
        await asyncio.wait(tasks)
