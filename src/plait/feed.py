"""The way in of a run: items are read as far as they are wanted, and made into chunks.

Used by runs.py, which says who has room. How an input is read is in inputs.py, how large a chunk
is in chunks.py.

A task has its number from the moment its item is read, and for good: a chunk carries the number
of its first task, also when it is given back and taken again. So numbers can neither overlap nor
leave a hole, in whatever order chunks are given back.

One thread owns a feed at a time (beside.py says which). Any thread may call ``stop`` and ``wake``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

from plait.chunks import MOST_TASKS, TOGETHER_S, ChunkSizer
from plait.errors import InputChanged
from plait.host import monotonic
from plait.inputs import READ_S, DirectInput, Input, SlicedInput, ThreadedInput, can_slice, rest_of
from plait.outcome import Chunk

if TYPE_CHECKING:
    from plait.backends.contract import Lane, Setting
    from plait.options import Options
    from plait.plans import Plan

__all__ = ["Feed", "Room"]

# Where results are read as they come, so many chunks' worth of tasks may wait unread.
UNREAD_CHUNKS = 4
LEAST_UNREAD = 8  # for each worker
UNREAD_TASKS = 128 * 1024  # but no more than so many, in all


class Room:
    """How much a lane is to have: ``depth`` chunks for each worker, at the most ``most_depth``."""

    def __init__(self, lane: Lane, sizer: ChunkSizer, depth: int) -> None:
        self.lane = lane
        self.sizer = sizer
        self.depth = self.most_depth = depth


class Feed:
    """The items of one run, on their way to its lanes.

    Attributes:
        total: how many items there are, None if that is not known.
        numbered: how many tasks have a number, those that ran before there was a feed included.
        handed_out: how many results have gone to the user; bounds how far is read.
        is_held_up: nothing more may be read before something is handed out.
        is_stored: all items are there already, and nobody changes them before the end.
        is_at_hand: any thread may read them, and nothing is done for it.
    """

    def __init__(
        self,
        items: Iterable[Any],
        total: int | None,
        options: Options,
        *,
        first: int = 0,
        keeps: bool = False,
        is_stored: bool = False,
        is_at_hand: bool = False,
    ) -> None:
        """Prepare to read.

        ``first`` is the number of the first task; ``keeps`` is for who collects all results
        anyway, and holds none back; ``is_at_hand`` says that any thread may read.
        """
        self._items = items if can_slice(items) else iter(items)
        self._options = options
        self._keeps = keeps
        self._input: Input = DirectInput(iter(()))  # until it is opened
        self._returned: list[Chunk] = []  # what was given back, the next at the end
        self.total = total
        self.numbered = first
        self.handed_out = 0
        self._is_stopped = False  # set once; the only thing here that other threads may change
        self.is_held_up = False
        self.is_stored = is_stored or type(items) is range
        self.is_at_hand = is_at_hand

    def open(self, wake: Callable[[], None]) -> None:
        """Begin to read; ``wake`` is called when an item comes after there was none."""
        self._input = self._open_input(wake)

    def _open_input(self, wake: Callable[[], None]) -> Input:
        """Read the input here, or in a thread if somebody waits for results meanwhile."""
        if can_slice(self._items):
            return SlicedInput(cast("Sequence[Any]", self._items))
        self._items = iter(self._items)
        if self.total is not None or (self._keeps and self._options.timeout is None):
            return DirectInput(self._items)
        if self._options.backend == "serial" and self._options.timeout is None:  # the plain loop
            return DirectInput(self._items, one_by_one=True)
        return ThreadedInput(self._items, wake)

    @property
    def reads_anywhere(self) -> bool:
        """Whether another thread than the caller's may go on to read."""
        return self.is_at_hand or not isinstance(self._input, DirectInput)

    @property
    def is_open(self) -> bool:
        """Whether more may come: the input has not ended, and nobody called ``stop``."""
        return not self._is_stopped and (bool(self._returned) or not self._input.has_ended)

    @property
    def fed(self) -> int:
        """How many tasks were taken and not given back."""
        if not self._returned:  # as good as always, and it is asked for each chunk
            return self.numbered
        return self.numbered - sum(len(chunk.items) for chunk in self._returned)

    @property
    def returned(self) -> list[Chunk]:
        """What was given back and not taken again."""
        return list(self._returned)

    @property
    def has_shrunk(self) -> bool:
        """Whether the input got shorter than it was when tasks were taken from it."""
        return self._input.has_shrunk

    def check_growth(self) -> None:
        """Raise InputChanged if the input got longer since it was asked how long it is."""
        if self._input.has_grown:
            raise InputChanged(self.numbered)

    @property
    def remaining(self) -> int | None:
        """How many tasks were not fed yet; None: unknown."""
        if not self.is_open:
            return 0
        return None if self.total is None else self.total - self.fed

    @property
    def has_given_all(self) -> bool:
        """Whether nothing more will come."""
        return not self.is_open or self.fed == self.total

    @property
    def error(self) -> BaseException | None:
        """What the user's iterator raised."""
        return self._input.error

    def take(self, count: int, in_flight: int, workers: int) -> Chunk:
        """Take tasks, at most ``count`` and as many as may be under way or wait unread.

        What was given back is not counted: it was read when more was allowed, and the results that
        wait unread may wait for just its own.
        """
        if not self.is_open:
            return Chunk(self.numbered, ())
        if self._returned:
            self.is_held_up = False
            return self._take_returned(count)
        if not self._keeps:
            asked = self._options.buffersize
            auto = max(UNREAD_CHUNKS * in_flight, LEAST_UNREAD * workers)
            allowed = self.handed_out + (asked if isinstance(asked, int) else auto)
            self._input.allow(allowed)
            count = min(count, allowed - self.fed)
            self.is_held_up = count <= 0
        chunk = Chunk(self.numbered, self._input.take(count))
        self.numbered += len(chunk.items)
        return chunk

    def _take_returned(self, count: int) -> Chunk:
        chunk = self._returned.pop()
        if len(chunk.items) <= count:
            return chunk
        self._returned.append(
            chunk._replace(first=chunk.first + count, items=rest_of(chunk.items, count))
        )
        return chunk.part(0, count)

    def give_back(self, chunk: Chunk | None) -> None:
        """Take back tasks that were taken and not begun; they will be the next."""
        if chunk is not None and len(chunk.items):
            self._returned.append(chunk)

    def stop(self) -> None:
        """Give nothing more, not even what will be given back; from a signal handler, too."""
        self._is_stopped = True

    def make_sizer(self, plan: Plan, depth: int) -> ChunkSizer:
        """Return what sizes the chunks: where memory is constant, all of them share its bound."""
        sample, most = plan.sample, MOST_TASKS
        if not self._keeps:
            most = max(1, UNREAD_TASKS // (UNREAD_CHUNKS * plan.max_workers * depth))
        is_loop = self._keeps and plan.backend == "serial" and self.is_at_hand
        task_s, measured = (None, 0) if sample is None else (sample.task_s, sample.tasks)
        return ChunkSizer(
            plan.chunksize, plan.max_workers, task_s, measured, most, takes_all=is_loop
        )

    def fill(self, room: Room, workers: int, setting: Setting) -> bool:
        """Submit what so many workers can use now; False if reading took too long for all of it."""
        chunks: list[Chunk] = []
        began = started = monotonic()
        try:
            while self.is_open:
                size = room.sizer.next(self.remaining)
                places = workers * (room.depth if size.brief else 1) - room.lane.pending
                if len(chunks) >= places:
                    return True
                chunk = self.take(size.tasks, size.tasks * workers * room.depth, workers)
                if not len(chunk.items):
                    return True
                # A limit is for one task: so each has its own time, and nothing runs twice.
                limits = setting.limits
                together = size.together and not limits.are_set
                # Between two chunks a worker's memory is looked at: so none waits behind another.
                brief = size.brief and limits.memory_bytes is None
                chunks.append(chunk._replace(together=together, brief=brief))
                now = monotonic()
                # An item may be changed as the next one is read: so it is packed before.
                if not self.is_stored or now - started > TOGETHER_S:
                    started = now
                    room.lane.submit(*chunks)
                    chunks = []
                    if now - began > READ_S:
                        return False
            return True
        finally:
            if chunks:
                room.lane.submit(*chunks)

    def wait(self, timeout: float | None) -> None:
        """Block until there is something to take, the end, a ``wake``, or time is up."""
        self._input.wait(timeout)

    def wake(self) -> None:
        """End a ``wait``; may be called from a signal handler."""
        self._input.wake()

    def close(self) -> None:
        """Read no more."""
        self._input.close()
