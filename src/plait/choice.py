"""Collect the facts that a plan needs, and have it made: what plans.py, being pure, cannot do."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from plait import costs, pools, wire
from plait.effects import shared_writes
from plait.errors import NotPicklable
from plait.host import cpu_count, memory_bytes, monotonic, rss_bytes
from plait.model import Facts, Sample
from plait.plans import Plan, choose, speaks_for_processes
from plait.server_process import server, start_early
from plait.worker import depth

if TYPE_CHECKING:
    from plait.options import Options
    from plait.outcome import Finished

__all__ = ["Question", "decide", "is_coroutine", "look_ahead"]

LOAD_SHARE = 1.5
"""To unpickle takes about so many times as long as to pickle."""
WEIGHED_TASKS = 1000
TRIES = 3
BRIEF_S = 0.000_5


class Question(NamedTuple):
    """What is to be decided: for which function, and what was seen of its tasks.

    ``remaining`` tasks are left (None: unknown), ``last`` are some of those that were run, in
    ``spent_s`` seconds. ``has_processes``: a pool of them is at work. ``no_processes``: why they
    cannot be had (None: they can).
    """

    fn: Callable[..., Any]
    options: Options
    sample: Sample | None = None
    remaining: int | None = None
    last: Finished | None = None
    spent_s: float = 0.0
    has_processes: bool = False
    no_processes: str | None = None


def decide(question: Question, *, in_full: bool = False) -> Plan:
    """Make the plan for what remains after a sample.

    What only processes need is found out if they come into question, or ``in_full`` for who
    wants to read it.
    """
    options, sample = question.options, question.sample
    facts = _facts(question)
    plan = choose(options, facts)
    if plan.facts is None or sample is None or not (in_full or plan.backend == "processes"):
        return plan
    return choose(options, _with_journey(facts, question, sample))


def _facts(question: Question) -> Facts:
    options, remaining = question.options, question.remaining
    is_settled = options.backend != "auto" and options.max_workers is not None
    has_choice = question.sample is not None and remaining != 0 and options.backend == "auto"
    return Facts(
        # A short run is not to wait for files.
        cpus=cpu_count() if remaining != 0 and not is_settled else 1,
        is_coroutine=is_coroutine(question.fn),
        is_nested=depth() > 0,
        sample=question.sample,
        unstartable=_why_no_processes(),
        remaining=remaining,
        is_warm=question.has_processes or pools.is_warm("processes"),
        free_bytes=max(0, memory_bytes() - rss_bytes()) if has_choice else math.inf,
        costs=costs.known() if has_choice else costs.DEFAULT,
        most_workers=options.max_workers,
        spent_s=question.spent_s,
        unpicklable=question.no_processes,
    )


def _with_journey(facts: Facts, question: Question, sample: Sample) -> Facts:
    """Add what the function, an item and its result are to pickle."""
    unpicklable = question.no_processes
    nbytes = carry_s = 0.0
    try:
        wire.pack(question.fn, "function")
        if question.last is not None:
            nbytes, carry_s = _weigh_tasks(question.last)
    except NotPicklable as error:
        unpicklable = f"{error.path} is a {error.kind}, which cannot be pickled."
    sample = sample._replace(nbytes=nbytes, carry_s=carry_s)
    writes = shared_writes(question.fn)
    return facts._replace(sample=sample, unpicklable=unpicklable, writes=writes)


def _weigh_tasks(last: Finished) -> tuple[float, float]:
    """Return bytes and seconds of an item and its result: of the last task, or of tiny ones all.

    Raises NotPicklable.
    """
    if len(last.times) == len(last.values):
        return _weigh(last.items[-1], last.values[-1], 1)
    count = min(len(last.values), WEIGHED_TASKS)
    return _weigh(last.items[:count], last.values[:count], count)


def _weigh(items: Any, values: Any, count: int) -> tuple[float, float]:
    """Weigh items and values, again if that was brief: the first time is no measure of the rest."""
    nbytes, best_s = 0, math.inf
    for _ in range(TRIES):
        started = monotonic()
        nbytes = wire.weigh(items, "item") + wire.weigh(values, "result")
        best_s = min(best_s, monotonic() - started)
        if best_s > BRIEF_S:
            break
    return nbytes / count, best_s * (1 + LOAD_SHARE) / count


def _why_no_processes() -> str | None:
    """Return why no worker process can be started, in one line."""
    return " ".join(server.why_not().split()) or None


def look_ahead(options: Options, sample: Sample | None, remaining: int | None) -> None:
    """Have the server start already if the sample, as far as it has come, speaks for processes."""
    if sample is None or depth():
        return
    facts = Facts(
        cpu_count(),
        unstartable=_why_no_processes(),
        remaining=remaining,
        is_warm=pools.is_warm("processes"),
        most_workers=options.max_workers,
        most_per_s=options.most_per_s,
    )
    if speaks_for_processes(sample, facts):
        start_early()


def is_coroutine(fn: Callable[..., Any]) -> bool:
    """Whether calling ``fn`` gives something to await."""
    while isinstance(fn, partial):
        fn = fn.func
    # What calling an object does is said by its class (and calling a class, by the class of it).
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(type(fn).__call__)
