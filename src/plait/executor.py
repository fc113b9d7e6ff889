"""A concurrent.futures.Executor on any backend of plait's.

What is submitted waits here until a worker has room for it, and can be cancelled until
then. One thread of the executor's reads the outcomes while futures are pending.
"""

from __future__ import annotations

import atexit
import concurrent.futures
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from contextvars import copy_context
from queue import Empty, SimpleQueue
from typing import Any, Literal, TypeVar

from plait.api import check, prepare, values_of
from plait.backends import Lane, Setting, open_backend
from plait.chunks import BRIEF_S
from plait.errors import OptionError, PlaitError, PoolClosed
from plait.host import cpu_count, monotonic
from plait.limits import Limits
from plait.options import Options
from plait.outcome import Call, Chunk, Finished
from plait.plan import Facts, choose
from plait.worker import invoke

__all__ = ["Executor"]

T = TypeVar("T")


class Executor(concurrent.futures.Executor):
    """Workers of one kind behind the interface of ``concurrent.futures``.

    Args:
        max_workers: how many workers at most; None: as many as fit the backend.
        backend: "threads" (the default), "processes", "asyncio" (for coroutine functions)
            or "serial". An executor cannot measure what it will be given: "auto" is for
            ``plait.map``.
        initializer: called once in each new worker, with ``initargs``.
        initargs: a tuple.
        start_method: "server" or "spawn", for processes.
        max_tasks_per_child: how many tasks a worker process runs before it is replaced.
        task_timeout: seconds that one task may take; see ``plait.Options``.
        memory_limit: memory that a worker process may have; see ``plait.Options``.

    A future can be cancelled while its task runs on processes, too: the worker is ended and
    replaced. (On asyncio the coroutine is cancelled; a thread cannot be.)

    >>> import plait
    >>> with plait.Executor(max_workers=2, backend="threads") as executor:
    ...     future = executor.submit(pow, 2, 10)
    ...     future.result()
    1024
    """

    def __init__(
        self,
        max_workers: int | None = None,
        backend: Literal["threads", "processes", "asyncio", "serial"] = "threads",
        *,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        start_method: Literal["server", "spawn"] | None = None,
        max_tasks_per_child: int | None = None,
        task_timeout: float | str | None = None,
        memory_limit: int | str | None = None,
    ) -> None:
        self._options = Options.of(
            {
                "backend": backend,
                "max_workers": max_workers,
                "initializer": initializer,
                "initargs": initargs,
                "start_method": start_method,
                "max_tasks_per_child": max_tasks_per_child,
                "task_timeout": task_timeout,
                "memory_limit": memory_limit,
            }
        )
        if self._options.backend == "auto":
            allowed = "'threads', 'processes', 'asyncio' or 'serial'; only map() can measure first"
            raise OptionError("backend", "auto", allowed)
        plan = choose(self._options, Facts(cpu_count()))
        self._backend = open_backend(plan.backend, plan.max_workers, self._options)
        self._setting = Setting(Limits.of(self._options))
        self._changed = threading.Condition()  # guards everything below
        self._lane: Lane | None = None
        self._waiting: deque[tuple[Future[Any], Any]] = deque()
        self._futures: dict[int, Future[Any]] = {}  # given to workers, by index
        self._count = 0
        self._task_s: float | None = None
        self._thread: threading.Thread | None = None
        self._maps: set[threading.Thread] = set()
        self._is_shut_down = False
        _open.add(self)

    # --- submit ------------------------------------------------------------------------

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Schedule ``fn(*args, **kwargs)`` and return its Future.

        Raises PoolClosed (a RuntimeError) after ``shutdown``.
        """
        check(fn, {"backend": self._options.backend})
        future: _Future[T] = _Future(self)
        task: Any = (fn, args, kwargs)
        if self._backend.traits.shares_memory:  # each task sees the caller's context variables
            task = (copy_context().run, (fn, *args), kwargs)
        with self._changed:
            self._check_open()
            self._waiting.append((future, task))
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._serve, name="plait-executor", daemon=True
                )
                self._thread.start()
            self._send()
            self._changed.notify()
        return future

    def _check_open(self) -> None:
        if self._is_shut_down:
            raise PoolClosed("cannot schedule new futures after shutdown of this executor")

    def _send(self) -> None:
        """Give waiting tasks to the workers that have room."""
        is_brief = self._task_s is not None and self._task_s < BRIEF_S
        depth = self._backend.traits.queue_depth if is_brief else 1
        while self._waiting:
            if self._lane and self._lane.pending >= self._backend.max_workers * depth:
                return
            future, task = self._waiting.popleft()
            if future.set_running_or_notify_cancel():
                self._send_one(future, task, is_brief=is_brief)

    def _send_one(self, future: Future[Any], task: Any, *, is_brief: bool) -> None:
        index, self._count = self._count, self._count + 1
        try:
            if self._lane is None:
                self._lane = self._backend.open_lane(Call(invoke, "task"), self._setting)
            self._lane.submit(Chunk(index, [task], brief=is_brief))
        except PlaitError as error:  # there are no workers
            future.set_exception(error)
        else:
            self._futures[index] = future

    def _serve(self) -> None:
        """Read outcomes while there is something to wait for; end after the shutdown."""
        while True:
            with self._changed:
                while not self._futures and not self._waiting and not self._is_shut_down:
                    self._changed.wait()
                if not self._futures and not self._waiting:
                    return
                self._send()
                lane = self._lane
            assert lane is not None
            try:
                finished = lane.wait_outcomes()
            except Exception as error:  # noqa: BLE001  no workers any more: every future is told
                self._fail_all(error)
                continue
            for stretch in finished:
                self._resolve(stretch)

    def _resolve(self, finished: Finished) -> None:
        with self._changed:
            indices = range(finished.first, finished.first + len(finished.values))
            futures = [self._futures.pop(index, None) for index in indices]
            if futures:
                self._task_s = finished.seconds / len(futures)
                self._setting.limits.time.learn(finished)
            self._send()
        for place, future in enumerate(futures):
            if future is None:  # it was cancelled meanwhile
                continue
            error = finished.errors.get(place)
            if error is None:
                future.set_result(finished.values[place])
            else:
                future.set_exception(error)

    def end_task(self, future: Future[Any]) -> bool:
        """End the running task of a future, if the backend can; it is then cancelled."""
        with self._changed:
            index = next((at for at, one in self._futures.items() if one is future), None)
            lane = self._lane
        if index is None or lane is None or not lane.cancel(index):
            return False
        with self._changed:
            # If it has just finished, the result was there first.
            return self._futures.pop(index, None) is not None

    def _fail_all(self, error: Exception) -> None:
        with self._changed:
            futures = [*self._futures.values(), *(future for future, _ in self._waiting)]
            self._futures.clear()
            self._waiting.clear()
        for future in futures:
            if not future.cancelled():
                future.set_exception(error)

    # --- map ---------------------------------------------------------------------------

    def map(  # chunksize also takes "auto", and is that by default
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | Literal["auto"] = "auto",
    ) -> Iterator[T]:
        """Like ``concurrent.futures``: start at once, return an iterator over the values.

        Args:
            fn: the function.
            *iterables: read to their end right away; for lazy input see ``plait.imap``.
            timeout: seconds from this call in which each value must be there, or its
                ``next()`` raises TimeoutError.
            chunksize: tasks sent together.
        """
        given = {
            "backend": self._options.backend,
            "chunksize": chunksize,
            "task_timeout": self._options.task_timeout,
            "memory_limit": self._options.memory_limit,
        }
        options = check(fn, given)
        items = list(zip(*iterables, strict=False))
        call = Call(fn, "star")
        made = prepare(call, (items,), options.with_order(ordered=True), backend=self._backend)
        values: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()

        def feed() -> None:
            try:
                for value in values_of(made, "raise"):
                    values.put((value, None))
            except BaseException as error:  # noqa: BLE001  raised where the values are read
                values.put((None, error))
            with self._changed:
                self._maps.discard(threading.current_thread())

        with self._changed:
            self._check_open()
            thread = threading.Thread(target=feed, name="plait-executor-map", daemon=True)
            self._maps.add(thread)
            thread.start()
        return _read(values, len(items), timeout, made.cancel)

    # --- shutdown ----------------------------------------------------------------------

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002
        """Take no more work, finish what was given, and end the workers.

        Args:
            wait: return when all that is done; else it is done in the background.
            cancel_futures: cancel what has not started.
        """
        with self._changed:
            is_first, self._is_shut_down = not self._is_shut_down, True
            if cancel_futures:
                for future, _ in self._waiting:
                    future.cancel()
            self._changed.notify_all()
            threads = [*self._maps, *([self._thread] if self._thread else [])]
        if wait:
            self._close(threads)
        elif is_first:
            threading.Thread(
                target=self._close, args=(threads,), name="plait-shutdown", daemon=True
            ).start()

    def _close(self, threads: list[threading.Thread]) -> None:
        for thread in threads:
            thread.join()
        if self._lane is not None:
            self._lane.close()
        self._backend.close()
        _open.discard(self)

    def abandon(self) -> None:
        """In a forked child: workers and futures are the parent's."""
        self._changed = threading.Condition()
        self._thread = self._lane = None
        self._maps = set()
        self._is_shut_down = True
        self._backend.abandon()


