"""What a sweep measures: the times of each backend and pool size, round by round.

Used by sweeps.py and sweep_words.py; sweeping.py fills it in.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from plait.ranking import quartiles

if TYPE_CHECKING:
    from plait.scaling import Range

__all__ = ["LOOP", "Row", "Timing", "Way"]

KINDS = {"threads": "thread", "processes": "process", "asyncio": "coroutine"}


class Timing(NamedTuple):
    """The seconds that one run took: until a worker answered, for the work, until all had gone."""

    open_s: float
    run_s: float
    close_s: float

    @property
    def total_s(self) -> float:
        """All three."""
        return self.open_s + self.run_s + self.close_s


class Way(NamedTuple):
    """A backend and a number of workers; the loop is "serial" with one.

    >>> print(Way("processes", 2), Way("threads", 1), LOOP, sep=", ")
    2 processes, 1 thread, the loop
    """

    backend: str
    workers: int

    def __str__(self) -> str:
        if self == LOOP:
            return "the loop"
        kind = KINDS.get(self.backend, self.backend)
        if self.workers == 1:
            return f"1 {kind}"
        return f"{self.workers} {kind}{'es' if kind.endswith('s') else 's'}"


LOOP = Way("serial", 1)


@dataclass(frozen=True, slots=True)
class Row:
    """What pools of one backend and size took. All times are medians of the rounds, in seconds.

    Attributes:
        backend: the kind of worker.
        workers: how many.
        timings: of each round.
        loops: what the loop took in the same rounds, in seconds.
    """

    backend: str
    workers: int
    timings: tuple[Timing, ...] = field(repr=False)
    loops: tuple[float, ...] = field(repr=False)

    @property
    def way(self) -> Way:
        """The backend and the number of workers."""
        return Way(self.backend, self.workers)

    @property
    def open_s(self) -> float:
        """Opening the pool, until a worker has done an empty task."""
        return median(timing.open_s for timing in self.timings)

    @property
    def run_s(self) -> float:
        """Doing the work; workers start when there is work for them, so all but one start here."""
        return median(timing.run_s for timing in self.timings)

    @property
    def close_s(self) -> float:
        """Closing the pool, until all workers have ended."""
        return median(timing.close_s for timing in self.timings)

    @property
    def totals(self) -> tuple[float, ...]:
        """Opening, running and closing, of each round."""
        return tuple(timing.total_s for timing in self.timings)

    @property
    def total_s(self) -> float:
        """Opening, running and closing."""
        return median(self.totals)

    @property
    def min_s(self) -> float:
        """The shortest total."""
        return min(self.totals)

    @property
    def spread(self) -> Range:
        """The quartiles of the totals: between them is the middle half."""
        return quartiles(self.totals)

    @property
    def speedup(self) -> float:
        """How many times as fast as the loop: the median of what it was in each round."""
        return median(loop / mine for loop, mine in zip(self.loops, self.totals, strict=True))

    @property
    def efficiency(self) -> float:
        """The speed-up per worker."""
        return self.speedup / self.workers
