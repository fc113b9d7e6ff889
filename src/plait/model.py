"""How long each way to run the rest would take. Pure: what was measured goes in, seconds come out.

Each way is a closed queueing network: so many workers go round through what they share, one after
the other, and a task is done with each round. On threads they share the GIL and the CPUs, on
processes the CPUs and the parent that sends and receives; where a task waits, its worker is alone.
No more tasks are done in a second than so many workers can do if nobody ever waits for another, and
no more than what is busiest can do: the asymptotic bounds of operational analysis (Denning and
Buzen, ACM Computing Surveys 10(3), 1978). They have Amdahl's law in them (what holds the GIL goes
one by one) and Little's (so many workers that all of the wait is covered). To this come the start
of the workers and the end, at which some have nothing to do.

Used by plans.py, which takes the smallest.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from plait.chunks import TARGET_S, TINY_S

__all__ = [
    "HANDOVER_S",
    "MOST_COROUTINES",
    "MOST_THREADS",
    "Choice",
    "Costs",
    "Facts",
    "Sample",
    "default_workers",
    "predict",
]

MOST_THREADS = 32
MOST_COROUTINES = 100
WORKERS_PER_CPU = 4
"""So many processes are tried for each CPU, where tasks wait."""
WAITS_BELOW = 0.5
"""A task that is on a CPU for less than this share of its time is waiting for something."""
SEEN = 0.1
"""So much of the time in which short tasks hold the GIL is seen at the least."""
WAKE_S, WAKE_LEAVES = 0.000_1, 0.25
"""It takes a thread so long on a CPU to fall asleep and wake up, measured in a virtual machine with
idle CPUs; but that is not known of this one, and so much of what tasks compute counts all the
same."""
MARGIN = 1.25
"""Where tasks wait they do not do so in turn: so many times more workers are needed for it."""
WAITS = 0.25
"""Tasks that wait for less than this share of their time do not count as tasks that wait."""
CLIMB = 2
"""Where more threads than there are at first would be of use, more are started on the way
(climb.py): over the whole run there are so many times as many. Found by benchmarks."""
MOST_WORKERS = 1_000_000
MEMORY_SHARE = 0.8
WORKER_BYTES = 20_000_000
"""What a worker process needs besides what its tasks do."""
GIL_TAX = 1.15
"""Several threads pass the GIL on to each other; so much longer takes what needs it."""
HANDOVER_S = 0.000_01
"""What it takes a thread at the least to have the GIL back where a task has let go of it. Of tasks
that are shorter it is of no use that they do."""
UNSURE = 1.35
"""By this factor a prediction may be off where the tasks are all alike; found by benchmarks."""
LINDY = 10.0
"""An input of unknown length is taken to have so many times more than was seen of it."""


class Costs(NamedTuple):
    """What plait itself needs on this machine, in seconds; costs.py measures it.

    Attributes:
        server_s: until the first process of a program is ready.
        worker_s: until a further one is.
        thread_s: until a thread is.
        chunk_s: of the parent, for a chunk that goes to a process and comes back.
        task_s: of a worker process and of its parent, for each task of a chunk.
        tiny_task_s: the same for tasks so short that they go together.
        thread_chunk_s: for a chunk that goes to a thread and comes back.
        byte_s: for each byte of items and results between processes.
        pace: how fast a CPU is if all of them are busy, as a share of one alone.
    """

    server_s: float = 0.075
    worker_s: float = 0.006
    thread_s: float = 0.000_12
    chunk_s: float = 0.000_12
    task_s: float = 0.000_008
    tiny_task_s: float = 0.000_000_06
    thread_chunk_s: float = 0.000_06
    byte_s: float = 0.25e-9
    pace: float = 0.88


class Sample(NamedTuple):
    """What the first tasks told, run in place.

    Attributes:
        tasks: how many they were.
        task_s: what each took, in seconds (mean), on a CPU that was free for it.
        cpu_share: of that, the share in which the thread was on a CPU.
        gil_share: the share in which it held the GIL; None: not measured.
        own_cpus: how many CPUs it used at once, with threads of its own (BLAS).
        one_cpu_s: what a task takes where such threads are limited to one CPU, as they are in
            workers (blas.py); None: not tried.
        spread: the standard deviation of the tasks' times, as a share of their mean.
        first_s: what the first one took longer than the others, for imports and caches.
        nbytes: of an item and its result, where they travel.
        carry_s: what it takes to pickle and unpickle them.
        memory_bytes: what a task needs while it runs.
        so_far_s: for how long a task had run that was not over then, in seconds: ``task_s`` is a
            guess. None: it is known.
    """

    tasks: int
    task_s: float
    cpu_share: float
    gil_share: float | None = None
    own_cpus: float = 0.0
    spread: float = 0.0
    first_s: float = 0.0
    nbytes: float = 0.0
    carry_s: float = 0.0
    memory_bytes: float = 0.0
    one_cpu_s: float | None = None
    so_far_s: float | None = None

    @property
    def in_worker(self) -> Sample:
        """The same tasks on one CPU each."""
        if self.one_cpu_s is None:
            return self
        gil_share = self.held_share * min(1.0, self.task_s / self.one_cpu_s)
        return self._replace(
            task_s=self.one_cpu_s, gil_share=gil_share, own_cpus=self.cpu_share, one_cpu_s=None
        )

    @property
    def held_share(self) -> float:
        """The share of its time in which a task holds the GIL.

        All that it computes, if that was not measured, or if it waits in between: what holds the
        GIL for less than a beat is not all seen. But to wake up is the system's work.
        """
        gil, cpu = self.gil_share, self.cpu_share
        if cpu < WAITS_BELOW and (gil is None or gil > cpu * SEEN):
            return max(cpu * WAKE_LEAVES, cpu - WAKE_S / self.task_s)
        return cpu if gil is None else min(gil, cpu)

    @property
    def busy_cpus(self) -> float:
        """How many CPUs a task keeps busy on the average."""
        return max(self.cpu_share, self.own_cpus)


class Facts(NamedTuple):
    """All that a choice depends on, besides the options."""

    cpus: int
    is_coroutine: bool = False
    is_nested: bool = False  # we are in a worker process already
    sample: Sample | None = None
    remaining: int | None = None  # tasks after the sample; None: unknown
    unstartable: str | None = None  # why there can be no worker process
    unpicklable: str | None = None  # why the function, its items or results cannot travel
    is_warm: bool = False  # a pool of processes stands ready
    free_bytes: float = math.inf  # memory that workers may take
    writes: tuple[str, ...] = ()  # what the function changes outside of itself
    costs: Costs = Costs()
    most_workers: int | None = None  # that were asked for
    spent_s: float = 0.0  # by the sample
    most_per_s: float = math.inf  # tasks that may start in a second

    @property
    def expected(self) -> int:
        """How many tasks there are still to do, as far as it can be known."""
        if self.remaining is not None:
            return self.remaining
        return math.ceil(LINDY * self.sample.tasks) if self.sample else 1


class Choice(NamedTuple):
    """One way to run what remains, and how long that is predicted to take.

    Attributes:
        backend: the kind of worker.
        max_workers: how many.
        seconds: predicted; infinity where it cannot be done.
        low, high: between these the truth will probably be.
        why_not: what forbids it; empty if nothing does.
        start_s: of ``seconds``, until the first worker is ready.
        carry_s: of each task, what only its journey takes.
    """

    backend: str
    max_workers: int
    seconds: float
    low: float = 0.0
    high: float = math.inf
    why_not: str = ""
    start_s: float = 0.0
    carry_s: float = 0.0


class _Way(NamedTuple):
    """A way to run tasks as a network.

    Attributes:
        round_s: of a worker for a task, if nobody is in its way.
        most_per_s: how many tasks a second there can be at most, by what is shared.
        waits: the share of a round in which a worker waits.
        start_s: until the first worker is ready.
        each_start_s: until each of the others is.
        carry_s: of each task, what only its journey takes.
    """

    round_s: float
    most_per_s: float
    waits: float
    start_s: float
    each_start_s: float
    carry_s: float = 0.0


def predict(backend: str, facts: Facts) -> Choice:
    """Say how long what remains takes with a backend, with as many workers as are best.

    Without a sample these are as many as the backend has by default, and nothing is said about
    the time.
    """
    why_not = _forbidden(backend, facts)
    if backend in ("serial", "asyncio") or facts.sample is None or why_not:
        workers = 1 if backend == "serial" else default_workers(backend, facts)
        seconds = math.inf
        if backend == "serial" and facts.sample is not None:
            seconds = facts.expected * max(facts.sample.task_s, 1 / facts.most_per_s)
        return _choice(Choice(backend, workers, seconds, why_not=why_not), facts)
    sample = facts.sample.in_worker
    facts = facts._replace(sample=sample)
    way = _threads(sample, facts) if backend == "threads" else _processes(sample, facts)
    way = way._replace(most_per_s=min(way.most_per_s, facts.most_per_s))
    most = min(_most_workers(backend, facts), max(facts.expected, 1))
    workers = min(most, _enough_workers(way, facts.cpus))
    at_work = workers
    if backend == "threads" and workers == MOST_THREADS and facts.most_workers is None:
        at_work = min(CLIMB * workers, max(facts.expected, 1))
    per_s = min(at_work / way.round_s, way.most_per_s)
    start_s = way.start_s + workers * way.each_start_s
    seconds = start_s + _work_s(facts, at_work, per_s)
    found = Choice(backend, workers, seconds, start_s=start_s, carry_s=way.carry_s)
    return _choice(found, facts)


def _enough_workers(way: _Way, cpus: int) -> int:
    """Return how many workers reach what is shared: no more are of use (Little's law).

    Tasks that compute keep a CPU each; that they seem to wait a little is the machine's doing.
    """
    enough = max(1, math.ceil(way.most_per_s * way.round_s * MARGIN - 0.01))
    return enough if way.waits > WAITS else min(enough, cpus)


def _choice(choice: Choice, facts: Facts) -> Choice:
    """Add between which bounds the truth will probably be."""
    sample = facts.sample
    if sample is None or choice.seconds == math.inf:
        return choice
    unsure = UNSURE * (1 + sample.spread / math.sqrt(sample.tasks))
    return choice._replace(low=choice.seconds / unsure, high=choice.seconds * unsure)


def _forbidden(backend: str, facts: Facts) -> str:
    if facts.is_coroutine and backend != "asyncio":
        return "the function is a coroutine function."
    if backend == "asyncio" and not facts.is_coroutine:
        return "the function is no coroutine function (async def)."
    if backend == "processes" and facts.is_nested:
        return "this is inside a worker process already, whose CPUs are in use."
    if backend == "processes" and facts.unstartable is not None:
        return facts.unstartable
    if backend == "processes" and facts.unpicklable is not None:
        return facts.unpicklable
    return ""


def default_workers(backend: str, facts: Facts) -> int:
    """Return how many workers a backend has where nothing was measured."""
    if facts.most_workers is not None:
        return facts.most_workers
    if backend == "asyncio":
        return MOST_COROUTINES
    return facts.cpus if backend == "processes" else min(MOST_THREADS, facts.cpus + 4)


def _most_workers(backend: str, facts: Facts) -> int:
    asked = facts.most_workers or MOST_WORKERS
    if backend == "threads":
        return min(asked, max(MOST_THREADS, facts.cpus))
    sample = facts.sample
    assert sample is not None
    each_bytes = WORKER_BYTES + sample.memory_bytes + sample.nbytes
    in_memory = int(min(MEMORY_SHARE * facts.free_bytes / each_bytes, MOST_WORKERS))
    return max(1, min(asked, WORKERS_PER_CPU * facts.cpus, in_memory))


# --- The ways ----------------------------------------------------------------------------


def _threads(sample: Sample, facts: Facts) -> _Way:
    """One thread at a time holds the GIL, and each CPU serves one."""
    task_s, costs = sample.task_s, facts.costs
    chunk_s = costs.thread_chunk_s / _chunk(sample)
    held_share = sample.held_share  # 0: there is no GIL
    if 0.0 < held_share < sample.cpu_share and task_s < HANDOVER_S:
        held_share = sample.cpu_share
    held_s = (task_s * held_share + chunk_s) * GIL_TAX
    if task_s >= TINY_S:
        held_s += HANDOVER_S
    cpu_s = max(task_s * sample.busy_cpus, held_s)
    return _Way(
        round_s=task_s + chunk_s,
        most_per_s=min(1 / held_s, _cpus(facts) / cpu_s),
        waits=1 - sample.cpu_share,
        start_s=0.0,
        each_start_s=costs.thread_s,
    )


def _processes(sample: Sample, facts: Facts) -> _Way:
    """Each CPU serves one process; the parent, who needs a CPU too, one worker at a time."""
    task_s, costs = sample.task_s, facts.costs
    journey_s = sample.carry_s + sample.nbytes * costs.byte_s
    journey_s += costs.task_s if task_s >= TINY_S else costs.tiny_task_s
    # Of what pickles, copies and unpickles, about half is the parent's.
    parent_s = costs.chunk_s / _chunk(sample) + journey_s / 2
    worker_s = journey_s / 2
    cpu_s = task_s * sample.busy_cpus + worker_s + parent_s
    return _Way(
        round_s=task_s + worker_s + parent_s,
        most_per_s=min(1 / parent_s, _cpus(facts) / cpu_s),
        waits=1 - sample.cpu_share,
        start_s=(0.001 if facts.is_warm else costs.server_s) + sample.first_s,
        each_start_s=0.0 if facts.is_warm else costs.worker_s,
        carry_s=journey_s,
    )


def _cpus(facts: Facts) -> float:
    """Return how many CPUs' worth all CPUs are: they are slower if all are busy."""
    return facts.cpus * facts.costs.pace if facts.cpus > 1 else 1.0


def _chunk(sample: Sample) -> float:
    return max(1.0, TARGET_S / max(sample.task_s, 1e-9))


def _work_s(facts: Facts, workers: int, per_s: float) -> float:
    """Return the seconds of what remains: in the end some workers have nothing to do.

    Where there are few tasks, they come in rounds; where they are of different length, one
    of the longer ones is the last.
    """
    sample, count = facts.sample, facts.expected
    assert sample is not None
    rounds_s = math.ceil(count / workers) * workers / per_s
    even_s = count / per_s
    tail_s = sample.task_s * sample.spread * (1 - 1 / workers)
    # Chunks are single tasks towards the end, so that rounds matter as far as tasks are few.
    return max(even_s + min(tail_s, even_s), min(rounds_s, even_s + sample.task_s))
