"""A concurrent.futures.Executor on any backend of plait's.

How futures are resolved is in futures.py; ``map`` is a Run on the executor's workers.
"""

from __future__ import annotations

import atexit
import concurrent.futures
import os
import threading
import weakref
from _thread import allocate_lock
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from contextvars import copy_context
from dataclasses import replace
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Literal, Never, TypeVar

from plait.backends import open_backend
from plait.backends.contract import Setting
from plait.backends.threads import ThreadBackend
from plait.calls import check, prepare, values_of
from plait.endings import start_ending
from plait.errors import OptionError
from plait.futures import CallDesk, Desk, LaneDesk, PlaitFuture, closed_error
from plait.host import cpu_count, monotonic
from plait.limits import Limits
from plait.model import Facts
from plait.options import Options, refuse_names
from plait.outcome import Call
from plait.paced import PacedDesk
from plait.plans import choose
from plait.preload import check_preload
from plait.server_process import start_early
from plait.shield import Shield
from plait.throttle import Pace

if TYPE_CHECKING:
    from plait.backends.contract import Backend

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
        preload: names of modules that workers have from the start; see ``plait.Options``.
        max_tasks_per_child: how many tasks a worker process runs before it is replaced.
        task_timeout: seconds that one task may take; see ``plait.Options``.
        memory_limit: memory that a worker process may have; see ``plait.Options``.
        rate: how many tasks may start in a time, like "10/s"; see ``plait.Options``. It holds for
            all that is submitted and mapped here together.

    Attributes:
        options: what holds for its workers and tasks, as ``plait.Options``.

    ``plait.map(fn, items, executor=executor)`` and its sisters use its workers. No more than
    ``max_workers`` tasks run at once, whoever asked for them; calls take turns. Only where a task
    waits for tasks of its own executor, another one runs in its place meanwhile. (Of two
    executors whose tasks wait for each other's, each may have all its places taken by such tasks:
    these then wait for ever, as anywhere.)

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
        preload: tuple[str, ...] = (),
        max_tasks_per_child: int | None = None,
        task_timeout: float | str | None = None,
        memory_limit: int | str | None = None,
        rate: float | str | None = None,
        **unknown: Never,
    ) -> None:
        given = {
            "max_workers": max_workers,
            "backend": backend,
            "initializer": initializer,
            "initargs": initargs,
            "start_method": start_method,
            "preload": preload,
            "max_tasks_per_child": max_tasks_per_child,
            "task_timeout": task_timeout,
            "memory_limit": memory_limit,
            "rate": rate,
        }
        refuse_names(unknown, "plait.Executor", given)
        self.options = Options.of(given)
        check_preload(preload)
        if self.options.backend == "auto":
            allowed = "'threads', 'processes', 'asyncio' or 'serial'; only map() can measure first"
            raise OptionError("backend", "auto", allowed)
        if self.options.backend == "processes":
            start_early()  # while what it needs here is loaded
        plan = choose(self.options, Facts(cpu_count()))
        self.options = replace(self.options, max_workers=plan.max_workers)
        # The last function that was found to be right; it is not to be kept alive for that.
        self._checked: Callable[[], object] = _nothing
        self._maps: set[threading.Thread] = set()
        self._is_shut_down = False
        self._lock = threading.RLock()  # guards these two; a signal handler may shut down, too
        self.pace = None if rate is None else Pace(*self.options.starts_in_s)
        with Shield():  # a pool that nobody knows of would never be closed
            self._backend = open_backend(plan.backend, plan.max_workers, self.options)
            self._desk = self._open_desk(self._backend)
            self._dropped = weakref.finalize(self, _let_go, self._desk)
            self._dropped.atexit = False  # there is _shut_down_all for that
            _open.add(self)

    def _open_desk(self, backend: Backend) -> Desk:
        setting = Setting(Limits.of(self.options))
        desk: Desk
        if isinstance(backend, ThreadBackend) and not setting.limits.are_set:
            desk = CallDesk(backend)
        else:
            desk = LaneDesk(backend, setting)
        return desk if self.pace is None else PacedDesk(desk, backend, self.pace)

    # --- submit ------------------------------------------------------------------------

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Schedule ``fn(*args, **kwargs)`` and return its Future.

        Raises PoolClosed (a RuntimeError) after ``shutdown``.
        """
        if fn is not self._checked():
            check(fn, {"backend": self.options.backend})
            with suppress(TypeError):  # of a kind that has no weak references
                self._checked = weakref.ref(fn)
        if self._is_shut_down:
            raise closed_error()
        future: PlaitFuture[T] = PlaitFuture(self._desk)
        self._desk.submit(future, (fn, args, kwargs))
        return future

    def backend_for_calls(self) -> Backend:
        """Return the pool, for a call like ``plait.map(..., executor=self)``."""
        if self._is_shut_down:
            raise closed_error()
        return self._backend

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
            "backend": self.options.backend,
            "chunksize": chunksize,
            "task_timeout": self.options.task_timeout,
            "memory_limit": self.options.memory_limit,
            "rate": self.options.rate,
        }
        options = check(fn, given)
        items = list(zip(*iterables, strict=False))
        call = Call(fn, "star")
        backend = self.backend_for_calls()
        options = options.with_order(ordered=True)
        made = prepare(call, (items,), options, backend=backend, pace=self.pace)
        values: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()

        def feed() -> None:
            try:
                for value in values_of(made, "raise"):
                    values.put((value, None))
            except BaseException as error:  # noqa: BLE001  raised where the values are read
                values.put((None, error))
            with self._lock:
                self._maps.discard(threading.current_thread())

        run = copy_context().run  # serial tasks run there
        thread = threading.Thread(target=run, args=(feed,), name="plait-executor-map", daemon=True)
        try:
            # A start that is interrupted leaves half a thread.
            with self._lock, Shield():
                if self._is_shut_down:
                    raise closed_error()
                thread.start()
                self._maps.add(thread)
        except BaseException:  # no more threads, or an exception from outside: nobody will read
            made.cancel()
            raise
        return _read(values, len(items), timeout, made.cancel, self._desk.check_wait)

    # --- shutdown ----------------------------------------------------------------------

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002
        """Take no more work, finish what was given, and end the workers.

        Args:
            wait: return when all that is done; else it is done in the background.
            cancel_futures: cancel what has not started.
        """
        self._dropped.detach()
        with self._lock:
            is_first, self._is_shut_down = not self._is_shut_down, True
            maps = list(self._maps)
        threads = [*maps, *self._desk.close(cancel_futures=cancel_futures)]
        if wait:
            self._close(threads)
        elif is_first:
            threading.Thread(
                target=self._close, args=(threads,), name="plait-shutdown", daemon=True
            ).start()

    def _close(self, threads: list[threading.Thread]) -> None:
        for thread in threads:
            thread.join()
        self._desk.leave()
        _open.discard(self)

    def abandon(self) -> None:
        """In a forked child: workers and futures are the parent's."""
        self._dropped.detach()
        self._maps = set()
        self._lock = threading.RLock()  # another thread may have held it
        self._is_shut_down = True
        self._desk.abandon()
        self._backend.abandon()


