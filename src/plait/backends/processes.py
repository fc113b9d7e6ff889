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
import math
import os
import pickle
import selectors
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from plait import wire
from plait.backends.child import Change, open_launcher
from plait.backends.code_watch import CodeWatch
from plait.backends.contract import Setting, Traits
from plait.backends.messages import (
    Context,
    Forget,
    Learn,
    Ready,
    Results,
    Said,
    Setup,
    StartFailed,
    Work,
)
from plait.backends.process_lane import Death, Entry, Job, ProcessLane, Report, Uttered, Verdict
from plait.backends.process_worker import Worker
from plait.backends.turns import Turns
from plait.backends.voices import OutputReader, put_out
from plait.blas import with_thread_limits
from plait.errors import PlaitError, PoolClosed, WorkerStartError, death_text
from plait.host import monotonic, oom_kills
from plait.shield import Shield
from plait.wire_errors import load_error

if TYPE_CHECKING:
    from plait.channel import Channel
    from plait.outcome import Call

__all__ = ["ProcessBackend"]

# How long a task may go on after its result is not wanted any more.
GRACE_S = 0.8
# How long it may take to end once it was asked to, before its worker is killed.
END_S = 0.5
# How often a lane that closes tries to end what still runs.
MOST_TRIES = 5
# Workers that die before they are ready, one after the other, until that is called a failure.
MOST_FALSE_STARTS = 3


