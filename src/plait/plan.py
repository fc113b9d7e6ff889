"""Which backend, how many workers, and why. Pure: facts in, a Plan out.

This is the first rule, by measured CPU share: coroutine functions go to asyncio, work
that waits to threads, work that computes to processes, and what is over sooner than
workers are started stays in the loop. ``choose`` is the seam: a model that predicts
every way's time can take its place, with the same facts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from plait.options import Options

__all__ = ["Facts", "Plan", "Sample", "choose", "may_be_worth_processes"]

WAITS_BELOW = 0.5
"""A task that is on a CPU for less than this share of its time is waiting for something."""
START_S = {"threads": 0.001, "processes": 0.1}
"""What the workers of a backend cost before their first result, cold."""
MOST_THREADS = 32
MOST_COROUTINES = 100


class Sample(NamedTuple):
    """What the first tasks told, run in place.

    ``tasks`` of them took ``task_s`` seconds each (mean), of which the thread was on a
    CPU for the share ``cpu_share`` (of the time that it did not wait for a free CPU).
    """

    tasks: int
    task_s: float
    cpu_share: float


class Facts(NamedTuple):
    """All that a choice depends on, besides the options."""

    cpus: int
    is_coroutine: bool = False
    is_nested: bool = False  # we are in a worker process already
    sample: Sample | None = None
    remaining: int | None = None  # tasks after the sample; None: unknown
    unpicklable: str | None = None  # why the function cannot go to a process
    is_warm: bool = False  # a pool of processes stands ready


@dataclass(frozen=True, slots=True)
class Plan:
    """What we will do, and why.

    Attributes:
        backend: the kind of worker.
        max_workers: how many at most.
        chunksize: tasks sent together, or "auto".
        reason: one sentence.
        sample: what was measured before choosing, if anything was.
        depth: 1 inside a task that runs in a worker process, where no further processes are
            started; 0 elsewhere.
    """

    backend: str
    max_workers: int
    chunksize: int | Literal["auto"]
    reason: str
    sample: Sample | None = None
    depth: int = 0

    def __str__(self) -> str:
        workers = "" if self.backend == "serial" else f" x {self.max_workers}"
        inside = " (inside a worker)" if self.depth else ""
        return f"{self.backend}{workers}{inside}: {self.reason}"


def choose(options: Options, facts: Facts) -> Plan:
    """Choose a backend and the number of workers.

    >>> from plait.options import Options
    >>> print(choose(Options(), Facts(4, sample=Sample(2, 0.01, 0.02), remaining=998)))
    threads x 32: it waits 98% of its time (10 ms a task).
    """
    backend, reason = _choose_backend(options, facts)
    workers = 1 if backend == "serial" else options.max_workers or _workers(backend, facts)
    depth = int(facts.is_nested)
    return Plan(backend, workers, options.chunksize, reason, facts.sample, depth)


def _choose_backend(options: Options, facts: Facts) -> tuple[str, str]:
    if options.backend == "processes" and facts.is_nested:
        return "serial", "this is inside a worker process already, whose CPUs are in use."
    if options.backend != "auto":
        return options.backend, "it was asked for."
    if facts.is_coroutine:
        return "asyncio", "the function is a coroutine function."
    if options.memory_limit is not None:
        if facts.is_nested:
            return "serial", "this is inside a worker process already, which has its own limits."
        return "processes", "a memory limit was asked for, and only processes can be ended."
    if facts.sample is None:
        return "serial", "there is nothing to do."
    return _choose_by_sample(facts, facts.sample, options.max_workers)


def _choose_by_sample(facts: Facts, sample: Sample, max_workers: int | None) -> tuple[str, str]:
    if facts.remaining == 0:
        return "serial", f"it was done before workers could have started ({_task_text(sample)})."
    left_s = math.inf if facts.remaining is None else facts.remaining * sample.task_s
    if sample.cpu_share < WAITS_BELOW:
        if left_s > START_S["threads"]:
            share = f"it waits {1 - sample.cpu_share:.0%} of its time"
            return "threads", f"{share} ({_task_text(sample)})."
        return "serial", f"what remains is short ({_task_text(sample)})."
    return _choose_for_cpu(facts, sample, left_s, max_workers)


def may_be_worth_processes(sample: Sample, remaining: int | None) -> bool:
    """Whether ``choose`` may say "processes" for what remains; looks at no other facts."""
    left_s = math.inf if remaining is None else remaining * sample.task_s
    return sample.cpu_share >= WAITS_BELOW and left_s >= START_S["processes"]


def _choose_for_cpu(
    facts: Facts, sample: Sample, left_s: float, max_workers: int | None
) -> tuple[str, str]:
    computes = f"it computes {sample.cpu_share:.0%} of its time ({_task_text(sample)})"
    if facts.is_nested:
        return "serial", f"{computes}, and this is inside a worker process already."
    workers = min(max_workers or facts.cpus, facts.cpus, facts.remaining or facts.cpus)
    if workers == 1:
        return "serial", f"{computes}, and there is one CPU or one task for it."
    if facts.unpicklable is not None:
        return "serial", f"{computes}, and it cannot go to processes: {facts.unpicklable}"
    saved_s = left_s * (1 - 1 / workers)
    start_s = START_S["processes"] / (10 if facts.is_warm else 1)
    if saved_s < start_s:
        return "serial", f"{computes}; what remains is over before processes would help."
    return "processes", f"{computes}."


def _workers(backend: str, facts: Facts) -> int:
    if backend == "processes":
        return facts.cpus
    if backend == "asyncio":
        return MOST_COROUTINES
    if facts.sample is None:
        return min(MOST_THREADS, facts.cpus + 4)
    # Little's law: so many that, while the others wait, every CPU has one to run. A power
    # of two, so that the next map, measured a little differently, finds the same pool.
    needed = facts.cpus / max(facts.sample.cpu_share, 1 / MOST_THREADS)
    return min(MOST_THREADS, 1 << math.ceil(math.log2(max(needed, 2))))


def _task_text(sample: Sample) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if sample.task_s >= size:
            return f"{sample.task_s / size:.3g} {unit} a task"
    return f"{sample.task_s * 1e6:.3g} µs a task"
