"""Coroutines on an event loop: a loop of plait's own in a thread, or the caller's loop.

A worker here is a place at the table: at most ``max_workers`` coroutines run at once.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar

from plait.backends.contract import Setting, Traits
from plait.backends.inbox import Inbox
from plait.errors import (
    DeadlockError,
    PlaitError,
    PoolClosed,
    TaskTimeout,
    Victim,
    WorkerStartError,
)
from plait.host import monotonic
from plait.outcome import Call, Chunk, Finished, Stretch

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["AsyncioBackend"]

# How long a coroutine may take to stop once it was cancelled.
GRACE_S = 0.5


class AsyncioBackend:
    """Runs coroutine functions; ``loop`` is the caller's, or None for one of its own."""

    traits = Traits(name="asyncio", queue_depth=2, takes_coroutines=True)
    start_s = None
    is_crowded = True  # a call that uses it may hold up its loop
    is_whole = False  # nobody knows what an exception from outside has left
    shortage = ""

    def __init__(
        self,
        max_workers: int,
        initializer: Callable[[], object] | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.max_workers = max_workers
        self._initializer = initializer
        self._places = _Places(max_workers)
        self._tasks: set[asyncio.Task[None]] = set()  # asyncio itself keeps no strong reference
        self._thread: threading.Thread | None = None
        self._ending: asyncio.Task[None] | None = None
        self._is_ending = False  # by ``close``
        self._lanes: weakref.WeakSet[AsyncioLane] = weakref.WeakSet()
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

    def check_wait(self) -> None:
        """Raise DeadlockError if the calling thread runs the loop that it would wait for."""
        if self._thread is threading.current_thread():
            raise DeadlockError(
                "This coroutine would hold up the event loop that is to run what it waits for. "
                "Await it: asyncio.wrap_future(future), or plait.amap()."
            )

    def open_lane(self, call: Call, setting: Setting | None = None) -> AsyncioLane:
        """Open a way for a coroutine function; starts the loop if need be."""
        with self._lock:
            self.check_usable()
            if self._loop is None:
                self._loop = self._start_loop()
            self._initialize()
        lane = AsyncioLane(self, call, self._loop, setting or Setting())
        self._lanes.add(lane)
        return lane

    def _start_loop(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._run_loop, args=(loop,), name="plait-asyncio", daemon=True
        )
        self._thread.start()
        return loop

    def _run_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run the loop until ``close`` stops it; if something else does, tell the lanes why."""
        error: BaseException | None = None
        try:
            loop.run_forever()
        except BaseException as raised:  # noqa: BLE001  SystemExit of a task that a task started
            error = raised
        if self._is_ending:
            loop.close()
            return
        if error is None:
            error = PoolClosed("A task stopped the event loop of plait: loop.stop().")
        self._refusal = PoolClosed(f"The event loop of this pool ended by {error!r}.")
        lanes = list(self._lanes)
        for lane in lanes:  # first of all: what is cancelled now has no outcome
            lane.inbox.put(error)
            lane.inbox.is_closed = True
        _cancel_all(loop)
        loop.close()
        for lane in lanes:
            lane.forget_tasks()

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
        # What a coroutine sets in its context is not seen by other chunks, nor by the caller.
        context = lane.context.copy()
        task = asyncio.get_running_loop().create_task(self._run(lane, chunk), context=context)
        self._tasks.add(task)
        lane.tasks[task] = chunk
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lane.settle)

    async def _run(self, lane: AsyncioLane, chunk: Chunk) -> None:
        place = await self._places.take()
        try:
            if lane.inbox.claim():
                await lane.run(chunk, f"coroutine-{place}")
        finally:
            self._places.give_back(place)

    def give_up(self) -> None:
        """Leave the loop to itself: something blocks it, or does not let itself be cancelled."""
        self._refusal = PoolClosed("This pool is stuck: a coroutine blocks its event loop.")
        self._thread = None

    def close(self) -> None:
        """End the loop, if it is plait's own, when its tasks are done."""
        with self._lock:
            self._refusal = PoolClosed("This pool is closed; open a new one.")
            loop, thread, self._thread = self._loop, self._thread, None
        if loop is None or thread is None:
            return
        with suppress(RuntimeError):  # it has ended by itself
            loop.call_soon_threadsafe(self._end_soon)
        if thread is not threading.current_thread():
            thread.join()

    def _end_soon(self) -> None:
        self._ending = asyncio.get_running_loop().create_task(self._end_loop())

    async def _end_loop(self) -> None:
        """Stop the loop when the tasks on it are done."""
        await _finish(set(self._tasks))
        self._is_ending = True
        asyncio.get_running_loop().stop()

    def abandon(self) -> None:
        """In a forked child: the loop runs in the parent only."""
        self._refusal = PoolClosed("This pool belongs to the parent process; open a new one.")
        self._thread = None


class _Places:
    """So many places for coroutines that run at once; used on the loop only."""

    def __init__(self, count: int) -> None:
        self._numbers = list(range(count, 0, -1))  # of the free ones
        self._is_free = asyncio.Semaphore(count)

    async def take(self) -> int:
        """Wait for a place, and return its number."""
        await self._is_free.acquire()
        return self._numbers.pop()

    def give_back(self, number: int) -> None:
        """Let the next one have a place."""
        self._numbers.append(number)
        self._is_free.release()


class AsyncioLane:
    """One coroutine function's way through a loop."""

    lost: ClassVar[list[Finished]] = []  # only a pool of processes can be given up
    left = 0  # all of it is with the workers

    def __init__(
        self,
        backend: AsyncioBackend,
        call: Call,
        loop: asyncio.AbstractEventLoop,
        setting: Setting,
    ) -> None:
        self._backend = backend
        self._call = call
        self._loop = loop
        self._limit = setting.limits.time
        self.context = setting.context
        self.shared_bytes = 0
        self.abandoned = 0
        self.inbox = Inbox()
        self._new: deque[Chunk] = deque()  # which the loop is to start
        self._is_told = False  # the loop, that there are some
        self.tasks: dict[asyncio.Task[None], Chunk] = {}
        self._cancelled: set[int] = set()  # the first tasks of chunks, while they end

    @property
    def pending(self) -> int:
        """How many chunks were submitted and have not finished."""
        return self.inbox.pending

    def submit(self, *chunks: Chunk) -> None:
        """Hand chunks to the loop, and wake it once: that costs more than all the rest."""
        for chunk in chunks:
            self._backend.check_usable()
            self.inbox.count(1)
            self._new.append(chunk)
            if not self._is_told:
                self._is_told = True
                self._loop.call_soon_threadsafe(self._spawn)

    def _spawn(self) -> None:
        self._is_told = False  # before looking, or what comes after that would be forgotten
        while self._new:
            self._backend.spawn(self, self._new.popleft())

    def settle(self, task: asyncio.Task[None]) -> None:
        """Forget the task of a chunk; if it was cancelled before it began, nothing comes of it."""
        chunk = self.tasks.pop(task)
        self._cancelled.discard(chunk.first)
        if task.cancelled() and self.inbox.claim():
            self.inbox.put(Finished.of(chunk, 0, Stretch([], {}, []), "", os.getpid()))

    def forget_tasks(self) -> None:
        """Count those as ended that did not end with their loop."""
        for chunk in self.tasks.values():
            self.inbox.put(Finished.of(chunk, 0, Stretch([], {}, []), "", os.getpid()))

    async def run(self, chunk: Chunk, worker: str) -> None:
        """Await the tasks of a chunk one after the other, and deliver what finishes."""
        for place in range(len(chunk.items)):
            stretch = await self._run_task(chunk, place, worker)
            if self.inbox.is_closed or chunk.first in self._cancelled:
                if isinstance(stretch.errors.get(0), asyncio.CancelledError):  # that was us
                    stretch = Stretch([], {}, [])
                stretch = stretch._replace(is_last=True)
            self.inbox.put(Finished.of(chunk, place, stretch, worker, os.getpid()))
            if stretch.is_last:
                return

    async def _run_task(self, chunk: Chunk, place: int, worker: str) -> Stretch:
        errors: dict[int, BaseException] = {}
        value = None
        item = chunk.items[place]
        started = monotonic()
        try:
            fn = self._call.fn
            awaitable = fn(*item) if self._call.style == "star" else fn(item)
            if self._limit.seconds is None:
                value = await awaitable
            else:
                value = await self._await_in_time(awaitable, self._limit.seconds)
        except _TimeIsUp as up:
            name = self._call.text(item)
            victim = Victim(chunk.first + place, name, chunk.attempt, worker, os.getpid())
            errors[0] = TaskTimeout.of_task(
                victim, up.limit_s, monotonic() - started, is_abandoned=up.is_abandoned
            )
        except BaseException as error:  # noqa: BLE001  also a cancelled task is that task's outcome
            errors[0] = error
        is_last = place == len(chunk.items) - 1
        return Stretch([value], errors, [(started, monotonic() - started)], is_last)

    async def _await_in_time(self, awaitable: Awaitable[Any], limit_s: float) -> Any:
        """Await something, cancel it when its time is up, leave it if it does not stop then."""
        task = asyncio.ensure_future(_catch(awaitable))
        try:
            await asyncio.wait({task}, timeout=limit_s)
            if not task.done():
                await self._cancel(task)
                raise _TimeIsUp(limit_s, is_abandoned=not task.done())
        except asyncio.CancelledError:
            await self._cancel(task)
            raise
        finally:
            if task.done() and asyncio.iscoroutine(awaitable):
                awaitable.close()  # or one that never began would be complained about
        value, error = task.result()
        if error is not None:
            raise error
        return value

    async def _cancel(self, task: asyncio.Future[Any]) -> None:
        task.cancel()
        await asyncio.wait({task}, timeout=GRACE_S)
        self.abandoned += not task.done()

    def wait_outcomes(self, timeout: float | None = None) -> list[Finished]:
        """Block until tasks finished."""
        return self.inbox.take(timeout)

    def end_input(self) -> None:
        """Do nothing: no task waits behind another while a worker is free."""

    def take_progress(self) -> tuple[int, float]:
        """Return nothing: all that was run is told."""
        return 0, 0.0

    def take_back(self) -> Chunk | None:
        """Return nothing: all of it is with the workers."""
        return None

    def refuse(self) -> None:
        """Start nothing any more; takes no lock."""
        self.inbox.is_closed = True

    def wake(self) -> None:
        """Have ``wait_outcomes`` return."""
        self.inbox.put(None)

    def cancel(self, first: int) -> bool:
        """Cancel the task of the chunk that begins with a task."""
        for task, chunk in list(self.tasks.items()):
            if chunk.first == first:
                self._loop.call_soon_threadsafe(self._cancel_task, task)
                return True
        return False

    def _cancel_task(self, task: asyncio.Task[None]) -> None:
        if task in self.tasks:
            self._cancelled.add(self.tasks[task].first)
            task.cancel()

    def close(self, *, patience_s: float | None = None) -> list[Finished]:
        """Cancel what runs, drop what does not, and wait until that is so."""
        self.inbox.is_closed = True
        if self.inbox.pending:
            with suppress(RuntimeError):  # the loop has ended, and its tasks with it
                self._loop.call_soon_threadsafe(self._cancel_tasks)
        # A coroutine that was cancelled gets the time to end, however late it is already.
        finished = self.inbox.close(None if patience_s is None else patience_s + 2 * GRACE_S)
        if self.inbox.pending:
            self.abandoned += self.inbox.pending
            self._backend.give_up()
        return finished

    def _cancel_tasks(self) -> None:
        for task in self.tasks:
            task.cancel()


class _TimeIsUp(Exception):
    """A task ran over its limit."""

    def __init__(self, limit_s: float, *, is_abandoned: bool) -> None:
        super().__init__()
        self.limit_s = limit_s
        self.is_abandoned = is_abandoned


async def _catch(awaitable: Awaitable[Any]) -> tuple[Any, BaseException | None]:
    """Await something and return (value, error): a SystemExit would end the loop."""
    try:
        return await awaitable, None
    except asyncio.CancelledError:
        raise
    except BaseException as error:  # noqa: BLE001  whatever it is, it is the task's outcome
        return None, error


def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    """Have what is left on a loop that has ended clean up, as ``asyncio.run`` does."""
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    with suppress(BaseException):  # the first that ended the loop is told
        loop.run_until_complete(asyncio.wait_for(_finish(tasks), GRACE_S))


async def _finish(tasks: set[asyncio.Task[Any]]) -> None:
    if tasks:
        await asyncio.wait(tasks)
