"""Whether a failed task is tried again, and when. Pure: errors and times in, decisions out.

(An error may name a date to wait for: only then is the clock of this machine read.)
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator
from time import time
from typing import TYPE_CHECKING, Any

from plait.errors import NotPicklable
from plait.outcome import Attempt, Chunk, Finished

if TYPE_CHECKING:
    from plait.options import ErrorFilter, Options

__all__ = ["Retries", "RetryPolicy", "is_one", "read_seconds"]


def is_one(error: BaseException, asked: ErrorFilter) -> bool:
    """Whether an error is what an option like ``retry_on`` asks for.

    What a function of the user's raises comes out of here: it is a mistake to be seen.

    >>> is_one(TimeoutError(), (OSError, KeyError)), is_one(ValueError(), ())
    (True, False)
    >>> is_one(OSError("503"), lambda error: "503" in str(error))
    True
    """
    if isinstance(asked, type | tuple):
        return isinstance(error, asked)
    return bool(asked(error))


def read_seconds(asked: Any) -> float | None:
    """Return how many seconds an answer asks to wait; None: it does not say.

    ``asked`` is a number of seconds, a timedelta, or the text of a Retry-After header: seconds or
    an HTTP date (RFC 9110, 10.2.3), which is compared with the clock of this machine. Other texts
    count as none: they came from a server. Raises TypeError for anything else.

    >>> read_seconds("120"), read_seconds(-1.5), read_seconds("soon"), read_seconds(None)
    (120.0, 0.0, None, None)
    """
    if isinstance(asked, str):
        seconds = _read_header(asked)
    elif hasattr(asked, "total_seconds"):
        seconds = float(asked.total_seconds())
    elif isinstance(asked, int | float) and not isinstance(asked, bool):
        seconds = float(asked)
    elif asked is None:
        return None
    else:
        allowed = "a number of seconds, a timedelta, the text of a Retry-After header, or None"
        raise TypeError(f"retry_after found {asked!r}, which is not {allowed}.")
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _read_header(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        from email.utils import parsedate_to_datetime  # few servers send a date
    try:
        return parsedate_to_datetime(text).timestamp() - time()
    except ValueError:
        return math.nan


class RetryPolicy:
    """What the options ``retries``, ``retry_on``, ``backoff`` and ``retry_after`` ask for.

    The wait before a try is drawn evenly from 0 to ``initial * factor ** (tries - 1)``, at
    most ``maximum`` seconds ("full jitter": Brooker, "Exponential Backoff And Jitter", AWS
    Architecture Blog, 2015), so that tasks which failed together do not return together. Where
    the error says how long to wait, that is added.

    >>> from plait.options import Options
    >>> policy = RetryPolicy(Options(retries=2, backoff=(1.0, 2.0, 60.0)))
    >>> policy.wait_s(OSError(), attempt=2, draw=lambda: 0.5)
    1.0
    >>> policy.wait_s(OSError(), attempt=3, draw=lambda: 0.5) is None  # no try is left
    True
    """

    def __init__(self, options: Options) -> None:
        self._retries = options.retries
        self._retry_on = options.retry_on
        self._retry_after = options.retry_after
        given = options.backoff
        self._backoff = given if isinstance(given, tuple) else (float(given), 2.0, float("inf"))

    @property
    def is_active(self) -> bool:
        """Whether anything is ever tried again."""
        return self._retries > 0

    def wait_s(self, error: BaseException, attempt: int, draw: Callable[[], float]) -> float | None:
        """Return the seconds to wait before the next try; None: the error is final.

        ``attempt`` is the try that failed, from 1; ``draw`` gives a number from 0 to 1.
        """
        if attempt > self._retries or not self._is_to_be_retried(error):
            return None
        initial, factor, maximum = self._backoff
        backoff_s = draw() * min(initial * factor ** min(attempt - 1, 1000), maximum)
        return backoff_s + (self.asked_s(error) or 0.0)

    def asked_s(self, error: BaseException) -> float | None:
        """Return for how many seconds an error asks to wait; None: it does not.

        What a function of the user's raises comes out of here.
        """
        asked = self._retry_after
        if asked is None:
            return None
        if isinstance(asked, str):
            return read_seconds(getattr(error, asked, None))
        return read_seconds(asked(error))

    def _is_to_be_retried(self, error: BaseException) -> bool:
        # What cannot be pickled cannot be the next time either, if nobody says that it can.
        is_hopeless = isinstance(error, NotPicklable) and isinstance(self._retry_on, type | tuple)
        return not is_hopeless and is_one(error, self._retry_on)


class Retries:
    """The tasks of a run that wait for their next try."""

    def __init__(self, policy: RetryPolicy, draw: Callable[[], float]) -> None:
        self._policy = policy
        self._draw = draw
        self._waiting: list[tuple[float, int, Finished]] = []  # a heap; the index breaks ties

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def are_possible(self) -> bool:
        """Whether anything is ever tried again."""
        return self._policy.is_active

    @property
    def numbers(self) -> set[int]:
        """The indices of the tasks that wait."""
        return {first for _, first, _ in self._waiting}

    @property
    def due(self) -> float:
        """When the next try is due; infinity if none is."""
        return self._waiting[0][0] if self._waiting else math.inf

    def keep(self, finished: Finished, now: float) -> Iterator[Finished]:
        """Keep the tasks that are to be tried again, and yield the others: they are final."""
        start, attempt = 0, len(finished.earlier) + 1
        # All are asked before any is kept: the user's ``retry_on`` may raise.
        waits = [
            (place, self._policy.wait_s(finished.errors[place], attempt, self._draw))
            for place in sorted(finished.errors)
        ]
        for place, wait_s in waits:
            if wait_s is None:
                continue
            if place > start:
                yield finished.part(start, place)
            failed = finished.part(place, place + 1)
            heapq.heappush(self._waiting, (now + wait_s, failed.first, failed))
            start = place + 1
        if start == 0:
            yield finished
        elif start < len(finished.values):
            yield finished.part(start, len(finished.values))

    def next_due(self, now: float) -> int | None:
        """Return the index of the task that ``take_due`` would return."""
        return self._waiting[0][1] if self.due <= now else None

    def take_due(self, now: float) -> Chunk | None:
        """Return a task whose next try is due, with its earlier attempts."""
        if self.due > now:
            return None
        _, _, failed = heapq.heappop(self._waiting)
        (last,) = failed.outcomes()
        assert last.error is not None
        attempt = Attempt(last.error, last.worker, last.pid, last.started, last.seconds)
        return Chunk(failed.first, failed.items, earlier=(*failed.earlier, attempt))

    def give_up(self) -> list[Finished]:
        """Return all that wait; their last errors are final."""
        waiting, self._waiting = self._waiting, []
        waiting.sort(key=lambda entry: entry[:2])
        return [failed._replace(is_given_up=True) for _, _, failed in waiting]