class ProcessBackend:
    """A pool of processes; they start when there is work for them."""

    traits = Traits(name="processes", can_kill=True, shares_memory=False, queue_depth=2)

    def __init__(
        self,
        max_workers: int,
        initializer: Callable[[], object] | None = None,
        start_method: str = "server",
        max_tasks_per_child: int | None = None,
    ) -> None:
        self.max_workers = max_workers
        self.most_tasks = max_tasks_per_child or sys.maxsize
        self._initializer = wire.pack(initializer, "initializer") if initializer else None
        self._turns = Turns()
        self.lock = self._turns.lock  # guards everything below
        self._launcher = open_launcher(start_method)
        self._workers: dict[int, Worker] = {}
        self._numbers = itertools.count(1)
        self._keys = itertools.count(1)
        self._backlog: deque[Job] = deque()
        self._code = CodeWatch()
        self._false_starts = 0
        self._broken: PlaitError | None = None
        self._strays: deque[Uttered] = deque()  # what workers said that work for no open lane
        self._oom_kills = oom_kills()
        self._turns.watch(self._launcher, selectors.EVENT_READ, self._hear_launcher)
        self._turns.on_due = self._judge_all

    # --- What lanes ask for ----------------------------------------------------------

    @property
    def is_usable(self) -> bool:
        """Whether new lanes can be opened."""
        return self._broken is None

    def _shield(self) -> Shield:
        return Shield(self._turns.ring)

    def check_usable(self) -> None:
        """Raise the reason why no work can be taken, if there is one."""
        if self._broken is not None:
            raise self._broken

    def open_lane(self, call: Call, setting: Setting | None = None) -> ProcessLane:
        """Open a way for a function; workers that know an older version of it leave."""
        self.check_usable()
        lane = ProcessLane(self, next(self._keys), call, setting or Setting())
        with self._shield(), self.lock:
            if self._code.changed(call.fn):
                for worker in list(self._workers.values()):
                    worker.is_stale = True
                    self._let_go(worker)
        return lane

    def enqueue(self, job: Job) -> None:
        """Take a chunk, and send it if a worker is free for it."""
        with self._shield(), self.lock:
            self.check_usable()
            self._backlog.append(job)
            self._dispatch()

    def wait(self, lane: ProcessLane, deadline: float | None) -> list[Entry]:
        """Block until something arrived for a lane, driving the workers if nobody else does."""
        with self._shield() as shield, self.lock:
            self._turns.wait_until(
                lambda: bool(lane.inbox or lane.is_woken or self._broken or shield.is_hit),
                lane.arrived,
                deadline,
            )
            lane.is_woken = False
            arrived = list(lane.inbox)
            lane.inbox.clear()
            if not arrived:
                self.check_usable()
        self._put_out_strays()
        return arrived

    def _put_out_strays(self) -> None:
        while self._strays:
            with suppress(IndexError):  # another thread does the same
                put_out(*self._strays.popleft())

    def wake(self, lane: ProcessLane) -> None:
        """Have the thread that waits for a lane return from ``wait``; takes no lock."""
        lane.is_woken = True
        self._turns.ring()

    def cancel(self, lane: ProcessLane, first: int) -> bool:
        """End the chunk of a lane that begins with a task; False if it is over."""
        with self._shield(), self.lock:
            for job in self._backlog:
                if job.lane is lane and job.chunk.first == first:
                    self._backlog.remove(job)
                    self._deliver(job, Report(job, 0, NOTHING_DONE, "", 0))
                    return True
            for worker, job in self._jobs_of(lane):
                if job.chunk.first == first:
                    job.is_cancelled = True
                    worker.page.cancel(job.seq)
                    self._end_job(worker, job)
                    return True
        return False

    def close_lane(self, lane: ProcessLane, grace_s: float | None = None) -> list[Entry]:
        """End what a lane has going after some seconds, and return what arrived."""
        with self._shield(), self.lock:
            lane.is_closed = True
            self._backlog = deque(job for job in self._backlog if job.lane is not lane)
            self._end_jobs(lane, GRACE_S if grace_s is None else grace_s)
            for worker in self._workers.values():
                if lane.key in worker.known:
                    self._hear_rest(worker)
                    del worker.known[lane.key]
                    self._send(worker, Forget(lane.key))
            arrived = list(lane.inbox)
        self._put_out_strays()
        return arrived

    def _end_jobs(self, lane: ProcessLane, grace_s: float) -> None:
        """Cancel the chunks of a lane; a worker that does not come to it in time is ended."""

        def is_idle() -> bool:
            return not any(worker.may_run(job) for worker, job in self._jobs_of(lane))

        for worker, job in self._jobs_of(lane):
            worker.page.cancel(job.seq)
        self._turns.wait_until(is_idle, lane.arrived, monotonic() + grace_s)
        for _ in range(MOST_TRIES):
            for worker, job in self._jobs_of(lane):
                if worker.is_ready:
                    self._end_job(worker, job)
                else:  # its initializer may never end
                    self._condemn(worker, Verdict("cancelled", worker.page.running()))
            self._turns.wait_until(is_idle, lane.arrived, monotonic() + GRACE_S)

    def _end_job(self, worker: Worker, job: Job) -> None:
        """End a worker if it runs this job."""
        task = worker.runs(job)
        if task is not None:
            self._condemn(worker, Verdict("cancelled", task))

    def _jobs_of(self, lane: ProcessLane) -> list[tuple[Worker, Job]]:
        workers = self._workers.values()
        return [(worker, job) for worker in workers for job in worker.jobs if job.lane is lane]

    def close(self) -> None:
        """Let the workers go, and end those that do not go."""
        if isinstance(self._broken, PoolClosed):  # or abandoned, with a lock of the parent's
            return
        with self._shield(), self.lock:
            self._break(PoolClosed("This pool is closed; open a new one."))
            for worker in list(self._workers.values()):
                self._let_go(worker)
            gone = threading.Condition(self.lock)
            self._turns.wait_until(lambda: not self._workers, gone, monotonic() + GRACE_S)
            for grace_s in (END_S, 0.0):
                for worker in self._workers.values():
                    self._launcher.end(worker.number, grace_s)
                self._turns.wait_until(lambda: not self._workers, gone, monotonic() + 2 * END_S)
            self._launcher.close()
            self._close_files()
        self._put_out_strays()

    def abandon(self) -> None:
        """In a forked child: close the copies, which would keep the parent's workers waiting."""
        self._broken = PoolClosed("This pool belongs to the parent process; open a new one.")
        self._launcher.abandon()
        self._close_files()

    def _close_files(self) -> None:
        for worker in self._workers.values():
            worker.channel.close()
            worker.page.close()
            for reader in worker.outputs:
                reader.close()
        self._workers.clear()
        self._turns.close()

    # --- Workers ---------------------------------------------------------------------

    def _start_worker(self) -> Worker:
        number = next(self._numbers)
        worker = Worker.of(number, self._launcher.start(number))
        self._workers[number] = worker
        for reader in worker.outputs:
            handler = partial(self._hear_output, worker)
            self._turns.watch(reader, selectors.EVENT_READ, handler, is_first=True)
        environ = with_thread_limits(os.environ, self.max_workers)
        setup = Setup(worker.name, Context.here(), sys.argv[:], environ, self._initializer)
        self._send(worker, setup)
        return worker

    def _let_go(self, worker: Worker) -> None:
        """Let a worker end once it has finished what it has."""
        worker.is_leaving = True
        if not worker.jobs:
            self._hang_up(worker)

    def _hang_up(self, worker: Worker) -> None:
        if worker.channel.fileno() >= 0:
            self._turns.unwatch(worker.channel)
            worker.channel.close()

    def _send(self, worker: Worker, message: object) -> None:
        if worker.channel.fileno() >= 0:
            worker.channel.send(message)
            self._watch(worker)

    def _watch(self, worker: Worker) -> None:
        """Wait for what the channel is waiting for."""
        clogged = selectors.EVENT_WRITE if worker.channel.is_clogged else 0
        if worker.watched != selectors.EVENT_READ | clogged:
            worker.watched = selectors.EVENT_READ | clogged
            self._turns.watch(worker.channel, worker.watched, partial(self._serve, worker))

    def _serve(self, worker: Worker, _: Channel, mask: int) -> None:
        if mask & selectors.EVENT_WRITE:
            worker.channel.flush()
            self._watch(worker)
        if mask & selectors.EVENT_READ and worker.channel.fileno() >= 0:
            try:
                self._hear(worker, worker.channel.receive())
            except EOFError:
                self._turns.unwatch(worker.channel)  # its end will be told, see child.py

    def _hear_output(self, worker: Worker, reader: OutputReader, _: int) -> None:
        said = reader.read()
        if said is not None:
            self._note_said(worker, said)
        if reader.has_ended:
            self._turns.unwatch(reader)

    def _hear_rest(self, worker: Worker) -> None:
        for reader in worker.outputs:
            for said in reader.read_rest():
                self._note_said(worker, said)

    def _note_said(self, worker: Worker, said: Said) -> None:
        """Hand what a worker said to the lane that it works, or last worked, for."""
        lane = worker.jobs[0].lane if worker.jobs else next(reversed(worker.known.values()), None)
        if lane is None:
            self._strays.append(Uttered(said, worker.name))
        else:
            lane.inbox.append(Uttered(said, worker.name))
            lane.arrived.notify()

    def _hear(self, worker: Worker, message: Any) -> None:
        if isinstance(message, Results):
            self._take_results(worker, message)
        elif isinstance(message, Said):
            self._note_said(worker, message)
        elif isinstance(message, Ready):
            worker.is_ready = True
            worker.heard_at = monotonic()
            self._false_starts = 0
        elif isinstance(message, StartFailed):
            cause = load_error(message.error)
            broken = WorkerStartError(f"The initializer failed in {worker.name}: {cause!r}")
            broken.__cause__ = cause
            self._break(broken)

    def _take_results(self, worker: Worker, results: Results) -> None:
        job = worker.jobs[0] if worker.jobs else None
        if job is None or (results.seq, results.place) != (job.seq, job.done):
            return  # it was sent, and then found in the box as well: the worker died in between
        self._deliver(job, Report(job, job.done, results, worker.name, self._pid(worker)))
        job.done += len(results.values)
        worker.heard_at = monotonic()
        if results.is_last:
            worker.jobs.popleft()
            if not worker.jobs and worker.has_grown(self._pid(worker), job.lane):
                worker.is_leaving = True
            if worker.is_leaving and not worker.jobs:
                self._hang_up(worker)
            self._dispatch()

    def _hear_launcher(self, *_: object) -> None:
        changes = self._launcher.take_changes()
        if self._launcher.is_lost:
            self._turns.unwatch(self._launcher)
            if self._broken is None:
                self._launcher.renew()
                self._turns.watch(self._launcher, selectors.EVENT_READ, self._hear_launcher)
        vanished = []  # with the server, before they were ready
        for change in changes:
            worker = self._workers[change.number]
            if change.status is None and worker.failed_to_start:
                vanished.append(worker)
            if change.what == "ended":
                self._bury(worker, change)
            else:
                is_stopped = change.what == "stopped"
                worker.stopped = (monotonic(), change.status or 0) if is_stopped else None
                self._judge_at(monotonic())
        if vanished:  # all of them are one failure, and not the initializer's
            self._count_false_start(vanished[0], None)

    def _bury(self, worker: Worker, change: Change) -> None:
        """Settle the affairs of a worker that ended."""
        if worker.channel.fileno() >= 0:
            with suppress(EOFError):
                while (message := worker.channel.receive()) is not None:
                    self._hear(worker, message)
        for kept in worker.page.kept():
            self._take_results(worker, Results(*pickle.loads(kept)))
        self._hear_rest(worker)
        self._hang_up(worker)
        for reader in worker.outputs:
            self._turns.unwatch(reader)
            reader.close()
        del self._workers[worker.number]
        if worker.failed_to_start and change.status is not None:
            self._count_false_start(worker, change.status)
        was_oom = change.status == -signal.SIGKILL and self._has_oom_struck()
        for job in worker.jobs:
            death = Death(
                job,
                worker.guilty_place(job),
                worker.name,
                self._pid(worker),
                change.status,
                worker.running_since,
                worker.verdict,
                change.peak_bytes,
                worker.page.last_words(),
                was_oom,
            )
            self._deliver(job, death)
        self._launcher.pids.pop(worker.number, None)
        worker.page.close()
        self._dispatch()

    def _has_oom_struck(self) -> bool:
        before, self._oom_kills = self._oom_kills, oom_kills()
        return None not in (before, self._oom_kills) and before != self._oom_kills

    def _count_false_start(self, worker: Worker, status: int | None) -> None:
        self._false_starts += 1
        is_sure = self._initializer is not None and status is not None
        if not is_sure and self._false_starts < MOST_FALSE_STARTS:
            return
        ending = worker.verdict.text if worker.verdict else death_text(status)
        where = " (in the initializer?)" if self._initializer else ""
        stack = worker.page.last_words()
        self._break(
            WorkerStartError(
                f"{worker.name} (pid {self._pid(worker)}) {ending} before it was ready{where}. "
                "No worker can be started like this." + (stack and f"\n{stack}")
            )
        )

    def _pid(self, worker: Worker) -> int:
        return self._launcher.pids.get(worker.number, 0)

    def _break(self, error: PlaitError) -> None:
        if self._broken is None or isinstance(error, PoolClosed):
            self._broken = error
        self._turns.ring()

    # --- Limits ----------------------------------------------------------------------

    def _judge_at(self, due: float) -> None:
        self._turns.due = min(self._turns.due, due)

    def _judge_all(self) -> None:
        """End the workers that are over a limit, and note when to look again."""
        self._turns.due = math.inf
        for worker in list(self._workers.values()):
            if worker.verdict is None:
                verdict, due = worker.judge(self._pid(worker), monotonic())
                self._judge_at(due)
                if verdict is not None:
                    self._condemn(worker, verdict)

    def _condemn(self, worker: Worker, verdict: Verdict) -> None:
        """End a worker because of the task that it runs, unless it has finished that."""
        if worker.verdict is None and worker.page.condemn(verdict.running):
            worker.verdict = verdict
            worker.is_leaving = True
            self._launcher.end(worker.number, 0.0 if verdict.reason == "stopped" else END_S)

    # --- Chunks ----------------------------------------------------------------------

    def _dispatch(self) -> None:
        """Send waiting chunks to workers that have room."""
        for job in list(self._backlog):
            if self._broken is not None:
                return
            worker = self._pick(job)
            if worker is not None:
                self._backlog.remove(job)
                self._assign(worker, job)
            elif not job.chunk.earlier:  # else it waits for another worker than the others
                return

    def _pick(self, job: Job) -> Worker | None:
        """Return the worker for a chunk: a free one, a new one, or one whose chunk is brief.

        A task that is tried again goes to another worker than before, where there is one.
        """
        tasks = len(job.chunk.items)
        avoided = job.chunk.earlier[-1].worker if job.chunk.earlier else None
        for worker in list(self._workers.values()):
            is_spent = worker.tasks > 0 and worker.tasks + tasks > self.most_tasks
            if is_spent or (worker.is_free and worker.has_grown(self._pid(worker), job.lane)):
                self._let_go(worker)
        staying = [worker for worker in self._workers.values() if worker.can_take]
        free = [worker for worker in staying if worker.is_free]
        for worker in free:
            if worker.name != avoided:
                return worker
        if sum(worker.takes_a_place for worker in self._workers.values()) < self.max_workers:
            return self._start_worker()
        if free:
            # The one to be avoided. If there are others, one of them will be free.
            return free[0] if len(staying) == 1 else None
        brief = (
            worker
            for worker in staying
            if len(worker.jobs) < self.traits.queue_depth and worker.jobs[0].chunk.brief
        )
        return next(brief, None) if job.chunk.brief else None

    def _assign(self, worker: Worker, job: Job) -> None:
        lane = job.lane
        if lane.key not in worker.known:
            worker.known[lane.key] = lane
            learn = Learn(lane.key, lane.call.style, lane.fn, Context.here(), lane.variables)
            self._send(worker, learn)
        worker.last_seq += 1
        worker.tasks += len(job.chunk.items)
        job.seq = worker.last_seq
        if not worker.jobs:
            worker.heard_at = monotonic()
        worker.jobs.append(job)
        chunk = job.chunk
        self._send(worker, Work(job.seq, lane.key, chunk.first, chunk.together, job.items))
        if lane.limits.are_set:
            self._judge_at(monotonic() + worker.first_look_s)

    def _deliver(self, job: Job, entry: Entry) -> None:
        job.lane.inbox.append(entry)
        job.lane.arrived.notify()


# What is reported of a chunk that was taken back before it started.
NOTHING_DONE = Results(0, 0, [], is_plain=True, errors={}, times=[], is_last=True, queued_s=0.0)
