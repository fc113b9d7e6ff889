"""Every error of plait's own, with its text.

The errors of the user's function are not here: they arrive as themselves. What is
here happened around the function: a worker died, an object could not travel, an
option made no sense. Every class can be pickled and carries its facts as attributes.
"""

from __future__ import annotations

import errno
import os
from typing import Any, NamedTuple, Self

from plait.foreign import text_of

__all__ = [
    "Access",
    "DeadlockError",
    "InputChanged",
    "InternalError",
    "MemoryLimitExceeded",
    "NotPicklable",
    "OptionError",
    "OwnerDied",
    "PlaitError",
    "PoolClosed",
    "RaceFound",
    "RemoteError",
    "RemoteTraceback",
    "RunTimeout",
    "SharedDataGone",
    "TaskError",
    "TaskTimeout",
    "UnknownOption",
    "Victim",
    "WorkerDied",
    "WorkerStartError",
]


def _rebuild(cls: type[PlaitError], args: tuple[Any, ...], facts: dict[str, Any]) -> PlaitError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(facts)
    return error


class PlaitError(Exception):
    """What every error of plait's own is; catch it to tell them from your function's."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, dict(self.__dict__))


class OptionError(PlaitError, ValueError):
    """An option has a value that it cannot have. Raised before any work starts."""

    def __init__(self, option: str, value: object, allowed: str, hint: str = "") -> None:
        text = f"{option}={value!r} is not allowed: {option} must be {allowed}."
        super().__init__(f"{text} {hint}" if hint else text)
        self.option = option
        self.allowed = allowed


class UnknownOption(PlaitError, TypeError):
    """There is no option of that name. Raised before any work starts."""

    def __init__(self, option: str, hint: str, where: str = "plait") -> None:
        super().__init__(f"{where} has no option {option!r}. {hint}")
        self.option = option


class InternalError(PlaitError):
    """Plait made a mistake: at the end of a run its tasks do not add up. Please report it.

    Raised instead of a result that would be short, or in the wrong order.

    Attributes:
        total: how many tasks were taken from the input.
        missing, doubled, unknown: numbers of tasks without an outcome, with more than one, and
            of tasks that were never taken; lists of ranges.
    """

    def __init__(
        self, total: int, missing: list[range], doubled: list[range], unknown: list[range]
    ) -> None:
        facts = ((missing, "no outcome"), (doubled, "more than one"), (unknown, "one unasked"))
        told = "; ".join(f"{_list_ranges(ranges)} have {what}" for ranges, what in facts if ranges)
        super().__init__(
            f"plait lost track of its tasks: {told}, of {total} that were taken from the input. "
            "This is a fault of plait, not of your function. "
            "Please report it, with the call and the versions of plait and Python."
        )
        self.total = total
        self.missing = missing
        self.doubled = doubled
        self.unknown = unknown


def _list_ranges(ranges: list[range], most: int = 5) -> str:
    texts = [f"{r[0]} to {r[-1]}" if len(r) > 1 else str(r[0]) for r in ranges[:most]]
    return ", ".join(texts) + (", ..." if len(ranges) > most else "")


class InputChanged(PlaitError, RuntimeError):
    """The list that was mapped got longer meanwhile, and its new items were not.

    A plain loop would have gone on with them. What was done is in ``plait_run``, as with any
    error that ends a call.

    Attributes:
        total: how many items were mapped.
    """

    def __init__(self, total: int) -> None:
        super().__init__(
            f"The list got longer while its first {total} items were mapped. A plain loop would go "
            "on with the new ones; plait hands out what is there at the call. "
            "Collect new items in another list, and map that afterwards."
        )
        self.total = total

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.total,)


class NotPicklable(PlaitError):
    """An object could not be sent to a worker, or a result could not be sent back.

    ``path`` is the part that is to blame, as Python would reach it
    (``item.lock``, ``fn.__closure__['connection']``).
    """

    def __init__(self, what: str, path: str, blamed: object, reason: str) -> None:
        kind = f"{type(blamed).__module__}.{type(blamed).__qualname__}"
        super().__init__(
            f"The {what} cannot be pickled, so it cannot travel between processes: "
            f"{path} is a {kind} ({reason}). "
            f"Leave that part out, make it inside the task, or use backend='threads'."
        )
        self.path = path
        self.kind = kind

    @classmethod
    def on_arrival(cls, what: str, error: BaseException) -> NotPicklable:
        """Tell of an object that was pickled on one side and could not be read on the other."""
        broken = cls.__new__(cls)
        told = f"{type(error).__name__}: {text_of(error)}"
        advice = "Give its class a __reduce__ or __setstate__ that works, or use backend='threads'."
        if isinstance(error, SharedDataGone):  # then its class is not to blame
            advice = "It was lost with its worker, or what is inside of it was not kept elsewhere."
        text = f"The {what} was pickled, but cannot be unpickled: {told.rstrip('.')}. {advice}"
        broken.args = (text,)
        broken.path, broken.kind = what, type(error).__name__
        broken.__cause__ = error
        return broken


class Victim(NamedTuple):
    """A task that failed with its worker, as an error tells of it."""

    index: int  # type: ignore[assignment]  # as an Outcome has; not the method of tuples
    item: str  # "parse('a.html')"
    attempt: int
    worker: str
    pid: int

    def __str__(self) -> str:
        return f"task {self.index}, {self.item}, attempt {self.attempt}"


class TaskError(PlaitError):
    """A task failed without having raised anything: it was ended, or went with its worker.

    Attributes: ``index`` and ``item`` (the task); ``attempt`` (which try, from 1);
    ``worker`` (its name); ``pid``.
    """

    index: int
    item: str
    attempt: int
    worker: str
    pid: int

    @classmethod
    def _make(cls, victim: Victim, text: str) -> Self:
        error = cls(text)
        error.__dict__.update(victim._asdict())
        return error


class WorkerDied(TaskError):
    """A worker process ended while it ran this task.

    Attributes, besides those of TaskError: ``exitcode`` (None where a signal ended it);
    ``signal`` (its number, or None); ``peak_bytes`` (the most memory that the process had,
    0 where the system does not tell); ``stack`` (where its threads were as it crashed,
    or ""); ``was_oom`` (the system's OOM killer is known to have struck).
    """

    was_oom: bool
    exitcode: int | None
    signal: int | None
    peak_bytes: int
    stack: str

    @classmethod
    def of_task(
        cls,
        victim: Victim,
        status: int | None,
        *,
        stopped_by: int | None = None,
        peak_bytes: int = 0,
        stack: str = "",
        was_oom: bool = False,
        losses: int = 0,
    ) -> WorkerDied:
        """Tell of a death in the words of a report.

        ``status`` is the exit code, minus the signal's number, or None if it cannot be known.
        ``losses`` says how many workers died as they were to begin the task, which never ran.
        """
        ending = death_text(status)
        if stopped_by is not None:
            name = signal_name(stopped_by)
            ending = f"was stopped by {name} and, as it did not go on, ended by plait"
        text = f"{victim.worker} (pid {victim.pid}) {ending} while it ran {victim}."
        if losses:
            text = f"{victim.worker} (pid {victim.pid}) {ending} as it was to begin {victim}, "
            text += f"as {losses - 1} workers before it did."
        if was_oom:
            text += " The system's OOM killer struck in this cgroup: memory ran out."
        if peak_bytes:
            text += f" Its memory was {size_text(peak_bytes)} at most."
        text += " The other tasks went on. Keep their results with on_error='return'."
        if stack:
            text += f"\n{stack.rstrip()}"
        error = cls._make(victim, text)
        error.exitcode = status if status is not None and status >= 0 else None
        error.signal = -status if status is not None and status < 0 else None
        error.peak_bytes, error.stack, error.was_oom = peak_bytes, stack, was_oom
        return error


class TaskTimeout(TaskError, TimeoutError):
    """A task ran longer than ``task_timeout`` allows, and was ended, or left to itself.

    Attributes, besides those of TaskError: ``limit_s`` and ``after_s`` (seconds);
    ``is_abandoned`` (a thread, which cannot be ended: it may still be running);
    ``stack`` (where a worker process was when it was ended, or "").
    """

    limit_s: float
    after_s: float
    is_abandoned: bool
    stack: str

    @classmethod
    def of_task(
        cls,
        victim: Victim,
        limit_s: float,
        after_s: float,
        stack: str = "",
        *,
        is_abandoned: bool = False,
    ) -> TaskTimeout:
        """Tell which task ran for how long, and what became of it."""
        end = "its worker was ended and replaced"
        if is_abandoned:
            end = "its thread, which cannot be ended, was left to itself and replaced"
        elif victim.worker.startswith("coroutine"):
            end = "it was cancelled"
        text = (
            f"{victim} ran for {after_s:.3g} s on {victim.worker} (pid {victim.pid}), longer than "
            f"task_timeout={limit_s:.3g} s; {end}. The other tasks went on."
        )
        if stack:
            text += f" It was here:\n{stack.rstrip()}"
        error = cls._make(victim, text[0].upper() + text[1:])
        error.limit_s, error.after_s = limit_s, after_s
        error.is_abandoned, error.stack = is_abandoned, stack
        return error


class MemoryLimitExceeded(TaskError):
    """A worker process, with what it started, had more memory than ``memory_limit``.

    Attributes, besides those of TaskError: ``limit_bytes`` and ``rss_bytes`` (resident
    memory, when it was measured).
    """

    limit_bytes: int
    rss_bytes: int

    @classmethod
    def of_task(cls, victim: Victim, limit_bytes: int, rss_bytes: int) -> MemoryLimitExceeded:
        """Tell of the limit, and of what was seen."""
        error = cls._make(
            victim,
            f"{victim.worker} (pid {victim.pid}) had {size_text(rss_bytes)} of memory, more than "
            f"memory_limit={size_text(limit_bytes)}, while it ran {victim}; it was ended and "
            "replaced. The other tasks went on.",
        )
        error.limit_bytes, error.rss_bytes = limit_bytes, rss_bytes
        return error


class RunTimeout(PlaitError, TimeoutError):
    """The whole call took longer than ``timeout``. What finished is in ``plait_run.outcomes``.

    Attributes: ``limit_s`` (seconds); ``done`` (how many tasks had finished).
    """

    def __init__(self, limit_s: float, done: int, where: str = "") -> None:
        super().__init__(
            f"The call was not over after timeout={limit_s:.3g} s; {done:,} tasks had "
            f"finished.{where} What was running has been ended, or, on threads, left to itself."
        )
        self.limit_s = limit_s
        self.done = done


class WorkerStartError(PlaitError):
    """Workers could not be started, or all of them failed in the initializer."""


class PoolGivenUp(WorkerStartError):
    """A pool that several calls use was given up, as an exception of another one struck it."""


class PoolClosed(PlaitError, RuntimeError):
    """Work was given to a pool or an executor that is already closed."""


class OwnerDied(PlaitError):
    """Who held a shared lock has ended: what the lock guards may be half written.

    It is raised once, to the next one who wants the lock; the lock itself is free and in order.

    Attributes: ``what`` (the lock's kind and name); ``pid`` and ``owner`` (the process, and its
    name); ``held_s`` (how long ago it acquired the lock, in seconds); ``stack`` (where, innermost
    first); ``task`` (in which task of a plait pool: "task 12", or ""; of tiny tasks it may be "one
    of tasks 8 to 15").
    """

    what: str
    pid: int
    owner: str
    held_s: float
    stack: str
    task: str

    @classmethod
    def of(cls, what: str, pid: int, owner: str, held_s: float, stack: str, task: str = "") -> Self:
        """Tell of an owner and its lock."""
        text = (
            f"{owner or 'A process'} (pid {pid or 'unknown'}) ended while it held {what}, taken "
            f"{held_s:.1f} s ago{f' in {task}' if task else ''}. What it guards may be half "
            "written. The lock is free now."
        )
        if stack:
            text += f"\nIt was taken at\n{indented(stack)}"
        error = cls(text)
        error.__dict__.update(
            what=what, pid=pid, owner=owner, held_s=held_s, stack=stack, task=task
        )
        return error


class DeadlockError(PlaitError):
    """Threads wait for each other, or one for itself, and would do so for ever.

    Attributes: ``members``: a text for each thread of the cycle: what it holds, what it waits for,
    and where.
    """

    members: tuple[str, ...]

    @classmethod
    def of(cls, members: list[str]) -> Self:
        """Tell of a cycle."""
        error = cls(
            f"Deadlock: {len(members)} threads wait for each other. This one, which came last, "
            "gives up. Acquire locks in the same order everywhere.\n" + "\n".join(members)
        )
        error.members = tuple(members)
        return error

    @classmethod
    def alone(cls, what: str, stack: str) -> Self:
        """Tell of a thread that waits for what it has."""
        where = indented(stack)
        error = cls(
            f"Deadlock: this thread waits for {what}, which it has already. Release it first, or "
            f"use an RLock. It was taken at\n{where}"
        )
        error.members = (f"holds and waits for {what}, taken at\n{where}",)
        return error


class Access(NamedTuple):
    """One use of data that several workers have.

    Attributes:
        who: the thread, and its process.
        kind: "read" or "write".
        method: what was called.
        where: file and line, and the function.
        locks: what the locks are called that the thread held.
    """

    who: str
    kind: str
    method: str
    where: str
    locks: tuple[str, ...]

    def __str__(self) -> str:
        did = "wrote" if self.kind == "write" else "read"
        held = " and ".join(self.locks) or "no lock"
        return f"{self.who} {did} it ({self.method})\n    at {self.where}\n    holding {held}"


class RaceFound(PlaitError):
    """Two workers used the same data, one of them to change it, and held no lock in common.

    It may have gone well this time. ``plait.shared.checked`` finds such uses.

    Attributes: ``what`` it is; ``first`` and ``second``, the two uses: each an ``Access``.
    """

    what: str
    first: Access
    second: Access

    @classmethod
    def of(cls, what: str, first: Access, second: Access) -> Self:
        """Tell of two uses of something."""
        told = "\n".join(f"  {line}" for one in (first, second) for line in f"{one}".splitlines())
        error = cls(
            f"Two workers use this {what} and hold no lock in common: what comes of it depends on "
            f"who is faster.\n{told}\nHold the same plait lock wherever it is used: `with lock:`."
        )
        error.__dict__.update(what=what, first=first, second=second)
        return error


class SharedDataGone(PlaitError):
    """Shared data arrived where nobody has its memory any more. ``what`` it was: "Lock"."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"This {what} cannot be found: {why}.")
        self.what = what


class RemoteError(PlaitError):
    """Stands for an exception of a task whose own class could not make the journey.

    Attributes: ``type_name`` (the class, with its module); ``text`` (its ``str``);
    ``traceback_text`` (from the worker).
    """

    def __init__(self, type_name: str, text: str, traceback_text: str) -> None:
        super().__init__(f"{type_name}: {text}")
        self.type_name = type_name
        self.text = text
        self.traceback_text = traceback_text


class RemoteTraceback(PlaitError):
    """The traceback of a worker, as text: the cause of an error that came from there."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'


def death_text(status: int | None) -> str:
    """Say how a process ended: its exit code, or minus the number of the signal."""
    if status is None:
        return "vanished"
    if status >= 0:
        return f"exited with code {status}"
    return f"was killed by {signal_name(-status)}"


def lack_text(number: int) -> str:
    """Say what the system refused: the name of the error, and what it means.

    >>> import errno
    >>> lack_text(errno.EMFILE)
    'EMFILE: this process may not open more files (see ulimit -n)'
    """
    name = errno.errorcode.get(number, f"error {number}")
    return f"{name}: {_LACKS.get(name) or os.strerror(number)}"


_LACKS = {
    "EMFILE": "this process may not open more files (see ulimit -n)",
    "ENFILE": "this machine may not open more files",
    "EAGAIN": "too many processes or threads, of this user or in this container (see ulimit -u)",
    "ENOMEM": "not enough memory (see ulimit -v)",
    "ETOOMANYREFS": "too many files are on their way to another process (see ulimit -n)",
}


def signal_name(number: int) -> str:
    from signal import Signals  # slow to load, and only needed after a death

    try:
        return Signals(number).name
    except ValueError:
        return f"signal {number}"


def size_text(size_bytes: float) -> str:
    """Return a size in bytes as a reader likes it.

    >>> size_text(2_000_000_000)
    '2.0 GB'
    """
    units = ["bytes", "kB", "MB", "GB", "TB"]
    while size_bytes >= 1000 and len(units) > 1:
        size_bytes /= 1000
        units.pop(0)
    return f"{size_bytes:.0f} bytes" if units[0] == "bytes" else f"{size_bytes:.1f} {units[0]}"


def indented(text: str) -> str:
    """Return a text as a part of a longer one."""
    return "\n".join(f"    {line}" for line in text.splitlines())
