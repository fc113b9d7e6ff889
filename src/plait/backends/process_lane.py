"""One function's way through a pool of processes: what its owner's thread does itself.

Items are pickled and results unpickled here, by the thread that submits and waits, and
never by whoever happens to drive the channels: that is the user's code (``__reduce__``,
``__setstate__``), it may be slow or fail, and it is nobody else's business.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from plait import wire
from plait.backends.messages import Context
from plait.backends.voices import put_out
from plait.chunks import TOGETHER_S
from plait.errors import (
    MemoryLimitExceeded,
    NotPicklable,
    PlaitError,
    TaskTimeout,
    Victim,
    WorkerDied,
    WorkerStartError,
    signal_name,
    size_text,
)
from plait.foreign import settle
from plait.host import monotonic
from plait.outcome import Call, Chunk, Finished, Stretch
from plait.segments import Placing
from plait.wire_errors import detach, load_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from plait.backends.contract import Setting
    from plait.backends.messages import Results, Said, Texts
    from plait.segments import Segment, SegmentStore, SegmentView

# So many workers that die as they are to begin a task are no chance.
MOST_LOSSES = 3

__all__ = ["Death", "Entry", "Job", "ProcessLane", "Report", "Uttered", "Verdict"]


class Job:
    """A chunk on its way: whose it is, its travelling form, and how much of it is done."""

    __slots__ = (
        "chunk",
        "done",
        "given",
        "is_cancelled",
        "is_taken_back",
        "items",
        "lane",
        "segments",
        "seq",
    )

    def __init__(self, lane: ProcessLane, chunk: Chunk, items: Any, segments: list[int]) -> None:
        self.lane = lane
        self.chunk = self.given = chunk  # of the former, some may be taken back
        self.items = items  # see messages.Work
        self.segments = segments  # where its items lie, each held by this job
        self.seq = 0
        self.done = 0
        self.is_cancelled = False
        self.is_taken_back = False  # what follows the chunk's last task now belongs to other jobs


class Report(NamedTuple):
    """Results of a job as they came from a worker."""

    job: Job
    done: int  # tasks of the job that were reported before
    results: Results
    worker: str
    pid: int
    view: SegmentView
    regions: Sequence[object] = ()  # what is shared in them; here until they are unpacked

    @property
    def segments(self) -> list[Segment]:
        """Where its values lie."""
        if self.results.is_plain:
            return []
        return [segment for value in self.results.values for segment in wire.segments_in(value)]


class Verdict(NamedTuple):
    """Why a worker was ended by us.

    ``reason`` is "time", "memory", "stopped", "cancelled", or "given up" with its whole pool.

    ``running`` is the task (seq, place) for which it was; ``limit`` and ``seen`` are seconds
    or bytes, or in ``seen`` the signal that stopped it.
    """

    reason: str
    running: tuple[int, int]
    limit: float = 0
    seen: float = 0

    @property
    def text(self) -> str:
        """Say it of a worker that has not run a task yet."""
        if self.reason == "memory":
            more = f"more than memory_limit={size_text(self.limit)}"
            return f"was ended, as it had {size_text(self.seen)} of memory, {more},"
        return f"was ended, as it had been stopped by {signal_name(int(self.seen))},"


class Death(NamedTuple):
    """The worker that had a job died; ``place`` is the task it was running, if it was any.

    Where the tasks were sent together the guilty one is not known: they run again, apart.
    """

    job: Job
    place: int | None
    worker: str
    pid: int
    status: int | None
    started: float  # when it began that task
    verdict: Verdict | None = None
    peak_bytes: int = 0
    stack: str = ""  # where it was, as far as the interpreter could still say
    was_oom: bool = False  # the system's OOM killer is known to have struck
    is_untouched: bool = False  # it was to begin the job, or receiving it


class Uttered(NamedTuple):
    """Something that a worker said while it had jobs of a lane, whose texts it has adopted."""

    said: Said
    worker: str
    texts: Texts | None = None


Entry = Report | Death | Uttered


class Carrier(Protocol):
    """What a lane needs of the pool that carries its jobs."""

    lock: threading.RLock
    most_tasks: int
    store: SegmentStore

    @property
    def shared_bytes(self) -> int:
        """The shared memory that is taken now, by what is in it or was."""
        ...

    def check_usable(self) -> None:
        """Raise the reason why no work can be taken, if there is one."""
        ...

    def enqueue(self, jobs: list[Job]) -> None:
        """Take chunks, and send those for which a worker has room."""
        ...

    def wait(
        self,
        lane: ProcessLane,
        deadline: float | None,
        until: Callable[[], bool] | None,
        arrived: list[Entry],
    ) -> None:
        """Block until something arrived for a lane, and add it, or ``until`` is true."""
        ...

    def balance(self, lane: ProcessLane) -> None:
        """Hear that nothing more will come for a lane."""
        ...

    def wake(self, lane: ProcessLane) -> None:
        """Have the thread that waits for a lane return from ``wait``."""
        ...

    def cancel(self, lane: ProcessLane, first: int) -> bool:
        """End a chunk of a lane; False if it is over."""
        ...

    def close_lane(self, lane: ProcessLane, grace_s: float | None) -> list[Entry]:
        """End what a lane has going after some seconds, and return what arrived."""
        ...


class ProcessLane:
    """Packs chunks for the workers and unpacks what they report."""

    left = 0  # all of it is with the workers, until it is closed

    def __init__(self, backend: Carrier, key: int, call: Call, setting: Setting) -> None:
        self.key = key
        self.call = call
        self.context = Context.here()
        self.limits = setting.limits
        self.starts_all = setting.starts_all
        self._prefix = setting.prefix_output
        self.segments: list[int] = []  # where the function lies
        self._store = backend.store
        # Where the items stay as they are, an array that is in many of them is laid down once.
        self._placing = Placing(backend.store) if setting.keeps_items else None
        self.fn = self._lay_down_function(call.fn)
        self.variables = wire.pack_context(setting.context)
        self._open: set[Job] = set()  # given to the pool and not settled
        self._has_ended = False  # nothing more will be submitted, but for what fails
        self._rescued: list[Finished] = []  # was unpacked as an exception came from outside
        # The next six are guarded by the backend's lock.
        self.has_all = False  # what waits may go to who is free
        self.is_woken = False
        self.inbox: deque[Entry] = deque()
        self.arrived = threading.Condition(backend.lock)
        self.is_closed = False
        self.is_over = False  # nobody reads the inbox any more
        self.abandoned = 0  # processes can be ended
        self.shared_bytes = 0
        self._backend = backend
        self._failed: list[Finished] = []  # tasks whose items could not be packed
        self.lost: list[Finished] = []  # tasks that ran as the pool was given up
        self._left_over: list[Chunk] = []  # see take_back
        self._losses: dict[int, int] = {}  # of workers that were to begin a task, by its index

    def _lay_down_function(self, fn: Any) -> wire.Packed:
        packed = wire.lay_down(wire.pack(fn, "function"), Placing(self._store))
        self.segments = [offset for offset, _ in wire.segments_in(packed)]
        return packed

    @property
    def is_large(self) -> bool:
        """Whether it is worth a message of its own to have a worker forget the function."""
        data, buffers, *bulk = self.fn
        return len(data) >= wire.OUT_OF_BAND_BYTES or bool(buffers or bulk)

    @property
    def pending(self) -> int:
        """How many chunks were submitted and have not finished."""
        return len(self._open) + len(self._failed)

    def expect(self, jobs: Iterable[Job]) -> None:
        """Count jobs among those that are pending, until they are settled."""
        self._open.update(jobs)

    def submit(self, *chunks: Chunk) -> None:
        """Pack chunks and give them to the workers; items that cannot be packed fail here."""
        most = self._backend.most_tasks
        jobs: list[Job] = []
        waiting = deque(chunks)
        started = monotonic()
        try:
            self._backend.check_usable()
            while waiting:
                chunk = waiting[0]
                if len(chunk.items) <= most:
                    jobs += self._pack(chunk)
                else:  # than one worker may run
                    for start in range(0, len(chunk.items), most):
                        jobs += self._pack(chunk.part(start, start + most))
                waiting.popleft()
                if monotonic() - started > TOGETHER_S:
                    jobs = self._enqueue(jobs)
                    started = monotonic()
        except WorkerStartError:
            self._left_over += waiting
            raise
        finally:  # what is packed lies in the store, and goes with the lane
            self._enqueue(jobs)

    def _enqueue(self, jobs: list[Job]) -> list[Job]:
        """Give jobs to the workers; return those that are left, none."""
        if jobs:
            self.expect(jobs)
            try:
                self._backend.enqueue(jobs)
            except BaseException as error:
                # If some were sent nevertheless, they go with the lane.
                self._open.difference_update(jobs)
                if isinstance(error, WorkerStartError):
                    self._left_over += [job.chunk for job in jobs]
                    jobs.clear()
                raise
        return []

    def _pack(self, chunk: Chunk) -> list[Job]:
        placing = self._placing or Placing(self._store)
        try:
            if chunk.together:
                try:
                    whole = wire.lay_down(wire.pack(chunk.items), placing)
                except NotPicklable:
                    return self._pack_apart(chunk, placing)
                return [self._job(chunk, whole, [whole])]
            return self._pack_apart(chunk, placing)
        finally:
            if placing is not self._placing:
                placing.forget()

    def _pack_apart(self, chunk: Chunk, placing: Placing) -> list[Job]:
        """Pack the stretches of a chunk between the items that cannot be packed."""
        jobs: list[Job] = []
        sealed: list[Any] = []
        for place, item in enumerate(chunk.items):
            try:
                sealed.append(wire.seal(item, "item", placing))
            except NotPicklable as error:
                if sealed:
                    jobs.append(self._job(chunk.part(place - len(sealed), place), sealed, sealed))
                    sealed = []
                self._failed.append(_failed(chunk, place, error, "main", 0, monotonic()))
        if len(sealed) == len(chunk.items):
            return [self._job(chunk, sealed, sealed)]
        if sealed:
            jobs.append(self._job(chunk.part(len(chunk.items) - len(sealed)), sealed, sealed))
        return jobs

    def _job(self, chunk: Chunk, items: Any, sealed: list[Any]) -> Job:
        segments = [offset for one in sealed for offset, _ in wire.segments_in(one)]
        return Job(self, chunk, items, segments)

    def wait_outcomes(
        self, timeout: float | None = None, until: Callable[[], bool] | None = None
    ) -> list[Finished]:
        """Block until tasks finished, driving the workers meanwhile; or ``until`` is true.

        Several threads may do that at once: each outcome goes to one of them.
        """
        deadline = None if timeout is None else monotonic() + timeout
        finished = self._take_done() if self._failed or self._rescued else []
        while self.pending and not finished:
            arrived: list[Entry] = []
            # Ctrl-C, or what a signal handler raises, may come between any two steps: what was
            # unpacked is told by ``close`` then, and what was not is unpacked there.
            opened: list[tuple[Entry, list[Finished]]] = []
            try:
                self._backend.wait(self, deadline, until, arrived)
                if not arrived:
                    break
                for entry in arrived:
                    if isinstance(entry, Uttered):  # first: nothing is to be printed twice
                        opened.append((entry, []))
                        self._unpack(entry)
                    else:
                        opened.append((entry, list(self._unpack(entry))))
                        self._settle(entry)
                for _, some in opened:
                    finished += some
            except BaseException:
                self._rescue(arrived, opened)
                raise
        return finished

    def _rescue(self, arrived: list[Entry], opened: list[tuple[Entry, list[Finished]]]) -> None:
        done = [entry for entry, _ in opened]
        for entry, some in opened:
            self._settle(entry)
            self._rescued += some
        known = {id(entry) for entry in (*done, *self.inbox)}
        self.inbox.extendleft(entry for entry in reversed(arrived) if id(entry) not in known)

    def _settle(self, entry: Entry) -> None:
        """Count a job as done, if that is what was heard; may be done twice."""
        if isinstance(entry, Death) or (isinstance(entry, Report) and entry.results.is_last):
            self._open.discard(entry.job)

    def _take_done(self) -> list[Finished]:
        """Return what is known to have finished, or failed, without a worker."""
        done = [*self._failed, *self._rescued]
        self._failed, self._rescued = [], []
        return done

    def end_input(self) -> None:
        """Hear that nothing more will be submitted: what waits may go to who is free."""
        if not self._has_ended:
            self._has_ended = True
            self._backend.balance(self)

    def take_progress(self) -> tuple[int, float]:
        """Return nothing: all that was run is told."""
        return 0, 0.0

    def take_back(self) -> Chunk | None:
        """Return tasks that were with the lane when it was closed; None if there are no more.

        Some of them may be settled.
        """
        return self._left_over.pop() if self._left_over else None

    def refuse(self) -> None:
        """Do nothing: the thread that closes the lane takes back what waits."""

    def wake(self) -> None:
        """Have ``wait_outcomes`` return."""
        self._backend.wake(self)

    def close(self, *, patience_s: float | None = None) -> list[Finished]:
        """Drop what has not started; what runs gets a grace period, then its worker ends."""
        finished = self._take_done()
        unsettled = [job.given for job in self._open]
        for entry in self._backend.close_lane(self, patience_s):
            finished += self._unpack(entry)
        self._left_over += unsettled
        self.shared_bytes = self._backend.shared_bytes
        self._open.clear()
        if self._placing is not None:
            self._placing.forget()
        while self.segments:
            self._store.release(self.segments.pop())
        self._store.trim()
        return finished

    def cancel(self, first: int) -> bool:
        """End the chunk that begins with this task, running or not; False if it is over."""
        return self._backend.cancel(self, first)

    def _unpack(self, entry: Entry) -> Iterable[Finished]:
        if isinstance(entry, Report):
            return self._unpack_report(entry)
        if isinstance(entry, Death):
            return self._settle_death(entry)
        put_out(*entry, is_prefixed=self._prefix)
        return ()

    def _unpack_report(self, report: Report) -> Iterable[Finished]:
        job, done, results, worker, pid, view, _ = report
        if results.unread and not self.is_closed:
            self.submit(job.chunk.part(0))
        elif results.values or job.is_cancelled:
            return (Finished.of(job.chunk, done, _unpack_results(results, view), worker, pid),)
        return ()

    def _settle_death(self, death: Death) -> Iterator[Finished]:
        """Fail the guilty task, and run again what was not reported."""
        job, place = death.job, death.place
        if self.is_closed:
            if place is not None and death.verdict and death.verdict.reason == "given up":
                error = self._error_of(death, place)
                self.lost.append(
                    _failed(job.chunk, place, error, death.worker, death.pid, death.started)
                )
            return
        if job.is_cancelled:
            nothing = Stretch([], {}, [])
            yield Finished.of(job.chunk, job.done, nothing, death.worker, death.pid)
            return
        if place is None and job.done < len(job.chunk.items) and self._is_deadly(death):
            place = job.done
        if place is None:
            self._run_again(death)
            return
        error = self._error_of(death, place)
        yield _failed(job.chunk, place, error, death.worker, death.pid, death.started)
        # What ran before it, but the worker took the results with it; and what comes after it.
        self._submit_some(job.chunk.part(job.done, place), job.chunk.part(place + 1))

    def _is_deadly(self, death: Death) -> bool:
        """Whether a task has ended so many workers, each as it was to begin it, that it is enough.

        To receive an item may be too much for a worker's memory, for example. Nobody else will
        ever say which task it was.
        """
        if not death.is_untouched:
            return False
        first = death.job.chunk.first + death.job.done
        self._losses[first] = self._losses.get(first, 0) + 1
        is_alone = len(death.job.chunk.items) - death.job.done == 1
        return is_alone and self._losses[first] >= MOST_LOSSES

    def _run_again(self, death: Death) -> None:
        """Have the tasks that a worker left run elsewhere; in halves, if it is not the first."""
        rest = death.job.chunk.part(death.job.done)
        half = len(rest.items) // 2 if self._losses.get(rest.first, 0) > 1 else 0
        self._submit_some(rest.part(0, half), rest.part(half))

    def _submit_some(self, *parts: Chunk) -> None:
        """Submit those chunks that have tasks."""
        some = [part for part in parts if len(part.items)]
        if some:
            self.submit(*some)

    def _error_of(self, death: Death, place: int) -> PlaitError:
        """Say why a task failed with its worker."""
        chunk, verdict = death.job.chunk, death.verdict
        victim = Victim(
            index=chunk.first + place,
            item=self.call.text(chunk.items[place]),
            attempt=chunk.attempt,
            worker=death.worker,
            pid=death.pid,
        )
        reason = verdict.reason if verdict else "died"
        if verdict and reason == "time":
            return TaskTimeout.of_task(victim, verdict.limit, verdict.seen, death.stack)
        if verdict and reason == "memory":
            return MemoryLimitExceeded.of_task(victim, int(verdict.limit), int(verdict.seen))
        return WorkerDied.of_task(
            victim,
            death.status,
            stopped_by=int(verdict.seen) if verdict and reason == "stopped" else None,
            peak_bytes=death.peak_bytes,
            stack=death.stack,
            was_oom=death.was_oom,
            losses=self._losses.get(victim.index, 0) if death.is_untouched else 0,
        )


def _failed(
    chunk: Chunk, place: int, error: PlaitError, worker: str, pid: int, started: float
) -> Finished:
    stretch = Stretch([None], {0: error}, [(started, monotonic() - started)])
    return Finished.of(chunk.part(place, place + 1), 0, stretch, worker, pid)


def _unpack_results(results: Results, view: SegmentView) -> Stretch:
    errors: dict[int, BaseException] = {}
    if results.errors:
        errors = {place: load_error(error) for place, error in results.errors.items()}
    values = results.values
    if not results.is_plain:
        values = values.copy()  # it may have to be done again, see wait_outcomes
        for place, sealed in enumerate(values):
            try:
                values[place] = wire.unseal(sealed, view)
            except BaseException as error:  # noqa: BLE001  of the object, or it is raised again
                values[place], broken = settle(error, wire.unseal, sealed, view)
                if broken is not None:
                    errors[place] = NotPicklable.on_arrival("result", detach(broken))
    return Stretch(values, errors, results.times, results.is_last, results.queued_s)
