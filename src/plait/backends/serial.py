"""Here and now: the caller runs the tasks itself, when it waits for them.

The plain loop of plait, and the reference that the other backends are tested against.
"""

from __future__ import annotations

import os
from collections import deque
from typing import TYPE_CHECKING, Any, ClassVar

from plait.backends.contract import Setting, Traits
from plait.clocks import monotonic
from plait.errors import PoolClosed
from plait.outcome import Call, Chunk, Finished, Stretch
from plait.quick import CATCH
from plait.worker import run_apart, run_together

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["SerialBackend"]

TELL_S = 0.03
"""A chunk that takes longer tells what is done of it."""
NO_CHUNK = Chunk(0, ())


class SerialBackend:
    """Runs tasks in the thread that waits for them."""

    traits = Traits(name="serial", runs_in_caller=True)
    max_workers = 1
    start_s = None
    is_crowded = False
    is_whole = False  # nobody knows what an exception from outside has left
    shortage = ""

    def __init__(self, initializer: Callable[[], object] | None = None) -> None:
        self._initializer = initializer
        self.is_usable = True

    def open_lane(self, call: Call, setting: Setting | None = None) -> SerialLane:
        """Open a way for a function, after the initializer ran, once.

        The thread that waits runs the tasks, so nobody could watch over a limit of time: for
        that, backends/__init__.py opens a pool of one thread instead.
        """
        if not self.is_usable:
            raise PoolClosed("This pool is closed; open a new one.")
        if self._initializer is not None:
            initializer, self._initializer = self._initializer, None
            initializer()
        return SerialLane(self, call, setting or Setting())

    def close(self) -> None:
        """Refuse what comes from now on."""
        self.is_usable = False

    def abandon(self) -> None:
        """Nothing is shared with the parent."""


class SerialLane:
    """Chunks wait here until somebody waits for them."""

    lost: ClassVar[list[Finished]] = []  # only a pool of processes can be given up

    def __init__(self, backend: SerialBackend, call: Call, setting: Setting) -> None:
        self._backend = backend
        self._call = call
        self._in_one_piece = setting.in_one_piece
        self._chunks: deque[Chunk] = deque()
        self._running: Iterator[Finished | None] | None = None
        self._chunk = NO_CHUNK  # which is running
        self._items: Sequence[Any] = ()  # of that, as far as they are to be run
        self._done = 0  # so many of them
        self._has_failed = False
        self._untold: tuple[Chunk, int, Stretch] | None = None  # what was not told of it yet
        self._progress = (0, 0.0)
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
            self._running = self._run(self._chunks.popleft())
        finished = next(self._running)
        if finished is None:
            return []
        if finished.is_last:
            self._running = None
        return [finished]

    def _run(self, chunk: Chunk) -> Iterator[Finished | None]:
        """Yield what finished; None to say that time has passed."""
        self._chunk, self._items, self._done = chunk, chunk.items, 0
        if chunk.together and self._in_one_piece:
            yield from self._run_in_one_piece(chunk)
            return
        for stretch in self._run_tiny() if chunk.together else self._run_apart(chunk):
            done, self._done = self._done, self._done + len(stretch.values)
            yield Finished.of(chunk, done, stretch, worker="main", pid=os.getpid())

    def _run_apart(self, chunk: Chunk) -> Iterator[Stretch]:
        return run_apart(self._call, chunk.items, catch=CATCH)

    def _run_tiny(self) -> Iterator[Stretch]:
        """Run tiny tasks together; if they turn out to be not so tiny, tell now and then."""
        while self._done < len(self._items):
            yield self._run_on(None)

    def _run_on(self, after: Stretch | None) -> Stretch:
        """Run tiny tasks for a while, or to the first one that fails: a loop would end there."""
        stretch = run_together(
            self._call,
            self._items,
            catch=CATCH,
            start=self._done,
            until=monotonic() + TELL_S,
            after=after,
            stops=not self._has_failed,
        )
        self._has_failed = self._has_failed or bool(stretch.errors)
        return stretch

    def _run_in_one_piece(self, chunk: Chunk) -> Iterator[Finished | None]:
        """Do the same where nobody reads before the end.

        To join two lists of the tiniest tasks takes a quarter of the time that these took.
        """
        told, stretch = 0, Stretch([], {}, [(monotonic(), 0.0)])
        while self._done < len(self._items):
            had_failed, before_s = self._has_failed, stretch.times[0][1]
            # What is done stays in the stretch, whatever is raised meanwhile.
            self._untold = chunk, told, stretch
            stretch = self._run_on(stretch)
            tasks = told + len(stretch.values) - self._done
            self._done += tasks
            self._progress = (tasks, stretch.times[0][1] - before_s)
            self._untold = chunk, told, stretch
            if stretch.is_last:
                break
            if had_failed or not self._has_failed:
                yield None
                continue
            told, stretch = self._done, Stretch([], {}, [(monotonic(), 0.0)])
            yield self._tell()
        yield self._tell()

    def _tell(self) -> Finished | None:
        """Return what was not told yet; None: nothing."""
        untold, self._untold = self._untold, None
        if untold is None:
            return None
        chunk, done, stretch = untold
        # An interrupt may have come after an error was noted and before its place was filled.
        errors = {at: error for at, error in stretch.errors.items() if at < len(stretch.values)}
        stretch = stretch._replace(errors=errors)
        return Finished.of(chunk, done, stretch, worker="main", pid=os.getpid())

    def take_progress(self) -> tuple[int, float]:
        """Return tasks that were run and not told of yet, and their seconds."""
        progress, self._progress = self._progress, (0, 0.0)
        return progress

    @property
    def left(self) -> int:
        """How many tasks could be taken back."""
        is_running = self._running is not None and not self._chunks
        return len(self._items) - self._done if is_running else 0

    def take_back(self) -> Chunk | None:
        """Return what is left of the running chunk, if there is no other, and do not run it."""
        if not self.left:
            return None
        rest, self._items = self._chunk.part(self._done), ()
        self._running = self._tell_the_last() if self._untold is not None else None
        return rest

    def _tell_the_last(self) -> Iterator[Finished | None]:
        """Tell what was not told yet: until then ``close`` would."""
        whole = self._tell()
        yield whole and whole._replace(is_last=True)

    def end_input(self) -> None:
        """Do nothing: no task waits behind another while a worker is free."""

    def wake(self) -> None:
        """Nobody waits here, except for the running task."""

    def refuse(self) -> None:
        """Do nothing: the caller itself would have to start it."""

    def cancel(self, first: int) -> bool:
        """Drop a chunk that has not started."""
        for chunk in self._chunks:
            if chunk.first == first:
                self._chunks.remove(chunk)
                return True
        return False

    def close(self, *, patience_s: float | None = None) -> list[Finished]:  # noqa: ARG002
        """Drop what has not started; nothing runs while nobody waits. Return what is done."""
        self._chunks.clear()
        self._running = None
        whole = self._tell()  # the times of its last tasks are missing if they were interrupted
        return [whole] if whole is not None and whole.values else []
