"""The kinds of worker pool, and the one table from name to backend."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from plait.server_process import CAN_FORK

if TYPE_CHECKING:  # the server imports this package, and needs nothing of it
    from collections.abc import Callable

    from plait.backends.contract import Backend
    from plait.options import Options

__all__ = ["default_start_method", "open_backend"]


def default_start_method() -> str:
    """Return "server" where processes can be forked, else "spawn"."""
    return "server" if CAN_FORK else "spawn"


def open_backend(
    name: str, max_workers: int, options: Options, *, is_shared: bool = False
) -> Backend:
    """Open a backend by name. Its module is imported now, not before.

    ``is_shared``: unrelated calls will use it at the same time.
    """
    initializer: Callable[[], object] | None = None
    if options.initializer is not None:
        initializer = partial(options.initializer, *options.initargs)
    if name == "serial" and not options.has_deadline:
        from plait.backends.serial import SerialBackend

        return SerialBackend(initializer)
    if name in ("threads", "serial"):  # who runs the tasks cannot watch the time as well
        from plait.backends.threads import ThreadBackend

        return ThreadBackend(max_workers, initializer, is_shared=is_shared)
    if name == "asyncio":
        from plait.backends.asyncio_loop import AsyncioBackend

        return AsyncioBackend(max_workers, initializer)
    from plait.backends.processes import ProcessBackend

    return ProcessBackend(
        max_workers,
        initializer,
        options.start_method or default_start_method(),
        options.max_tasks_per_child,
        options.preload,
    )
