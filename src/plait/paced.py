"""The desk of an executor with a rate: what was submitted waits here until it may start.

Used by executor.py, and made only where ``rate`` is given. It stands before another desk (see
futures.py), and hands on a task when a worker is free for it and its time has come: what waits for
a worker there would start when that is free, whatever the rate says. A thread does it, which ends
when nothing waits any more.
"""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future
from contextlib import suppress
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from plait.clocks import monotonic
from plait.errors import PlaitError
from plait.futures import closed_error
from plait.pools import begin_to_warm
from plait.running import inside

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context

    from plait.backends.contract import Backend
    from plait.futures import Desk, PlaitFuture
    from plait.throttle import Pace

__all__ = ["PacedDesk"]


def _run_in(context: Context, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function in the context of who submitted it, but inside of the worker that runs it."""

    def call() -> Any:
        inside.set(inside.get() | pools)
        return fn(*args, **kwargs)

    pools = inside.get()
    return context.run(call)


class PacedDesk:
    """Hands on what was submitted to another desk, at a pace."""

    def __init__(self, desk: Desk, backend: Backend, pace: Pace) -> None:
        self._desk = desk
        self._pace = pace
        self._workers = backend.max_workers
        self._number = getattr(backend, "number", None)  # of threads, whose tasks may wait for it
        self._shares_memory = backend.traits.shares_memory
        self._changed = threading.Condition(threading.Lock())  # guards all below
        self._waiting: deque[tuple[PlaitFuture[Any], Any]] = deque()
        self._running = 0
        self._is_closed = False
        self._thread: threading.Thread | None = None
        self._backend: Backend | None = backend  # until it is warm

    def submit(self, future: PlaitFuture[Any], task: tuple[Any, ...]) -> None:
        """Queue a task; it sees the context variables of who submitted it, as without a rate."""
        if self._shares_memory:
            fn, args, kwargs = task
            task = (_run_in, (copy_context(), fn, *args), kwargs)
        with self._changed:
            if self._is_closed:
                raise closed_error()
            self._waiting.append((future, task))
            self._changed.notify()
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._hand_on_all, args=(task[0],), name="plait-rate", daemon=True
                )
                self._thread.start()

    def _hand_on_all(self, fn: Callable[..., Any]) -> None:
        self._warm_up(fn)
        del fn
        while (task := self._next()) is not None:
            future = task[0]
            try:
                self._desk.submit(*task)
            except PlaitError as error:
                if future.set_running_or_notify_cancel():
                    future.set_exception(error)
            future.add_done_callback(self._note_end)
            del task, future  # nothing is kept alive while the next one waits

    def _warm_up(self, fn: Callable[..., Any]) -> None:
        backend, self._backend = self._backend, None
        if backend is None:
            return
        with suppress(PlaitError):  # it comes again for each task
            lane = begin_to_warm(backend, fn)
            try:
                while lane.pending:
                    lane.wait_outcomes()
            finally:
                lane.close()

    def _next(self) -> tuple[PlaitFuture[Any], Any] | None:
        """Return the next task when it may start; None if nothing waits any more."""
        with self._changed:
            while self._waiting:
                if self._waiting[0][0].cancelled():
                    future, _ = self._waiting.popleft()
                    future.set_running_or_notify_cancel()  # which tells who waits for it
                elif self._running >= self._workers:
                    self._changed.wait()
                elif not self._pace.start(now := monotonic()):
                    self._changed.wait(max(0.0, self._pace.due - now))
                else:
                    self._running += 1
                    return self._waiting.popleft()
            self._thread = None
            return None

    def _note_end(self, _: Future[Any]) -> None:
        with self._changed:
            self._running -= 1
            self._changed.notify()

    def wait_for(self, future: PlaitFuture[Any], timeout: float | None) -> None:  # noqa: ARG002
        """Lend a place if a task waits; nobody else drives, as the time may not have come."""
        self.expect_wait(future)

    def expect_wait(self, future: PlaitFuture[Any]) -> None:
        """Lend a place until a future is done, if the caller is one of these workers' tasks."""
        if self._number not in inside.get() or future.done():
            return
        with self._changed:
            self._running -= 1
            self._changed.notify()
        self._desk.expect_wait(future)
        Future.add_done_callback(future, self._take_back)

    def _take_back(self, _: Future[Any]) -> None:
        with self._changed:
            self._running += 1

    def check_wait(self) -> None:
        """Raise DeadlockError if the calling thread would wait for itself."""
        self._desk.check_wait()

    def attend(self) -> None:
        """Have what was handed on be resolved soon."""
        self._desk.attend()

    def tell(self, future: PlaitFuture[Any]) -> None:
        """Have threads that wait for a future see that it was cancelled."""
        self._desk.tell(future)
        with self._changed:
            self._changed.notify()

    def end_task(self, future: PlaitFuture[Any]) -> bool:
        """End the running task of a future, if that can be done."""
        return self._desk.end_task(future)

    def close(self, *, cancel_futures: bool) -> list[threading.Thread]:
        """Take nothing more; return the threads after whose end all is handed on."""
        with self._changed:
            self._is_closed = True
            waiting = [future for future, _ in self._waiting] if cancel_futures else []
            thread = self._thread
        for future in waiting:
            future.cancel()
        return [] if thread is None else [thread]

    def leave(self) -> None:
        """Let go of the workers when all that was handed on is done."""
        for thread in self._desk.close(cancel_futures=False):
            thread.join()
        self._desk.leave()

    def abandon(self) -> None:
        """In a forked child: workers and futures are the parent's."""
        self._changed = threading.Condition(threading.Lock())  # another thread may have held it
        self._is_closed = True
        self._waiting.clear()
        self._desk.abandon()
