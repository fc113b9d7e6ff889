"""One child process per worker, each with a channel of its own.

Nothing here runs in the background. Whoever waits drives (see turns.py): a thread that
waits for its lane's outcomes reads the channels of all workers, hands the next chunks
out, and leaves what it finds for other lanes in theirs.

A worker is always in one of these states; docs/design.md has the table:

    starting -> ready -> (told to go) leaving -> ended
                 a worker may end from any of them
"""

from __future__ import annotations

import errno
import itertools
import math
import os
import pickle
import selectors
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from plait import wire
from plait.backends.child import no_start_error, open_launcher
from plait.backends.child_end import LEAVE_S, LEAVE_SIGNAL
from plait.backends.code_watch import CodeWatch
from plait.backends.contract import Setting, Traits
from plait.backends.dispatcher import Dispatcher
from plait.backends.holdings import Holdings
from plait.backends.messages import (
    TAKEN,
    Forget,
    Ready,
    Released,
    Results,
    Said,
    Setup,
    StartFailed,
    Taken,
    decode,
    encode,
    new_file_fd,
)
from plait.backends.process_lane import Death, Entry, Job, ProcessLane, Report, Uttered, Verdict
from plait.backends.process_worker import QUEUE_DEPTH, Worker
from plait.backends.turns import Turns
from plait.backends.voices import OutputReader, put_out, warning
from plait.bare import signal
from plait.blas import with_thread_limits
from plait.errors import (
    OptionError,
    PlaitError,
    PoolClosed,
    PoolGivenUp,
    WorkerStartError,
    death_text,
    lack_text,
)
from plait.foreign import shown
from plait.host import can_measure_memory, cpu_count, monotonic, oom_kills
from plait.segments import SegmentStore, SegmentView
from plait.shield import Shield
from plait.wire_errors import load_error

if TYPE_CHECKING:
    from types import TracebackType

    from plait.backends.launcher import Change
    from plait.backends.messages import Context
    from plait.backends.orders import Preloaded
    from plait.channel import Channel
    from plait.outcome import Call

__all__ = ["ProcessBackend"]

# How long a task may go on after its result is not wanted any more.
GRACE_S = 0.8
# How long it may take to end once it was asked to, before its worker is killed.
END_S = 0.5
# How often a lane that closes tries to end what still runs.
MOST_TRIES = 5
# How long no further worker is tried where the system has refused one.
GROW_AGAIN_S = 1.0
# Workers that die before they are ready, one after the other, until that is called a failure.
MOST_FALSE_STARTS = 3


