"""One thread per worker; each lane has a queue of its own.

Threads share memory and cannot be killed, so there is nothing to carry and nobody to bury:
a worker takes a chunk, runs it and puts what finished into the inbox of the lane that the
chunk came from. A thread whose task runs over its limit of time is abandoned: the task has
failed, whatever it still returns is dropped, and another thread takes its place.

A lane whose chunks wait always has a worker, if need be one beyond ``max_workers``. So no call
waits for the tasks of another call, and a task may make calls of its own, at any depth. Workers
that become free go to the waiting lane that has the fewest.

An exception from outside (PyThreadState_SetAsyncExc) may be raised in a worker anywhere. So what a
worker does is noted in its seat before it is taken from elsewhere, and each step can be repeated.
CPython raises such an exception after a call or at the start of a loop, not between two
assignments.
"""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol

from plait.backends.contract import Setting, Traits, here
from plait.backends.inbox import Inbox
from plait.blas import thread_limit
from plait.errors import PlaitError, PoolClosed, WorkerStartError
from plait.host import cpu_count, monotonic
from plait.limits import LEAST_RELATIVE_S, leave_to_itself
from plait.outcome import Call, Chunk, Finished, Stretch
from plait.running import begin_task, begin_tasks, end_tasks
from plait.worker import FLUSH_S, run_apart, run_together

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["ThreadBackend"]


@dataclass(slots=True, eq=False)
class _Seat:
    """A worker: its thread, and what that is running."""

    name: str
    job: _Job | None = None  # until it is over; whoever hands it out rings the bell
    bell: SimpleQueue[None] = field(default_factory=SimpleQueue)
    thread: threading.Thread | None = None
    is_idle: bool = False
    has_left: bool = False
    lane: ThreadLane | None = None
    chunk: Chunk | None = None
    has_claimed: bool = False
    done: int = 0  # tasks of the chunk that were delivered
    place: int = -1  # of the task in the chunk that began last
    started: float = math.inf
    is_abandoned: bool = False


class _Jobs(Protocol):
    """A lane, as the backend sees it."""

    queue: deque[Any]
    running: int
    turn: int

    def run(self, chunk: Any, seat: _Seat) -> None:
        """Run a chunk, as a worker."""
        ...

    def recover(self, chunk: Any, seat: _Seat, error: BaseException) -> None:
        """Go on with a chunk after an exception from outside."""
        ...

    def fail(self, error: PlaitError) -> None:
        """Hear that there are no workers."""
        ...


_Job = tuple[_Jobs, Any]


