"""When the next task of a run may start, and how many may run at once. Pure: times in and out.

Used by runs.py and executor.py where one of the options ``rate`` and ``slow_down_on`` is given, and
not made elsewhere.

Pace     at most so many starts in a time, evenly spaced: ``rate``
Window   fewer tasks at once while a server fails for its load: ``slow_down_on``
Throttle both of a run
"""

from __future__ import annotations

import math
from _thread import allocate_lock  # as in threading
from collections import deque
from typing import TYPE_CHECKING

from plait.retry import RetryPolicy, is_one

if TYPE_CHECKING:
    from plait.options import Options
    from plait.outcome import Finished

__all__ = ["Pace", "Throttle", "Window"]

LATE_S = 0.01
"""A start that comes late by so much at the most is made up for: the next ones are closer."""
MOST_COUNTED = 10_000
"""A pace remembers no more starts; for more of them it looks at a part of the period."""
TOLERATED = 0.03
"""Where no larger share of the tasks fails, the number of tasks at once is not the reason."""


class Pace:
    """At most ``count`` starts in any ``period_s`` seconds, evenly spaced.

    There is no burst after a pause: what was not started then is not made up for.

    >>> pace = Pace(count=2, period_s=1.0)
    >>> pace.start(now=10.0), pace.start(now=10.1), pace.due
    (True, False, 10.5)
    >>> pace.start(now=10.5), pace.start(now=30.0), pace.start(now=30.1)
    (True, True, False)
    """

    def __init__(self, count: int, period_s: float) -> None:
        self.interval_s = period_s / count
        count = min(count, MOST_COUNTED)
        self._period_s = count * self.interval_s
        self._lock = allocate_lock()  # guards the two below: an executor's threads share its pace
        self._latest: deque[float] = deque(maxlen=count)
        self._even = -math.inf  # when the next start is due so that all are evenly spaced

    @property
    def due(self) -> float:
        """When the next task may start."""
        latest = self._latest
        if len(latest) < (latest.maxlen or 0):
            return self._even
        return max(self._even, latest[0] + self._period_s)

    def start(self, now: float) -> bool:
        """Count a start if one may be now; return whether it may."""
        with self._lock:
            if now < self.due:
                return False
            self._latest.append(now)
            self._even = max(self._even, now - LATE_S) + self.interval_s
            return True

    def give_back(self) -> None:
        """Count the last start for nothing: there was no task for it."""
        with self._lock:
            self._latest.pop()
            self._even -= self.interval_s