class _Net:
    """A ``with`` block, with the pool's lock, out of which an exception from outside may come.

    Signal handlers wait until the block has ended, see shield.py. A second Ctrl-C does not, nor
    does what another thread raises here with PyThreadState_SetAsyncExc, or a greenlet's timeout.
    These may strike between any two steps, and leave the books of the pool half written. So if
    more was done than waiting, the pool is given up: its workers end, and the next call gets a
    new one.
    """

    def __init__(self, pool: ProcessBackend) -> None:
        self._pool = pool

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            self._pool.outlive(error)


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
        preload: tuple[str, ...] = (),
    ) -> None:
        self.max_workers = max_workers
        self._cpus = cpu_count()
        self.most_tasks = max_tasks_per_child or sys.maxsize
        # These two first: they may raise, and then nothing is open.
        self._initializer = wire.pack(initializer, "initializer") if initializer else None
        self._launcher = open_launcher(start_method, preload)
        with ExitStack() as made:
            made.callback(self._launcher.close)
            try:
                self.store = SegmentStore(new_file_fd("plait-items"), stores=1)
                made.callback(self.store.close)
                self._turns = Turns(self._cpus)
            except OSError as error:
                raise no_start_error(error) from error
            made.pop_all()
        self.lock = self._turns.lock  # guards everything below, and the launcher
        self._net = _Net(self)
        self._is_given_up = False
        self.workers: dict[int, Worker] = {}
        self._holdings = Holdings(self.store)
        self._dispatcher = Dispatcher(self, self._holdings)
        self._numbers = itertools.count(1)
        self._keys = itertools.count(1)
        self._code = CodeWatch()
        self._false_starts = 0
        self._asked_at: float | None = None  # for the first worker
        self._ready_s: list[float] = []  # how long after that each was ready
        self._broken: PlaitError | None = None
        self.shortage = ""  # why there were fewer workers than were asked for
        self._grow_at = -math.inf  # when it may be tried again to have more
        self._strays: deque[Uttered] = deque()  # what workers said that work for no open lane
        self._oom_kills = oom_kills()
        self._turns.watch(self._launcher, selectors.EVENT_READ, self._hear_launcher)
        self._turns.on_due = self._judge_all

    # --- What lanes ask for ----------------------------------------------------------

    @property
    def is_usable(self) -> bool:
        """Whether new lanes can be opened."""
        return self._broken is None

    @property
    def is_whole(self) -> bool:
        """Whether it can be used on after an exception from outside: no task was left behind."""
        with self.lock:
            given = [job for worker in self.workers.values() for job in worker.jobs]
            jobs = [*given, *self._dispatcher.backlog]
            return self.is_usable and all(job.lane.is_closed for job in jobs)

    @property
    def is_crowded(self) -> bool:
        """Whether all workers that there may be have something to do."""
        return self._dispatcher.busy >= self.max_workers

    @property
    def start_s(self) -> tuple[float, float] | None:
        """How long it took until a worker was ready, and from then on, until each other was.

        Of the first workers of the pool; None if it has none.
        """
        times = self._ready_s[: self.max_workers]
        return (times[0], (times[-1] - times[0]) / max(1, len(times) - 1)) if times else None

    @property
    def shared_bytes(self) -> int:
        """The shared memory that is taken now, by what is in it or was."""
        views = [worker.view for worker in list(self.workers.values())]
        return self.store.touched + sum(view.seen for view in views)

    def _shield(self) -> Shield:
        return Shield(self._turns.ring)

    def check_usable(self) -> None:
        """Raise the reason why no work can be taken, if there is one."""
        if self._broken is not None:
            raise self._broken

    def open_lane(self, call: Call, setting: Setting | None = None) -> ProcessLane:
        """Open a way for a function; workers that know an older version of it leave."""
        self.check_usable()
        setting = setting or Setting()
        if setting.limits.memory_bytes is not None and not can_measure_memory():
            allowed = "left out here: without /proc nobody tells how much memory a worker has"
            raise OptionError("memory_limit", setting.limits.memory_bytes, allowed)
        lane = ProcessLane(self, next(self._keys), call, setting)
        with self._shield(), self.lock, self._net:
            if self._code.changed(call.fn):
                self._launcher.preload()
                for worker in list(self.workers.values()):
                    worker.is_stale = True
                    self.let_go(worker)
        return lane

    def enqueue(self, jobs: list[Job]) -> None:
        """Take chunks, and send those for which a worker has room."""
        with self._shield(), self.lock, self._net:
            self.check_usable()
            self._dispatcher.take(jobs)

    def wait(
        self,
        lane: ProcessLane,
        deadline: float | None,
        until: Callable[[], bool] | None,
        arrived: list[Entry],
    ) -> None:
        """Block until something arrived for a lane, driving the workers if nobody else does.

        It is added to ``arrived``.
        """

        def is_done() -> bool:
            if lane.inbox or lane.is_woken or self._broken or shield.is_hit:
                return True
            return until is not None and until()

        with self._shield() as shield, self.lock, self._net:
            self._turns.expected = self._dispatcher.busy
            self._turns.wait_until(is_done, lane.arrived, deadline)
            lane.is_woken = False
            # After a Ctrl-C, which comes out at the end of this block, it is left for ``close``.
            if not shield.is_hit:
                arrived.extend(lane.inbox)
                lane.inbox.clear()
                if not arrived:
                    self.check_usable()
        if self._strays:
            self._put_out_strays()

    def _put_out_strays(self) -> None:
        while self._strays:
            with suppress(IndexError):  # another thread does the same
                put_out(*self._strays.popleft())

    def wake(self, lane: ProcessLane) -> None:
        """Have the thread that waits for a lane return from ``wait``; takes no lock."""
        lane.is_woken = True
        self._turns.ring()

    def balance(self, lane: ProcessLane) -> None:
        """Hear that nothing more will come for a lane."""
        with self._shield(), self.lock, self._net:
            # Workers that may be used up between two chunks are better chosen when they begin one.
            has_limits = self.most_tasks < sys.maxsize or lane.limits.memory_bytes is not None
            lane.has_all = not has_limits
            self._dispatcher.balance(lane)

    def cancel(self, lane: ProcessLane, first: int) -> bool:
        """End the chunk of a lane that begins with a task; False if it is over."""
        with self._shield(), self.lock, self._net:
            for job in self._dispatcher.backlog:
                if job.lane is lane and job.chunk.first == first:
                    job.is_cancelled = True
                    self._dispatcher.backlog.remove(job)
                    self._holdings.drop(job)
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
        with self._shield(), self.lock, self._net:
            lane.is_closed = True
            for job in self._dispatcher.backlog:
                if job.lane is lane:
                    self._holdings.drop(job)
            self._dispatcher.backlog = deque(
                job for job in self._dispatcher.backlog if job.lane is not lane
            )
            if self._is_given_up:
                for worker, job in self._jobs_of(lane):
                    self._give_up(worker, job)
            else:
                self._end_jobs(lane, GRACE_S if grace_s is None else grace_s)
            for worker in self.workers.values():
                if lane.key in worker.known:
                    self._hear_rest(worker)
                    del worker.known[lane.key]
                    self._forget(worker, lane)
            arrived = list(lane.inbox)
            lane.inbox.clear()
            lane.is_over = True
        self._put_out_strays()
        return arrived

    def _give_up(self, worker: Worker, job: Job) -> None:
        """Settle a job that went with the pool: only a task that was begun has failed."""
        place = worker.guilty_place(job)
        if place is not None:
            pid, since = self.pid_of(worker), worker.running_since
            verdict = Verdict("given up", worker.page.running())
            job.lane.inbox.append(Death(job, place, worker.name, pid, None, since, verdict))

    def _forget(self, worker: Worker, lane: ProcessLane) -> None:
        """Tell a worker that a function is not needed any more; soon enough, if it is small."""
        worker.forgotten.append(Forget(lane.key))
        if lane.is_large:
            self.send(worker, *worker.forgotten)
            worker.forgotten.clear()

    def _end_jobs(self, lane: ProcessLane, grace_s: float) -> None:
        """Cancel the chunks of a lane; a worker that does not come to it in time is ended."""

        def is_idle() -> bool:
            return not any(worker.may_run(job) for worker, job in self._jobs_of(lane))

        jobs = self._jobs_of(lane)
        if not jobs:  # as most often
            return
        for worker, job in jobs:
            worker.page.cancel(job.seq)
        self._await_end(is_idle, lane.arrived, grace_s)
        for _ in range(MOST_TRIES):
            for worker, job in self._jobs_of(lane):
                if worker.is_ready:
                    self._end_job(worker, job)
                else:  # its initializer may never end
                    self._condemn(worker, Verdict("cancelled", worker.page.running()))
            self._await_end(is_idle, lane.arrived, GRACE_S)

    def _end_job(self, worker: Worker, job: Job) -> None:
        """End a worker if it runs this job."""
        task = worker.runs(job)
        if task is not None:
            self._condemn(worker, Verdict("cancelled", task))

    def _jobs_of(self, lane: ProcessLane) -> list[tuple[Worker, Job]]:
        workers = self.workers.values()
        return [(worker, job) for worker in workers for job in worker.jobs if job.lane is lane]

    def close(self) -> None:
        """Let the workers go, and end those that do not go."""
        if isinstance(self._broken, PoolClosed):  # or abandoned, with a lock of the parent's
            return
        with self._shield(), self.lock:
            self._break(PoolClosed("This pool is closed; open a new one."))
            try:
                if not self._is_given_up:
                    with self._net:
                        self._end_workers()
            finally:
                self._launcher.close()
                self._close_files()
        self._put_out_strays()

    def _end_workers(self) -> None:
        for worker in list(self.workers.values()):
            self.let_go(worker)
        gone = threading.Condition(self.lock)
        self._await_end(lambda: not self.workers, gone, GRACE_S)
        for grace_s in (END_S, 0.0):
            for worker in self.workers.values():
                if not worker.is_leaving_in_peace:  # these have LEAVE_S, see child_end.py
                    self._launcher.end(worker.number, grace_s)
            self._await_end(lambda: not self.workers, gone, 2 * END_S)

    def _await_end(
        self, is_over: Callable[[], bool], arrived: threading.Condition, most_s: float
    ) -> None:
        """Wait for what is being ended; if an exception strikes here, it goes with the pool."""
        try:
            self._turns.wait_until(is_over, arrived, monotonic() + most_s)
        except BaseException:
            self._turns.struck = None
            raise

    def outlive(self, error: BaseException) -> None:
        """Be as good as before an exception that came from outside, or give this pool up."""
        if error is self._broken:
            return
        self._turns.recover()
        if error is self._turns.struck:
            self._turns.struck = None
            return
        self._is_given_up = True
        text = f"This pool was given up: {type(error).__name__} came from outside amid its work."
        self._break(PoolGivenUp(f"{text} The next call gets a new one."))
        self._launcher.close()  # which ends the workers

    def abandon(self) -> None:
        """In a forked child: close the copies, which would keep the parent's workers waiting."""
        self._broken = PoolClosed("This pool belongs to the parent process; open a new one.")
        self._launcher.abandon()
        self._close_files()

    def _close_files(self) -> None:
        for worker in self.workers.values():
            worker.channel.close()
            worker.page.close()
            for reader in worker.outputs:
                reader.close()
        self.workers.clear()
        self.store.close()
        self._turns.close()

    # --- Workers ---------------------------------------------------------------------

    @property
    def is_broken(self) -> bool:
        """Whether no work can be taken."""
        return self._broken is not None

    @property
    def has_initializer(self) -> bool:
        """Whether a new worker runs something of the user's first."""
        return self._initializer is not None

    @property
    def may_grow(self) -> bool:
        """Whether it is worth trying to start another worker."""
        return self._grow_at < 0 or self._grow_at <= monotonic() or not self.workers

    def start_worker(self, context: Context) -> Worker | None:
        """Start another worker; None if the system refuses. If there is no other, it is broken."""
        number = next(self._numbers)
        if self._asked_at is None:
            self._asked_at = monotonic()
        try:
            born = self._launcher.start(number, self.store.fd)
        except (OSError, MemoryError) as error:
            number = getattr(error, "errno", None) or errno.ENOMEM
            self._note_shortage(number, len(self.workers))
            return None
        worker = Worker.of(number, born)
        self.workers[number] = worker
        self._dispatcher.sort(worker)
        for reader in worker.outputs:
            handler = partial(self._hear_output, worker)
            self._turns.watch(reader, selectors.EVENT_READ, handler, is_first=True)
        environ = with_thread_limits(os.environ, self.max_workers, self._cpus)
        setup = Setup(
            worker.name,
            context,
            sys.argv[:],
            environ,
            self.max_workers,
            self.max_workers > self._cpus,
            self._initializer,
        )
        self.send(worker, setup)
        return worker

    def _note_shortage(self, number: int, workers: int) -> None:
        """Go on with the workers that there are; without any, it is an error."""
        self._grow_at = monotonic() + GROW_AGAIN_S
        if workers:
            self.shortage = f"{workers} of {self.max_workers}: {lack_text(number)}"
        else:
            self._break(no_start_error(OSError(number, "")))

    def let_go(self, worker: Worker) -> None:
        """Let a worker end once it has finished what it has."""
        worker.is_leaving = True
        self._dispatcher.sort(worker)
        if not worker.jobs:
            self._hang_up(worker)

    def _hang_up(self, worker: Worker) -> None:
        """Have a worker leave; what its exit functions log is heard until it has ended."""
        if not worker.is_cut_off:
            worker.is_cut_off = True
            worker.channel.hang_up()
            self._watch(worker)

    def send(self, worker: Worker, *messages: tuple[Any, ...]) -> None:
        """Send messages to a worker; one that is leaving for good hears nothing."""
        if not worker.is_cut_off:
            worker.channel.send(*map(encode, messages))
            self._watch(worker)

    def _watch(self, worker: Worker) -> None:
        """Wait for what the channel is waiting for."""
        events = READ_OR_WRITE if worker.channel.is_clogged else selectors.EVENT_READ
        if worker.watched != events:
            worker.watched = events
            self._turns.watch(worker.channel, events, partial(self._serve, worker))

    def _serve(self, worker: Worker, _: Channel, mask: int) -> None:
        if worker.has_ended:  # it was buried a moment ago
            return
        if mask & selectors.EVENT_WRITE:
            worker.channel.flush()
            self._watch(worker)
        if mask & selectors.EVENT_READ:
            self._receive(worker)

    def _receive(self, worker: Worker) -> None:
        try:
            messages = worker.channel.receive()
        except EOFError:
            self._turns.unwatch(worker.channel)  # its end will be told, see child.py
            return
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
        uttered = Uttered(said, worker.name, lane.context.texts if lane else None)
        if lane is None or lane.is_over:
            self._strays.append(uttered)
        else:
            lane.inbox.append(uttered)
            self._turns.tell(lane.arrived)

    def _hear(self, worker: Worker, message: Any) -> None:
        if isinstance(message, Results):
            self._take_results(worker, message)
            if worker.is_untold:
                self._tell_taken(worker)
        elif isinstance(message, Said):
            self._note_said(worker, message)
        elif isinstance(message, Ready):
            worker.is_ready = True
            worker.heard_at = monotonic()
            if len(self._ready_s) < self.max_workers and self._asked_at is not None:
                self._ready_s.append(worker.heard_at - self._asked_at)
            self._false_starts = 0
            self._dispatcher.dispatch()
        elif isinstance(message, Released):
            self._holdings.let_go_of(worker, message.offsets)
        elif isinstance(message, StartFailed):
            cause = load_error(message.error)
            broken = WorkerStartError(f"The initializer failed in {worker.name}: {shown(cause)}")
            broken.__cause__ = cause
            self._break(broken)

    def _take_over(self, worker: Worker, places: tuple[tuple[Any, ...], ...]) -> Sequence[object]:
        """Have what is shared in results here, and have the worker let go of it.

        Now, and not when they are unpacked, by whoever waits for them: the worker may have ended.
        """
        from plait.backends.arrivals import take_over

        regions = take_over(places)
        worker.page.words[TAKEN] += 1
        worker.is_untold = True
        return regions

    def _tell_taken(self, worker: Worker) -> None:
        """Have a worker look at what it can let go of, unless it will hear of its next chunk."""
        if (worker.is_leaving or not worker.jobs) and not worker.has_ended:
            worker.is_untold = False
            self.send(worker, Taken())

    def _take_results(self, worker: Worker, results: Results) -> None:
        regions = self._take_over(worker, results.places) if results.places else ()
        job = worker.jobs[0] if worker.jobs else None
        if job is None or (results.seq, results.place) != (job.seq, job.done):
            return  # it was sent, and then found in the box as well: the worker died in between
        self._deliver(
            job,
            Report(job, job.done, results, worker.name, self.pid_of(worker), worker.view, regions),
        )
        job.done += len(results.values)
        worker.heard_at = monotonic()
        if results.released:
            self._holdings.let_go_of(worker, results.released)
        if results.is_last:
            worker.jobs.popleft()
            self._dispatcher.take_skipped(job)
            if job.segments:
                self._holdings.settle(worker, job, results.held)
            if not worker.jobs:
                worker.is_leaving |= worker.has_grown(self.pid_of(worker), job.lane)
                if worker.is_leaving:
                    self._hang_up(worker)
            self._dispatcher.sort(worker)
            if self._dispatcher.backlog:
                self._dispatcher.dispatch()
            self._dispatcher.balance(job.lane)

    def _hear_launcher(self, *_: object) -> None:
        changes = self._launcher.take_changes()
        while self._launcher.preloaded:
            self._note_preloaded(self._launcher.preloaded.pop(0))
        if self._launcher.is_lost:
            self._turns.unwatch(self._launcher)
            if self._broken is None:
                self._renew_launcher()
        vanished = []  # with the server, before they were ready
        for change in changes:
            worker = self.workers[change.number]
            if change.what == "ended" and change.status is None and worker.failed_to_start:
                vanished.append(worker)
            self._hear_change(worker, change)
        if vanished:  # all of them are one failure, and not the initializer's
            self._count_false_start(vanished[0], None)

    def _renew_launcher(self) -> None:
        try:
            self._launcher.renew()
        except WorkerStartError as error:  # it is for all who wait, not for who happens to drive
            self._break(WorkerStartError(f"{error}"))  # its frames know this pool and its workers
        else:
            self._turns.watch(self._launcher, selectors.EVENT_READ, self._hear_launcher)

    def _hear_change(self, worker: Worker, change: Change) -> None:
        if change.what == "ended":
            self._bury(worker, change)
        elif change.what == "failed":
            worker.is_leaving = True  # it is none of those that fail as they start
            self._note_shortage(change.status or 0, len(self.workers) - 1)
            self._bury(worker, change)
        else:
            is_stopped = change.what == "stopped"
            worker.stopped = (monotonic(), change.status or 0) if is_stopped else None
            self._dispatcher.sort(worker)
            self.judge_at(monotonic())

    def _note_preloaded(self, preloaded: Preloaded) -> None:
        self._code.watch(preloaded.stamps)
        for name, reason in preloaded.refused.items():
            text = f"plait did not preload {name!r}: {reason}. Workers import it when they need it."
            self._strays.append(Uttered(warning(text), ""))

    def _bury(self, worker: Worker, change: Change) -> None:
        """Settle the affairs of a worker that ended."""
        worker.has_ended = True
        self._dispatcher.sort(worker)
        with suppress(EOFError):
            while messages := worker.channel.receive():
                for message in messages:
                    self._hear(worker, decode(message))
        for kept in worker.page.kept():
            self._take_results(worker, Results(*pickle.loads(kept)))
        self._hear_rest(worker)
        self._note_cut_short(worker, change)
        worker.is_cut_off = True
        self._turns.unwatch(worker.channel)
        worker.channel.close()
        for reader in worker.outputs:
            self._turns.unwatch(reader)
            reader.close()
        del self.workers[worker.number]
        self._dispatcher.forget(worker)
        if worker.failed_to_start and change.status is not None:
            self._count_false_start(worker, change.status)
        was_oom = change.status == -signal.SIGKILL and self._has_oom_struck()
        self._holdings.let_go_of(worker, set(worker.held))
        for job in worker.jobs:
            self._holdings.drop(job)
            death = Death(
                job,
                worker.guilty_place(job),
                worker.name,
                self.pid_of(worker),
                change.status,
                worker.running_since,
                worker.verdict,
                change.peak_bytes,
                worker.page.last_words(),
                was_oom,
                worker.verdict is None and worker.has_not_begun(job),
            )
            self._deliver(job, death)
        self._launcher.pids.pop(worker.number, None)
        worker.page.close()
        self._dispatcher.dispatch()

    def _note_cut_short(self, worker: Worker, change: Change) -> None:
        """Warn if the exit functions of a worker were not all called."""
        if change.status == -LEAVE_SIGNAL and worker.is_leaving_in_peace:
            name = f"{worker.name} (pid {self.pid_of(worker)})"
            text = (
                f"{name} was ended while it left: its exit functions, finalizers and open files "
                f"took more than {LEAVE_S:g} s. What they had not done by then was not done."
            )
            self._strays.append(Uttered(warning(text), worker.name))

    def _has_oom_struck(self) -> bool:
        """Whether one more process of the cgroup was killed than deaths were told of that."""
        kills = oom_kills()
        if kills is None or self._oom_kills is None or kills <= self._oom_kills:
            return False
        # The other kills may be those of workers whose ends come next, and no older ones.
        self._oom_kills = max(self._oom_kills + 1, kills - len(self.workers))
        return True

    def _count_false_start(self, worker: Worker, status: int | None) -> None:
        self._false_starts += 1
        is_sure = self._initializer is not None and status is not None
        if not is_sure and self._false_starts < MOST_FALSE_STARTS:
            return
        ending = worker.verdict.text if worker.verdict else death_text(status)
        where = " (in the initializer?)" if self._initializer else ""
        stack = "" if status is None else worker.page.last_words()
        self._break(
            WorkerStartError(
                f"{worker.name} (pid {self.pid_of(worker)}) {ending} before it was ready{where}. "
                "No worker can be started like this." + (stack and f"\n{stack}")
            )
        )

    def pid_of(self, worker: Worker) -> int:
        """Return its process id, 0 if it is not known yet."""
        return self._launcher.pids.get(worker.number, 0)

    def _break(self, error: PlaitError) -> None:
        if self._broken is None or isinstance(error, PoolClosed):
            self._broken = error
        self._turns.ring()

    # --- Limits ----------------------------------------------------------------------

    def judge_at(self, due: float) -> None:
        """Have the limits of all workers looked at then."""
        self._turns.due = min(self._turns.due, due)

    def _judge_all(self) -> None:
        """End the workers that are over a limit, and note when to look again."""
        self._turns.due = math.inf
        for worker in list(self.workers.values()):
            if worker.verdict is None:
                verdict, due = worker.judge(self.pid_of(worker), monotonic())
                self.judge_at(due)
                if verdict is not None:
                    self._condemn(worker, verdict)
        self._dispatcher.look_again()

    def _condemn(self, worker: Worker, verdict: Verdict) -> None:
        """End a worker because of the task that it runs, unless it has finished that."""
        if worker.verdict is None and worker.page.condemn(verdict.running):
            worker.verdict = verdict
            worker.is_leaving = True
            self._dispatcher.sort(worker)
            self._launcher.end(worker.number, 0.0 if verdict.reason == "stopped" else END_S)

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
