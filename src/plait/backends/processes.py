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
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from plait import wire
from plait.backends.child import Change, open_launcher
from plait.backends.code_watch import CodeWatch
from plait.backends.contract import Setting, Traits
from plait.backends.messages import (
    Forget,
    Learn,
    Ready,
    Released,
    Results,
    Said,
    Setup,
    StartFailed,
    Work,
    decode,
    encode,
    new_file_fd,
)
from plait.backends.process_lane import Death, Entry, Job, ProcessLane, Report, Uttered, Verdict
from plait.backends.process_worker import QUEUE_DEPTH, Worker
from plait.backends.turns import Turns
from plait.backends.voices import OutputReader, put_out
from plait.blas import with_thread_limits
from plait.errors import PlaitError, PoolClosed, WorkerStartError, death_text
from plait.host import monotonic, oom_kills
from plait.segments import SegmentStore, SegmentView
from plait.shield import Shield
from plait.wire_errors import load_error

if TYPE_CHECKING:
    from plait.backends.messages import Context
    from plait.channel import Channel
    from plait.outcome import Call

__all__ = ["ProcessBackend"]

# How long a task may go on after its result is not wanted any more.
GRACE_S = 0.8
# How long it may take to end once it was asked to, before its worker is killed.
END_S = 0.5
# How often a lane that closes tries to end what still runs.
MOST_TRIES = 5
# So many workers are started at once, before one has answered.
FIRST_STARTS = 2
# Workers that die before they are ready, one after the other, until that is called a failure.
MOST_FALSE_STARTS = 3


