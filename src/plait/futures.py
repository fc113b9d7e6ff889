"""Futures, and the desks that give what was submitted to workers and resolve them.

Used by executor.py only. There are two desks, with one face:

CallDesk   for threads: the worker that ran a call resolves its future itself.
LaneDesk   for everything else: outcomes come out of a lane, and somebody has to read it.

On processes whoever waits for a future reads the lane meanwhile, for all of them: a result
then comes without a switch between threads. A thread of the desk's, the keeper, takes over
when nobody has waited for a moment, and at once when somebody wants to be called back.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from contextvars import Context, copy_context
from functools import partial
from threading import current_thread
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from plait.backends.threads import ThreadBackend
from plait.chunks import BRIEF_S
from plait.clocks import monotonic
from plait.errors import PlaitError, PoolClosed
from plait.foreign import is_from_outside
from plait.outcome import Call, Chunk, Finished
from plait.running import inside
from plait.shield import Shield
from plait.worker import invoke

if TYPE_CHECKING:
    from plait.backends.contract import Backend, DrivenLane, Lane, Setting

__all__ = ["CallDesk", "Desk", "LaneDesk", "PlaitFuture", "closed_error"]

T = TypeVar("T")

# When nobody has submitted anything or waited for a future for so long, the keeper drives.
TAKE_OVER_S = 0.002


class Desk(Protocol):
    """Where an executor hands in what was submitted."""

    def submit(self, future: PlaitFuture[Any], task: tuple[Any, ...]) -> None:
        """Take (function, args, kwargs); raises PoolClosed if nothing is taken any more."""
        ...

    def wait_for(self, future: PlaitFuture[Any], timeout: float | None) -> None:
        """Do what brings a future nearer while a thread waits for it, if there is anything."""
        ...

    def attend(self) -> None:
        """See to it that futures are resolved soon although nobody waits for them."""
        ...

    def expect_wait(self, future: PlaitFuture[Any]) -> None:
        """Hear, maybe with the future's lock held, that the caller will wait, unseen by us."""
        ...

    def check_wait(self) -> None:
        """Raise DeadlockError if the calling thread would wait for itself."""
        ...

    def tell(self, future: PlaitFuture[Any]) -> None:
        """Have threads that wait for a future see that it was cancelled."""
        ...

    def end_task(self, future: PlaitFuture[Any]) -> bool:
        """End the running task of a future, if that can be done; it is then cancelled."""
        ...

    def close(self, *, cancel_futures: bool) -> list[threading.Thread]:
        """Take nothing more; return the threads after whose end all is done."""
        ...

    def leave(self) -> None:
        """Let go of the workers, when those threads have ended."""
        ...

    def abandon(self) -> None:
        """In a forked child: workers and futures are the parent's."""
        ...


UNFINISHED = ("PENDING", "RUNNING")  # what Future._state says meanwhile


