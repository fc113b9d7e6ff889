"""Options: what the user asked for, checked once at the door and never again.

The same names are used by the functions, the command line and the docs. To add an
option: a field here, a line in CHECKS, a line in OptionArgs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypedDict

from plait.errors import OptionError, UnknownOption

__all__ = ["BACKENDS", "ON_ERROR", "START_METHODS", "OptionArgs", "Options"]

BACKENDS = ("auto", "serial", "threads", "processes", "asyncio")
ON_ERROR = ("raise", "finish", "return")
START_METHODS = ("server", "spawn")

Progress = bool | Callable[[int, int | None], None]


class OptionArgs(TypedDict, total=False):
    """The options of ``map`` and its sisters, for editors and type checkers."""

    backend: Literal["auto", "serial", "threads", "processes", "asyncio"]
    max_workers: int | None
    chunksize: int | Literal["auto"]
    ordered: bool | None
    on_error: Literal["raise", "finish", "return"]
    initializer: Callable[..., object] | None
    initargs: tuple[Any, ...]
    start_method: Literal["server", "spawn"] | None
    buffersize: int | Literal["auto"]
    progress: Progress


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asked for.

    Attributes:
        backend: "auto" measures the first items and chooses; or "serial", "threads",
            "processes", "asyncio".
        max_workers: how many workers at most; None: as the plan finds best.
        chunksize: tasks sent together; "auto" follows the measured time of the tasks.
        ordered: results in the order of the input; None: as each function documents.
        on_error: "raise" stops and raises the first error; "finish" runs everything,
            then raises one ExceptionGroup; "return" puts the exception where the value
            would be.
        initializer: called once in each new worker, with ``initargs``.
        start_method: how worker processes start: "server" (forked from a small server,
            the default where fork exists) or "spawn" (a fresh interpreter each).
        buffersize: how many tasks may be read ahead or wait unread; "auto" keeps the
            workers busy and the memory constant.
        progress: True for a bar on stderr, or a function of (done, total or None).
    """

    backend: str = "auto"
    max_workers: int | None = None
    chunksize: int | Literal["auto"] = "auto"
    ordered: bool | None = None
    on_error: str = "raise"
    initializer: Callable[..., object] | None = None
    initargs: tuple[Any, ...] = ()
    start_method: str | None = None
    buffersize: int | Literal["auto"] = "auto"
    progress: Progress = False

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Options:
        """Check keywords and return them as Options.

        Raises UnknownOption for a name that plait does not have (with the name it
        probably meant) and OptionError for a value that the option cannot have.

        >>> Options.of({"n_jobs": 8})
        Traceback (most recent call last):
        plait.errors.UnknownOption: plait has no option 'n_jobs'. Use max_workers=8.
        """
        for name, value in given.items():
            if name not in CHECKS:
                raise UnknownOption(name, _hint(name, value))
            allowed = CHECKS[name](value)
            if allowed is not None:
                raise OptionError(name, value, allowed)
        return cls(**given)

    def with_order(self, ordered: bool) -> Options:  # noqa: FBT001  it is the option's own type
        """Fill in the order where the user did not ask for one."""
        return self if self.ordered is not None else replace(self, ordered=ordered)


# A check returns None where the value is good, and else what is allowed.
Check = Callable[[Any], str | None]


def _one_of(names: tuple[str, ...]) -> Check:
    allowed = "one of " + ", ".join(repr(name) for name in names)
    return lambda value: None if value in names else allowed


def _count(*others: object) -> Check:
    allowed = "a whole number from 1 up" + "".join(f" or {other!r}" for other in others)

    def check(value: Any) -> str | None:
        is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        is_other = any(value is other or value == other for other in others)
        return None if is_count or is_other else allowed

    return check


def _instance(kinds: type | tuple[type, ...], allowed: str) -> Check:
    return lambda value: None if isinstance(value, kinds) else allowed


def _callable_or(kinds: tuple[type, ...], allowed: str) -> Check:
    return lambda value: None if callable(value) or isinstance(value, kinds) else allowed


CHECKS: dict[str, Check] = {
    "backend": _one_of(BACKENDS),
    "max_workers": _count(None),
    "chunksize": _count("auto"),
    "ordered": _instance((bool, type(None)), "True, False or None"),
    "on_error": _one_of(ON_ERROR),
    "initializer": _callable_or((type(None),), "a function or None"),
    "initargs": _instance(tuple, "a tuple of the initializer's arguments"),
    "start_method": lambda value: None if value is None else _one_of(START_METHODS)(value),
    "buffersize": _count("auto"),
    "progress": _callable_or((bool,), "True, False or a function of (done, total)"),
}

# What other libraries call it, and what it is called here.
FOREIGN = {
    "n_jobs": "max_workers",
    "n_workers": "max_workers",
    "num_workers": "max_workers",
    "nprocs": "max_workers",
    "processes": "max_workers",
    "workers": "max_workers",
    "max_threads": "max_workers",
    "threads": "max_workers",
    "pool_size": "max_workers",
    "concurrency": "max_workers",
    "batch_size": "chunksize",
    "chunk_size": "chunksize",
    "chunks": "chunksize",
    "iterable_len": "len() of the input, which plait reads itself",
    "engine": "backend",
    "method": "backend",
    "prefer": "backend",
    "executor": "backend",
    "scheduler": "backend",
    "mp_context": "start_method",
    "context": "start_method",
    "pre_dispatch": "buffersize",
    "prefetch": "buffersize",
    "return_exceptions": "on_error='return'",
    "raise_exceptions": "on_error",
    "ignore_errors": "on_error='return'",
    "progress_bar": "progress",
    "tqdm": "progress",
    "show_progress": "progress",
    "verbose": "progress",
    "worker_init": "initializer",
    "init": "initializer",
    "init_args": "initargs",
}

# The design has these; this version does not yet, and says so rather than ignore them.
PLANNED = (
    "backoff",
    "journal",
    "max_tasks_per_child",
    "memory_limit",
    "resume",
    "retries",
    "retry_on",
    "task_timeout",
    "timeout",
)
FOREIGN_PLANNED = {
    "timeout_per_task": "task_timeout",
    "worker_lifespan": "max_tasks_per_child",
    "maxtasksperchild": "max_tasks_per_child",
    "max_retries": "retries",
    "retry": "retries",
    "attempts": "retries",
}


def _hint(name: str, value: object) -> str:
    planned = FOREIGN_PLANNED.get(name, name)
    if planned in PLANNED:
        prefix = "" if planned == name else f"Its word for it is {planned}: "
        text = f"{prefix}it is planned and not part of this version."
        return text[0].upper() + text[1:]
    word = FOREIGN.get(name)
    if word in CHECKS and CHECKS[word](value) is None:
        return f"Use {word}={value!r}."
    if word is not None:
        return f"Use {word}."
    import difflib

    close = difflib.get_close_matches(name, [*CHECKS, *PLANNED], n=1)
    if close:
        return f"Did you mean {close[0]}?"
    return f"The options are {', '.join(field.name for field in fields(Options))}."
