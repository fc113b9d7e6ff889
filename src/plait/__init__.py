"""plait: run your function over your items on the right kind of worker, and lose nothing."""

from plait import errors
from plait.api import amap, arun, imap, map, run, starmap  # noqa: A004  the names Python gave them
from plait.errors import (
    NotPicklable,
    OptionError,
    PlaitError,
    PoolClosed,
    RemoteError,
    RemoteTraceback,
    UnknownOption,
    WorkerDied,
    WorkerStartError,
)
from plait.executor import Executor
from plait.options import Options
from plait.outcome import Outcome
from plait.plan import Plan
from plait.report import Report
from plait.run import Run

__version__ = "0.1.0"

__all__ = [
    "Executor",
    "NotPicklable",
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
