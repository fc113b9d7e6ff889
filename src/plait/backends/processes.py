"""One child process per worker, each with a channel of its own.

Nothing here runs in the background. Whoever waits drives (see turns.py): a thread that
waits for its lane's outcomes reads the channels of all workers, hands the next chunks
out, and leaves what it finds for other lanes in theirs.

A worker is always in one of these states; docs/design.md has the table:

    starting -> ready -> (told to go) leaving -> ended
                 a worker may end from any of them
"""

from __future__ import annotations

import itertools
import os
import pickle
import selectors
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from plait import wire
from plait.backends.child import Launcher, ServerLauncher, SpawnLauncher
from plait.backends.code_watch import CodeWatch
from plait.backends.contract import Traits
from plait.backends.messages import (
    TOGETHER,
    Context,
    Forget,
    Learn,
    Ready,
    Results,
    Setup,
    StartFailed,
    StatusPage,
    Work,
)
from plait.backends.process_lane import Death, Job, ProcessLane, Report
from plait.backends.turns import Turns
from plait.errors import PlaitError, PoolClosed, WorkerStartError, death_text
from plait.host import monotonic
from plait.wire_errors import load_error

if TYPE_CHECKING:
    from plait.channel import Channel
    from plait.outcome import Call

__all__ = ["ProcessBackend"]

LAUNCHERS: dict[str, Callable[[], Launcher]] = {"server": ServerLauncher, "spawn": SpawnLauncher}

# How long a task may go on after its result is not wanted any more.
GRACE_S = 1.0
# Workers that die before they are ready, one after the other, until that is called a failure.
MOST_FALSE_STARTS = 3


@dataclass(slots=True, eq=False)
class _Worker:
    """The parent's view of one worker process."""

    number: int
    channel: Channel
    page: StatusPage
    jobs: deque[Job] = field(default_factory=deque)  # sent and not finished, the first is running
    known: set[int] = field(default_factory=set)  # keys of functions that it has
    last_seq: int = 0
    watched: int = 0  # the events of the channel that are waited for
    is_ready: bool = False
    is_leaving: bool = False

    @property
    def name(self) -> str:
        return f"process-{self.number}"