class Window:
    """How many tasks may run at once, by which of them failed for the load of a server.

    Additive increase, multiplicative decrease, as TCP controls congestion (Chiu and Jain, 1989;
    RFC 5681), with a decrease by the share of failures as in DCTCP (Alizadeh et al., SIGCOMM
    2010). Time is divided into rounds. A round is over when as many tasks have finished as may
    run at once. Then:

    - A share ``f`` of them has failed: so many times ``1 - f / 2`` as before may run at once. All
      failed: half of them. Tasks that had started before are not counted from now on. They tell
      of the number that was. So there is one decrease in a round trip, whatever fails.
    - None failed, or next to none (``TOLERATED``): one more may run at once. Below the
      threshold, which is where the last series of decreases began, twice as many (slow start).

    The place of a task that failed stays empty until its round is over. A server that refuses at
    once would be asked by these places alone, again and again.

    >>> window = Window()
    >>> window.limit(8)
    8
    >>> for _ in range(8):
    ...     window.learn(started=1.0, has_failed=True, now=2.0)
    >>> window.limit(8), window.decreases, window.lowest
    (4, 1, 4)
    """

    def __init__(self) -> None:
        self.decreases = 0
        self.lowest: int | None = None
        self._size = math.inf  # what failures have left; infinite: they leave all
        self._most = 1  # what there would be without failures
        self._threshold = math.inf
        self._is_first = True  # round, at all or after a decrease
        self._is_series = False  # the round before this one ended with a decrease
        self._decreased_at = -math.inf
        self._finished = self._failed = 0  # in this round

    @property
    def size(self) -> int:
        """How many tasks may run at once in a round without a failure."""
        return int(min(self._size, self._most))

    @property
    def is_open(self) -> bool:
        """Whether as many tasks may run at once as there would be without failures."""
        return self._size == math.inf and not self._failed

    def limit(self, most: int) -> int:
        """Return how many tasks may run at once now; without failures it would be ``most``."""
        self._most = most
        return max(1, self.size - self._failed)

    def learn(self, started: float, *, has_failed: bool, now: float) -> None:
        """Take in a task that has finished ``now``; ``has_failed``: for the load."""
        if started < self._decreased_at:
            return
        self._finished += 1
        self._failed += has_failed
        if self._finished < self.size:
            return
        share = self._share()
        self._finished = self._failed = 0
        if share <= TOLERATED:
            self._grow()
        else:
            self._decrease(share, now)

    def _share(self) -> float:
        """Return the share of tasks that failed.

        Failures may come sooner than results. As many tasks as have places are still running, and
        those of them that fail at once are among the failures. A round begins and ends with such
        tasks, which makes no difference; only the first one begins with none.
        """
        running = self.size - self._failed if self._is_first else 0
        return self._failed / (self._finished + running)

    def _grow(self) -> None:
        self._is_series = self._is_first = False
        if self._size < self._threshold:
            self._size = min(2 * self._size, self._threshold)
        else:
            self._size += 1
        if self._size >= self._most:
            self._size = math.inf

    def _decrease(self, share: float, now: float) -> None:
        old = min(self._size, self._most)
        new = max(1.0, old * (1 - share / 2))
        # Where all fail at any number, the number is not the reason: so the way back is short.
        if share < 1 or not self._is_series:
            self._threshold = new
        self._is_series = self._is_first = True
        if new < old:
            self._size, self._decreased_at = new, now
            self.decreases += 1
            self.lowest = min(self.lowest or int(new), int(new))


class Throttle:
    """What the options ``rate`` and ``slow_down_on`` ask of one run."""

    def __init__(self, options: Options, pace: Pace | None) -> None:
        self._options = options
        self._policy = RetryPolicy(options)
        self._pace = pace
        self._held_until = -math.inf
        self.window = Window() if options.slow_down_on != () else None

    @classmethod
    def of(cls, options: Options, pace: Pace | None = None) -> Throttle | None:
        """Return what the options, or the ``pace`` of an executor, ask for; None: nothing."""
        if pace is None and options.rate is not None:
            pace = Pace(*options.starts_in_s)
        return None if pace is None and options.slow_down_on == () else cls(options, pace)

    @property
    def has_pace(self) -> bool:
        """Whether tasks start one by one, each at its time."""
        return self._pace is not None

    @property
    def is_limiting(self) -> bool:
        """Whether fewer tasks run than workers could: how many they do then says nothing."""
        return self.has_pace or (self.window is not None and not self.window.is_open)

    @property
    def due(self) -> float:
        """When the next task may start."""
        return self._held_until if self._pace is None else max(self._held_until, self._pace.due)

    def limit(self, workers: int) -> int:
        """Return how many tasks may run at once on so many workers."""
        return workers if self.window is None else self.window.limit(workers)

    def start(self, now: float) -> bool:
        """Count a start if one may be now; return whether it may."""
        return now >= self._held_until and (self._pace is None or self._pace.start(now))

    def give_back(self) -> None:
        """Count the last start for nothing: there was no task for it."""
        if self._pace is not None:
            self._pace.give_back()

    def learn(self, batch: list[Finished], now: float) -> None:
        """Take in what finished.

        What ``slow_down_on`` and ``retry_after`` raise comes out of here: the user's mistakes are
        to be seen. Call this when the outcomes are recorded, and none is lost by it.
        """
        window = self.window
        if window is None:
            return
        for finished in batch:
            failed = {at for at, error in finished.errors.items() if self._tells(error, now)}
            for place, outcome in enumerate(finished.outcomes()):
                window.learn(outcome.started, has_failed=place in failed, now=now)

    def _tells(self, error: BaseException, now: float) -> bool:
        """Whether an error tells of a server's load; if it says how long, hold all starts."""
        if not is_one(error, self._options.slow_down_on):
            return False
        asked_s = self._policy.asked_s(error)
        if asked_s is not None:
            self._held_until = max(self._held_until, now + asked_s)
        return True