class ThreadBackend:
    """A pool of threads; they start when there is work for them."""

    traits = Traits(name="threads", queue_depth=2)
    start_s = None

    def __init__(self, max_workers: int, initializer: Callable[[], object] | None = None) -> None:
        self.max_workers = max_workers
        self._initializer = initializer
        self._most_extra = cpu_count()
        self.lock = threading.Lock()  # guards everything below, and the seats
        self._seats: list[_Seat] = []
        self._idle: dict[_Seat, None] = {}  # the one that worked last is the last
        self._waiting: dict[_Jobs, None] = {}  # lanes that have a queue, or had one
        self._aside = 0  # workers that wait for others, and let one more work meanwhile
        self._turns = 0
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

    def enqueue(self, lane: _Jobs, chunk: Any) -> None:
        """Give a chunk, or a call, to a worker, or have it wait for one."""
        with self.lock:
            if self._is_closed:
                raise PoolClosed("This pool is closed; open a new one.")
            if self._broken is not None:
                raise self._broken
            self.requeue(lane, chunk)

    def requeue(self, lane: _Jobs, chunk: Any) -> None:
        """Do the same for a chunk of a lane at work; called with the lock."""
        if not self._hand_out((lane, chunk)):
            self._waiting[lane] = None
            lane.queue.append(chunk)

    # --- Handing out; all with the lock ----------------------------------------------------

    def _hand_out(self, job: _Job) -> bool:
        """Give a job to an idle worker or a new one; False if it has to wait."""
        lane = job[0]
        if lane.running >= self.max_workers:
            return False
        for seat in reversed(self._idle):
            del self._idle[seat]
            self._assign(seat, job)
            seat.bell.put(None)
            return True
        return (self._has_room or not lane.running) and self._start_thread(job)

    @property
    def _has_room(self) -> bool:
        return len(self._seats) - min(self._aside, self._most_extra) < self.max_workers

    def _assign(self, seat: _Seat, job: _Job) -> None:
        self._turns += 1
        job[0].turn = self._turns
        job[0].running += 1
        seat.has_claimed, seat.done, seat.place = False, 0, -1
        seat.is_idle, seat.job = False, job

    def _start_thread(self, job: _Job) -> bool:
        """Start a worker with a job; False if that cannot be, and other workers will come for it."""
        self._count += 1
        seat = _Seat(f"thread-{self._count}")
        seat.thread = threading.Thread(
            target=self._serve, args=(seat,), name=f"plait-{seat.name}", daemon=True
        )
        self._seats.append(seat)
        self._assign(seat, job)
        try:
            seat.thread.start()
        except RuntimeError as error:  # the system gives us no more
            self._seats.remove(seat)
            lane = job[0]
            lane.running -= 1
            if lane.running:
                return False
            raise WorkerStartError(f"No thread can be started: {error}") from error
        return True

    def _next_lane(self) -> _Jobs | None:
        """Choose the waiting lane with the fewest workers; in turn among equals."""
        best: _Jobs | None = None
        for lane in list(self._waiting):
            if not lane.queue:
                del self._waiting[lane]
            elif lane.running < self.max_workers and (
                best is None or (lane.running, lane.turn) < (best.running, best.turn)
            ):
                best = lane
        return best

    def _take_job(self, seat: _Seat) -> None:
        """Give a free worker its next job, or let it rest or leave; may be repeated."""
        if seat.job is not None or seat.is_idle or seat.has_left:
            return
        lane = self._next_lane()
        if lane is not None and self._may_go_on(lane):
            self._assign(seat, (lane, lane.queue[0]))
            del lane.queue[0]
        elif self._is_closed or len(self._seats) > self.max_workers:
            self._leave(seat)
        else:
            self._idle[seat] = None
            seat.is_idle = True

    def _may_go_on(self, lane: _Jobs) -> bool:
        """Whether a worker beyond ``max_workers`` may work for a lane that has others."""
        return not lane.running or len(self._seats) <= self.max_workers + self._most_extra

    def _leave(self, seat: _Seat) -> None:
        seat.has_left = True
        if seat in self._seats:
            self._seats.remove(seat)

    def _start_next(self) -> None:
        """Have another worker work in the place of one that does not."""
        lane = self._next_lane()
        if lane is None:
            return
        chunk = lane.queue[0]
        try:
            is_given = self._hand_out((lane, chunk))
        except WorkerStartError as error:
            lane.fail(error)
            return
        if is_given:
            del lane.queue[0]

    def drop(self, lane: _Jobs) -> None:
        """Forget what waits of a lane."""
        with self.lock:
            lane.queue.clear()
            self._waiting.pop(lane, None)

    @contextmanager
    def standing_aside(self, lane: _Jobs) -> Iterator[None]:
        """Let another worker work for a lane while this one waits for that."""
        with self.lock:
            self._aside += 1
            lane.running -= 1
            self._start_next()
        try:
            yield
        finally:
            with self.lock:
                self._aside -= 1
                lane.running += 1

    # --- In the worker ---------------------------------------------------------------------

    def _serve(self, seat: _Seat) -> None:
        try:
            if self._initializer is not None:
                self._initializer()
        except BaseException as error:  # noqa: BLE001  whatever it is, no worker can work
            self._break(seat, error)
            return
        here.backend = self
        error: BaseException | None = None
        while not seat.has_left:
            try:
                lost, error = error, None
                self._work(seat, lost)
            except BaseException as raised:  # noqa: BLE001  from outside: tasks' own are caught
                error = raised

    def _work(self, seat: _Seat, error: BaseException | None) -> None:
        """Run jobs, until the worker is to leave."""
        while not seat.has_left:
            if seat.job is not None:
                self._run_job(seat, error)
                error = None
            elif seat.is_idle:
                seat.bell.get()
            else:
                with self.lock:
                    self._take_job(seat)

    def _run_job(self, seat: _Seat, error: BaseException | None) -> None:
        assert seat.job is not None
        lane, chunk = seat.job
        if error is None:
            lane.run(chunk, seat)
        else:
            lane.recover(chunk, seat, error)
        with self.lock:
            seat.lane = seat.chunk = seat.job = None  # an idle worker keeps no item alive
            if not seat.is_abandoned:
                lane.running -= 1
            self._take_job(seat)

    def seats_of(self, lane: ThreadLane) -> list[_Seat]:
        """Return the workers that run something of a lane."""
        return [seat for seat in list(self._seats) if seat.lane is lane]

    def abandon_seat(self, seat: _Seat) -> None:
        """Leave a thread to itself, and start another if there is work; called with the lock."""
        seat.is_abandoned = True
        self._leave(seat)
        if seat.job is not None:
            seat.job[0].running -= 1
        self._start_next()

    def _break(self, seat: _Seat, error: BaseException) -> None:
        broken = WorkerStartError(f"The initializer failed in a thread: {error!r}")
        broken.__cause__ = error
        with self.lock:
            self._broken = broken
            self._leave(seat)
            if seat.job is not None:
                seat.job[0].running -= 1
                seat.job = None
            lanes = list(self._lanes)
        for lane in lanes:  # without the lock: that of calls calls back, which may submit again
            lane.fail(broken)

    def close(self) -> None:
        """Let the queued work finish, then end the threads."""
        with self.lock:
            self._is_closed = True
            for seat in self._idle:
                self._leave(seat)
                seat.bell.put(None)
            threads = [seat.thread for seat in (*self._idle, *self._seats)]
            self._idle.clear()
        for thread in threads:
            if thread is not None and thread is not threading.current_thread():
                thread.join()

    def abandon(self) -> None:
        """In a forked child: the threads exist in the parent only."""
        self.lock = threading.Lock()  # one of them may have held it
        self._is_closed = True
        self._seats = []
        self._idle = {}
        self._waiting = {}


