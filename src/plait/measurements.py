"""What was measured of the first tasks, added up, and the sample that it makes.

Used by probe.py, which runs them and decides when enough is known.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from plait.chunks import TINY_S
from plait.heartbeat import Heartbeat, Tally
from plait.host import peak_rss_bytes, rss_bytes
from plait.model import HANDOVER_S, Sample

if TYPE_CHECKING:
    from plait.clocks import ThreadClock
    from plait.outcome import Finished

__all__ = ["Measurements", "of_time", "on_machine"]

COMPUTES = 0.2
"""Where tasks compute for a smaller share of their time it is no question who holds the GIL."""
MOST_HELD = 0.5
OWN_THREADS = 1.3
"""Tasks that use so many times more CPUs than their own thread does have further threads."""


class Measurements:
    """Sums over the first tasks.

    Attributes:
        tasks: how many there were.
        spent_s: what they took, on a free machine.
        cpu_s: for how long they were on a CPU.
        mean_s: what each of those took that came last; None: there was none.
        is_alone: the process was on a CPU for the tasks only.
        heart: who tells how long they hold the GIL, once there is one.
        tally: what it told.
    """

    def __init__(self, *, is_alone: bool) -> None:
        self.is_alone = is_alone
        self.heart: Heartbeat | None = None
        self.tally = Tally()
        self.tasks = 0
        self.spent_s = 0.0
        self.mean_s: float | None = None
        self.cpu_s = 0.0
        self._awake_s = 0.0  # on a CPU or waiting for something, not for a free CPU
        # Of the first task, which pays for caches, and of those that import something: no measure
        # of the others.
        self._aside_tasks = 0
        self._aside_s = self._aside_cpu_s = 0.0
        self._timed = self._sum_s = self._squares = 0.0  # of the tasks but the first
        self._tried_tasks, self._tried_s = 0, 0.0  # with one CPU for each
        self._seen_s = 0.0  # with the process's own clock
        self._process_s = 0.0
        self._rss_bytes, self._peak_bytes = rss_bytes(), peak_rss_bytes()

    def close(self) -> None:
        """End what helps to measure."""
        if self.heart is not None:
            self.heart.stop()

    def start_heart(self) -> None:
        """Have a heart beat from the next step on."""
        self.heart = Heartbeat(self.tally)
        self.heart.start()

    # --- Taking in ----------------------------------------------------------------------

    def note(
        self,
        before: ThreadClock,
        after: ThreadClock,
        tasks: int,
        aside: tuple[int, float] | None = None,
    ) -> None:
        """Count tasks; of so many of them this share of the time is no measure of the others."""
        cpu_s, awake_s = after[1] - before[1], on_machine(before, after)
        if tasks > self.tasks and awake_s < TINY_S * tasks:
            # So many more that the earlier ones, which had nothing in the caches, tell less.
            self._aside_tasks = self.tasks
            self._aside_s, self._aside_cpu_s = self._awake_s, self.cpu_s
        self.spent_s += awake_s
        self.cpu_s += cpu_s
        self._awake_s += awake_s
        aside_tasks, share = aside or ((0, 0.0) if self.tasks else (1, 1.0))
        self._aside_tasks += aside_tasks
        self._aside_s += share * awake_s
        self._aside_cpu_s += share * cpu_s
        self.tasks += tasks
        self.mean_s = awake_s / tasks

    def note_tried(self, before: ThreadClock, after: ThreadClock, tasks: int) -> None:
        """Count tasks that had one CPU each."""
        self._tried_tasks, self._tried_s = tasks, on_machine(before, after)
        self.tasks += tasks
        self.spent_s += self._tried_s

    def note_process(self, before: ThreadClock, after: ThreadClock, process_s: float) -> None:
        """Take in for how long the process was on a CPU meanwhile, with all of its threads."""
        self._process_s += process_s
        self._seen_s += after[0] - before[0] - (after[2] - before[2])

    def note_times(self, finished: Finished) -> None:
        """Take in how much the tasks differ, as far as each has a time of its own."""
        times = finished.times
        if len(times) < len(finished.values):
            return
        for _, seconds in times[finished.first == 0 :]:
            self._timed += 1
            self._sum_s += seconds
            self._squares += seconds * seconds

    def forget_import(self, seconds: float) -> None:
        """Have the sample begin now, at last: this step told of an import, which took so long."""
        self.spent_s = max(0.0, self.spent_s - seconds)
        self.is_alone = False  # fresh threads of BLAS turn idly for a tenth of a second
        self._rss_bytes, self._peak_bytes = rss_bytes(), peak_rss_bytes()
        self.close()
        self.heart, self.tally = None, Tally()

    # --- What it says -------------------------------------------------------------------

    @property
    def counted(self) -> int:
        """How many tasks say something about the others."""
        return self.tasks - self._aside_tasks

    @property
    def computes(self) -> bool:
        """Whether the tasks compute for a share of their time that counts."""
        return self.cpu_s > COMPUTES * self._awake_s

    @property
    def is_brief(self) -> bool:
        """Whether tasks are so short that it is no question who holds the GIL."""
        return self.mean_s is not None and self.mean_s < HANDOVER_S

    @property
    def has_tried(self) -> bool:
        """Whether some tasks had one CPU each."""
        return self._tried_tasks > 0

    @property
    def spread(self) -> float:
        """The standard deviation of the tasks' times as a share of their mean."""
        if self._timed < 2:
            return 0.0
        mean = self._sum_s / self._timed
        variance = max(0.0, self._squares / self._timed - mean * mean)
        return math.sqrt(variance) / max(mean, 1e-9)

    @property
    def sample(self) -> Sample | None:
        """What was measured, or None if there was no task at all."""
        if not self.tasks:
            return None
        tasks, awake_s, cpu_s = self.tasks - self._tried_tasks, self._awake_s, self.cpu_s
        first_s = 0.0
        if tasks > self._aside_tasks:
            tasks, awake_s = tasks - self._aside_tasks, awake_s - self._aside_s
            cpu_s -= self._aside_cpu_s
            first_s = max(0.0, self._aside_s - self._aside_tasks * awake_s / tasks)
        cpu_share = max(0.0, min(1.0, cpu_s / max(awake_s, 1e-9)))
        return Sample(
            self.tasks,
            max(awake_s, 1e-9) / tasks,
            cpu_share,
            gil_share=of_time(self.tally.held_share, cpu_share),
            own_cpus=self._own_cpus(cpu_share),
            spread=self.spread,
            first_s=first_s,
            memory_bytes=self._memory_bytes(),
            one_cpu_s=self._tried_s / self._tried_tasks if self._tried_tasks else None,
        )

    def _own_cpus(self, cpu_share: float) -> float:
        """Return how many CPUs the tasks use, with threads of their own.

        Such threads are no Python: while the GIL is held, what else uses a CPU in this process
        is somebody else's, as the thread that reads the input.
        """
        heart, held_share = self.heart, self.tally.held_share
        if not self.is_alone or heart is None or held_share is None or held_share > MOST_HELD:
            return cpu_share
        own_cpus = (self._process_s - heart.cpu_s) / max(self._seen_s, 1e-9)
        return own_cpus if own_cpus > OWN_THREADS * cpu_share else cpu_share

    def _memory_bytes(self) -> int:
        """Return what tasks need while they run, as far as it is more than there ever was."""
        peak_bytes = peak_rss_bytes()
        is_known = self._rss_bytes and peak_bytes > self._peak_bytes
        return max(0, peak_bytes - self._rss_bytes) if is_known else 0


def on_machine(before: ThreadClock, after: ThreadClock) -> float:
    """Return the seconds between, as they were had the machine been free."""
    wall, cpu, queued = (end - start for end, start in zip(after, before, strict=True))
    return max(wall - queued, cpu, 1e-9)


def of_time(held_share: float | None, cpu_share: float) -> float | None:
    """Return for what share of their time tasks hold the GIL, from that of their computing."""
    return None if held_share is None else held_share * min(1.0, cpu_share)
