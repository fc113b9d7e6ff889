"""Here and now: the caller runs the tasks itself, when it waits for them.

The plain loop of plait, and the reference that the other backends are tested against.
"""

from __future__ import annotations

import os
from collections import deque
from typing import TYPE_CHECKING, Any

from plait.backends.contract import Setting, Traits
from plait.clocks import monotonic
from plait.errors import PoolClosed
from plait.outcome import Call, Chunk, Finished, Stretch
from plait.quick import CATCH
from plait.worker import run_apart, run_together

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["SerialBackend"]

TINY_TASKS = 1024
"""So many tasks are run without a look at the clock."""
TELL_S = 0.03
"""A chunk that takes longer tells what is done of it."""


class SerialBackend:
    """Runs tasks in the thread that waits for them."""

    traits = Traits(name="serial")
    max_workers = 1
    start_s = None

    def __init__(self, initializer: Callable[[], object] | None = None) -> None:
        self._initializer = initializer
        self.is_usable = True

    def open_lane(self, call: Call, setting: Setting | None = None) -> SerialLane:  # noqa: ARG002
        """Open a way for a function, after the initializer ran, once.

        The thread that waits runs the tasks, so nobody could watch over a limit of time: for
        that, backends/__init__.py opens a pool of one thread instead.
        """
        if not self.is_usable:
            raise PoolClosed("This pool is closed; open a new one.")
        if self._initializer is not None:
            initializer, self._initializer = self._initializer, None
            initializer()
        return SerialLane(self, call)

    def close(self) -> None:
        """Refuse what comes from now on."""
        self.is_usable = False

    def abandon(self) -> None:
        """Nothing is shared with the parent."""


class SerialLane:
    """Chunks wait here until somebody waits for them."""

    def __init__(self, backend: SerialBackend, call: Call) -> None:
        self._backend = backend
        self._call = call
        self._chunks: deque[Chunk] = deque()
        self._running: Iterator[Finished] | None = None
        self._rest: Sequence[Any] = ()  # of the chunk that is running
        self.shared_bytes = 0
        self.abandoned = 0

    @property
    def pending(self) -> int:
        """How many chunks were submitted and have not finished."""
        return len(self._chunks) + (self._running is not None)

    def submit(self, *chunks: Chunk) -> None:
        """Keep chunks for later."""
        if not self._backend.is_usable:
            raise PoolClosed("This pool is closed; open a new one.")
        self._chunks.extend(chunks)

    def wait_outcomes(self, timeout: float | None = None) -> list[Finished]:  # noqa: ARG002
        """Run the next tasks. A running task cannot be left, so ``timeout`` has no effect."""
        if self._running is None:
            if not self._chunks:
                return []
            chunk = self._chunks.popleft()
            self._rest = chunk.items
            self._running = _run(self._call, chunk)
        finished = next(self._running)
        self._rest = self._rest[len(finished.values) :]
        if finished.is_last:
            self._running = None
        return [finished]

    def take_back(self) -> Sequence[Any]:
        """Return what is left of the running chunk, if there is no other, and do not run it."""
        if self._chunks or self._running is None:
            return ()
        self._running = None
        return self._rest

    def end_input(self) -> None:
        """Do nothing: no task waits behind another while a worker is free."""

    def wake(self) -> None:
        """Nobody waits here, except for the running task."""

    def cancel(self, first: int) -> bool:
        """Drop a chunk that has not started."""
        for chunk in self._chunks:
            if chunk.first == first:
                self._chunks.remove(chunk)
                return True
        return False

    def close(self, *, patience_s: float | None = None) -> list[Finished]:  # noqa: ARG002
        """Drop what has not started; nothing runs while nobody waits."""
        self._chunks.clear()
        self._running = None
        return []


def _run(call: Call, chunk: Chunk) -> Iterator[Finished]:
    stretches = (
        _run_tiny(call, chunk) if chunk.together else run_apart(call, chunk.items, catch=CATCH)
    )
    done = 0
    for stretch in stretches:
        yield Finished.of(chunk, done, stretch, worker="main", pid=os.getpid())
        done += len(stretch.values)


def _run_apart(call: Call, chunk: Chunk) -> Iterator[Stretch]:
    return run_apart(call, chunk.items, catch=CATCH)


def _run_tiny(call: Call, chunk: Chunk) -> Iterator[Stretch]:
    """Run tiny tasks together; if they turn out to be not so tiny, tell now and then."""
    items = chunk.items
    values: list[Any] = []
    errors: dict[int, BaseException] = {}
    started = monotonic()
    for place in range(0, len(items), TINY_TASKS):
        part = run_together(call, items[place : place + TINY_TASKS], catch=CATCH)
        if part.errors:
            errors |= {len(values) + at: error for at, error in part.errors.items()}
        values += part.values
        took_s = monotonic() - started
        is_last = place + TINY_TASKS >= len(items)
        if is_last or took_s > TELL_S:
            yield Stretch(values, errors, [(started, took_s)], is_last)
            values, errors, started = [], {}, monotonic()
