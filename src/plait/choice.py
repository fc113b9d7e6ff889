"""Collect the facts that a plan needs, and have it made: what plan.py, being pure, cannot do."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from plait import pools, wire
from plait.errors import NotPicklable
from plait.host import cpu_count
from plait.plan import Facts, Plan, Sample, choose, may_be_worth_processes
from plait.server_process import start_early
from plait.worker import depth

if TYPE_CHECKING:
    from plait.options import Options

__all__ = ["decide", "is_coroutine", "look_ahead"]


def decide(
    fn: Callable[..., Any],
    options: Options,
    sample: Sample | None = None,
    *,
    remaining: int | None = None,
) -> Plan:
    """Make the plan for what remains after a sample (``remaining`` tasks; None: unknown)."""
    is_settled = options.backend != "auto" and options.max_workers is not None
    needs_cpus = remaining != 0 and not is_settled
    has_choice = sample is not None and remaining != 0
    return choose(
        options,
        Facts(
            cpus=cpu_count() if needs_cpus else 1,  # a short run is not to wait for files
            is_coroutine=is_coroutine(fn),
            is_nested=depth() > 0,
            sample=sample,
            remaining=remaining,
            unpicklable=_why_unpicklable(fn) if has_choice else None,
            is_warm=pools.is_warm("processes"),
        ),
    )


def look_ahead(options: Options, sample: Sample | None, remaining: int | None) -> None:
    """Have the server start already if the sample, as far as it has come, speaks for processes."""
    if sample is None or not may_be_worth_processes(sample, remaining):
        return
    facts = Facts(cpu_count(), is_nested=depth() > 0, sample=sample, remaining=remaining)
    if choose(options, facts).backend == "processes":
        start_early()


def is_coroutine(fn: Callable[..., Any]) -> bool:
    """Whether calling ``fn`` gives something to await."""
    while isinstance(fn, partial):
        fn = fn.func
    # What calling an object does is said by its class (and calling a class, by the class of it).
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(type(fn).__call__)


def _why_unpicklable(fn: Callable[..., Any]) -> str | None:
    try:
        wire.pack(fn, "function")
    except NotPicklable as error:
        return str(error)
    return None
