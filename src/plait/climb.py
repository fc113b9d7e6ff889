"""How many tasks to run at once, by trying. Pure: counts and seconds in, a number out.

For threads and coroutines, whose tasks wait for something that is not ours: how many of them
a server, a disk or the GIL serves at once is told by nothing but the throughput. It grows
with the number until something else is the limit (Little's law: tasks inside = throughput x
time of a task), and past that tasks only wait longer, or get in each other's way.

The way up is hill climbing, as in Hellerstein, Morrison, Eilebrecht, "Optimizing concurrency
levels in the .NET ThreadPool" (FeBID 2008). What a server says that it has too much of is in
throttle.py.
"""

from __future__ import annotations

import math

from plait.curve import Curve

__all__ = ["Climber"]

RISE = 2.0
"""How much larger the next size to try is, while throughput grows with it."""
SMALL_RISE = 1.4
"""The same when it grows less, and when it is looked again."""
STEEP = 0.85
"""Throughput grows with the size if it has this share of the size's own growth."""
FINE = 1.25
"""The knee is known well enough between two sizes that differ by this factor."""
HEADROOM = 1.25
"""So much above the smallest good size: below it throughput is lost, a little above nothing."""
LEAST_TASKS = 8
"""In a reading: of fewer, one more or less is too much of a difference."""
DROP = 0.85
"""It looks again at once if throughput falls below this share of what it was."""
PATIENCE = 32
"""Readings until it looks again anyway; twice as many each time that nothing has changed."""
MOST_PATIENCE = 512


class Meter:
    """Adds up what is finished to readings: of one round trip at least, all at the same size."""

    def __init__(self) -> None:
        self._skip = self._tasks = 0
        self._seconds = 0.0

    def restart(self, tasks_inside: int = 0) -> None:
        """Begin a new reading when these tasks, of the size before, have left."""
        self._skip, self._tasks, self._seconds = tasks_inside, 0, 0.0

    def read(self, tasks: int, seconds: float, size: int) -> float | None:
        """Take in an interval; return the tasks in a second if that makes a reading."""
        if self._skip > 0:
            self._skip -= tasks
            return None
        self._tasks += tasks
        self._seconds += seconds
        if self._tasks < max(size, LEAST_TASKS):
            return None
        rate = self._tasks / max(self._seconds, 1e-9)
        self.restart()
        return rate


class Watch:
    """Says when to look again, after a size was found."""

    def __init__(self) -> None:
        self.patience = PATIENCE
        self._good = self._size = 0
        self._readings: list[float] = []

    def begin(self, good: int, most: int) -> int:
        """Start to watch, and return the size to stay with; ``good`` is the least to have.

        Who finds about the same again stays where it was, and need not look so soon.
        """
        self._readings = []
        if self._good / FINE <= good <= self._good * FINE and self._size <= most:
            self.patience = min(self.patience * 2, MOST_PATIENCE)
            return self._size
        self.patience = PATIENCE
        self._good, self._size = good, min(most, round(good * HEADROOM))
        return self._size

    def is_over(self, rate: float) -> bool:
        """Take in a reading; whether throughput fell, or time is up."""
        self._readings.append(rate)
        first, last = self._readings[:4], self._readings[-4:]
        has_fallen = len(self._readings) >= 8 and sum(last) < DROP * sum(first)
        return has_fallen or len(self._readings) >= self.patience


class Climber:
    """Finds how many tasks to run at once: the fewest that have about the best throughput.

    ``size`` is the number to run now, from ``least`` to ``most``; ``is_settled`` tells whether
    it was found, and stays until throughput falls or it is time to look again.

    >>> climber = Climber(start=4, most=100)
    >>> for _ in range(40):  # each task takes 0.1 s, and 200 are served in a second
    ...     size = climber.learn(tasks=min(climber.size * 10, 200), seconds=1.0)
    >>> 20 <= size <= 32
    True
    """

    def __init__(self, start: int, most: int, least: int = 1) -> None:
        self._least = least
        self._most = max(most, least)
        self.size = max(least, min(start, most))
        self._rise = RISE
        self._curve = Curve()
        self._meter = Meter()
        self._watch = Watch()
        self.is_settled = False

    def learn(self, tasks: int, seconds: float) -> int:
        """Take in how many tasks finished in an interval, and return the size from now on.

        Failed tasks count. Intervals may be of any length; those in which there were fewer
        tasks to run than ``size`` are to be left out.
        """
        rate = self._meter.read(tasks, seconds, self.size)
        if rate is None:
            return self.size
        if self.is_settled:
            if self._watch.is_over(rate):
                self._start_over()
        else:
            self._curve.note(self.size, rate)
            self._go_on()
        return self.size

    def _go_on(self) -> None:
        size = self._next_size()
        if size is not None:
            self._move(size)
            return
        self.is_settled = True
        self._move(self._watch.begin(self._smallest_good(), self._most))

    def _next_size(self) -> int | None:
        """Return the size to read next; None if enough is known."""
        curve, good = self._curve, self._smallest_good()
        below = [size for size in curve.sizes if size < good]
        for size in (self.size, good, *below[-1:]):
            again = curve.doubt(size, self.size)
            if again is not None:
                return again
        if good == curve.sizes[-1] and good < self._most:
            return min(self._most, max(good + 1, round(good * self._next_rise(good, below))))
        if not below:
            lower = max(self._least, min(good - 1, round(good / self._rise)))
            return lower if lower < good else None
        between = round(math.sqrt(below[-1] * good))
        is_near = good <= below[-1] * FINE or between in curve
        return None if is_near else between

    def _smallest_good(self) -> int:
        return next(size for size in self._curve.sizes if self._curve.is_good(size))

    def _next_rise(self, good: int, below: list[int]) -> float:
        if not below:
            return self._rise
        growth = self._curve.rate(good) / max(self._curve.rate(below[-1]), 1e-9)
        return self._rise if growth >= STEEP * good / below[-1] else SMALL_RISE

    def _start_over(self) -> None:
        self._curve, self._rise, self.is_settled = Curve(), SMALL_RISE, False

    def _move(self, size: int) -> None:
        """Go to another size."""
        old, self.size = self.size, size
        self._meter.restart(old if size != old else 0)