class PlaitFuture(Future[T]):
    """A future whose task can be ended while it runs, if its worker can be."""

    def __init__(self, desk: Desk) -> None:
        self._waiting: list[Any] = []
        self._sleepers: list[threading.Lock] = []  # each held until the task is over
        super().__init__()
        self._desk = desk
        self._was_ended = False

    @property
    def _waiters(self) -> list[Any]:
        """What ``concurrent.futures.wait`` and ``as_completed`` add to before they wait."""
        if self._state in UNFINISHED:
            self._desk.expect_wait(self)
        return self._waiting

    @_waiters.setter
    def _waiters(self, waiters: list[Any]) -> None:
        self._waiting = waiters

    def done(self) -> bool:
        """Whether the task is over. Takes no lock: who drives asks again and again."""
        return self._state not in UNFINISHED

    def result(self, timeout: float | None = None) -> T:
        """Return the value of the task, or raise its error; TimeoutError after ``timeout``."""
        return super().result(self._wait(timeout))

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return the error of the task; raises CancelledError if it was cancelled."""
        error = super().exception(self._wait(timeout))
        if self._was_ended and error is not None:
            raise error
        return error

    def _wait(self, timeout: float | None) -> float | None:
        """Drive the workers, if it is us who should; return the time that is left."""
        if self.done():
            return timeout
        deadline = None if timeout is None else monotonic() + timeout
        self._desk.wait_for(self, timeout)
        if not self.done():
            self.wait(None if deadline is None else deadline - monotonic())
        return None if deadline is None else 0.0

    def wait(self, timeout: float | None) -> None:
        """Wait until it is done, and do nothing for that.

        Not with its Condition: an exception from outside would leave that with the lock, or without
        the one that it then gives back.
        """
        sleeper = threading.Lock()
        sleeper.acquire()
        self._sleepers.append(sleeper)
        if not self.done():
            most = -1 if timeout is None else min(max(0.0, timeout), threading.TIMEOUT_MAX)
            sleeper.acquire(timeout=most)
        with suppress(ValueError):  # it was woken
            self._sleepers.remove(sleeper)

    def _invoke_callbacks(self) -> None:
        while self._sleepers:
            self._sleepers.pop().release()
        super()._invoke_callbacks()  # type: ignore[misc]

    def add_done_callback(self, fn: Callable[[Future[T]], object]) -> None:
        """Have ``fn(future)`` called when the task is over; at once if it is."""
        super().add_done_callback(fn if self.done() else partial(_call_back, fn))
        if _is_on_loop():  # it is to be awaited there
            self._desk.expect_wait(self)
        self._desk.attend()

    def cancel(self) -> bool:
        """Cancel the task: one that waits never starts, one that runs on a process is ended."""
        if super().cancel():
            self._desk.tell(self)
            return True
        if self.done() or not self._desk.end_task(self):
            return False
        self._was_ended = True
        self.set_exception(CancelledError())
        self._desk.tell(self)
        return True

    def cancelled(self) -> bool:
        """Whether the task was cancelled."""
        return self._was_ended or super().cancelled()


Failed = list[tuple[PlaitFuture[Any], BaseException]]


class CallDesk:
    """Futures of calls in threads: whoever ran a call resolves its future."""

    def __init__(self, backend: ThreadBackend) -> None:
        self._lane = backend.open_calls(self._fail_all)
        self._backend = backend
        self._pending: set[PlaitFuture[Any]] = set()
        self._is_closed = False

    def submit(self, future: PlaitFuture[Any], task: tuple[Any, ...]) -> None:
        """Queue a call; each sees the context variables of who submitted it."""
        if self._is_closed:
            raise closed_error()
        self._pending.add(future)
        try:
            run = _context_in(self._backend).run
            self._lane.submit(partial(self._run, future, run, task))
        except PoolClosed:
            self._pending.discard(future)
            raise
        except PlaitError as error:  # no thread could be started
            self._fail_all(error)

    def _run(
        self, future: PlaitFuture[Any], run: Callable[..., Any], task: tuple[Any, ...]
    ) -> None:
        """Run a call and resolve its future, as a worker."""
        try:
            self._pending.remove(future)
        except KeyError:  # it was told that there are no workers
            return
        _run(future, run, task)

    def wait_for(self, future: PlaitFuture[Any], timeout: float | None) -> None:
        """Lend a place to the workers if it is one of their tasks that waits."""
        if self._backend.number in inside.get():
            self._hasten(future)
            with self._backend.lent_place():
                future.wait(timeout)

    def _hasten(self, future: PlaitFuture[Any]) -> None:
        """Let the call of a future be the next; so a recursion goes down before it spreads."""
        self._lane.hasten(lambda call: call.args[0] is future)

    def expect_wait(self, future: PlaitFuture[Any]) -> None:
        """Lend a place until the task that calls this is over, if it is one of these workers'."""
        if self._backend.number in inside.get():
            self._hasten(future)
            self._backend.lend_place()

    def check_wait(self) -> None:
        """Do nothing: nobody waits for a place that its caller holds."""

    def attend(self) -> None:
        """Do nothing: they call back."""

    def tell(self, future: PlaitFuture[Any]) -> None:
        """Do nothing: who waits, waits for the future itself."""

    def end_task(self, future: PlaitFuture[Any]) -> bool:  # noqa: ARG002
        """Say no: a thread cannot be ended."""
        return False

    def _fail_all(self, error: PlaitError) -> None:
        """Tell every future that there are no workers."""
        while self._pending:
            future = self._pending.pop()
            if future.set_running_or_notify_cancel():
                future.set_exception(error)

    def close(self, *, cancel_futures: bool) -> list[threading.Thread]:
        """Take nothing more."""
        self._is_closed = True
        if cancel_futures:
            for future in list(self._pending):
                future.cancel()
        return []

    def leave(self) -> None:
        """Let the queued calls run, and the threads end."""
        self._backend.close()
        self._lane.close()

    def abandon(self) -> None:
        """In a forked child: workers and futures are the parent's."""
        self._is_closed = True
        self._pending = set()


