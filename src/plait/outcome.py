"""What crosses between the two sides: a Chunk goes out, Finished tasks come back.

An Outcome is one task's end as the user sees it. Inside, tasks travel by the chunk,
so what comes back is a stretch of finished tasks; it is unfolded into Outcomes only
for who wants to see them one by one (a map of a million squares never does).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from plait.tasks import Call, Stretch, Times, short

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Attempt", "Call", "Chunk", "Finished", "Outcome", "Stretch", "Times", "short"]


class _Gone:
    """Stands for an item that a task has taken out of the list which is mapped."""

    def __repr__(self) -> str:
        return "<an item that is not in the list any more>"


GONE = _Gone()


class Attempt(NamedTuple):
    """A try of a task that failed and was followed by another.

    ``error`` is what it raised, ``worker`` and ``pid`` who ran it, ``started`` and
    ``seconds`` its times, as in an Outcome.
    """

    error: BaseException
    worker: str
    pid: int
    started: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """The value or the error of one task.

    Attributes:
        index: position of its item in the input, from 0.
        item: the item; a tuple of arguments where there were several iterables.
        value: what the function returned (None if it raised).
        error: what it raised, or None.
        attempt: which try this was, from 1.
        worker: who ran it, e.g. ``"process-2"``.
        pid: the process it ran in.
        started: when it began, in seconds of ``time.monotonic()``.
        seconds: how long it took. Tasks too short to be timed one by one
            share their chunk's time evenly.
        earlier: the Attempts before this one, all of which failed.
    """

    index: int
    item: Any
    value: Any
    error: BaseException | None
    attempt: int
    worker: str
    pid: int
    started: float
    seconds: float
    earlier: tuple[Attempt, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the task returned a value."""
        return self.error is None

    def unwrap(self) -> Any:
        """Return the value, or raise the error."""
        if self.error is not None:
            raise self.error
        return self.value


class Chunk(NamedTuple):
    """Tasks sent together: ``items`` are those from index ``first`` on.

    Tasks *together* are known to be tiny: one pickle carries them all and nothing is
    noted in between. Tasks *apart* each have a pickle, a time and a mark of their own.
    A *brief* chunk is expected to take milliseconds: it may wait at a worker behind another.
    A task that is tried again is a chunk of its own, with its ``earlier`` attempts.
    """

    first: int
    items: Sequence[Any]
    together: bool = False
    brief: bool = False
    earlier: tuple[Attempt, ...] = ()

    @property
    def attempt(self) -> int:
        """Which try this is, from 1."""
        return len(self.earlier) + 1

    def part(self, start: int, end: int | None = None) -> Chunk:
        """Return the tasks from place ``start`` up to ``end``, to be run apart."""
        return Chunk(self.first + start, self.items[start:end], earlier=self.earlier)


class Finished(NamedTuple):
    """A stretch of finished tasks as the near side keeps it: from index ``first`` on."""

    first: int
    items: Sequence[Any]
    values: list[Any]
    errors: dict[int, BaseException]
    times: list[Times]
    worker: str
    pid: int
    is_last: bool = True
    queued_s: float = 0.0
    earlier: tuple[Attempt, ...] = ()
    is_given_up: bool = False  # it was to be tried again, but the run ended before

    @classmethod
    def of(cls, chunk: Chunk, done: int, stretch: Stretch, worker: str, pid: int) -> Finished:
        """Join a stretch with its items: ``done`` tasks of the chunk came before it."""
        values, errors, times, is_last, queued_s = stretch
        items = chunk.items
        if len(values) < len(items):
            items = items[done : done + len(values)]
        first = chunk.first + done
        return cls(
            first, items, values, errors, times, worker, pid, is_last, queued_s, chunk.earlier
        )

    def part(self, start: int, end: int) -> Finished:
        """Return the tasks from place ``start`` up to ``end``, as a stretch of their own."""
        times = self.times
        if len(times) < len(self.values):
            times = [(outcome.started, outcome.seconds) for outcome in self.outcomes()]
        return self._replace(
            first=self.first + start,
            items=self.items[start:end],
            values=self.values[start:end],
            errors={at - start: e for at, e in self.errors.items() if start <= at < end},
            times=times[start:end],
            queued_s=self.queued_s * (end - start) / len(self.values),
        )

    @property
    def seconds(self) -> float:
        """The time that the tasks took, added up."""
        times = self.times
        return times[0][1] if len(times) == 1 else sum([seconds for _, seconds in times])

    def outcome(self, place: int) -> Outcome:
        """Unfold one task."""
        if len(self.times) == len(self.values):
            started, seconds = self.times[place]
        else:
            started, seconds = self.times[0]
            seconds /= len(self.values)
            started += place * seconds
        return Outcome(
            index=self.first + place,
            item=self.items[place] if place < len(self.items) else GONE,
            value=self.values[place],
            error=self.errors.get(place),
            attempt=len(self.earlier) + 1,
            worker=self.worker,
            pid=self.pid,
            started=started,
            seconds=seconds,
            earlier=self.earlier,
        )

    def outcomes(self) -> Iterator[Outcome]:
        """Unfold all tasks, in order."""
        return map(self.outcome, range(len(self.values)))
