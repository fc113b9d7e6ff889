"""Collect the facts that a plan needs, and have it made: what plan.py, being pure, cannot do."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from plait import pools, wire
from plait.errors import NotPicklable
from plait.host import cpu_count
from plait.plan import Facts, Plan, Sample, choose
from plait.worker import depth

if TYPE_CHECKING:
    from plait.options import Options

__all__ = ["decide", "is_coroutine"]


def decide(
    fn: Callable[..., Any],
    options: Options,
    sample: Sample | None = None,
    *,
    remaining: int | None = None,
) -> Plan:
    """Make the plan for what remains after a sample (``remaining`` tasks; None: unknown)."""
    has_choice = sample is not None and remaining != 0
    return choose(
        options,
        Facts(
            cpus=1 if remaining == 0 else cpu_count(),  # a short run is not to wait for files
            is_coroutine=is_coroutine(fn),
            is_nested=depth() > 0,
            sample=sample,
            remaining=remaining,
            unpicklable=_why_unpicklable(fn) if has_choice else None,
            is_warm=pools.is_warm("processes"),
        ),
    )


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
