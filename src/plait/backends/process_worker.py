"""The parent's view of one worker process: what it has, what it runs, whether it is to be ended.

Used by backends/processes.py only, which does what follows from it. Nothing here waits, sends
or ends anything.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

from plait.backends.messages import TOGETHER, Forget, StatusPage
from plait.backends.process_lane import Job, ProcessLane, Verdict
from plait.backends.voices import OutputReader
from plait.host import family_rss_bytes, monotonic
from plait.limits import LEAST_RELATIVE_S

if TYPE_CHECKING:
    from plait.backends.launcher import Born
    from plait.channel import Channel
    from plait.segments import SegmentView

__all__ = ["QUEUE_DEPTH", "Worker"]

# So many chunks may be at a worker, one running and the others waiting, if they are brief.
QUEUE_DEPTH = 2
# How long a worker may be stopped by a signal; a batch system stops and continues us all.
STOPPED_S = 1.0
# How often memory is measured, where it is limited: no system tells of its growth.
MEASURE_S = 0.1
# Of its limit a worker may keep this much between two chunks; one with more is replaced.
KEPT_SHARE = 0.5

Look = tuple[Verdict | None, float]
"""What a look at a worker gave: why it is to be ended, and when to look again."""


class Worker:
    """The parent's view of one worker process."""

    def __init__(
        self,
        number: int,
        name: str,
        channel: Channel,
        page: StatusPage,
        view: SegmentView,
        outputs: list[OutputReader],
    ) -> None:
        self.number = number
        self.name = name
        self.channel = channel
        self.page = page
        self.view = view  # of the results that it lays down
        self.outputs = outputs
        self.forgotten: list[Forget] = []  # to be told with the next function
        self.held: set[int] = set()  # segments of ours that it still uses
        self.jobs: deque[Job] = deque()  # sent and not finished, the first is running
        self.known: dict[int, ProcessLane] = {}  # functions that it has, by key
        self.last_seq = 0
        self.tasks = 0  # that it was given, ever
        self.heard_at = 0.0  # when a result came last, or a chunk was sent to it while it was free
        self.watched = 0  # the events of the channel that are waited for
        self.is_ready = False
        self.is_leaving = False
        self.has_ended = False
        self.is_cut_off = False  # it was told to leave, and hears nothing more
        self.is_untold = False  # that what was shared in its results has arrived
        self.is_stale = False  # leaving, as the user's code has changed
        self.stopped: tuple[float, int] | None = None  # since when, and by which signal
        self.verdict: Verdict | None = None  # why we end it

    @classmethod
    def of(cls, number: int, born: Born) -> Worker:
        """Make the view of a worker that was just started."""
        kinds = ("stdout", "stderr")[: len(born.outputs)]
        outputs = [OutputReader(*pair) for pair in zip(kinds, born.outputs, strict=True)]
        return cls(number, f"process-{number}", born.channel, born.page, born.view, outputs)

    @property
    def can_take(self) -> bool:
        """Whether it may be given new chunks."""
        return not (self.is_leaving or self.has_ended or self.stopped)

    @property
    def takes_a_place(self) -> bool:
        """Whether it counts among the workers that may work at once.

        One that leaves counts until it has finished what it has; but new code does not wait
        for old code.
        """
        return not self.is_leaving or (bool(self.jobs) and not self.is_stale)

    @property
    def is_leaving_in_peace(self) -> bool:
        """Whether it was told to leave, is in no task, and so calls its exit functions."""
        return self.is_cut_off and self.is_ready and not (self.stopped or self.verdict)

    @property
    def failed_to_start(self) -> bool:
        """Whether it ended before it was ready, though it was wanted."""
        if self.verdict is not None:
            return not self.is_ready and self.verdict.reason != "cancelled"
        return not self.is_ready and not self.is_leaving

    def runs(self, job: Job) -> tuple[int, int] | None:
        """Return the task (seq, place) of a job that it runs, or None if it is not at that job."""
        if not self.page.is_shared:  # then each result is sent at once
            return (job.seq, job.done) if self.is_ready and job is self.jobs[0] else None
        running = self.page.running()
        return running if running[0] == job.seq else None

    @property
    def running_since(self) -> float:
        """When it began what it runs, or, if that is not known, now."""
        since = self.page.started if self.page.is_shared else self.heard_at
        return since if 0 < since < math.inf else monotonic()

    def may_run(self, job: Job) -> bool:
        """Whether a job may be running: a cancelled one that waits behind another never will."""
        return job is self.jobs[0] or self.runs(job) is not None

    def guilty_place(self, job: Job) -> int | None:
        """Return the task of a job that it was running when it ended."""
        if not self.page.is_shared:
            return job.done if job is self.jobs[0] else None
        _, place = self.runs(job) or (0, TOGETHER)
        # What was taken back from it may be noted all the same, see stealing.py. It did not run.
        is_its_own = job.done <= place < len(job.chunk.items)
        return place if is_its_own and place != TOGETHER else None

    def has_not_begun(self, job: Job) -> bool:
        """Whether it was to begin a job next, or was just receiving it."""
        is_next = self.is_ready and job is self.jobs[0]
        return is_next and self.page.is_shared and self.page.running()[0] != job.seq

    def has_grown(self, pid: int, lane: ProcessLane) -> bool:
        """Whether it has so much memory between two chunks that it is better replaced."""
        limit = lane.limits.memory_bytes
        return limit is not None and family_rss_bytes(pid) > limit * KEPT_SHARE

    # --- Limits ----------------------------------------------------------------------

    @property
    def first_look_s(self) -> float:
        """How long after a chunk was sent to it a limit may be passed, at the earliest."""
        limits = self.jobs[0].lane.limits
        if limits.memory_bytes is not None:
            return MEASURE_S
        return limits.time.seconds or LEAST_RELATIVE_S

    def judge(self, pid: int, now: float) -> Look:
        """Say whether it is to be ended, and when to look again."""
        if self.stopped is not None:
            return self._judge_stop(*self.stopped, now)
        if not self.jobs or not self.jobs[0].lane.limits.are_set:
            return None, math.inf
        of_time, due = self._judge_time(now)
        of_memory, soon = self._judge_memory(pid, now)
        return of_time or of_memory, min(due, soon)

    def _judge_stop(self, since: float, signum: int, now: float) -> Look:
        if now < since + STOPPED_S:
            return None, since + STOPPED_S
        return Verdict("stopped", self.page.running(), seen=signum), math.inf

    def _judge_time(self, now: float) -> Look:
        limit = self.jobs[0].lane.limits.time
        if not limit.is_set:
            return None, math.inf
        if limit.seconds is None:  # the median is not known yet
            return None, now + LEAST_RELATIVE_S
        task = self.runs(self.jobs[0])
        since = self.page.started if self.page.is_shared else self.heard_at
        if task is None or since == math.inf:  # it is starting, or loads the function
            return None, now + limit.seconds
        if now < since + limit.seconds:
            return None, since + limit.seconds
        return Verdict("time", task, limit.seconds, now - since), now + limit.seconds

    def _judge_memory(self, pid: int, now: float) -> Look:
        limit = self.jobs[0].lane.limits.memory_bytes
        if limit is None:
            return None, math.inf
        rss_bytes = family_rss_bytes(pid)
        task = self.runs(self.jobs[0])
        if rss_bytes <= limit or (self.is_ready and task is None):
            return None, now + MEASURE_S
        return Verdict("memory", task or (0, 0), limit, rss_bytes), now + MEASURE_S
