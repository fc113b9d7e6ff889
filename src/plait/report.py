"""The run in numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from plait.errors import size_text
from plait.host import cpu_count
from plait.tables import html_table

if TYPE_CHECKING:
    from plait.outcome import Finished
    from plait.plans import Plan

__all__ = ["Report"]


@dataclass(slots=True)
class Report:
    """What a run did, and how long it took. ``print(run.report)`` shows it, a notebook as a table.

    Attributes:
        plan: what was decided (None until it was); if that was changed on the way, the last.
        earlier_plans: those before it.
        tasks: finished tasks, with those that failed.
        errors: tasks that failed.
        wall_s: seconds from the start of the first task to the last outcome.
        task_s: seconds that the tasks took, added up over all workers.
        queued_s: of these, what worker processes waited for a free CPU.
        retries: how often a failed task was tried again.
        decreases: how often ``slow_down_on`` has lowered the number of tasks at once.
        least_at_once: the lowest number that it came to; None: it was never lowered.
        at_once: the number that it is now, if it was ever lowered.
        abandoned: tasks on threads, or coroutines, that ran over their time, could not be ended,
            and may still be running.
        shortage: how many workers there were, where the system refused more, and why; or "".
        memory: what was done where workers ran out of memory and tasks were tried again; or "".
        shared_bytes: shared memory in which large items and results lay, at most.
        workers: the names of the workers that finished something; "main" is the caller.
    """

    plan: Plan | None = None
    earlier_plans: list[Plan] = field(default_factory=list)
    tasks: int = 0
    errors: int = 0
    wall_s: float = 0.0
    task_s: float = 0.0
    queued_s: float = 0.0
    retries: int = 0
    decreases: int = 0
    least_at_once: int | None = None
    at_once: int | None = None
    abandoned: int = 0
    shortage: str = ""
    memory: str = ""
    shared_bytes: int = 0
    workers: set[str] = field(default_factory=set)

    def add(self, finished: Finished) -> None:
        """Count finished tasks."""
        self.tasks += len(finished.values)
        self.errors += len(finished.errors)
        self.task_s += finished.seconds
        self.queued_s += finished.queued_s
        self.workers.add(finished.worker)

    @property
    def loop_s(self) -> float:
        """The time that a for-loop would take for these tasks, in seconds.

        Workers that are more than the CPUs wait for each other, and a loop would not: that
        time is left out. What other programs took away would slow a loop down as well. (On
        threads a task's time has its waits for the Python code of the others, too.)
        """
        if len(self.workers - {"main"}) <= cpu_count():
            return self.task_s
        return max(0.0, self.task_s - self.queued_s)

    @property
    def predicted_s(self) -> float | None:
        """The time of the whole call as predicted when the first choice was made; None: it was not.

        Where that was made beside a first task that was not over, it is predicted when one is.
        ``wall_s`` is what came of it.
        """
        plans = [*self.earlier_plans, *([self.plan] if self.plan else [])]
        first = next((plan for plan in plans if not plan.is_guess), None)
        return None if first is None else first.predicted_s

    @property
    def speedup(self) -> float:
        """How many times faster than a for-loop."""
        return self.loop_s / self.wall_s if self.wall_s else 1.0

    def __str__(self) -> str:
        return "\n".join(f"{name:9} {text}" for name, text in self._rows())

    def _repr_html_(self) -> str:
        return html_table(("", "run"), self._rows())

    def _rows(self) -> list[tuple[str, str]]:
        """Return what there is to say, each with a word before it."""
        more = [f"{self.retries:,} tries more"] if self.retries else []
        more += [f"{self.abandoned:,} left to themselves"] if self.abandoned else []
        counts = f"{self.tasks:,} done, {self.errors:,} of them with an error"
        rows = [
            ("plan", self.plan.headline if self.plan else "not decided"),
            *(("", f"(changed on the way; before, {one.headline})") for one in self.earlier_plans),
            ("tasks", "; ".join([counts, *more])),
            ("wall", f"{self.wall_s:.3f} s on {self._workers_text()}{self._prediction_text()}"),
            ("for-loop", f"{self.loop_s:.3f} s, the times of the tasks added up"),
            ("speed-up", f"{self.speedup:.2f} x"),
        ]
        if self.decreases:
            rows.append(("slowed", self._slowdown_text()))
        if self.shortage:
            rows.append(("workers", self.shortage))
        if self.memory:
            rows.append(("memory", self.memory))
        if self.shared_bytes:
            rows.append(("shared", size_text(self.shared_bytes)))
        return rows

    def _workers_text(self) -> str:
        others = len(self.workers - {"main"})
        text = f"{others} worker{'s' * (others != 1)}"
        if "main" not in self.workers:
            return text
        return f"{text} and the caller" if others else "the caller"

    def _slowdown_text(self) -> str:
        times = f"{self.decreases:,} time{'s' * (self.decreases != 1)}"
        tasks = f"{self.least_at_once} task{'s' * (self.least_at_once != 1)}"
        return f"{times} by slow_down_on, to {tasks} at once at the lowest; now {self.at_once}"

    def _prediction_text(self) -> str:
        predicted = self.predicted_s
        return "" if predicted is None else f" (predicted: {predicted:.3f} s)"
