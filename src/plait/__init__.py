"""plait: run your function over your items on the right kind of worker, and lose nothing."""

from plait.api import imap, map, plan, run, shutdown, starmap  # noqa: A004  the names Python gave them

TYPE_CHECKING = False  # as in typing, which takes longer to load than all of this
if TYPE_CHECKING:
    from plait import errors, shared
    from plait.aio import amap, arun
    from plait.errors import (
        DeadlockError,
        InputChanged,
        InternalError,
        MemoryLimitExceeded,
        NotPicklable,
        OptionError,
        OwnerDied,
        PlaitError,
        PoolClosed,
        RaceFound,
        RemoteError,
        RemoteTraceback,
        RunTimeout,
        SharedDataGone,
        TaskError,
        TaskTimeout,
        UnknownOption,
        WorkerDied,
        WorkerStartError,
    )
    from plait.executor import Executor
    from plait.interpreter import freeze_support
    from plait.options import OptionArgs, Options
    from plait.outcome import Attempt, Outcome
    from plait.plans import Plan
    from plait.report import Report
    from plait.runs import Run
    from plait.sweeping import sweep
    from plait.sweeps import Sweep

__version__ = "0.1.0"

__all__ = [
    "Attempt",
    "DeadlockError",
    "Executor",
    "InputChanged",
    "InternalError",
    "MemoryLimitExceeded",
    "NotPicklable",
    "OptionArgs",
    "OptionError",
    "Options",
    "Outcome",
    "OwnerDied",
    "PlaitError",
    "Plan",
    "PoolClosed",
    "RaceFound",
    "RemoteError",
    "RemoteTraceback",
    "Report",
    "Run",
    "RunTimeout",
    "SharedDataGone",
    "Sweep",
    "TaskError",
    "TaskTimeout",
    "UnknownOption",
    "WorkerDied",
    "WorkerStartError",
    "__version__",
    "amap",
    "arun",
    "errors",
    "freeze_support",
    "imap",
    "map",
    "plan",
    "run",
    "shared",
    "shutdown",
    "starmap",
    "sweep",
]

# Where the other names are: each is imported when somebody asks for it.
_HOMES = {
    "Attempt": "outcome",
    "DeadlockError": "errors",
    "InputChanged": "errors",
    "InternalError": "errors",
    "Executor": "executor",
    "MemoryLimitExceeded": "errors",
    "NotPicklable": "errors",
    "OptionArgs": "options",
    "OptionError": "errors",
    "Options": "options",
    "Outcome": "outcome",
    "OwnerDied": "errors",
    "PlaitError": "errors",
    "Plan": "plans",
    "PoolClosed": "errors",
    "RaceFound": "errors",
    "RemoteError": "errors",
    "RemoteTraceback": "errors",
    "Report": "report",
    "Run": "runs",
    "RunTimeout": "errors",
    "SharedDataGone": "errors",
    "Sweep": "sweeps",
    "TaskError": "errors",
    "TaskTimeout": "errors",
    "UnknownOption": "errors",
    "WorkerDied": "errors",
    "WorkerStartError": "errors",
    "amap": "aio",
    "arun": "aio",
    "errors": "errors",
    "freeze_support": "interpreter",
    "shared": "shared",
    "sweep": "sweeping",
}

if not TYPE_CHECKING:  # or type checkers would believe in any name

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module 'plait' has no attribute {name!r}")
        from importlib import import_module

        module = import_module(f"plait.{_HOMES[name]}")
        # Next time it is found without us.
        globals()[name] = found = module if name in ("errors", "shared") else getattr(module, name)
        return found


def __dir__() -> list[str]:
    """Return what users call."""
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
