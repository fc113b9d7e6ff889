"""The kinds of worker pool, and the one table from name to backend."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from plait.backends.contract import Backend, Lane, Setting, Traits

if TYPE_CHECKING:
    from plait.options import Options

__all__ = [
    "Backend",
    "Lane",
    "Setting",
    "Traits",
    "close_servers",
    "default_start_method",
    "open_backend",
]

Initializer = Callable[[], object] | None


def default_start_method() -> str:
    """Return "server" where processes can be forked, else "spawn"."""
    return "server" if hasattr(os, "fork") else "spawn"


def close_servers() -> None:
    """End what backends share and keep after the last pool is closed."""
    child = sys.modules.get("plait.backends.child")
    if child is not None:
        child.close_server()


def open_backend(name: str, max_workers: int, options: Options) -> Backend:
    """Open a backend by name. Its module is imported now, not before."""
    initializer: Initializer = None
    if options.initializer is not None:
        initializer = partial(options.initializer, *options.initargs)
    if name == "serial" and not options.has_deadline:
        from plait.backends.serial import SerialBackend

        return SerialBackend(initializer)
    if name in ("threads", "serial"):  # who runs the tasks cannot watch the time as well
        from plait.backends.threads import ThreadBackend

        return ThreadBackend(max_workers, initializer)
    if name == "asyncio":
        from plait.backends.asyncio_loop import AsyncioBackend

        return AsyncioBackend(max_workers, initializer)
    from plait.backends.processes import ProcessBackend

    return ProcessBackend(
        max_workers,
        initializer,
        options.start_method or default_start_method(),
        options.max_tasks_per_child,
    )