class ProcessBackend:
    """A pool of processes; they start when there is work for them."""

    traits = Traits(name="processes", can_kill=True, shares_memory=False, queue_depth=2)

    def __init__(
        self,
        max_workers: int,
        initializer: Callable[[], object] | None = None,
        start_method: str = "server",
    ) -> None:
        self.max_workers = max_workers
        self._initializer = wire.pack(initializer, "initializer") if initializer else None
        self._turns = Turns()
        self.lock = self._turns.lock  # guards everything below
        self._launcher = LAUNCHERS[start_method]()
        self._workers: dict[int, _Worker] = {}
        self._numbers = itertools.count(1)
        self._keys = itertools.count(1)
        self._backlog: deque[Job] = deque()
        self._code = CodeWatch()
        self._false_starts = 0
        self._broken: PlaitError | None = None
        self._turns.watch(self._launcher, selectors.EVENT_READ, self._count_dead)

    # --- What lanes ask for ----------------------------------------------------------

    @property
    def is_usable(self) -> bool:
        """Whether new lanes can be opened."""
        return self._broken is None

    def check_usable(self) -> None:
        """Raise the reason why no work can be taken, if there is one."""
        if self._broken is not None:
            raise self._broken

    def open_lane(self, call: Call) -> ProcessLane:
        """Open a way for a function; workers that know an older version of it leave."""
        self.check_usable()
        lane = ProcessLane(self, next(self._keys), call)
        with self.lock:
            if self._code.changed(call.fn):
                for worker in list(self._workers.values()):
                    self._let_go(worker)
        return lane

    def enqueue(self, job: Job) -> None:
        """Take a chunk, and send it if a worker is free for it."""
        with self.lock:
            self.check_usable()
            self._backlog.append(job)
            self._dispatch()

    def wait(self, lane: ProcessLane, deadline: float | None) -> list[Report | Death]:
        """Block until something arrived for a lane, driving the workers if nobody else does."""
        with self.lock:
            self._turns.wait_until(
                lambda: bool(lane.inbox or lane.is_woken or self._broken), lane.arrived, deadline
            )
            lane.is_woken = False
            arrived = list(lane.inbox)
            lane.inbox.clear()
            if not arrived:
                self.check_usable()
            return arrived

    def wake(self, lane: ProcessLane) -> None:
        """Have the thread that waits for a lane return from ``wait``; takes no lock."""
        lane.is_woken = True
        self._turns.ring()

    def close_lane(self, lane: ProcessLane) -> list[Report | Death]:
        """End what a lane has going, and return what arrived."""
        with self.lock:
            lane.is_closed = True
            self._backlog = deque(job for job in self._backlog if job.lane is not lane)
            self._end_jobs(lane)
            for worker in self._workers.values():
                if lane.key in worker.known:
                    worker.known.discard(lane.key)
                    self._send(worker, Forget(lane.key))
            return list(lane.inbox)

    def _end_jobs(self, lane: ProcessLane) -> None:
        """Cancel the chunks of a lane; a worker that does not come to it in time is killed."""

        def is_idle() -> bool:
            return not self._busy_with(lane)

        for worker in self._busy_with(lane):
            for job in worker.jobs:
                if job.lane is lane:
                    worker.page.cancel(job.seq)
        self._turns.wait_until(is_idle, lane.arrived, monotonic() + GRACE_S)
        for worker in self._busy_with(lane):
            self._launcher.kill(worker.number)
        self._turns.wait_until(is_idle, lane.arrived, monotonic() + GRACE_S)

    def _busy_with(self, lane: ProcessLane) -> list[_Worker]:
        return [
            worker
            for worker in self._workers.values()
            if any(job.lane is lane for job in worker.jobs)
        ]

    def close(self) -> None:
        """Let the workers go, and end those that do not go."""
        if isinstance(self._broken, PoolClosed):  # or abandoned, with a lock of the parent's
            return
        with self.lock:
            self._break(PoolClosed("This pool is closed; open a new one."))
            for worker in list(self._workers.values()):
                self._let_go(worker)
            gone = threading.Condition(self.lock)
            self._turns.wait_until(lambda: not self._workers, gone, monotonic() + GRACE_S)
            for worker in self._workers.values():
                self._launcher.kill(worker.number)
            self._turns.wait_until(lambda: not self._workers, gone, monotonic() + GRACE_S)
            self._launcher.close()
            self._close_files()

    def abandon(self) -> None:
        """In a forked child: close the copies, which would keep the parent's workers waiting."""
        self._broken = PoolClosed("This pool belongs to the parent process; open a new one.")
        self._launcher.abandon()
        self._close_files()

    def _close_files(self) -> None:
        for worker in self._workers.values():
            worker.channel.close()
        self._turns.close()

    # --- Workers ---------------------------------------------------------------------

    def _start_worker(self) -> _Worker:
        number = next(self._numbers)
        worker = _Worker(number, *self._launcher.start(number))
        self._workers[number] = worker
        setup = Setup(worker.name, Context.here(), sys.argv[:], dict(os.environ), self._initializer)
        self._send(worker, setup)
        return worker

    def _let_go(self, worker: _Worker) -> None:
        """Let a worker end once it has finished what it has."""
        worker.is_leaving = True
        if not worker.jobs:
            self._hang_up(worker)

    def _hang_up(self, worker: _Worker) -> None:
        if worker.channel.fileno() >= 0:
            self._turns.unwatch(worker.channel)
            worker.channel.close()

    def _send(self, worker: _Worker, message: object) -> None:
        if worker.channel.fileno() >= 0:
            worker.channel.send(message)
            self._watch(worker)

    def _watch(self, worker: _Worker) -> None:
        """Wait for what the channel is waiting for."""
        clogged = selectors.EVENT_WRITE if worker.channel.is_clogged else 0
        if worker.watched != selectors.EVENT_READ | clogged:
            worker.watched = selectors.EVENT_READ | clogged
            self._turns.watch(worker.channel, worker.watched, partial(self._serve, worker))

    def _serve(self, worker: _Worker, _: Channel, mask: int) -> None:
        if mask & selectors.EVENT_WRITE:
            worker.channel.flush()
            self._watch(worker)
        if mask & selectors.EVENT_READ and worker.channel.fileno() >= 0:
            try:
                self._hear(worker, worker.channel.receive())
            except EOFError:
                self._turns.unwatch(worker.channel)  # its end will be told, see child.py

    def _hear(self, worker: _Worker, message: Any) -> None:
        if isinstance(message, Results):
            self._take_results(worker, message)
        elif isinstance(message, Ready):
            worker.is_ready = True
            self._false_starts = 0
        elif isinstance(message, StartFailed):
            cause = load_error(message.error)
            broken = WorkerStartError(f"The initializer failed in {worker.name}: {cause!r}")
            broken.__cause__ = cause
            self._break(broken)

    def _take_results(self, worker: _Worker, results: Results) -> None:
        job = worker.jobs[0] if worker.jobs else None
        if job is None or (results.seq, results.place) != (job.seq, job.done):
            return  # it was sent, and then found in the box as well: the worker died in between
        self._deliver(job, Report(job, job.done, results, worker.name, self._pid(worker)))
        job.done += len(results.values)
        if results.is_last:
            worker.jobs.popleft()
            if worker.is_leaving and not worker.jobs:
                self._hang_up(worker)
            self._dispatch()

    def _count_dead(self, *_: object) -> None:
        ended = self._launcher.take_ended()
        if self._launcher.is_lost:
            self._turns.unwatch(self._launcher)
            if self._broken is None:
                self._launcher.renew()
                self._turns.watch(self._launcher, selectors.EVENT_READ, self._count_dead)
        for number, status in ended:
            self._bury(self._workers[number], status)

    def _bury(self, worker: _Worker, status: int | None) -> None:
        """Settle the affairs of a worker that ended."""
        if worker.channel.fileno() >= 0:
            with suppress(EOFError):
                while (message := worker.channel.receive()) is not None:
                    self._hear(worker, message)
        for kept in worker.page.kept():
            self._take_results(worker, Results(*pickle.loads(kept)))
        self._hang_up(worker)
        del self._workers[worker.number]
        if not worker.is_ready and not worker.is_leaving:
            self._count_false_start(worker, status)
        seq, place = worker.page.running()
        for job in worker.jobs:
            guilty = None
            if not worker.page.is_shared:
                guilty = job.done if job is worker.jobs[0] else None
            elif job.seq == seq and job.done <= place != TOGETHER:
                guilty = place
            self._deliver(job, Death(job, guilty, worker.name, self._pid(worker), status))
        self._launcher.pids.pop(worker.number, None)
        self._dispatch()

    def _count_false_start(self, worker: _Worker, status: int | None) -> None:
        self._false_starts += 1
        if self._initializer is not None or self._false_starts >= MOST_FALSE_STARTS:
            self._break(
                WorkerStartError(
                    f"{worker.name} (pid {self._pid(worker)}) {death_text(status)} before it was "
                    f"ready{' (in the initializer?)' if self._initializer else ''}. "
                    "No worker can be started like this."
                )
            )

    def _pid(self, worker: _Worker) -> int:
        return self._launcher.pids.get(worker.number, 0)

    def _break(self, error: PlaitError) -> None:
        if self._broken is None or isinstance(error, PoolClosed):
            self._broken = error
        self._turns.ring()

    # --- Chunks ----------------------------------------------------------------------

    def _dispatch(self) -> None:
        """Send waiting chunks to workers that have room."""
        while self._backlog and self._broken is None:
            worker = self._pick(self._backlog[0])
            if worker is None:
                return
            self._assign(worker, self._backlog.popleft())

    def _pick(self, job: Job) -> _Worker | None:
        """Return the worker for a chunk: a free one, a new one, or one whose chunk is brief."""
        staying = [worker for worker in self._workers.values() if not worker.is_leaving]
        free = next((worker for worker in staying if not worker.jobs), None)
        if free is not None:
            return free
        if len(staying) < self.max_workers:
            return self._start_worker()
        brief = (
            worker
            for worker in staying
            if len(worker.jobs) < self.traits.queue_depth and worker.jobs[0].chunk.brief
        )
        return next(brief, None) if job.chunk.brief else None

    def _assign(self, worker: _Worker, job: Job) -> None:
        lane = job.lane
        if lane.key not in worker.known:
            worker.known.add(lane.key)
            self._send(worker, Learn(lane.key, lane.call.style, lane.fn, Context.here()))
        worker.last_seq += 1
        job.seq = worker.last_seq
        worker.jobs.append(job)
        self._send(worker, Work(job.seq, lane.key, job.chunk.together, job.items))

    def _deliver(self, job: Job, entry: Report | Death) -> None:
        job.lane.inbox.append(entry)
        job.lane.arrived.notify()
