"""Here and now: the caller runs the tasks itself, when it waits for them.

The plain loop of plait, and the reference that the other backends are tested against.
"""

from __future__ import annotations

import os
from collections import deque
from typing import TYPE_CHECKING

from plait.backends.contract import Setting, Traits
from plait.errors import PoolClosed
from plait.outcome import Call, Chunk, Finished
from plait.quick import CATCH
from plait.worker import run_apart, run_together

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["SerialBackend"]


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
            self._running = _run(self._call, self._chunks.popleft())
        finished = next(self._running)
        if finished.is_last:
            self._running = None
        return [finished]

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
    if chunk.together:
        stretch = run_together(call, chunk.items, catch=CATCH)
        yield Finished.of(chunk, 0, stretch, worker="main", pid=os.getpid())
        return
    done = 0
    for stretch in run_apart(call, chunk.items, catch=CATCH):
        yield Finished.of(chunk, done, stretch, worker="main", pid=os.getpid())
        done += len(stretch.values)
