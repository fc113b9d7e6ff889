"""What a task may take: time, and memory of its worker. Pure: numbers in, numbers out."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from plait.errors import TaskTimeout, Victim
from plait.outcome import Finished, Stretch

if TYPE_CHECKING:
    from plait.options import Options
    from plait.outcome import Call, Chunk, Times

__all__ = ["Limits", "TimeLimit", "leave_to_itself"]

LEAST_RELATIVE_S = 1.0
"""A limit that follows the median is never below this: a busy machine is no hanging task."""
LEAST_KNOWN = 5
"""So many tasks must have succeeded before a median says anything."""
MOST_KNOWN = 1000
"""The median is that of so many of the latest tasks."""


class TimeLimit:
    """How many seconds one task may take; ``"5x"`` is five times the median so far.

    >>> limit = TimeLimit("5x")
    >>> limit.seconds is None  # nothing is known yet
    True
    """

    def __init__(self, asked: float | str | None = None) -> None:
        self._factor = float(asked[:-1]) if isinstance(asked, str) else None
        self.seconds = None if isinstance(asked, str) else asked
        self._known: deque[float] = deque(maxlen=MOST_KNOWN)
        self._fresh = 0  # times that came since the median was taken

    @property
    def is_set(self) -> bool:
        """Whether there is a limit, now or as soon as the median is known."""
        return self.seconds is not None or self._factor is not None

    def learn(self, finished: Finished) -> None:
        """Take in the times of tasks that succeeded."""
        if self._factor is None:
            return
        outcomes = [outcome for outcome in finished.outcomes() if outcome.ok]
        self._known.extend(outcome.seconds for outcome in outcomes)
        self._fresh += len(outcomes)
        if len(self._known) >= LEAST_KNOWN and self._fresh * 10 >= len(self._known):
            self._fresh = 0
            median = sorted(self._known)[len(self._known) // 2]
            self.seconds = max(self._factor * median, LEAST_RELATIVE_S)


class Limits:
    """The limits for the tasks of one lane; ``time`` may change while they run."""

    def __init__(self, time: TimeLimit | None = None, memory_bytes: int | None = None) -> None:
        self.time = time or TimeLimit()
        self.memory_bytes = memory_bytes

    @classmethod
    def of(cls, options: Options) -> Limits:
        """Return those that the options ask for."""
        return cls(TimeLimit(options.task_timeout), options.memory_bytes)

    @property
    def are_set(self) -> bool:
        """Whether there is anything to watch."""
        return self.time.is_set or self.memory_bytes is not None


def leave_to_itself(
    call: Call, chunk: Chunk, place: int, worker: str, pid: int, limit_s: float, times: Times
) -> Finished:
    """Return the outcome of a task of a thread that is over its time, and cannot be ended."""
    index = chunk.first + place
    victim = Victim(index, call.text(chunk.items[place]), chunk.attempt, worker, pid)
    error = TaskTimeout.of_task(victim, limit_s, times[1], is_abandoned=True)
    stretch = Stretch([None], {0: error}, [times])
    return Finished.of(chunk.part(place, place + 1), 0, stretch, worker, pid)
