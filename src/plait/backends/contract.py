"""What every backend promises. runs.py knows this and nothing else about workers.

A backend keeps workers; a lane is one function's way through it. Several lanes may be
open at once, each used by one thread at a time, all from different threads.

    lane = backend.open_lane(Call(fn))
    lane.submit(Chunk(0, items))            never blocks
    lane.wait_outcomes(timeout)             blocks until something of this lane finished
    lane.close()                            nothing of this lane runs any more
    backend.close()                         the workers end
"""

from __future__ import annotations

from contextvars import copy_context
from typing import TYPE_CHECKING, NamedTuple, Protocol

from plait.limits import Limits
from plait.running import inside

if TYPE_CHECKING:
    from collections.abc import Callable

    from plait.outcome import Call, Chunk, Finished

__all__ = ["Backend", "Lane", "Setting", "Traits"]


class Traits(NamedTuple):
    """Facts about a backend."""

    name: str
    can_kill: bool = False  # a running task can be ended
    shares_memory: bool = True  # items and results are not copied
    takes_coroutines: bool = False  # runs coroutine functions, and only those
    queue_depth: int = 1  # chunks that a worker may have at once: one running, the rest waiting
    # Outcomes come only while a thread waits for them. Several may wait in a lane at once, each
    # ``until`` something of its own: see ``DrivenLane``.
    is_driven: bool = False
    runs_in_caller: bool = False  # to wait for outcomes is to run the tasks


class Setting:
    """What holds for the tasks of one lane.

    Attributes:
        limits: of time and memory.
        prefix_output: whether what worker processes print begins with who said it.
        context: the context variables of who asked.
        inside: the pools in whose tasks the call was made; see running.py.
        keeps_items: whether nobody can change an item before the lane is closed.
        in_one_piece: whether nobody looks at results before the last of them is there.
        starts_all: whether a worker process is to be started for each chunk at once.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        prefix_output: bool = False,
        keeps_items: bool = False,
        in_one_piece: bool = False,
        starts_all: bool = False,
    ) -> None:
        self.starts_all = starts_all
        self.in_one_piece = in_one_piece
        self.limits = limits or Limits()
        self.prefix_output = prefix_output
        self.context = copy_context()
        self.inside = inside.get()
        self.keeps_items = keeps_items


class Lane(Protocol):
    """One function's way through a backend."""

    @property
    def pending(self) -> int:
        """How many chunks were submitted and have not finished."""
        ...

    def submit(self, *chunks: Chunk) -> None:
        """Give chunks to the workers. Raises PoolClosed after the backend was closed."""
        ...

    def wait_outcomes(self, timeout: float | None = None) -> list[Finished]:
        """Block until tasks of this lane finished, and return them.

        Returns an empty list when nothing is pending or ``timeout`` seconds went by.
        Raises WorkerStartError if workers cannot be had at all.
        """
        ...

    def wake(self) -> None:
        """Have ``wait_outcomes``, in whatever thread, return soon, though with nothing."""
        ...

    def refuse(self) -> None:
        """Start nothing any more of what waits, as far as that takes no lock; ``close`` follows."""
        ...

    def end_input(self) -> None:
        """Hear that nothing more will be submitted, but for tasks that are tried again."""
        ...

    @property
    def lost(self) -> list[Finished]:
        """Return the tasks that ran as their pool was given up."""
        ...

    @property
    def left(self) -> int:
        """How many tasks ``take_back`` would return."""
        ...

    def take_progress(self) -> tuple[int, float]:
        """Return how many tasks were run that were not told of, and the seconds they took."""
        ...

    def take_back(self) -> Chunk | None:
        """Return the last of the tasks that were submitted, if they will not be run after all.

        Those that the caller itself would run next; what is with workers is theirs.
        """
        ...

    @property
    def shared_bytes(self) -> int:
        """How much shared memory its items and results took, at most; known once it is closed."""
        ...

    @property
    def abandoned(self) -> int:
        """How many tasks went on although nobody waits for them: threads cannot be ended."""
        ...

    def cancel(self, first: int) -> bool:
        """End the chunk that begins with task ``first``, running or not, if that is possible.

        If so, one more ``Finished`` comes of it: with no values, or with those it still had.
        """
        ...

    def close(self, *, patience_s: float | None = None) -> list[Finished]:
        """Drop what has not started, see to it that nothing runs, return what finished.

        Tasks that cannot be ended are waited for, or abandoned after ``patience_s`` seconds.
        """
        ...


class DrivenLane(Lane, Protocol):
    """A lane of a backend whose trait is ``is_driven``."""

    def wait_outcomes(
        self, timeout: float | None = None, until: Callable[[], bool] | None = None
    ) -> list[Finished]:
        """Block until tasks finished, or ``until`` is true and ``wake`` was called."""
        ...


class Backend(Protocol):
    """A kind of worker pool: it carries chunks to its workers."""

    traits: Traits
    max_workers: int

    @property
    def is_crowded(self) -> bool:
        """Whether another call would have to wait for tasks of those that use it already."""
        ...

    @property
    def is_whole(self) -> bool:
        """Whether it can be used on after an exception from outside: no task was left behind."""
        ...

    @property
    def shortage(self) -> str:
        """How many workers there were, where the system refused more, and why; or ""."""
        ...

    @property
    def start_s(self) -> tuple[float, float] | None:
        """How long its first worker took to be ready, and from then on each other, in seconds.

        None if that is not known, or not worth knowing.
        """
        ...

    def open_lane(self, call: Call, setting: Setting | None = None) -> Lane:
        """Open a way for a function. Raises NotPicklable if it cannot travel."""
        ...

    @property
    def is_usable(self) -> bool:
        """Whether new lanes can be opened: not closed, and its workers can be started."""
        ...

    def close(self) -> None:
        """End the workers once their running tasks are done. May be called twice."""
        ...

    def abandon(self) -> None:
        """In a forked child of this process: the workers are the parent's, let them be."""
        ...