class ProcessBackend:
    """A pool of processes; they start when there is work for them."""

    traits = Traits(
        name="processes",
        can_kill=True,
        shares_memory=False,
        queue_depth=QUEUE_DEPTH,
        is_driven=True,
    )

    def __init__(
        self,
        max_workers: int,
        initializer: Callable[[], object] | None = None,
        start_method: str = "server",
        max_tasks_per_child: int | None = None,
    ) -> None:
        self.max_workers = max_workers
        self.most_tasks = max_tasks_per_child or sys.maxsize
        self.store = SegmentStore(new_file_fd("plait-items"), stores=1)
        self._initializer = wire.pack(initializer, "initializer") if initializer else None
        self._turns = Turns()
        self.lock = self._turns.lock  # guards everything below
        self._launcher = open_launcher(start_method)
        self._workers: dict[int, Worker] = {}
        self._free: dict[int, Worker] = {}  # that could begin a chunk at once, the last one first
        self._roomy: dict[int, Worker] = {}  # at which a brief one may wait
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
            worker = None if self._backlog else self._pick(job)
            if worker is None:
                self._backlog.append(job)
            else:
                self._assign(worker, job)

    def wait(
        self,
        lane: ProcessLane,
        deadline: float | None,
        until: Callable[[], bool] | None = None,
    ) -> list[Entry]:
        """Block until something arrived for a lane, driving the workers if nobody else does."""

        def is_done() -> bool:
            if lane.inbox or lane.is_woken or self._broken or shield.is_hit:
                return True
            return until is not None and until()

        with self._shield() as shield, self.lock:
            self._turns.wait_until(is_done, lane.arrived, deadline)
            lane.is_woken = False
            arrived = list(lane.inbox)
            lane.inbox.clear()
            if not arrived:
                self.check_usable()
        if self._strays:
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
                    self._drop_segments(job)
                    self._deliver(job, Report(job, 0, NOTHING_DONE, "", 0, SegmentView(-1)))
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
            for job in self._backlog:
                if job.lane is lane:
                    self._drop_segments(job)
            self._backlog = deque(job for job in self._backlog if job.lane is not lane)
            self._end_jobs(lane, GRACE_S if grace_s is None else grace_s)
            for worker in self._workers.values():
                if lane.key in worker.known:
                    self._hear_rest(worker)
                    del worker.known[lane.key]
                    self._send(worker, Forget(lane.key))
            arrived = list(lane.inbox)
            lane.inbox.clear()
            lane.is_over = True
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
        self.store.close()
        self._turns.close()

    # --- Workers ---------------------------------------------------------------------

    def _start_worker(self, context: Context) -> Worker:
        number = next(self._numbers)
        worker = Worker.of(number, self._launcher.start(number, self.store.fd))
        self._workers[number] = worker
        self._sort(worker)
        for reader in worker.outputs:
            handler = partial(self._hear_output, worker)
            self._turns.watch(reader, selectors.EVENT_READ, handler, is_first=True)
        environ = with_thread_limits(os.environ, self.max_workers)
        setup = Setup(
            worker.name,
            context,
            sys.argv[:],
            environ,
            self.max_workers,
            self._initializer,
        )
        self._send(worker, setup)
        return worker

    def _sort(self, worker: Worker) -> None:
        """Note whether a worker has room for a chunk; after each change of what that rests on."""
        self._free.pop(worker.number, None)
        self._roomy.pop(worker.number, None)
        if worker.can_take and not worker.jobs:
            self._free[worker.number] = worker
        elif worker.has_room:
            self._roomy[worker.number] = worker

    def _let_go(self, worker: Worker) -> None:
        """Let a worker end once it has finished what it has."""
        worker.is_leaving = True
        self._sort(worker)
        if not worker.jobs:
            self._hang_up(worker)

    def _hang_up(self, worker: Worker) -> None:
        if not worker.is_cut_off:
            self._turns.unwatch(worker.channel)
            worker.channel.close()
            worker.is_cut_off = True

    def _send(self, worker: Worker, message: tuple[Any, ...]) -> None:
        if not worker.is_cut_off:
            worker.channel.send(encode(message))
            self._watch(worker)

    def _watch(self, worker: Worker) -> None:
        """Wait for what the channel is waiting for."""
        events = READ_OR_WRITE if worker.channel.is_clogged else selectors.EVENT_READ
        if worker.watched != events:
            worker.watched = events
            self._turns.watch(worker.channel, events, partial(self._serve, worker))

    def _serve(self, worker: Worker, _: Channel, mask: int) -> None:
        if mask & selectors.EVENT_WRITE:
            worker.channel.flush()
            self._watch(worker)
        if mask & selectors.EVENT_READ and not worker.is_cut_off:
            try:
                messages = worker.channel.receive()
            except EOFError:
                self._turns.unwatch(worker.channel)  # its end will be told, see child.py
            else:
                if len(messages) > 1:  # the later ones may be younger than what was just read
                    for reader in worker.outputs:
                        self._hear_output(worker, reader, 0)
                for message in messages:
                    self._hear(worker, decode(message))

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
        if lane is None or lane.is_over:
            self._strays.append(Uttered(said, worker.name))
        else:
            lane.inbox.append(Uttered(said, worker.name))
            self._turns.tell(lane.arrived)

    def _hear(self, worker: Worker, message: Any) -> None:
        if isinstance(message, Results):
            self._take_results(worker, message)
        elif isinstance(message, Said):
            self._note_said(worker, message)
        elif isinstance(message, Ready):
            worker.is_ready = True
            worker.heard_at = monotonic()
            self._false_starts = 0
            self._dispatch()
        elif isinstance(message, Released):
            self._let_go_of(worker, message.offsets)
        elif isinstance(message, StartFailed):
            cause = load_error(message.error)
            broken = WorkerStartError(f"The initializer failed in {worker.name}: {cause!r}")
            broken.__cause__ = cause
            self._break(broken)

    def _take_results(self, worker: Worker, results: Results) -> None:
        job = worker.jobs[0] if worker.jobs else None
        if job is None or (results.seq, results.place) != (job.seq, job.done):
            return  # it was sent, and then found in the box as well: the worker died in between
        self._deliver(
            job, Report(job, job.done, results, worker.name, self._pid(worker), worker.view)
        )
        job.done += len(results.values)
        worker.heard_at = monotonic()
        if results.released:
            self._let_go_of(worker, results.released)
        if results.is_last:
            worker.jobs.popleft()
            if job.segments:
                self._settle_segments(worker, job, results.held)
            if not worker.jobs:
                worker.is_leaving |= worker.has_grown(self._pid(worker), job.lane)
                if worker.is_leaving:
                    self._hang_up(worker)
            self._sort(worker)
            if self._backlog:
                self._dispatch()

    # --- Segments: who uses what of the items' memory -----------------------------------

    def _hold(self, worker: Worker, offsets: Iterable[int]) -> None:
        for offset in set(offsets) - worker.held:
            self.store.retain(offset)
            worker.held.add(offset)

    def _let_go_of(self, worker: Worker, offsets: Iterable[int]) -> None:
        for offset in worker.held.intersection(offsets):
            worker.held.remove(offset)
            self.store.release(offset)

    def _settle_segments(self, worker: Worker, job: Job, held: tuple[int, ...]) -> None:
        """Let go of a finished job's segments, but for what its worker goes on using."""
        self._hold(worker, held)
        self._let_go_of(worker, set(job.segments).difference(held))
        self._drop_segments(job)

    def _drop_segments(self, job: Job) -> None:
        while job.segments:
            self.store.release(job.segments.pop())

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
                self._sort(worker)
                self._judge_at(monotonic())
        if vanished:  # all of them are one failure, and not the initializer's
            self._count_false_start(vanished[0], None)

    def _bury(self, worker: Worker, change: Change) -> None:
        """Settle the affairs of a worker that ended."""
        worker.has_ended = True
        self._sort(worker)
        if not worker.is_cut_off:
            with suppress(EOFError):
                while messages := worker.channel.receive():
                    for message in messages:
                        self._hear(worker, decode(message))
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
        self._let_go_of(worker, set(worker.held))
        for job in worker.jobs:
            self._drop_segments(job)
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
            self._sort(worker)
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
        avoided = job.chunk.earlier[-1].worker if job.chunk.earlier else None
        to_be_avoided = None
        for worker in reversed(tuple(self._free.values())):  # whose memory is still in the caches
            if self._is_used_up(worker, job):
                self._let_go(worker)
            elif worker.name == avoided:
                to_be_avoided = worker
            else:
                return worker
        if self._count_places() < self.max_workers:
            return self._start_worker(job.lane.context) if self._may_start() else None
        if to_be_avoided is not None:  # if there are others, one of them will be free
            is_alone = sum(worker.can_take for worker in self._workers.values()) == 1
            return to_be_avoided if is_alone else None
        return self._pick_roomy(job) if job.chunk.brief else None

    def _pick_roomy(self, job: Job) -> Worker | None:
        for worker in tuple(self._roomy.values()):
            if not self._is_used_up(worker, job):
                return worker
            self._let_go(worker)
        return None

    def _is_used_up(self, worker: Worker, job: Job) -> bool:
        """Whether a worker is rather to be replaced than given this job."""
        is_spent = worker.tasks > 0 and worker.tasks + len(job.chunk.items) > self.most_tasks
        if is_spent or worker.jobs or job.lane.limits.memory_bytes is None:
            return is_spent
        return worker.has_grown(self._pid(worker), job.lane)

    def _may_start(self) -> bool:
        """Whether to start another worker already.

        Workers are forked one after the other. Where tasks are tiny, the first one has done them
        all before the last one is there: so as many are on their way as there are, and two.
        """
        if self._initializer is not None:  # which may take as long as it likes
            return True
        ready = sum(worker.is_ready for worker in self._workers.values())
        return len(self._workers) - ready < FIRST_STARTS + ready

    def _count_places(self) -> int:
        if len(self._workers) < self.max_workers:
            return len(self._workers)
        return sum(worker.takes_a_place for worker in self._workers.values())

    def _assign(self, worker: Worker, job: Job) -> None:
        lane = job.lane
        if lane.key not in worker.known:
            worker.known[lane.key] = lane
            learn = Learn(lane.key, lane.call.style, lane.fn, lane.context, lane.variables)
            self._hold(worker, lane.segments)
            self._send(worker, learn)
        worker.last_seq += 1
        worker.tasks += len(job.chunk.items)
        job.seq = worker.last_seq
        if not worker.jobs:
            worker.heard_at = monotonic()
        worker.jobs.append(job)
        self._sort(worker)
        chunk = job.chunk
        released = worker.view.take_released() if worker.view.released else []
        self._send(
            worker, Work(job.seq, lane.key, chunk.first, chunk.together, job.items, released)
        )
        if lane.limits.are_set:
            self._judge_at(monotonic() + worker.first_look_s)

    def _deliver(self, job: Job, entry: Entry) -> None:
        if job.lane.is_over:
            if isinstance(entry, Report):
                for segment in entry.segments:
                    entry.view.drop(segment)
            return
        job.lane.inbox.append(entry)
        self._turns.tell(job.lane.arrived)


READ_OR_WRITE = selectors.EVENT_READ | selectors.EVENT_WRITE
# What is reported of a chunk that was taken back before it started.
NOTHING_DONE = Results(0, 0, [], is_plain=True, errors={}, times=[], is_last=True, queued_s=0.0)