def _run(future: PlaitFuture[Any], run: Callable[..., Any], task: tuple[Any, ...]) -> None:
    """Run a task and resolve its future."""
    if not future.set_running_or_notify_cancel():
        return
    fn, args, kwargs = task
    try:
        value = run(fn, *args, **kwargs)
    except BaseException as error:  # noqa: BLE001  whatever it is, it is the task's
        future.set_exception(error)
    else:
        future.set_result(value)
    finally:  # the error's traceback keeps this alive: it is not to keep the future, nor all that
        del future, run, task, fn, args, kwargs


def _context_in(pool: ThreadBackend) -> Context:
    """Return a copy of the caller's context variables for a task in a pool."""
    context = copy_context()
    context.run(inside.set, inside.get() | {pool.number})
    return context


def _call_back(fn: Callable[[Future[Any]], object], future: Future[Any]) -> None:
    """Call back from whoever resolves a future, and who has to go on, whatever that raises.

    An Exception is logged by ``concurrent.futures``; so is anything else here.
    """
    try:
        fn(future)
    except Exception:
        raise
    except BaseException:
        import logging

        logger = logging.getLogger("concurrent.futures")
        logger.exception("exception calling callback for %r", future)


def _is_on_loop() -> bool:
    """Whether the calling thread runs an event loop."""
    events = sys.modules.get("asyncio.events")  # maybe amid its import, in another thread
    find = getattr(events, "_get_running_loop", None)
    return find is not None and find() is not None


def _fail(failed: Failed) -> None:
    for future, error in failed:
        future.set_exception(error)


def closed_error() -> PoolClosed:
    """Return what is raised when something is submitted after the shutdown."""
    return PoolClosed("cannot schedule new futures after shutdown of this executor")


