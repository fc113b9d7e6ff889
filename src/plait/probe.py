"""Measure the first tasks: run them here, where they are, and look at the clocks.

Their results count, nothing is run twice. It stops after BUDGET_S, or earlier where all is clear,
so that a short run is over before anything is chosen and a long one loses next to nothing; a long
one whose first tasks leave doubt is measured a little longer. What is measured is added up in
measurements.py; where there is enough to do to make a difference, a heartbeat (heartbeat.py) tells
for how much of their computing they hold the GIL.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable
from contextvars import copy_context
from queue import Empty, SimpleQueue
from time import process_time
from typing import TYPE_CHECKING, NamedTuple

from plait.blas import find_libraries, thread_limit
from plait.chunks import TINY_S
from plait.clocks import ThreadClock, monotonic, read_thread_clock
from plait.host import cpu_count, thread_cpu_s
from plait.imports import Imports
from plait.limits import leave_to_itself
from plait.measurements import Measurements, of_time, on_machine
from plait.model import Sample
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
DOUBTFUL = (0.1, 0.9)
ENOUGH_BEATS = 12
LONGER = 2.0
"""A task that is not over is taken to take so many times as long as it has until now: if nothing is
known of its length, it is as likely to be more as to be less (Gott, Nature 363, 1993)."""
TRIED_TASKS = 4
TRIED_SHARE = 0.02
"""How they do on one CPU is tried if a task may take as long as this share of what remains."""


class _Step(NamedTuple):
    """What was run in a step, with the clocks of its thread, and the process's time on a CPU."""

    finished: Finished
    before: ThreadClock
    after: ThreadClock
    process_s: float


