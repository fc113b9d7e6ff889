"""How many tasks travel together. Pure: numbers in, numbers out.

A chunk aims at some milliseconds of work: long enough that sending it, and waking the
parent when it is done, costs little beside it, short enough that nobody waits for it.
Towards the end of a known input the chunks shrink with what remains, so that the workers
finish at the same time (factoring: Hummel, Schonberg, Flynn, CACM 35(8), 1992).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

__all__ = ["BRIEF_S", "MOST_TASKS", "TOGETHER_S", "ChunkSizer", "Size"]

TARGET_S = 0.015
"""Work in a chunk."""
LEAST_S = 0.000_5
"""Work in a chunk, at least, where it is measured: sending less is not worth its message."""
BRIEF_S = 0.040
"""A chunk below this may wait at a worker behind another."""
TINY_S = 0.000_05
"""Tasks below this go together: one pickle, one time, nothing noted in between."""
GROWTH = 8
"""How much larger a chunk may be than the largest one whose time is known."""
MOST_TASKS = 65_536
"""The largest chunk that "auto" makes, if memory is not to be constant."""
TOGETHER_S = 0.000_5
"""Several chunks are sent at once if they can be made ready so soon."""
KNOWN = 8
"""So many tasks tell enough of the others for a chunk of all."""
MEMORY = 0.7
"""What an old measurement keeps of its weight when a new one comes."""


class Size(NamedTuple):
    """What the next chunk is to be."""

    tasks: int
    together: bool
    brief: bool


class ChunkSizer:
    """Sizes the chunks of one run from the times of its finished tasks."""

    def __init__(
        self,
        chunksize: int | Literal["auto"],
        workers: int,
        task_s: float | None = None,
        measured: int = 0,
        most: int = MOST_TASKS,
        *,
        takes_all: bool = False,
    ) -> None:
        """Start from a sample of ``measured`` tasks that took ``task_s`` each, or from nothing.

        ``most`` is the largest chunk that it makes. With ``takes_all``, as in a loop, where nobody
        else is to have some of it, that is the rest, as soon as some tasks are known.
        """
        self._most = most
        self._takes_all = takes_all
        self._fixed = chunksize if chunksize != "auto" else None
        self._workers = workers
        self._measured = max(measured, 1)  # tasks in the largest chunk measured
        self.task_s = task_s

    def learn(self, tasks: int, seconds: float) -> None:
        """Take in the time of finished tasks; a chunk that was cancelled has none."""
        if not tasks:
            return
        mean = seconds / tasks
        self._measured = max(self._measured, tasks)
        self.task_s = mean if self.task_s is None else MEMORY * self.task_s + (1 - MEMORY) * mean

    def next(self, remaining: int | None) -> Size:
        """Size the next chunk; ``remaining`` tasks have not been sent (None: unknown).

        >>> sizer = ChunkSizer("auto", workers=2, task_s=0.001, measured=5)
        >>> sizer.next(remaining=1000).tasks
        15
        >>> sizer.next(remaining=8).tasks
        2
        """
        tasks = self._fixed or self._auto(remaining)
        if self.task_s is None:
            return Size(tasks, together=False, brief=False)
        return Size(tasks, self.task_s < TINY_S and tasks > 1, self.task_s * tasks < BRIEF_S)

    def _auto(self, remaining: int | None) -> int:
        if self.task_s is None:
            return 1
        if self._takes_all and remaining is not None and self._measured >= KNOWN:
            return max(1, remaining)
        tasks = min(TARGET_S / max(self.task_s, 1e-9), self._measured * GROWTH, self._most)
        if remaining is not None:
            # Not below what a message is worth, or the end would be a flock of tiny ones.
            least = min(LEAST_S / max(self.task_s, 1e-9), remaining)
            tasks = min(tasks, max(-(-remaining // (2 * self._workers)), least))
        return max(int(tasks), 1)
