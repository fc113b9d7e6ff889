"""One thread per worker, all fed from one queue.

Threads share memory and cannot be killed, so there is nothing to carry and nobody to bury:
a worker takes a chunk, runs it and puts what finished into the inbox of the lane that the
chunk came from. A thread whose task runs over its limit of time is abandoned: the task has
failed, whatever it still returns is dropped, and another thread takes its place.
"""

from __future__ import annotations

import math
import os
import threading
import weakref
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from plait.backends.contract import Setting, Traits
from plait.backends.inbox import Inbox
from plait.blas import thread_limit
from plait.errors import PlaitError, PoolClosed, WorkerStartError
from plait.host import monotonic
from plait.limits import LEAST_RELATIVE_S, leave_to_itself
from plait.outcome import Call, Chunk, Finished
from plait.running import begin_task, begin_tasks, end_tasks
from plait.sentinel import wait_gone
from plait.worker import FLUSH_S, run_apart, run_together

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ThreadBackend"]


@dataclass(slots=True, eq=False)
class _Seat:
    """A worker: its thread, and what that is running."""

    name: str
    thread: threading.Thread | None = None
    lane: ThreadLane | None = None
    chunk: Chunk | None = None
    place: int = 0  # of the running task in its chunk
    started: float = math.inf
    is_abandoned: bool = False


class ThreadBackend:
    """A pool of threads; they start when there is work for them."""

    traits = Traits(name="threads", queue_depth=2)
    start_s = None

    def __init__(self, max_workers: int, initializer: Callable[[], object] | None = None) -> None:
        self.max_workers = max_workers
        self._initializer = initializer
        self._work: SimpleQueue[tuple[ThreadLane | CallLane, Any] | None] = SimpleQueue()
        self.lock = threading.Lock()  # guards the attributes below, and the seats
        self._seats: list[_Seat] = []
        # Each chunk in the queue has a thread that will come for it, or is one of these.
        self._unpromised = 0
        self._free = 0  # threads that wait for work, and are promised to no chunk
        self._count = 0  # of threads that were ever started
        self._lanes: weakref.WeakSet[ThreadLane | CallLane] = weakref.WeakSet()
        self._broken: WorkerStartError | None = None
        self._is_closed = False

    @property
    def is_usable(self) -> bool:
        """Whether new lanes can be opened."""
        return not self._is_closed and self._broken is None

    def open_lane(self, call: Call, setting: Setting | None = None) -> ThreadLane:
        """Open a way for a function."""
        lane = ThreadLane(self, call, setting or Setting())
        self._add(lane)
        return lane

    def open_calls(self, on_failure: Callable[[PlaitError], None]) -> CallLane:
        """Open a way for calls; ``on_failure`` hears if there are no workers for them."""
        lane = CallLane(self, on_failure)
        self._add(lane)
        return lane

    def _add(self, lane: ThreadLane | CallLane) -> None:
        thread_limit.hold(self.max_workers)
        with self.lock:
            self._lanes.add(lane)

    def enqueue(self, lane: ThreadLane | CallLane, chunk: Any) -> None:
        """Put a chunk, or a call, into the queue, and start a thread if none is free for it."""
        with self.lock:
            if self._is_closed:
                raise PoolClosed("This pool is closed; open a new one.")
            if self._broken is not None:
                raise self._broken
            self.requeue(lane, chunk)

    def requeue(self, lane: ThreadLane | CallLane, chunk: Any) -> None:
        """Do the same for a chunk of a lane at work; called with the lock."""
        self._work.put((lane, chunk))
        if self._free:
            self._free -= 1
        elif len(self._seats) < self.max_workers:
            self._start_thread()
        else:
            self._unpromised += 1

    def _start_thread(self) -> None:
        self._count += 1
        seat = _Seat(f"thread-{self._count}")
        seat.thread = threading.Thread(
            target=self._serve, args=(seat,), name=f"plait-{seat.name}", daemon=True
        )
        self._seats.append(seat)
        seat.thread.start()

    def _serve(self, seat: _Seat) -> None:
        try:
            if self._initializer is not None:
                self._initializer()
        except BaseException as error:  # noqa: BLE001  whatever it is, no worker can work
            self._break(error)
            return
        while (job := self._work.get()) is not None:
            lane, chunk = job
            lane.run(chunk, seat)
            with self.lock:
                seat.lane = seat.chunk = None
                if seat.is_abandoned:
                    return
                if self._unpromised:
                    self._unpromised -= 1
                else:
                    self._free += 1
            del job, lane, chunk  # an idle worker keeps no item alive
        self._work.put(None)  # pass the end on to the next worker

    def seats_of(self, lane: ThreadLane) -> list[_Seat]:
        """Return the workers that run something of a lane."""
        return [seat for seat in list(self._seats) if seat.lane is lane]

    def abandon_seat(self, seat: _Seat) -> None:
        """Leave a thread to itself, and start another if there is work; called with the lock."""
        seat.is_abandoned = True
        self._seats.remove(seat)
        if self._unpromised:
            self._unpromised -= 1
            self._start_thread()

    def _break(self, error: BaseException) -> None:
        broken = WorkerStartError(f"The initializer failed in a thread: {error!r}")
        broken.__cause__ = error
        with self.lock:
            self._broken = broken
            for lane in self._lanes:
                lane.fail(broken)

    def close(self) -> None:
        """Let the queued work finish, then end the threads."""
        with self.lock:
            self._is_closed = True
            threads = [seat.thread for seat in self._seats if seat.thread is not None]
        self._work.put(None)
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join()
                wait_gone(thread.native_id or 0)

    def abandon(self) -> None:
        """In a forked child: the threads exist in the parent only."""
        self.lock = threading.Lock()  # one of them may have held it
        self._is_closed = True
        self._seats = []


