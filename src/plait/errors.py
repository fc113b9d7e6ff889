"""Every error of plait's own, with its text.

The errors of the user's function are not here: they arrive as themselves. What is
here happened around the function: a worker died, an object could not travel, an
option made no sense. Every class can be pickled and carries its facts as attributes.
"""

from __future__ import annotations

import signal
from typing import Any

__all__ = [
    "NotPicklable",
    "OptionError",
    "PlaitError",
    "PoolClosed",
    "RemoteError",
    "RemoteTraceback",
    "UnknownOption",
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

    def __init__(self, option: str, value: object, allowed: str) -> None:
        super().__init__(f"{option}={value!r} is not allowed: {option} must be {allowed}.")
        self.option = option
        self.allowed = allowed


class UnknownOption(PlaitError, TypeError):
    """There is no option of that name. Raised before any work starts."""

    def __init__(self, option: str, hint: str) -> None:
        super().__init__(f"plait has no option {option!r}. {hint}")
        self.option = option


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
    def on_arrival(cls, what: str, error: Exception) -> NotPicklable:
        """Tell of an object that was pickled on one side and could not be read on the other."""
        broken = cls.__new__(cls)
        text = (
            f"The {what} was pickled, but cannot be unpickled: {type(error).__name__}: {error}. "
            "Give its class a __reduce__ or __setstate__ that works, or use backend='threads'."
        )
        broken.args = (text,)
        broken.path, broken.kind = what, type(error).__name__
        broken.__cause__ = error
        return broken


class WorkerDied(PlaitError):
    """A worker process ended while it ran this task.

    Attributes: ``pid``; ``worker`` (its name); ``exitcode`` (None where a signal ended
    it); ``signal`` (its number, or None); ``index`` and ``item`` (the task).
    """

    pid: int
    worker: str
    exitcode: int | None
    signal: int | None
    index: int
    item: str

    @classmethod
    def of_task(
        cls, *, worker: str, pid: int, status: int | None, index: int, item: str
    ) -> WorkerDied:
        """Tell of a death in the words of a report.

        ``status`` is the exit code, minus the signal's number, or None if it cannot be known.
        """
        error = cls(
            f"{worker} (pid {pid}) {death_text(status)} while it ran task {index}, {item}. "
            "The other tasks went on. Keep their results with on_error='return'."
        )
        error.worker, error.pid, error.index, error.item = worker, pid, index, item
        error.exitcode = status if status is not None and status >= 0 else None
        error.signal = -status if status is not None and status < 0 else None
        return error


class WorkerStartError(PlaitError):
    """Workers could not be started, or all of them failed in the initializer."""


class PoolClosed(PlaitError, RuntimeError):
    """Work was given to a pool or an executor that is already closed."""


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
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"