def _read(
    values: SimpleQueue[tuple[Any, BaseException | None]],
    count: int,
    timeout: float | None,
    cancel: Callable[[], None],
    check_wait: Callable[[], None],
) -> Iterator[Any]:
    deadline = None if timeout is None else monotonic() + timeout

    def read() -> Iterator[Any]:
        try:
            for _ in range(count):
                check_wait()
                left = None if deadline is None else max(0.0, deadline - monotonic())
                try:
                    value, error = values.get(timeout=left)
                except Empty:
                    raise TimeoutError from None
                if error is not None:
                    raise error
                given = [value]
                del value
                yield given.pop()  # whom it was given to alone keeps it alive
        finally:
            cancel()

    return read()


# Executors that were not shut down: their work is finished at exit, as the standard
# library does, and forgotten in a forked child.
_open: weakref.WeakSet[Executor] = weakref.WeakSet()
# One lock for each that was dropped, held until its work is done and its workers have left.
_ending: deque[Any] = deque()


def _nothing() -> None:
    """Stand for a function that is not there any more."""


def _let_go(desk: Desk) -> None:
    """Let an executor that was dropped finish its work, and end its workers.

    The garbage collector calls this, amid anything: so no lock is taken here, nor by what it calls.
    """
    is_over = allocate_lock()
    is_over.acquire()
    _ending.append(is_over)
    try:
        start_ending(partial(_end, desk, is_over), "plait-shutdown")
    except RuntimeError:  # the interpreter is shutting down, and has waited for all there was
        is_over.release()


def _end(desk: Desk, is_over: Any) -> None:
    try:
        for thread in desk.close(cancel_futures=False):
            thread.join()
        desk.leave()
    finally:
        is_over.release()
        with suppress(ValueError):
            _ending.remove(is_over)


@atexit.register
def _shut_down_all() -> None:
    for executor in list(_open):
        executor.shutdown()
    for is_over in list(_ending):
        is_over.acquire()


def _abandon_all() -> None:
    _ending.clear()
    for executor in list(_open):
        executor.abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_all)