class CallLane:
    """A way for calls that tell themselves what became of them, as those of futures do."""

    def __init__(self, backend: ThreadBackend, on_failure: Callable[[PlaitError], None]) -> None:
        self._backend = backend
        self.fail = on_failure
        self._is_closed = False

    def submit(self, call: Callable[[], object]) -> None:
        """Queue a call, which must not raise."""
        self._backend.enqueue(self, call)

    def run(self, call: Callable[[], object], seat: _Seat) -> None:  # noqa: ARG002
        """Run a call, as a worker."""
        call()

    def close(self) -> None:
        """Give back what it held."""
        if not self._is_closed:
            self._is_closed = True
            thread_limit.release()


class ThreadLane:
    """One function's way through a pool of threads."""

    left = 0  # all of it is with the workers

    def __init__(self, backend: ThreadBackend, call: Call, setting: Setting) -> None:
        self._backend = backend
        self._call = call
        self._limit = setting.limits.time
        self._context = setting.context
        self._is_closed = False
        self.inbox = Inbox()
        self.shared_bytes = 0
        self.abandoned = 0

    @property
    def pending(self) -> int:
        """How many chunks were submitted and have not finished."""
        return self.inbox.pending

    def submit(self, *chunks: Chunk) -> None:
        """Queue chunks."""
        for chunk in chunks:
            self.inbox.count(1)
            try:
                self._backend.enqueue(self, chunk)
            except BaseException:
                self.inbox.count(-1)
                raise

    # --- In the worker -----------------------------------------------------------------

    def run(self, chunk: Chunk, seat: _Seat) -> None:
        """Run a chunk, as a worker, and deliver what finishes."""
        if not self.inbox.claim():
            return
        seat.chunk, seat.place, seat.started = chunk, 0, math.inf
        seat.lane = self
        run = self._run_watched if self._limit.is_set else self._run
        # What a task sets in its context is not seen by other chunks, nor by the caller.
        self._context.copy().run(run, chunk, seat)
        end_tasks()

    def _run(self, chunk: Chunk, seat: _Seat) -> None:
        if chunk.together:
            begin_tasks(chunk.first, len(chunk.items))
            stretch = run_together(self._call, chunk.items)
            self.inbox.put(Finished.of(chunk, 0, stretch, seat.name, os.getpid()))
            return

        def begin(place: int) -> bool:
            begin_task(chunk.first + place)
            return not self.inbox.is_closed

        done = 0
        for stretch in run_apart(self._call, chunk.items, begin=begin, flush_s=FLUSH_S):
            self.inbox.put(Finished.of(chunk, done, stretch, seat.name, os.getpid()))
            done += len(stretch.values)

    def _run_watched(self, chunk: Chunk, seat: _Seat) -> None:
        """Run tasks one by one; each is over, and delivered, before the next one begins."""

        def begin(place: int) -> bool:
            begin_task(chunk.first + place)
            seat.place, seat.started = place, monotonic()
            return not self.inbox.is_closed

        for done, stretch in enumerate(run_apart(self._call, chunk.items, begin=begin, flush_s=0)):
            with self._backend.lock:
                if seat.is_abandoned:
                    return
                seat.started = math.inf
                self.inbox.put(Finished.of(chunk, done, stretch, seat.name, os.getpid()))

    # --- In the thread that waits ------------------------------------------------------

    def wait_outcomes(self, timeout: float | None = None) -> list[Finished]:
        """Block until tasks finished, or ran over their limit."""
        if not self._limit.is_set:
            return self.inbox.take(timeout)
        deadline = math.inf if timeout is None else monotonic() + timeout
        while self.pending:
            due = self._judge()
            if finished := self.inbox.take(max(0.0, min(due, deadline) - monotonic())):
                return finished
            if monotonic() < due:  # somebody woke us, or time is up
                break
        return []

    def _judge(self) -> float:
        """Fail the tasks that are over the limit; return when to look again."""
        limit_s = self._limit.seconds
        due = monotonic() + (limit_s or LEAST_RELATIVE_S)
        with self._backend.lock:
            for seat in self._backend.seats_of(self):
                after_s = monotonic() - seat.started
                if limit_s is None or after_s < limit_s:
                    due = min(due, seat.started + (limit_s or math.inf))
                    continue
                self._backend.abandon_seat(seat)
                self.abandoned += 1
                rest = self._fail(seat, limit_s, after_s)
                if rest.items:
                    self.inbox.count(1)
                    self._backend.requeue(self, rest)
        return due

    def _fail(self, seat: _Seat, limit_s: float, after_s: float) -> Chunk:
        """Deliver the error of a seat's running task; return the tasks after it."""
        chunk, place = seat.chunk, seat.place
        assert chunk is not None
        times = (seat.started, after_s)
        self.inbox.put(
            leave_to_itself(self._call, chunk, place, seat.name, os.getpid(), limit_s, times)
        )
        return chunk.part(place + 1)

    def end_input(self) -> None:
        """Do nothing: no task waits behind another while a worker is free."""

    def take_progress(self) -> tuple[int, float]:
        """Return nothing: all that was run is told."""
        return 0, 0.0

    def take_back(self) -> Chunk | None:
        """Return nothing: all of it is with the workers."""
        return None

    def wake(self) -> None:
        """Have ``wait_outcomes`` return."""
        self.inbox.put(None)

    def fail(self, error: PlaitError) -> None:
        """Have it raise the reason why there are no workers."""
        self.inbox.put(error)

    def cancel(self, first: int) -> bool:  # noqa: ARG002
        """Say no: what was queued will run, and a running thread cannot be ended."""
        return False

    def close(self, *, patience_s: float | None = None) -> list[Finished]:
        """Drop what is queued and wait for what runs; abandon it after ``patience_s`` seconds."""
        if self._limit.seconds is not None:
            patience_s = min(math.inf if patience_s is None else patience_s, self._limit.seconds)
        finished = self.inbox.close(patience_s)
        if not self._is_closed:
            self._is_closed = True
            thread_limit.release()
        if self.pending:
            with self._backend.lock:
                for seat in self._backend.seats_of(self):
                    self._backend.abandon_seat(seat)
                    self.abandoned += 1
        return finished