class CallJob(Protocol):
    """A call that tells itself what became of it."""

    def run(self) -> None:
        """Run it, as a worker."""
        ...

    def recover(self, error: BaseException) -> None:
        """Let it end with an exception from outside, or run it if it did not begin."""
        ...


class CallLane:
    """A way for calls that tell themselves what became of them, as those of futures do."""

    def __init__(self, backend: ThreadBackend, on_failure: Callable[[PlaitError], None]) -> None:
        self._backend = backend
        self.fail = on_failure
        self.queue: deque[CallJob] = deque()
        self.running = self.turn = 0
        self._is_closed = False

    def submit(self, call: CallJob) -> None:
        """Queue a call, which must not raise."""
        self._backend.enqueue(self, call)

    def run(self, call: CallJob, seat: _Seat) -> None:  # noqa: ARG002
        """Run a call, as a worker."""
        call.run()

    def recover(self, call: CallJob, seat: _Seat, error: BaseException) -> None:  # noqa: ARG002
        """Tell a call that an exception came from outside; run it if it did not begin."""
        call.recover(error)

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
        self.queue: deque[Chunk] = deque()
        self.running = self.turn = 0
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
        if seat.has_claimed or self.inbox.claim(seat):
            seat.chunk, seat.started = chunk, math.inf
            seat.lane = self
            run = self._run_watched if self._limit.is_set else self._run
            # What a task sets in its context is not seen by other chunks, nor by the caller.
            self._context.copy().run(run, chunk, seat)
            end_tasks()

    def recover(self, chunk: Chunk, seat: _Seat, error: BaseException) -> None:
        """Deliver an exception from outside as that of the running task, and run the others."""
        if not seat.has_claimed:
            self.run(chunk, seat)
            return
        if seat.done == len(chunk.items):
            return
        begun = len(chunk.items) if chunk.together else seat.place + 1
        if tasks := begun - seat.done:
            times = [(monotonic(), 0.0)] * (1 if chunk.together else tasks)
            errors = dict.fromkeys(range(tasks), error)
            stretch = Stretch([None] * tasks, errors, times, begun == len(chunk.items))
            self._deliver(chunk, stretch, seat)
        if begun < len(chunk.items):
            self.run(chunk, seat)

    def _deliver(self, chunk: Chunk, stretch: Stretch, seat: _Seat) -> None:
        finished = Finished.of(chunk, seat.done, stretch, seat.name, os.getpid())
        self.inbox.put(finished, seat)

    def _run(self, chunk: Chunk, seat: _Seat) -> None:
        if chunk.together:
            begin_tasks(chunk.first, len(chunk.items))
            self._deliver(chunk, run_together(self._call, chunk.items), seat)
            return
        before = seat.done  # more than 0 after an exception from outside

        def begin(place: int) -> bool:
            seat.place = before + place
            begin_task(chunk.first + before + place)
            return not self.inbox.is_closed

        items = chunk.items[before:] if before else chunk.items
        for stretch in run_apart(self._call, items, begin=begin, flush_s=FLUSH_S):
            self._deliver(chunk, stretch, seat)

    def _run_watched(self, chunk: Chunk, seat: _Seat) -> None:
        """Run tasks one by one; each is over, and delivered, before the next one begins."""
        before = seat.done

        def begin(place: int) -> bool:
            begin_task(chunk.first + before + place)
            seat.place, seat.started = before + place, monotonic()
            return not self.inbox.is_closed

        items = chunk.items[before:] if before else chunk.items
        for stretch in run_apart(self._call, items, begin=begin, flush_s=0):
            with self._backend.lock:
                if seat.is_abandoned:
                    return
                seat.started = math.inf
                self._deliver(chunk, stretch, seat)

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
            leave_to_itself(self._call, chunk, place, seat.name, os.getpid(), limit_s, times), seat
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
        self.inbox.wake()

    def fail(self, error: PlaitError) -> None:
        """Have it raise the reason why there are no workers."""
        self.inbox.fail(error)

    def cancel(self, first: int) -> bool:  # noqa: ARG002
        """Say no: what was queued will run, and a running thread cannot be ended."""
        return False

    def close(self, *, patience_s: float | None = None) -> list[Finished]:
        """Drop what is queued and wait for what runs; abandon it after ``patience_s`` seconds."""
        if self._limit.seconds is not None:
            patience_s = min(math.inf if patience_s is None else patience_s, self._limit.seconds)
        self._backend.drop(self)
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
