"""plait: run your function over your items on the right kind of worker, and lose nothing."""

from typing import TYPE_CHECKING

from plait import errors
from plait.api import imap, map, run, starmap  # noqa: A004  the names Python gave them
from plait.errors import (
    MemoryLimitExceeded,
    NotPicklable,
    OptionError,
    PlaitError,
    PoolClosed,
    RemoteError,
    RemoteTraceback,
    RunTimeout,
    TaskCancelled,
    TaskError,
    TaskTimeout,
    UnknownOption,
    WorkerDied,
    WorkerStartError,
)
from plait.options import OptionArgs, Options
from plait.outcome import Attempt, Outcome
from plait.plan import Plan
from plait.report import Report
from plait.run import Run

if TYPE_CHECKING:
    from plait.aio import amap, arun
    from plait.executor import Executor

__version__ = "0.1.0"

__all__ = [
    "Attempt",
    "Executor",
    "MemoryLimitExceeded",
    "NotPicklable",
    "OptionArgs",
    "OptionError",
    "Options",
    "Outcome",
    "PlaitError",
    "Plan",
    "PoolClosed",
    "RemoteError",
    "RemoteTraceback",
    "Report",
    "Run",
    "RunTimeout",
    "TaskCancelled",
    "TaskError",
    "TaskTimeout",
    "UnknownOption",
    "WorkerDied",
    "WorkerStartError",
    "__version__",
    "amap",
    "arun",
    "errors",
    "imap",
    "map",
    "run",
    "starmap",
]

# What imports asyncio or concurrent.futures waits until somebody asks for it.
_LATER = {"Executor": "plait.executor", "amap": "plait.aio", "arun": "plait.aio"}


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module 'plait' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LATER[name]), name)
