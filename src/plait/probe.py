"""Measure the first tasks: run them here, where they are, and look at the clocks.

Their results count, nothing is run twice. It stops after BUDGET_S, or earlier where all is clear,
so that a short run is over before anything is chosen and a long one loses next to nothing; a long
one whose first tasks leave doubt is measured a little longer. Where there is enough to do to make a
difference, a heartbeat (heartbeat.py) tells for how much of their computing they hold the GIL.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Sequence
from contextvars import copy_context
from queue import Empty, SimpleQueue
from time import process_time
from typing import TYPE_CHECKING, Any

from plait.blas import find_libraries, thread_limit
from plait.chunks import TINY_S
from plait.clocks import ThreadClock, monotonic, read_thread_clock
from plait.heartbeat import Heartbeat, Tally
from plait.host import cpu_count, peak_rss_bytes, rss_bytes, thread_cpu_s
from plait.imports import Imports
from plait.limits import leave_to_itself
from plait.model import HANDOVER_S, Sample
from plait.outcome import Call, Chunk, Finished
from plait.quick import CATCH, Start
from plait.worker import run_apart, run_together

if TYPE_CHECKING:
    from plait.beside import Beside, LongTask

__all__ = ["Probe"]

BUDGET_S = 0.02
CLEAR_S = 0.008
"""It is over so soon if there is no question left."""
CLEAR, CLEAR_TASKS, ALIKE = (0.15, 0.9), 2, 0.3
MOST_S = 0.08
"""A sample that leaves doubt may take so long, if that is next to nothing of what remains."""
HOPELESS_S = 0.000_000_15
LEAST_S = 0.0015
"""Tasks that are so short are not worth sending anywhere: that is known soon."""
SHARE = 0.01
GROWTH = 4
MOST_TASKS = 1_000_000
STEP_S = 2 * BUDGET_S / 4
"""A step that takes so long, twice what it was to, ends."""
LONG_S = 0.01
"""If less than this is left, it does not matter who holds the GIL."""
COMPUTES = 0.2
DOUBTFUL = (0.1, 0.9)
ENOUGH_BEATS = 12
MOST_HELD = 0.5
LONGER = 2.0
"""A task that is not over is taken to take so many times as long as it has until now: if nothing is
known of its length, it is as likely to be more as to be less (Gott, Nature 363, 1993)."""
OWN_THREADS = 1.3
"""Tasks that use so many times more CPUs than their own thread does have further threads."""
TRIED_TASKS = 4
TRIED_SHARE = 0.02
"""How they do on one CPU is tried if a task may take as long as this share of what remains."""


class Probe:
    """Runs the first tasks of a call, step by step; ``sample`` is what they told."""

    def __init__(
        self,
        call: Call,
        read: Callable[[int], Sequence[Any]],
        limit: Callable[[], float | None] = lambda: None,
        remaining: Callable[[], int | None] = lambda: None,
        beside: Beside | None = None,
        give_back: Callable[[Sequence[Any]], None] = lambda _: None,
        *,
        is_alone: bool = True,
    ) -> None:
        """``read`` returns up to so many of the next items, none at the end.

        ``limit`` returns how many seconds the next task may take. Where there is a limit, each
        task runs in a thread of its own, which is left to itself when its time is over.
        ``remaining`` returns how many tasks are left; None: unknown. ``beside`` hears when tasks
        begin and end, to go on beside one that takes long. ``give_back`` takes the last of the
        items that were read, if they are not run after all. Where a thread reads the input
        what is measured is not ``is_alone``: the process is not on a CPU for the tasks only.
        (Nor is it while there is a helper beside a long task, or right after an import.)
        """
        self._give_back = give_back
        self._is_alone = is_alone
        self._beside = beside
        self._call = call
        self._read = read
        self._limit = limit
        self._remaining = remaining
        self.has_abandoned = False
        self.is_over = False  # enough is known
        self.last: Finished | None = None  # of the first tasks, those that came last
        self.spent_s = 0.0
        self._cpu_s = 0.0
        self._awake_s = 0.0  # on a CPU or waiting for something, not for a free CPU
        # Of the first task, which pays for caches, and of those that import something: no measure
        # of the others.
        self._aside_tasks = 0
        self._aside_s = self._aside_cpu_s = 0.0
        self._mean_s: float | None = None
        self._size = 1
        self.tasks = 0
        self._timed = self._sum_s = self._squares = 0.0  # of the tasks but the first
        self._tried_tasks, self._tried_s = 0, 0.0  # with one CPU for each
        self._heart: Heartbeat | None = None
        self._tally = Tally()
        self._seen_s = 0.0  # with the process's own clock
        self._process_s = 0.0
        self._rss_bytes, self._peak_bytes = rss_bytes(), peak_rss_bytes()

    def close(self) -> None:
        """End what helps to measure."""
        if self._heart is not None:
            self._heart.stop()

    def take_over(self, start: Start, first: int = 0, end: int | None = None) -> Finished:
        """Count tasks that ran before there was a probe, as if they had been its own."""
        values, seconds = start.values[first:end], start.seconds[first:end]
        begun = start.begun[first:end]
        (_, cpu, queued), (_, cpu_now, queued_now) = start.before, start.after
        task_s = sum(seconds)
        # The clocks of the thread went on between the tasks, where the input was read.
        cpu_s = min(cpu_now - cpu, task_s)
        self._size = len(values)
        imported = bool(start.imports.found)
        # One of them, and it is among the longest.
        aside_s = max(seconds) if imported else 0.0 if self.tasks else seconds[0]
        after = (task_s, cpu_s, queued_now - queued)
        self._note((0, 0, 0), after, len(values), (1, aside_s / max(task_s, 1e-9)))
        if imported:
            self._forget_import(aside_s)
        if task_s < TINY_S * len(values):
            times = [(begun[0], task_s)]
        else:
            times = list(zip(begun, seconds, strict=True))
        if start.heart is not None and not imported:
            self._tally = start.heart.tally
        finished = Finished(
            first,
            start.items[first : first + len(values)],
            values,
            {place - first: error for place, error in start.errors.items()},
            times,
            "main",
            os.getpid(),
        )
        self._learn_times(finished)
        return finished

    def peek(self, task: LongTask, held_share: float | None) -> Sample:
        """Return what is known while a task is still running, for longer than until now."""
        before, now = task.before, task.clocks()
        cpu, awake_s = now[1] - before[1], _on_machine(before, now)
        known = self.sample
        return Sample(
            tasks=1 if known is None else known.tasks,
            task_s=LONGER * awake_s,
            cpu_share=min(1.0, cpu / awake_s),
            gil_share=_of_time(held_share, cpu / awake_s),
            own_cpus=min(1.0, cpu / awake_s),
            spread=1.0,
        )

    def step(self) -> Finished | None:
        """Run some more of the first tasks; None when enough is known or nothing is left."""
        limit_s = self._limit()
        if self._is_enough():
            if limit_s is None and self._is_worth_trying():
                return self._try_on_one_cpu()
            self.is_over = True
            return None
        items = self._read(self._size if limit_s is None else 1)
        if not len(items):  # of an array the truth would be another question
            return None
        chunk = Chunk(self.tasks, items)
        if self._heart is None and self._wants_heartbeat():
            self._heart = Heartbeat(self._tally)
            self._heart.start()
        if limit_s is not None:
            return self._run_aside(chunk, limit_s)
        finished, before, after, imported = self._measure(chunk)
        tasks = len(finished.values)
        imported = imported and self._aside_tasks == self.tasks  # none did not
        self._note(before, after, tasks, (tasks, 1.0) if imported else None)
        if imported:
            self._forget_import(after[0] - before[0])
        self._learn_times(finished)
        return finished

    def _is_enough(self) -> bool:
        if self._mean_s is not None and self._mean_s < HOPELESS_S and self.spent_s > LEAST_S:
            return True
        if self.spent_s < BUDGET_S:
            return self.spent_s >= CLEAR_S and self._is_clear()
        left_s = self._left_s()
        return self.spent_s >= min(MOST_S, SHARE * left_s) or not self._is_doubtful()

    def _left_s(self) -> float:
        """Return the seconds of work that are left; for an unknown number of tasks, many."""
        remaining = self._remaining()
        return math.inf if remaining is None else remaining * (self._mean_s or 0.0)

    def _is_clear(self) -> bool:
        """Whether tasks that are all alike hold the GIL all the time, or never, or need not care.

        Several of them, so that no phase of a task can pass for all of it.
        """
        tally, (low, high) = self._tally, CLEAR
        if self.tasks - self._aside_tasks < CLEAR_TASKS or self._spread > ALIKE:
            return False
        if self._is_brief or self._cpu_s < COMPUTES * self._awake_s:
            return True
        if tally.held_share is None or tally.known_s < min(CLEAR_S, self._cpu_s) / 2:
            return False
        return not low < tally.held_share < high

    def _is_doubtful(self) -> bool:
        if self.tasks == self._aside_tasks:
            return True
        if self._heart is None or self._cpu_s < COMPUTES * self._awake_s:
            return False
        held_share, (low, high) = self._tally.held_share, DOUBTFUL
        if held_share is None:
            return True
        return self._tally.beats < ENOUGH_BEATS and low < held_share < high

    def _is_worth_trying(self) -> bool:
        """Whether it may be known at little cost if tasks need the CPUs that they use.

        Threads inside numpy and its kind are often of little use. Then more is done by so many
        workers that use one CPU each.
        """
        sample = self.sample
        if self._tried_tasks or sample is None or sample.own_cpus <= sample.cpu_share:
            return False
        most_s = sample.task_s * sample.own_cpus
        return most_s < TRIED_SHARE * self._left_s() and find_libraries() is not None

    def _try_on_one_cpu(self) -> Finished | None:
        """Run some tasks with such threads limited as they are in workers."""
        items = self._read(TRIED_TASKS)
        if not len(items):
            return None
        thread_limit.hold(cpu_count())
        try:
            before = read_thread_clock()
            self.last = finished = self._run(Chunk(self.tasks, items))
            after = read_thread_clock()
        finally:
            thread_limit.release()
        self._tried_tasks = len(finished.values)
        self._tried_s = _on_machine(before, after)
        self.tasks += self._tried_tasks
        self.spent_s += self._tried_s
        return finished

    @property
    def _is_brief(self) -> bool:
        """Whether tasks are so short that it is no question who holds the GIL."""
        return self._mean_s is not None and self._mean_s < HANDOVER_S

    def _wants_heartbeat(self) -> bool:
        if self._mean_s is None:
            return True
        if self._is_brief or self._left_s() < LONG_S:
            return False
        return self._cpu_s > COMPUTES * self._awake_s

    def _measure(self, chunk: Chunk) -> tuple[Finished, ThreadClock, ThreadClock, bool]:
        """Run a step: what finished, the clocks before and after, whether it imported anything."""
        heart = self._heart
        if heart is not None:
            heart.resume()
        process_s, before = process_time(), read_thread_clock()
        if self._beside is None:
            imports = Imports()
            finished = self._run(chunk)
            imported = imports.settle()
        else:
            self._beside.begin(before, heart)
            try:
                finished = self._run(chunk)
            finally:
                imported = self._beside.end()
            if self._beside.has_helped:
                self._is_alone = False
        after = read_thread_clock()
        self._process_s += process_time() - process_s
        if heart is not None:
            heart.pause()
        self._seen_s += after[0] - before[0] - (after[2] - before[2])
        return finished, before, after, imported

    def _run_aside(self, chunk: Chunk, limit_s: float) -> Finished:
        """Run one task in a thread that can be left, and wait for it as long as it may take."""
        measured: SimpleQueue[tuple[Finished, ThreadClock, ThreadClock, bool]] = SimpleQueue()
        context = copy_context()
        thread = threading.Thread(
            target=lambda: measured.put(context.run(self._measure, chunk)),
            name="plait-sample",
            daemon=True,
        )
        started = monotonic()
        thread.start()
        try:
            finished, before, after, _ = measured.get(timeout=limit_s)
            self._note(before, after, 1)
            self._learn_times(finished)
        except Empty:
            self.has_abandoned = True
            finished = self._give_up(chunk, started, limit_s, thread)
        self.spent_s = max(self.spent_s, monotonic() - started)
        return finished

    def _give_up(
        self, chunk: Chunk, started: float, limit_s: float, thread: threading.Thread
    ) -> Finished:
        """Fail a task that took too long; what it did until now is the whole sample."""
        after_s = monotonic() - started
        cpu_s = thread_cpu_s(thread)
        self._note((0, 0, 0), (after_s, cpu_s, 0), 1)
        self.spent_s = BUDGET_S
        return leave_to_itself(
            self._call, chunk, 0, "main", os.getpid(), limit_s, (started, after_s)
        )

    def _run(self, chunk: Chunk) -> Finished:
        """Run a step, or, if its tasks take longer than those before them, the first of it."""
        until = monotonic() + STEP_S
        if self._mean_s is not None and self._mean_s < TINY_S:
            stretch = run_together(self._call, chunk.items, catch=CATCH, until=until)
        else:
            (stretch,) = run_apart(
                self._call,
                chunk.items,
                begin=lambda place: not place or monotonic() < until,
                catch=CATCH,
                flush_s=math.inf,
            )
        done = len(stretch.values)
        self._give_back(chunk.items[done:])
        return Finished.of(chunk, 0, stretch._replace(is_last=True), worker="main", pid=os.getpid())

    def _note(
        self,
        before: ThreadClock,
        after: ThreadClock,
        tasks: int,
        aside: tuple[int, float] | None = None,
    ) -> None:
        """Count tasks; of so many of them this share of the time is no measure of the others."""
        cpu, on_machine = after[1] - before[1], _on_machine(before, after)
        if tasks > self.tasks and on_machine < TINY_S * tasks:
            # So many more that the earlier ones, which had nothing in the caches, tell less.
            self._aside_tasks = self.tasks
            self._aside_s, self._aside_cpu_s = self._awake_s, self._cpu_s
        self.spent_s += on_machine
        self._cpu_s += cpu
        self._awake_s += on_machine
        aside_tasks, share = aside or ((0, 0.0) if self.tasks else (1, 1.0))
        self._aside_tasks += aside_tasks
        self._aside_s += share * on_machine
        self._aside_cpu_s += share * cpu
        self.tasks += tasks
        self._mean_s = on_machine / tasks
        growth = BUDGET_S / 4 / max(self._mean_s, 1e-9)
        if self._mean_s < HOPELESS_S:
            growth = LEAST_S / 2 / self._mean_s
        self._size = int(max(1, min(self._size * GROWTH, growth, MOST_TASKS)))

    def _forget_import(self, seconds: float) -> None:
        """Have the sample begin now, at last: this step told of an import, which took so long."""
        self.spent_s = max(0.0, self.spent_s - seconds)
        self._is_alone = False  # fresh threads of BLAS turn idly for a tenth of a second
        self._rss_bytes, self._peak_bytes = rss_bytes(), peak_rss_bytes()
        self.close()
        self._heart, self._tally = None, Tally()

    def _learn_times(self, finished: Finished) -> None:
        """Take in how much the tasks differ, as far as each has a time of its own."""
        self.last = finished
        times = finished.times
        if len(times) < len(finished.values):
            return
        for _, seconds in times[finished.first == 0 :]:
            self._timed += 1
            self._sum_s += seconds
            self._squares += seconds * seconds

    @property
    def _spread(self) -> float:
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
        tasks, awake_s, cpu_s = self.tasks - self._tried_tasks, self._awake_s, self._cpu_s
        first_s = 0.0
        if tasks > self._aside_tasks:
            tasks, awake_s = tasks - self._aside_tasks, awake_s - self._aside_s
            cpu_s -= self._aside_cpu_s
            first_s = max(0.0, self._aside_s - self._aside_tasks * awake_s / tasks)
        cpu_share = max(0.0, min(1.0, cpu_s / max(awake_s, 1e-9)))
        held_share = self._tally.held_share
        return Sample(
            self.tasks,
            max(awake_s, 1e-9) / tasks,
            cpu_share,
            gil_share=_of_time(held_share, cpu_share),
            own_cpus=self._own_cpus(cpu_share, held_share),
            spread=self._spread,
            first_s=first_s,
            memory_bytes=self._memory_bytes(),
            one_cpu_s=self._tried_s / self._tried_tasks if self._tried_tasks else None,
        )

    def _own_cpus(self, cpu_share: float, held_share: float | None) -> float:
        """Return how many CPUs the tasks use, with threads of their own.

        Such threads are no Python: while the GIL is held, what else uses a CPU in this process
        is somebody else's, as the thread that reads the input.
        """
        heart = self._heart
        if not self._is_alone or heart is None or held_share is None or held_share > MOST_HELD:
            return cpu_share
        own_cpus = (self._process_s - heart.cpu_s) / max(self._seen_s, 1e-9)
        return own_cpus if own_cpus > OWN_THREADS * cpu_share else cpu_share

    def _memory_bytes(self) -> int:
        """Return what tasks need while they run, as far as it is more than there ever was."""
        peak_bytes = peak_rss_bytes()
        is_known = self._rss_bytes and peak_bytes > self._peak_bytes
        return max(0, peak_bytes - self._rss_bytes) if is_known else 0


def _on_machine(before: ThreadClock, after: ThreadClock) -> float:
    """Return the seconds between, as they were had the machine been free."""
    wall, cpu, queued = (end - start for end, start in zip(after, before, strict=True))
    return max(wall - queued, cpu, 1e-9)


def _of_time(held_share: float | None, cpu_share: float) -> float | None:
    """Return for what share of their time tasks hold the GIL, from that of their computing."""
    return None if held_share is None else held_share * min(1.0, cpu_share)
