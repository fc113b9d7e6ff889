"""Who gets which chunk: the backlog of a pool of processes, and the workers that have room.

Used by backends/processes.py, with its lock held. A chunk goes to a worker that is free, or to
a new one while there may be more, or, if it is brief, behind another brief one. At the end
of a run, what waits behind a long task goes to who is free (stealing.py).
"""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING, Any, Protocol

from plait.backends.messages import Learn, Work
from plait.backends.process_worker import QUEUE_DEPTH, Worker
from plait.backends.stealing import find_victim, is_about_to_begin, skipped, take_back
from plait.clocks import monotonic

if TYPE_CHECKING:
    from plait.backends.holdings import Holdings
    from plait.backends.messages import Context
    from plait.backends.process_lane import Job, ProcessLane

__all__ = ["Crew", "Dispatcher"]

# How long a worker may take to begin a chunk that it has.
LOOK_AGAIN_S = 0.002
# So many workers are started at once, before one has answered.
FIRST_STARTS = 2


class Crew(Protocol):
    """The workers of a pool, and what can be done with them."""

    max_workers: int
    most_tasks: int
    workers: dict[int, Worker]

    @property
    def is_broken(self) -> bool:
        """Whether no work can be taken."""
        ...

    @property
    def has_initializer(self) -> bool:
        """Whether a new worker runs something of the user's first."""
        ...

    @property
    def may_grow(self) -> bool:
        """Whether it is worth trying to start another worker."""
        ...

    def start_worker(self, context: Context) -> Worker | None:
        """Start another worker; None if the system refuses."""
        ...

    def let_go(self, worker: Worker) -> None:
        """Let a worker end once it has finished what it has."""
        ...

    def send(self, worker: Worker, *messages: tuple[Any, ...]) -> None:
        """Send messages to a worker."""
        ...

    def pid_of(self, worker: Worker) -> int:
        """Return its process id, 0 if it is not known yet."""
        ...

    def judge_at(self, due: float) -> None:
        """Have limits, and ``look_again``, looked at then."""
        ...


