"""One thread per worker; lanes with chunks that wait are served in turns.

Threads share memory and cannot be killed, so there is nothing to carry and nobody to bury:
a worker takes a chunk, runs it and puts what finished into the inbox of the lane that the
chunk came from. A thread whose task runs over its limit of time is abandoned: the task has
failed, whatever it still returns is dropped, and another thread takes its place.

A task may call plait again, and wait for tasks that need a place in the pool whose place it
holds itself. Two rules keep such calls from waiting for ever:

1. A lane of a call that was made inside the pool always has a worker while chunks of it wait,
   also where ``max_workers`` are busy. In a pool that several calls share (pools.py) that holds
   for every lane. Each call then gets on whatever the others do; and by induction over the depth
   of the calls all of them end. One such worker for each lane is enough. To give each of them
   ``max_workers`` would start 2**n threads in a recursion of depth n, where these are 2 * n.
2. Who waits inside a pool for a future of that pool lends its place to another worker meanwhile.
   So does, in a pool that one executor has, who made a call inside it, while a worker is at it.
   Of the tasks that wait for one another there each has lent a place then: what the last one of
   them waits for has a place.
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
from typing import TYPE_CHECKING, Any, ClassVar

from plait.backends.contract import Setting, Traits
from plait.backends.inbox import Inbox
from plait.blas import thread_limit
from plait.errors import PlaitError, PoolClosed, WorkerStartError
from plait.host import cpu_count, monotonic
from plait.limits import LEAST_RELATIVE_S, leave_to_itself
from plait.outcome import Call, Chunk, Finished
from plait.running import begin_task, begin_tasks, end_tasks, inside, pool_numbers
from plait.sentinel import wait_gone
from plait.shield import Shield
from plait.worker import FLUSH_S, run_apart, run_together

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["ThreadBackend"]


@dataclass(slots=True, eq=False)
class _Seat:
    """A worker: its thread, and what that is running."""

    name: str
    thread: threading.Thread | None = None
    lane: ThreadLane | CallLane | None = None
    chunk: Any = None
    place: int = 0  # of the running task in its chunk
    started: float = math.inf
    is_busy: bool = False
    is_abandoned: bool = False
    lent_in: list[ThreadBackend] = field(default_factory=list)  # until its chunk is over

    def take_back(self) -> None:
        """Take back the places that its task has lent."""
        while self.lent_in:
            self.lent_in.pop()._lend(-1)  # noqa: SLF001


class _Here(threading.local):
    seat: _Seat | None = None


_here = _Here()  # the seat of the calling thread


class ThreadBackend:
    """A pool of threads; they start when there is work for them."""

    traits = Traits(name="threads", queue_depth=2)
    start_s = None
    is_crowded = False  # each lane of a shared pool has a worker
    is_whole = False  # nobody knows what an exception from outside has left
    shortage = ""

    def __init__(
        self,
        max_workers: int,
        initializer: Callable[[], object] | None = None,
        *,
        is_shared: bool = False,
    ) -> None:
        """Prepare a pool.

        ``is_shared`` is for pools that unrelated calls use: each of them may then have
        ``max_workers``, and all together a few more, so that none waits behind another's long
        tasks. Else no more than ``max_workers`` run at once, but for calls inside the pool.
        """
        self.max_workers = max_workers
        self.number = next(pool_numbers)
        self.is_shared = is_shared
        self._most = max_workers + (cpu_count() if is_shared else 0)
        self._initializer = initializer
        self._bell: SimpleQueue[None] = SimpleQueue()  # wakes idle workers, one for each ring
        # Guards what is below, the seats, the lanes' chunks. A thread that has it may take it
        # again, where the garbage collector closes a lane that was dropped.
        self.lock = threading.RLock()
        # Those who submit add to these, with the lock; an exception from outside (a signal
        # handler's) may come between any two steps of theirs, and must leave nothing that would
        # make others wait for ever. So what is counted, only workers count.
        self._seats: list[_Seat] = []
        self._lines: deque[ThreadLane | CallLane] = deque()  # with chunks that wait; next first
        self._busy = 0  # workers that run something
        self.lent = 0  # of these, how many wait for others, which may run meanwhile
        self._idle = 0  # workers that wait for the bell
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

    # --- Who submits -------------------------------------------------------------------

    def enqueue(self, lane: ThreadLane | CallLane, chunk: Any) -> None:
        """Let a chunk, or a call, wait for its turn, and call a worker if one may run it."""
        with self.lock:
            if self._is_closed:
                raise PoolClosed("This pool is closed; open a new one.")
            if self._broken is not None:
                raise self._broken
            self.requeue(lane, chunk)

    def requeue(self, lane: ThreadLane | CallLane, chunk: Any) -> None:
        """Do the same for a chunk of a lane at work; called with the lock."""
        if not lane.waiting:  # if an exception comes after this, the lane is skipped
            self._lines.append(lane)
        lane.waiting.append(chunk)
        try:
            self._call_worker(lane)
        except WorkerStartError:
            # Who has a worker, or can wait for one that does not wait for us, does that.
            if not self._seats or (lane.is_inside and not lane.at_work):
                lane.waiting.remove(chunk)
                raise

    def _may_run(self, lane: ThreadLane | CallLane, coming: int = 0) -> bool:
        """Whether one more worker may run something of a lane, beside those who are coming."""
        if self._busy - self.lent + coming < self._most:
            return not self.is_shared or lane.at_work < self.max_workers
        return (self.is_shared or lane.is_inside) and not (lane.at_work or coming)

    def _call_worker(self, lane: ThreadLane | CallLane) -> bool:
        """Wake or start a worker if one more may run something of a lane; whether that was so."""
        # Who has heard the bell and not said so yet is counted as idle: then one ring too many may
        # be left, which wakes nobody, and must not be taken for somebody who is coming.
        busy, idle = self._busy, self._idle
        if lane.at_work and busy - self.lent >= self._most:  # as most often, and soon told
            return False
        woken = min(self._bell.qsize(), idle)
        coming = len(self._seats) - busy - idle + woken
        if coming >= len(lane.waiting) or not self._may_run(lane, coming):
            return False
        if idle > woken:
            self._bell.put(None)
        else:
            self._start_worker(lane)
        return True

    def _start_worker(self, lane: ThreadLane | CallLane) -> None:
        """Start a worker with a chunk of a lane: it needs the lock for nothing before that."""
        self._count += 1
        seat = _Seat(f"thread-{self._count}")
        seat.thread = threading.Thread(
            target=self._serve, args=(seat,), name=f"plait-{seat.name}", daemon=True
        )
        with Shield():  # a start that is interrupted leaves half a thread
            chunk = self._take(seat, lane)
            self._seats.append(seat)
            try:
                seat.thread.start()
            except RuntimeError as error:  # no more threads, or the interpreter is shutting down
                self._seats.remove(seat)
                self._leave_lane(seat)
                self._end_job(seat)
                lane.waiting.appendleft(chunk)
                raise WorkerStartError(f"A thread could not be started: {error}") from error
            if not lane.waiting:
                self._lines.remove(lane)

    def drop(self, lane: ThreadLane) -> None:
        """Forget the chunks of a lane that wait."""
        with self.lock:
            waiting, lane.waiting = lane.waiting, deque()
        del waiting  # without the lock: what goes may run anything

    @contextmanager
    def lent_place(self) -> Iterator[None]:
        """Let another worker run while one waits for others in this ``with`` block."""
        self._lend(1)
        try:
            yield
        finally:
            self._lend(-1)

    def lend_place(self) -> None:
        """Let another worker run until the task that calls this is over."""
        seat = _here.seat
        if seat is not None and self not in seat.lent_in:
            seat.lent_in.append(self)
            self._lend(1)

    def _lend(self, places: int) -> None:
        with self.lock:
            self.lent += places
            self._call_others()

    # --- Workers -----------------------------------------------------------------------

    def _serve(self, seat: _Seat) -> None:
        _here.seat = seat
        try:
            if self._initializer is not None:
                self._initializer()
        except BaseException as error:  # noqa: BLE001  whatever it is, no worker can work
            self._break(error)
            return
        while seat.lane is not None or self._await_job(seat):
            lane, chunk = seat.lane, seat.chunk
            assert lane is not None
            lane.run(chunk, seat)
            if seat.lent_in:
                seat.take_back()
            with self.lock:
                if seat.is_abandoned:
                    return
                self._leave_lane(seat)
            # An idle worker keeps no item alive. What goes may run anything, and wait for other
            # workers, so this one still counts as busy: nobody is to rely on it.
            del lane, chunk

    def _await_job(self, seat: _Seat) -> bool:
        """Give a worker what is next, when there is something for it; False: it is to end."""
        while True:
            with self.lock:
                if seat.is_busy:
                    self._end_job(seat)
                if self._take_next(seat):
                    return True
                if self._is_closed and not self._lines:
                    self._seats.remove(seat)
                    self._bell.put(None)  # pass the end on to the next worker
                    return False
                self._idle += 1
            self._bell.get()
            with self.lock:
                self._idle -= 1

    def _take_next(self, seat: _Seat) -> bool:
        """Give a worker a chunk of the lane whose turn it is, and call another for what is left."""
        lines = self._lines
        for _ in range(len(lines)):
            lane = lines[0]
            if lane.waiting and self._may_run(lane):
                self._take(seat, lane)
            if lane.waiting:
                lines.rotate(-1)
            else:
                lines.popleft()
            if seat.lane is not None:
                if lines:
                    self._call_others()
                return True
        return False

    def _take(self, seat: _Seat, lane: ThreadLane | CallLane) -> Any:
        """Give a worker the next chunk of a lane, and return it; called with the lock."""
        seat.lane, seat.chunk, seat.is_busy = lane, lane.waiting.popleft(), True
        self._busy += 1
        lane.at_work += 1
        if lane.is_inside and lane.at_work == 1:
            self.lent += 1  # that of the caller
        return seat.chunk

    def _call_others(self) -> None:
        """Call a worker for a lane that may have one more, if there is one."""
        is_full = self._busy - self.lent >= self._most
        try:
            for lane in self._lines:
                if not (is_full and lane.at_work) and self._call_worker(lane):
                    return
        except WorkerStartError:  # who is at work will come to it
            return

    def _leave_lane(self, seat: _Seat) -> None:
        """Count that a worker is through with a chunk of a lane; called with the lock."""
        assert seat.lane is not None
        seat.lane.at_work -= 1
        if seat.lane.is_inside and not seat.lane.at_work:
            self.lent -= 1
        seat.lane = seat.chunk = None

    def _end_job(self, seat: _Seat) -> None:
        """Count that a worker is ready for the next chunk; called with the lock."""
        seat.is_busy = False
        self._busy -= 1

    def seats_of(self, lane: ThreadLane) -> list[_Seat]:
        """Return the workers that run something of a lane."""
        return [seat for seat in list(self._seats) if seat.lane is lane]

    def abandon_seat(self, seat: _Seat) -> None:
        """Leave a thread to itself, and start another if there is work; called with the lock."""
        seat.is_abandoned = True
        self._seats.remove(seat)
        self._leave_lane(seat)
        self._end_job(seat)
        self._call_others()

    def _break(self, error: BaseException) -> None:
        broken = WorkerStartError(f"The initializer failed in a thread: {error!r}")
        broken.__cause__ = error
        with self.lock:
            self._broken = broken
            lanes = list(self._lanes)
        for lane in lanes:  # without the lock: it fails futures, and those call back
            lane.fail(broken)

    def close(self) -> None:
        """Let the queued work finish, then end the threads."""
        with self.lock:
            self._is_closed = True
            threads = [seat.thread for seat in self._seats if seat.thread is not None]
        self._bell.put(None)
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join()
                wait_gone(thread.native_id or 0)

    def abandon(self) -> None:
        """In a forked child: the threads exist in the parent only."""
        self.lock = threading.RLock()  # one of them may have held it
        self._is_closed = True
        self._seats = []


class CallLane:
    """A way for calls that tell themselves what became of them, as those of futures do."""

    is_inside = False  # who waits inside the pool for one of its calls lends its place

    def __init__(self, backend: ThreadBackend, on_failure: Callable[[PlaitError], None]) -> None:
        self._backend = backend
        self.fail = on_failure
        self.waiting: deque[Callable[[], object]] = deque()
        self.at_work = 0
        self._is_closed = False

    def submit(self, call: Callable[[], object]) -> None:
        """Queue a call, which must not raise."""
        self._backend.enqueue(self, call)

    def hasten(self, is_wanted: Callable[[Any], bool]) -> None:
        """Let the call that is wanted be the next, if it waits."""
        with self._backend.lock:
            call = next(filter(is_wanted, self.waiting), None)
            if call is not None:
                self.waiting.remove(call)
                self.waiting.appendleft(call)

    def run(self, call: Callable[[], object], seat: _Seat) -> None:
        """Run a call, as a worker."""
        seat.chunk = None  # it keeps alive what it was given
        call()

    def close(self) -> None:
        """Give back what it held."""
        if not self._is_closed:
            self._is_closed = True
            thread_limit.release()


class ThreadLane:
    """One function's way through a pool of threads."""

    lost: ClassVar[list[Finished]] = []  # only a pool of processes can be given up
    left = 0  # all of it is with the workers

    def __init__(self, backend: ThreadBackend, call: Call, setting: Setting) -> None:
        self._backend = backend
        self._call = call
        self._limit = setting.limits.time
        self.is_inside = backend.number in setting.inside and not backend.is_shared
        self._context = setting.context.copy()
        self._context.run(inside.set, setting.inside | {backend.number})
        self._is_closed = False
        self.inbox = Inbox()
        self.waiting: deque[Chunk] = deque()  # with at_work, guarded by the backend's lock
        self.at_work = 0
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
        seat.place, seat.started = 0, math.inf
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
                rest = self._fail(seat, limit_s, after_s)
                self._backend.abandon_seat(seat)
                self.abandoned += 1
                if rest.items:
                    self.inbox.count(1)
                    self._backend.requeue(self, rest)
        return due

    def _fail(self, seat: _Seat, limit_s: float, after_s: float) -> Chunk:
        """Deliver the error of a seat's running task; return the tasks after it."""
        chunk, place = seat.chunk, seat.place
        assert isinstance(chunk, Chunk)
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

    def refuse(self) -> None:
        """Start nothing any more; takes no lock."""
        self.inbox.is_closed = True

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
        self._backend.drop(self)
        if not self._is_closed:
            self._is_closed = True
            thread_limit.release()
        if self.pending:
            with self._backend.lock:
                for seat in self._backend.seats_of(self):
                    self._backend.abandon_seat(seat)
                    self.abandoned += 1
        return finished
