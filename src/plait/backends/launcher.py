"""What starts worker processes: its face, and what it tells.

There are two launchers:

ServerLauncher    (child.py) has the server (server.py) start a worker, forked or as a fresh
                  interpreter, and is told what becomes of it.
ThreadLauncher    (thread_launcher.py) starts a fresh interpreter from a thread that then waits
                  for its end: for systems without fork.

Both make the channel and the status page before the process exists and hand it its
ends, so the first messages can be sent at once and are read when it is ready. That a
process ended is heard from whoever can wait for it, never from its channel: a program
that a task started may hold the channel open.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from plait.backends.messages import StatusPage
    from plait.backends.orders import Preloaded
    from plait.channel import Channel
    from plait.segments import SegmentView

__all__ = ["Born", "Change", "Launcher"]


class Change(NamedTuple):
    """What became of worker ``number``: "ended", "stopped" or "continued", or that it "failed".

    It failed if it could not be started: ``status`` is the number of the system's error.

    ``status`` is its exit code, or minus a signal, or the signal that stopped it; None: it
    cannot be known. ``peak_bytes`` is the most memory that it had; 0: it cannot be known.
    """

    number: int
    what: str
    status: int | None = None
    peak_bytes: int = 0


class Born(NamedTuple):
    """The parent's ends of all that a new worker was given; ``outputs``: stdout, stderr."""

    channel: Channel
    page: StatusPage
    view: SegmentView
    outputs: tuple[int, ...]


class Launcher(Protocol):
    """One way to start worker processes. ``fileno`` becomes readable when some changed.

    A launcher that is lost cannot start any more, until ``renew``, which changes ``fileno``.
    ``preloaded`` is what was heard of modules that workers are to have from the start.
    """

    pids: dict[int, int]
    is_lost: bool
    preloaded: list[Preloaded]

    def renew(self) -> None:
        """Make a lost launcher work again."""
        ...

    def preload(self) -> None:
        """Have the modules imported that were not, or that have changed since."""
        ...

    def fileno(self) -> int:
        """Return what to wait on."""
        ...

    def start(self, number: int, items_fd: int) -> Born:
        """Start a worker, which reads items from a file; its pid is known a little later.

        Raises OSError or MemoryError if the system refuses; then nothing stays open.
        """
        ...

    def take_changes(self) -> list[Change]:
        """Return what became of the workers since the last call; does not block."""
        ...

    def end(self, number: int, grace_s: float = 0.0) -> None:
        """Ask a worker to end, and kill it, and what it started, after some seconds."""
        ...

    def close(self) -> None:
        """End what is left of the workers."""
        ...

    def abandon(self) -> None:
        """Let go of the workers, in a forked child: they are the parent's."""
        ...