class Probe:
    """Runs the first tasks of a call, step by step; ``sample`` is what they told."""

    def __init__(
        self,
        call: Call,
        read: Callable[[int], Chunk],
        limit: Callable[[], float | None] = lambda: None,
        remaining: Callable[[], int | None] = lambda: None,
        beside: Beside | None = None,
        give_back: Callable[[Chunk], None] = lambda _: None,
        *,
        is_alone: bool = True,
    ) -> None:
        """``read`` returns up to so many of the next tasks, none at the end.

        ``limit`` returns how many seconds the next task may take. Where there is a limit, each
        task runs in a thread of its own, which is left to itself when its time is over.
        ``remaining`` returns how many tasks are left; None: unknown. ``beside`` hears when tasks
        begin and end, to go on beside one that takes long. ``give_back`` takes those of the
        tasks that were read which are not run after all. Where a thread reads the input
        what is measured is not ``is_alone``: the process is not on a CPU for the tasks only.
        (Nor is it while there is a helper beside a long task, or right after an import.)
        """
        self._give_back = give_back
        self._beside = beside
        self._call = call
        self._read = read
        self._limit = limit
        self._remaining = remaining
        self.has_abandoned = False
        self.is_over = False  # enough is known
        self.last: Finished | None = None  # of the first tasks, those that came last
        self._measured = Measurements(is_alone=is_alone)
        self._size = 1

    @property
    def spent_s(self) -> float:
        """What the first tasks took."""
        return self._measured.spent_s

    @property
    def sample(self) -> Sample | None:
        """What was measured, or None if there was no task at all."""
        return self._measured.sample

    def close(self) -> None:
        """End what helps to measure."""
        self._measured.close()

    def take_over(self, start: Start, first: int = 0, end: int | None = None) -> Finished:
        """Count tasks that ran before there was a probe, as if they had been its own."""
        measured = self._measured
        values, seconds = start.values[first:end], start.seconds[first:end]
        begun = start.begun[first:end]
        (_, cpu, queued), (_, cpu_now, queued_now) = start.before, start.after
        task_s = sum(seconds)
        # The clocks of the thread went on between the tasks, where the input was read.
        cpu_s = min(cpu_now - cpu, task_s)
        self._size = len(values)
        imported = bool(start.imports.found)
        # One of them, and it is among the longest.
        aside_s = max(seconds) if imported else 0.0 if measured.tasks else seconds[0]
        after = (task_s, cpu_s, queued_now - queued)
        measured.note((0, 0, 0), after, len(values), (1, aside_s / max(task_s, 1e-9)))
        if imported:
            measured.forget_import(aside_s)
        if task_s < TINY_S * len(values):
            times = [(begun[0], task_s)]
        else:
            times = list(zip(begun, seconds, strict=True))
        if start.heart is not None and not imported:
            measured.tally = start.heart.tally
        finished = Finished(
            first,
            start.items[first : first + len(values)],
            values,
            {place - first: error for place, error in start.errors.items()},
            times,
            "main",
            os.getpid(),
        )
        self._take_in(finished)
        return finished

    @staticmethod
    def peek(task: LongTask, held_share: float | None) -> Sample:
        """Return what is known while a task is still running, for longer than until now.

        The helper calls this; the measurements are the caller's thread's own.
        """
        before, now = task.before, task.clocks()
        cpu, awake_s = now[1] - before[1], on_machine(before, now)
        return Sample(
            tasks=max(1, task.tasks),
            task_s=LONGER * awake_s,
            cpu_share=min(1.0, cpu / awake_s),
            gil_share=of_time(held_share, cpu / awake_s),
            own_cpus=min(1.0, cpu / awake_s),
            spread=1.0,
            so_far_s=awake_s,
        )

    def step(self) -> Finished | None:
        """Run some more of the first tasks; None when enough is known or nothing is left."""
        limit_s = self._limit()
        if self._is_enough():
            if limit_s is None and self._is_worth_trying():
                return self._try_on_one_cpu()
            self.is_over = True
            return None
        chunk = self._read(self._size if limit_s is None else 1)
        if not len(chunk.items):  # of an array the truth would be another question
            return None
        measured = self._measured
        if measured.heart is None and self._wants_heart():
            measured.start_heart()
        if limit_s is not None:
            return self._run_aside(chunk, limit_s)
        finished, before, after, imported = self._measure(chunk)
        tasks = self._give_back_rest(chunk, finished)
        imported = imported and not measured.counted  # all of them did
        measured.note(before, after, tasks, (tasks, 1.0) if imported else None)
        if imported:
            measured.forget_import(after[0] - before[0])
        self._take_in(finished)
        return finished

    def _is_enough(self) -> bool:
        mean_s = self._measured.mean_s
        if mean_s is not None and mean_s < HOPELESS_S and self.spent_s > LEAST_S:
            return True
        if self.spent_s < BUDGET_S:
            return self.spent_s >= CLEAR_S and self._is_clear()
        left_s = self._left_s()
        return self.spent_s >= min(MOST_S, SHARE * left_s) or not self._is_doubtful()

    def _left_s(self) -> float:
        """Return the seconds of work that are left; for an unknown number of tasks, many."""
        remaining = self._remaining()
        return math.inf if remaining is None else remaining * (self._measured.mean_s or 0.0)

    def _is_clear(self) -> bool:
        """Whether tasks that are all alike hold the GIL all the time, or never, or need not care.

        Several of them, so that no phase of a task can pass for all of it.
        """
        measured, (low, high) = self._measured, CLEAR
        if measured.counted < CLEAR_TASKS or measured.spread > ALIKE:
            return False
        if measured.is_brief or not measured.computes:
            return True
        tally = measured.tally
        if tally.held_share is None or tally.known_s < min(CLEAR_S, measured.cpu_s) / 2:
            return False
        return not low < tally.held_share < high

    def _is_doubtful(self) -> bool:
        measured, (low, high) = self._measured, DOUBTFUL
        if not measured.counted:
            return True
        if measured.heart is None or not measured.computes:
            return False
        tally = measured.tally
        if tally.held_share is None:
            return True
        return tally.beats < ENOUGH_BEATS and low < tally.held_share < high

    def _is_worth_trying(self) -> bool:
        """Whether it may be known at little cost if tasks need the CPUs that they use.

        Threads inside numpy and its kind are often of little use. Then more is done by so many
        workers that use one CPU each.
        """
        sample = self.sample
        if self._measured.has_tried or sample is None or sample.own_cpus <= sample.cpu_share:
            return False
        most_s = sample.task_s * sample.own_cpus
        return most_s < TRIED_SHARE * self._left_s() and find_libraries() is not None

    def _try_on_one_cpu(self) -> Finished | None:
        """Run some tasks with such threads limited as they are in workers."""
        chunk = self._read(TRIED_TASKS)
        if not len(chunk.items):
            return None
        thread_limit.hold(cpu_count())
        try:
            before = read_thread_clock()
            self.last = finished = self._run(chunk)
            after = read_thread_clock()
        finally:
            thread_limit.release()
        self._measured.note_tried(before, after, self._give_back_rest(chunk, finished))
        return finished

    def _give_back_rest(self, chunk: Chunk, finished: Finished) -> int:
        """Give back the tasks of a step that were not run; return how many were."""
        tasks = len(finished.values)
        if tasks < len(chunk.items):
            self._give_back(chunk.part(tasks))
        return tasks

    def _wants_heart(self) -> bool:
        measured = self._measured
        if measured.mean_s is None:
            return True
        return measured.computes and not measured.is_brief and self._left_s() > LONG_S

    def _measure(self, chunk: Chunk) -> tuple[Finished, ThreadClock, ThreadClock, bool]:
        """Run a step: what finished, the clocks before and after, whether it imported anything."""
        measured, beside = self._measured, self._beside
        if measured.heart is not None:
            measured.heart.resume()
        imports = Imports()
        if beside is None:
            step = self._time(chunk)
            imported = imports.settle()
        else:
            beside.begin(read_thread_clock(), measured.heart, measured.tasks)
            try:
                step = self._time(chunk)
            finally:
                imported = beside.end()
            if beside.has_helped:
                measured.is_alone = False
        finished, before, after, process_s = step
        measured.note_process(before, after, process_s)
        if measured.heart is not None:
            measured.heart.pause()
        return finished, before, after, imported

    def _time(self, chunk: Chunk) -> _Step:
        """Run a step between two looks at the clocks; changes nothing here."""
        process_s, before = process_time(), read_thread_clock()
        finished = self._run(chunk)
        return _Step(finished, before, read_thread_clock(), process_time() - process_s)

    def _run_aside(self, chunk: Chunk, limit_s: float) -> Finished:
        """Run one task in a thread that can be left, and wait for it as long as it may take."""
        heart = self._measured.heart
        told: SimpleQueue[_Step | BaseException] = SimpleQueue()
        context = copy_context()

        def tell() -> None:
            try:
                if heart is not None:
                    heart.resume()
                told.put(context.run(self._time, chunk))
            except BaseException as error:  # noqa: BLE001  raised by who waits for it
                told.put(error)

        thread = threading.Thread(target=tell, name="plait-sample", daemon=True)
        started = monotonic()
        thread.start()
        try:
            step = told.get(timeout=limit_s)
        except Empty:
            self.has_abandoned = True
            finished = self._give_up(chunk, started, limit_s, thread)
        else:
            if isinstance(step, BaseException):
                raise step
            finished = step.finished
            self._measured.note_process(step.before, step.after, step.process_s)
            self._measured.note(step.before, step.after, 1)
            self._take_in(finished)
        finally:
            if heart is not None:
                heart.pause()
        self._measured.spent_s = max(self.spent_s, monotonic() - started)
        return finished

    def _give_up(
        self, chunk: Chunk, started: float, limit_s: float, thread: threading.Thread
    ) -> Finished:
        """Fail a task that took too long; what it did until now is the whole sample."""
        after_s = monotonic() - started
        cpu_s = thread_cpu_s(thread)
        self._measured.note((0, 0, 0), (after_s, cpu_s, 0), 1)
        self._measured.spent_s = BUDGET_S
        return leave_to_itself(
            self._call, chunk, 0, "main", os.getpid(), limit_s, (started, after_s)
        )

    def _run(self, chunk: Chunk) -> Finished:
        """Run a step, or the first of it: if they take longer than those before, or one fails."""
        until = monotonic() + STEP_S
        mean_s = self._measured.mean_s
        if mean_s is not None and mean_s < TINY_S:
            stretch = run_together(self._call, chunk.items, catch=CATCH, until=until, stops=True)
        else:
            (stretch,) = run_apart(
                self._call,
                chunk.items,
                begin=lambda place: not place or monotonic() < until,
                catch=CATCH,
                flush_s=math.inf,
                stops=True,
            )
        return Finished.of(chunk, 0, stretch._replace(is_last=True), worker="main", pid=os.getpid())

    def _take_in(self, finished: Finished) -> None:
        """Keep what came last, and say how many tasks the next step may have."""
        self.last, measured = finished, self._measured
        measured.note_times(finished)
        mean_s = max(measured.mean_s or 0.0, 1e-9)
        growth = (LEAST_S / 2 if mean_s < HOPELESS_S else BUDGET_S / 4) / mean_s
        self._size = int(max(1, min(self._size * GROWTH, growth, MOST_TASKS)))
