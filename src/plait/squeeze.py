"""Go on with fewer workers where memory has run out, and with more when there is room. Pure.

Used by runs.py, where a failed task may be tried again. A task whose worker ran out of memory
runs again alone: nothing else of the call runs beside it. The others go on with half as many
workers; after each round that goes well there is one more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from plait.errors import MemoryLimitExceeded, WorkerDied

if TYPE_CHECKING:
    from collections.abc import Iterable

    from plait.outcome import Finished

__all__ = ["Squeeze", "ran_out_of_memory"]

ROUNDS = 3
"""So many tasks for each worker have to go well before there is one more."""


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether a worker was ended because of memory: by its limit, or by the system."""
    if isinstance(error, WorkerDied):
        return error.was_oom
    return isinstance(error, MemoryLimitExceeded)


class Squeeze:
    """How many workers are to be busy at once, and which tasks are to run alone.

    >>> squeeze = Squeeze(8)
    >>> squeeze.back_off([3])
    >>> squeeze.size, squeeze.must_be_alone(3)
    (4, True)
    >>> squeeze.learn(12)
    >>> squeeze.size
    5
    """

    def __init__(self, most: int) -> None:
        self.most = self.size = self.least = most
        self.struck = 0  # how many tasks ran out of memory
        self._alone: set[int] = set()
        self._good = 0  # tasks that went well with this size

    def take_in(self, batch: Iterable[Finished]) -> None:
        """Learn from what has finished; several at once are one shortage."""
        struck: list[int] = []
        good = 0
        for finished in batch:
            good += len(finished.values) - len(finished.errors)
            for place, error in finished.errors.items():
                if ran_out_of_memory(error):
                    struck.append(finished.first + place)
        if struck:
            self.back_off(struck)
        else:
            self.learn(good)

    def back_off(self, struck: list[int]) -> None:
        """Hear which tasks ran out of memory."""
        self.struck += len(struck)
        self._alone.update(struck)
        self.size = max(1, self.size // 2)
        self.least = min(self.least, self.size)
        self._good = 0

    def learn(self, tasks: int) -> None:
        """Hear how many tasks went well."""
        if self.size < self.most:
            self._good += tasks
            if self._good >= ROUNDS * self.size:
                self.size, self._good = self.size + 1, 0

    def must_be_alone(self, index: int | None) -> bool:
        """Whether a task is to run with nothing beside it."""
        return index in self._alone

    @property
    def text(self) -> str:
        """What was done, for the report; "" if nothing was."""
        if not self.struck:
            return ""
        return (
            f"{self.struck} tasks ran out of it and were tried again alone; "
            f"the others went on with {self.least} workers at the least, of {self.most}"
        )