class Dispatcher:
    """The chunks that wait, and who could take one."""

    def __init__(self, crew: Crew, holdings: Holdings) -> None:
        self.backlog: deque[Job] = deque()
        self._crew = crew
        self._holdings = holdings
        self._free: dict[int, Worker] = {}  # that could begin a chunk at once, the last one first
        self._roomy: dict[int, Worker] = {}  # at which a brief one may wait
        self._unfit: set[int] = set()  # the numbers of those that take none
        self._unbalanced: list[ProcessLane] = []  # to be looked at again

    @property
    def busy(self) -> int:
        """How many workers have something to do."""
        return len(self._crew.workers) - len(self._free)

    def take(self, jobs: list[Job]) -> None:
        """Send each chunk if a worker has room for it, or let it wait."""
        news: dict[Worker, list[tuple[Any, ...]]] = {}
        try:
            for job in jobs:
                worker = None if self.backlog else self.pick(job)
                if worker is None:
                    self._queue(job)
                else:
                    news.setdefault(worker, []).extend(self._give(worker, job))
        finally:
            for worker, messages in news.items():
                self._crew.send(worker, *messages)

    def _queue(self, job: Job) -> None:
        """Let a chunk wait: after as many of each other lane's as wait of its own."""
        backlog, lane = self.backlog, job.lane
        if not backlog or (backlog[0].lane is lane and backlog[-1].lane is lane):
            backlog.append(job)  # as if it were the only lane, which it is in most pools
            return
        own = sum(other.lane is lane for other in backlog)
        seen: Counter[ProcessLane] = Counter()
        for place, other in enumerate(backlog):
            seen[other.lane] += 1
            if seen[other.lane] > own + 1:
                backlog.insert(place, job)
                return
        backlog.append(job)

    def sort(self, worker: Worker) -> None:
        """Note whether a worker has room for a chunk; after each change of what that rests on."""
        number, jobs = worker.number, worker.jobs
        if number in self._free:
            del self._free[number]
        elif number in self._roomy:
            del self._roomy[number]
        if not worker.can_take:
            self._unfit.add(number)
            return
        self._unfit.discard(number)
        if not jobs:
            self._free[number] = worker
        elif len(jobs) < QUEUE_DEPTH and jobs[0].chunk.brief:
            self._roomy[number] = worker

    def dispatch(self) -> None:
        """Send waiting chunks to workers that have room."""
        for job in list(self.backlog):
            if self._crew.is_broken:
                return
            worker = self.pick(job)
            if worker is not None:
                self.backlog.remove(job)
                self.assign(worker, job)
            elif not job.chunk.earlier:  # else it waits for another worker than the others
                return

    def balance(self, lane: ProcessLane) -> None:
        """At the end, give tasks that wait behind others to workers that are free."""
        while lane.has_all and not (lane.is_closed or self.backlog):
            thief = next((one for one in self._free.values() if one.is_ready), None)
            if thief is None:
                return
            victim = find_victim(self._crew.workers.values(), lane)
            if victim is None:
                if any(is_about_to_begin(one, lane) for one in self._crew.workers.values()):
                    self._unbalanced.append(lane)
                    self._crew.judge_at(monotonic() + LOOK_AGAIN_S)
                return
            worker, job = victim
            parts = take_back(worker, job)  # none, if it has just begun the last one
            worker.tasks -= sum(len(part.chunk.items) for part in parts)
            lane.expect(parts)
            if parts:
                self.assign(thief, parts[0])
            self.backlog.extend(parts[1:])
            self.dispatch()

    def take_skipped(self, job: Job) -> None:
        """At the end of a job that was taken back, see to what its worker skipped."""
        rest = skipped(job)
        if rest is not None:
            # Its segments are the old job's: what those hold is let go of when that is settled.
            for offset in rest.segments:
                self._holdings.retain(offset)
            job.lane.expect([rest])
            self.backlog.append(rest)

    def pick(self, job: Job) -> Worker | None:
        """Return the worker for a chunk: a free one, a new one, or one whose chunk is brief.

        A task that is tried again goes to another worker than before, where there is one.
        """
        avoided = job.chunk.earlier[-1].worker if job.chunk.earlier else None
        to_be_avoided = None
        # The last one first: its memory is still in the caches.
        for worker in reversed(tuple(self._free.values())) if self._free else ():
            if self._is_used_up(worker, job):
                self._crew.let_go(worker)
            elif worker.name == avoided:
                to_be_avoided = worker
            else:
                return worker
        if self._count_places() < self._crew.max_workers and self._crew.may_grow:
            if not (job.lane.starts_all or self._may_start()):
                return None
            started = self._crew.start_worker(job.lane.context)
            if started is not None or self._crew.is_broken:
                return started
        if to_be_avoided is not None:  # if there are others, one of them will be free
            is_alone = sum(worker.can_take for worker in self._crew.workers.values()) == 1
            return to_be_avoided if is_alone else None
        return self._pick_roomy(job) if job.chunk.brief else None

    def _pick_roomy(self, job: Job) -> Worker | None:
        while self._roomy:
            worker = next(iter(self._roomy.values()))
            if not self._is_used_up(worker, job):
                return worker
            self._crew.let_go(worker)  # and it is not roomy any more
        return None

    def _is_used_up(self, worker: Worker, job: Job) -> bool:
        """Whether a worker is rather to be replaced than given this job."""
        is_spent = worker.tasks > 0 and worker.tasks + len(job.chunk.items) > self._crew.most_tasks
        if is_spent or worker.jobs or job.lane.limits.memory_bytes is None:
            return is_spent
        return worker.has_grown(self._crew.pid_of(worker), job.lane)

    def _may_start(self) -> bool:
        """Whether to start another worker already.

        Workers are forked one after the other. Where tasks are tiny, the first one has done them
        all before the last one is there: so as many are on their way as there are, and two.
        """
        if self._crew.has_initializer:  # which may take as long as it likes
            return True
        ready = sum(worker.is_ready for worker in self._crew.workers.values())
        return len(self._crew.workers) - ready < FIRST_STARTS + ready

    def _count_places(self) -> int:
        if len(self._crew.workers) < self._crew.max_workers or not self._unfit:
            return len(self._crew.workers)
        return sum(worker.takes_a_place for worker in self._crew.workers.values())

    def assign(self, worker: Worker, job: Job) -> None:
        """Send a chunk to a worker, and the function if it does not know that."""
        self._crew.send(worker, *self._give(worker, job))

    def _give(self, worker: Worker, job: Job) -> list[tuple[Any, ...]]:
        """Note that a worker has a chunk, and return what it is to be sent."""
        lane, chunk = job.lane, job.chunk
        news = [] if lane.key in worker.known else self._introduce(worker, lane)
        worker.last_seq = job.seq = worker.last_seq + 1
        worker.tasks += len(chunk.items)
        if not worker.jobs:
            worker.heard_at = monotonic()
        worker.jobs.append(job)
        self.sort(worker)
        released = worker.view.take_released() if worker.view.released else []
        news.append(Work(job.seq, lane.key, chunk.first, chunk.together, job.items, released))
        if lane.limits.are_set:
            self._crew.judge_at(monotonic() + worker.first_look_s)
        return news

    def _introduce(self, worker: Worker, lane: ProcessLane) -> list[tuple[Any, ...]]:
        """Return what a worker has to hear before it works for a lane."""
        worker.known[lane.key] = lane
        self._holdings.hold(worker, lane.segments)
        learn = Learn(lane.key, lane.call.style, lane.fn, lane.context, lane.variables)
        news = [*worker.forgotten, learn]
        worker.forgotten.clear()
        return news

    def forget(self, worker: Worker) -> None:
        """Let go of a worker that has ended."""
        self._unfit.discard(worker.number)

    def look_again(self) -> None:
        """Balance what could not be balanced before, as a worker was just beginning a chunk."""
        unbalanced, self._unbalanced = self._unbalanced, []
        for lane in unbalanced:
            self.balance(lane)
