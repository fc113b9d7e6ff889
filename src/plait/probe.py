"""Measure the first tasks: run them here, where they are, and look at the clocks.

Their results count, nothing is run twice. It stops after BUDGET_S, so that a short run
is over before anything is chosen and a long one loses next to nothing.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from contextvars import copy_context
from queue import Empty, SimpleQueue
from typing import Any

from plait.chunks import TINY_S
from plait.clocks import ThreadClock, monotonic, read_thread_clock
from plait.host import thread_cpu_s
from plait.limits import leave_to_itself
from plait.outcome import Call, Chunk, Finished
from plait.plan import Sample
from plait.quick import CATCH, Start
from plait.worker import run_apart, run_together

__all__ = ["Probe"]

BUDGET_S = 0.02
GROWTH = 4
MOST_TASKS = 4096


class Probe:
    """Runs the first tasks of a call, step by step; ``sample`` is what they told."""

    def __init__(
        self,
        call: Call,
        read: Callable[[int], Sequence[Any]],
        limit: Callable[[], float | None] = lambda: None,
    ) -> None:
        """``read`` returns up to so many of the next items, none at the end.

        ``limit`` returns how many seconds the next task may take. Where there is a limit, each
        task runs in a thread of its own, which is left to itself when its time is over.
        """
        self._call = call
        self._read = read
        self._limit = limit
        self.has_abandoned = False
        self._spent_s = 0.0
        self._cpu_s = 0.0
        self._awake_s = 0.0  # on a CPU or waiting for something, not for a free CPU
        self._first_s = 0.0
        self._mean_s: float | None = None
        self._size = 1
        self.tasks = 0

    def take_over(self, start: Start) -> Finished:
        """Count what ran before there was a probe, as if it had been the first step."""
        (_, cpu, queued), (_, cpu_now, queued_now) = start.before, start.after
        task_s = sum(seconds for _, seconds in start.times)
        # The clocks of the thread went on between the tasks, where the input was read.
        cpu_s = min(cpu_now - cpu, task_s)
        self._size = len(start.values)
        self._note((0, 0, 0), (task_s, cpu_s, queued_now - queued), len(start.values))
        self._first_s = min(self._first_s, start.times[0][1])
        return Finished(
            0, start.items, start.values, start.errors, start.times, "main", os.getpid()
        )

    def step(self) -> Finished | None:
        """Run some more of the first tasks; None when enough is known or nothing is left."""
        if self._spent_s >= BUDGET_S:
            return None
        limit_s = self._limit()
        items = self._read(self._size if limit_s is None else 1)
        if not len(items):  # of an array the truth would be another question
            return None
        chunk = Chunk(self.tasks, items)
        if limit_s is not None:
            return self._run_aside(chunk, limit_s)
        finished, before, after = self._measure(chunk)
        self._note(before, after, len(items))
        return finished

    def _measure(self, chunk: Chunk) -> tuple[Finished, ThreadClock, ThreadClock]:
        before = read_thread_clock()
        return self._run(chunk), before, read_thread_clock()

    def _run_aside(self, chunk: Chunk, limit_s: float) -> Finished:
        """Run one task in a thread that can be left, and wait for it as long as it may take."""
        measured: SimpleQueue[tuple[Finished, ThreadClock, ThreadClock]] = SimpleQueue()
        context = copy_context()
        thread = threading.Thread(
            target=lambda: measured.put(context.run(self._measure, chunk)),
            name="plait-sample",
            daemon=True,
        )
        started = monotonic()
        thread.start()
        try:
            finished, before, after = measured.get(timeout=limit_s)
            self._note(before, after, 1)
        except Empty:
            self.has_abandoned = True
            finished = self._give_up(chunk, started, limit_s, thread)
        self._spent_s = max(self._spent_s, monotonic() - started)
        return finished

    def _give_up(
        self, chunk: Chunk, started: float, limit_s: float, thread: threading.Thread
    ) -> Finished:
        """Fail a task that took too long; what it did until now is the whole sample."""
        after_s = monotonic() - started
        cpu_s = thread_cpu_s(thread)
        self._note((0, 0, 0), (after_s, cpu_s, 0), 1)
        self._spent_s = BUDGET_S
        return leave_to_itself(
            self._call, chunk, 0, "main", os.getpid(), limit_s, (started, after_s)
        )

    def _run(self, chunk: Chunk) -> Finished:
        if self._mean_s is not None and self._mean_s < TINY_S:
            stretch = run_together(self._call, chunk.items, catch=CATCH)
        else:
            (stretch,) = run_apart(self._call, chunk.items, catch=CATCH, flush_s=float("inf"))
        return Finished.of(chunk, 0, stretch, worker="main", pid=os.getpid())

    def _note(self, before: ThreadClock, after: ThreadClock, tasks: int) -> None:
        wall, cpu, queued = (end - start for end, start in zip(after, before, strict=True))
        on_machine = max(wall - queued, cpu, 1e-9)  # the time that a free machine had taken
        self.tasks += tasks
        self._spent_s += wall
        self._cpu_s += cpu
        self._awake_s += on_machine
        if self._mean_s is None:
            self._first_s = on_machine
        self._mean_s = on_machine / tasks
        growth = BUDGET_S / 4 / max(self._mean_s, 1e-9)
        self._size = int(max(1, min(self._size * GROWTH, growth, MOST_TASKS)))

    @property
    def sample(self) -> Sample | None:
        """What was measured, or None if there was no task at all."""
        if not self.tasks:
            return None
        tasks, awake_s = self.tasks, self._awake_s
        if tasks > 1:  # the first call often pays for imports and caches
            tasks, awake_s = tasks - 1, awake_s - self._first_s
        return Sample(self.tasks, awake_s / tasks, min(1.0, self._cpu_s / self._awake_s))