class _Future(Future[T]):
    """A future whose task can be ended while it runs, if its worker can be."""

    def __init__(self, executor: Executor) -> None:
        super().__init__()
        self._executor = executor
        self._was_ended = False

    def cancel(self) -> bool:
        """Cancel the task: one that waits never starts, one that runs on a process is ended."""
        if super().cancel():
            return True
        if self.done() or not self._executor.end_task(self):
            return False
        self._was_ended = True
        self.set_exception(CancelledError())
        return True

    def cancelled(self) -> bool:
        """Whether the task was cancelled."""
        return self._was_ended or super().cancelled()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return the error of the task; raises CancelledError if it was cancelled."""
        error = super().exception(timeout)
        if self._was_ended and error is not None:
            raise error
        return error


def _read(
    values: SimpleQueue[tuple[Any, BaseException | None]],
    count: int,
    timeout: float | None,
    cancel: Callable[[], None],
) -> Iterator[Any]:
    deadline = None if timeout is None else monotonic() + timeout

    def read() -> Iterator[Any]:
        try:
            for _ in range(count):
                left = None if deadline is None else max(0.0, deadline - monotonic())
                try:
                    value, error = values.get(timeout=left)
                except Empty:
                    raise TimeoutError from None
                if error is not None:
                    raise error
                yield value
        finally:
            cancel()

    return read()


# Executors that were not shut down: their work is finished at exit, as the standard
# library does, and forgotten in a forked child.
_open: weakref.WeakSet[Executor] = weakref.WeakSet()


@atexit.register
def _shut_down_all() -> None:
    for executor in list(_open):
        executor.shutdown()


def _abandon_all() -> None:
    for executor in list(_open):
        executor.abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_all)