class LaneDesk:
    """Futures of tasks that go through a lane.

    What is submitted waits here until a worker has room for it, and can be cancelled until then.
    """

    def __init__(self, backend: Backend, setting: Setting) -> None:
        self._backend = backend
        self._setting = setting
        self._is_driven = backend.traits.is_driven
        self._threads = backend if isinstance(backend, ThreadBackend) else None
        self._lock = threading.Lock()  # guards everything below
        self._changed = threading.Condition(self._lock)
        self._lane: Lane | None = None
        self._waiting: deque[tuple[PlaitFuture[Any], Any]] = deque()
        self._futures: dict[int, PlaitFuture[Any]] = {}  # given to workers, by index
        self._awaited: list[PlaitFuture[Any]] = []  # by threads that drive meanwhile
        self._count = 0
        self._task_s: float | None = None
        self._is_closed = False
        self._keeper: threading.Thread | None = None
        self._keeper_rests = False  # until it is notified
        self._keeper_drives = False
        self._is_attended = not self._is_driven  # the keeper drives without a delay

    # --- In ------------------------------------------------------------------------------

    def submit(self, future: PlaitFuture[Any], task: tuple[Any, ...]) -> None:
        """Queue a task, and send it if a worker is free for it."""
        if self._backend.traits.runs_in_caller and current_thread() is self._keeper:
            # One of its tasks submits another, and would wait for a turn that it has itself.
            _run(future, copy_context().run, task)
            return
        if self._backend.traits.shares_memory:  # each task sees the caller's context variables
            fn, args, kwargs = task
            context = copy_context() if self._threads is None else _context_in(self._threads)
            task = (context.run, (fn, *args), kwargs)
        with Shield(), self._lock:
            if self._is_closed:
                raise closed_error()
            self._waiting.append((future, task))
            failed = self._send()
            if self._keeper_rests:
                self._changed.notify()
            elif self._keeper is None:
                self._start_keeper()
        _fail(failed)

    def _send(self) -> Failed:
        """Give waiting tasks to the workers that have room; return what cannot be given.

        Called with the lock, so their futures are failed later: that calls back.
        """
        failed: Failed = []
        is_brief = self._task_s is not None and self._task_s < BRIEF_S
        depth = self._backend.traits.queue_depth if is_brief else 1
        lent = 0 if self._threads is None else self._threads.lent
        most = (self._backend.max_workers + lent) * depth
        while self._waiting:
            if self._lane and self._lane.pending >= most:
                break
            future, task = self._waiting.popleft()
            if future.set_running_or_notify_cancel():
                failed += self._send_one(future, task, is_brief=is_brief)
        return failed

    def _send_one(self, future: PlaitFuture[Any], task: Any, *, is_brief: bool) -> Failed:
        index, self._count = self._count, self._count + 1
        self._futures[index] = future
        try:
            if self._lane is None:
                self._lane = self._backend.open_lane(Call(invoke, "task"), self._setting)
            self._lane.submit(Chunk(index, [task], brief=is_brief))
        except BaseException as error:
            del self._futures[index]
            if not isinstance(error, PlaitError) or is_from_outside(error):
                raise
            return [(future, error)]  # there are no workers
        return []

    # --- Out -----------------------------------------------------------------------------

    def wait_for(self, future: PlaitFuture[Any], timeout: float | None) -> None:
        """Read outcomes until a future is done, or time is up, or others will do it."""
        if not self._is_driven:
            self.check_wait()
            if self._threads is not None and self._threads.number in inside.get():
                self._wait_inside(future, self._threads, timeout)
            return
        deadline = None if timeout is None else monotonic() + timeout
        is_over = False
        while not is_over:
            # A signal's handler is not to come between a result and its future, nor amid our books.
            with Shield(self._wake) as shield:
                is_over = self._drive_for(future, deadline, shield)

    def _wake(self) -> None:
        if self._lane is not None:
            self._lane.wake()

    def _drive_for(self, future: PlaitFuture[Any], deadline: float | None, shield: Shield) -> bool:
        """Read outcomes until that is over: True, or the shield was hit."""
        try:
            with self._lock:
                self._awaited.append(future)
            if self._keeper_drives:
                self._wake()  # it leaves the driving to us
            while not future.done():
                left = None if deadline is None else deadline - monotonic()
                if left is not None and left <= 0:
                    return True
                if not self._advance(left, lambda: shield.is_hit or future.done()):
                    return True
                if shield.is_hit:
                    return False
            return True
        finally:
            try:
                self._stop_waiting(future)
            except BaseException:  # from outside: nobody else would drive any more
                self._stop_waiting(future)
                raise

    def _stop_waiting(self, future: PlaitFuture[Any]) -> None:
        with self._lock:
            if future in self._awaited:
                self._awaited.remove(future)
            is_wanted = self._is_busy or self._is_closed
            if self._keeper_rests and is_wanted and not self._awaited:
                self._changed.notify()

    def _wait_inside(
        self, future: PlaitFuture[Any], threads: ThreadBackend, timeout: float | None
    ) -> None:
        """Wait as one of the tasks: its place is for others meanwhile, first of all for this."""
        with threads.lent_place():
            with self._lock:
                entry = next((entry for entry in self._waiting if entry[0] is future), None)
                if entry is not None:
                    self._waiting.remove(entry)
                    self._waiting.appendleft(entry)
                failed = self._send()
            _fail(failed)
            future.wait(timeout)

    def _advance(self, timeout: float | None, until: Callable[[], bool]) -> bool:
        """Wait for outcomes, and resolve their futures; False if there is nothing to wait for."""
        lane = self._lane
        if lane is None or not lane.pending:
            return False
        try:
            if self._is_driven:
                finished = cast("DrivenLane", lane).wait_outcomes(timeout, until)
            else:
                finished = lane.wait_outcomes(timeout)
        except PlaitError as error:  # no workers any more: every future is told
            if is_from_outside(error):
                raise
            self._fail_all(error)
            return False
        try:
            for stretch in finished:
                self._resolve(stretch)
        except BaseException:  # from outside: it is nobody's result, and costs nobody his
            for stretch in finished:
                self._resolve(stretch)
            raise
        return True

    def _resolve(self, finished: Finished) -> None:
        with self._lock:
            indices = range(finished.first, finished.first + len(finished.values))
            futures = [self._futures.get(index) for index in indices]
            if futures:
                self._task_s = finished.seconds / len(futures)
                self._setting.limits.time.learn(finished)
        for place, future in enumerate(futures):
            if future is None or self._futures.pop(finished.first + place, None) is None:
                continue  # it was cancelled meanwhile
            error = finished.errors.get(place)
            if error is None:
                future.set_result(finished.values[place])
            else:
                future.set_exception(error)
        self._wake_others(futures)
        # No lock: who adds one there looks for room afterwards, and sees what came of this.
        if self._waiting:
            with self._lock:
                failed = self._send()
            _fail(failed)

    def _wake_others(self, futures: list[PlaitFuture[Any] | None]) -> None:
        """Tell the threads that sleep in the lane while this one drove for them."""
        if len(self._awaited) < 2 and not self._keeper_drives:
            return
        with self._lock:
            if any(future in futures for future in self._awaited):
                assert self._lane is not None
                self._lane.wake()

    def _fail_all(self, error: BaseException) -> None:
        with self._lock:
            futures = [*self._futures.values(), *(future for future, _ in self._waiting)]
            self._futures.clear()
            self._waiting.clear()
        _fail([(future, error) for future in futures if not future.cancelled()])
        if self._lane is not None:
            self._lane.wake()  # others wait for them

    def tell(self, future: PlaitFuture[Any]) -> None:
        """Have threads that wait for a future see that it was cancelled."""
        with self._lock:
            lane = self._lane if future in self._awaited else None
        if lane is not None:
            lane.wake()

    def end_task(self, future: PlaitFuture[Any]) -> bool:
        """End the running task of a future, if the backend can; it is then cancelled."""
        with self._lock:
            index = next((at for at, one in self._futures.items() if one is future), None)
            lane = self._lane
        if index is None or lane is None or not lane.cancel(index):
            return False
        with self._lock:
            # If it has just finished, the result was there first.
            return self._futures.pop(index, None) is not None

    def expect_wait(self, future: PlaitFuture[Any]) -> None:  # noqa: ARG002
        """Lend a place until the task that calls this is over, if it is one of these workers'."""
        if self._threads is not None and self._threads.number in inside.get():
            self._threads.lend_place()
            if self._lane is not None:  # the keeper sends what there is room for now
                self._lane.wake()

    def check_wait(self) -> None:
        """Raise DeadlockError where a coroutine would wait for its own event loop."""
        check = getattr(self._backend, "check_wait", None)  # its module may not be loaded
        if check is not None:
            check()

    # --- The keeper ------------------------------------------------------------------------

    @property
    def _is_busy(self) -> bool:
        return bool(self._futures or self._waiting)

    def attend(self) -> None:
        """Have the keeper drive at once, as long as something is pending."""
        if self._is_driven:
            with self._lock:
                self._is_attended = self._is_busy
                self._changed.notify()

    def _start_keeper(self) -> None:
        self._keeper = threading.Thread(target=self._keep, name="plait-executor", daemon=True)
        self._keeper.start()

    def _keep(self) -> None:
        """Read outcomes when nobody else does; end after the last one."""
        while self._await_turn():
            try:
                self._drive()
            except BaseException as error:  # noqa: BLE001  there is nobody else to be told
                self._fail_all(error)
            self._keeper_drives = False

    def _drive(self) -> None:
        with self._lock:
            failed = self._send()
        _fail(failed)
        self._advance(None, lambda: bool(self._awaited))

    def _await_turn(self) -> bool:
        """Block until the keeper is to drive; False if it never will be again.

        Between futures that come and are waited for one after the other it does not rest: to
        be woken for each of them costs a third of the time that one takes.
        """
        is_quiet = False
        with self._lock:
            while True:
                if not self._is_busy:
                    if self._is_closed:
                        return False
                    self._is_attended = not self._is_driven
                elif not self._awaited and (self._is_attended or is_quiet):
                    self._keeper_drives = True
                    return True
                if is_quiet or not self._is_driven:
                    self._rest()
                    is_quiet = False
                else:
                    is_quiet = self._is_quiet()

    def _rest(self) -> None:
        self._keeper_rests = True
        self._changed.wait()
        self._keeper_rests = False

    def _is_quiet(self) -> bool:
        """Wait a moment; whether nothing was submitted or resolved in it."""
        before = (self._count, len(self._futures), len(self._waiting))
        self._changed.wait(TAKE_OVER_S)
        return before == (self._count, len(self._futures), len(self._waiting))

    # --- The end ---------------------------------------------------------------------------

    def close(self, *, cancel_futures: bool) -> list[threading.Thread]:
        """Take nothing more; the keeper ends once all is done."""
        with self._lock:
            self._is_closed = True
            self._is_attended = True
            waiting = [future for future, _ in self._waiting] if cancel_futures else []
            self._changed.notify_all()
        for future in waiting:
            future.cancel()
        return [self._keeper] if self._keeper is not None else []

    def leave(self) -> None:
        """Let go of the workers."""
        if self._lane is not None:
            self._lane.close()
        self._backend.close()

    def abandon(self) -> None:
        """In a forked child: workers and futures are the parent's."""
        self._lock = threading.Lock()  # another thread may have held it
        self._changed = threading.Condition(self._lock)
        self._keeper = self._lane = None
        self._is_closed = True
