"""The run in numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from plait.errors import size_text
from plait.host import cpu_count

if TYPE_CHECKING:
    from plait.outcome import Finished
    from plait.plans import Plan

__all__ = ["Report"]


@dataclass(slots=True)
class Report:
    """What a run did, and how long it took. ``print(run.report)`` shows it.

    Attributes:
        plan: what was decided (None until it was); if that was changed on the way, the last.
        earlier_plans: those before it.
        tasks: finished tasks, with those that failed.
        errors: tasks that failed.
        wall_s: seconds from the start of the first task to the last outcome.
        task_s: seconds that the tasks took, added up over all workers.
        queued_s: of these, what worker processes waited for a free CPU.
        retries: how often a failed task was tried again.
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

        ``wall_s`` is what came of it.
        """
        first = self.earlier_plans[0] if self.earlier_plans else self.plan
        return None if first is None else first.predicted_s

    @property
    def speedup(self) -> float:
        """How many times faster than a for-loop."""
        return self.loop_s / self.wall_s if self.wall_s else 1.0

    def __str__(self) -> str:
        return "\n".join(
            (
                f"plan      {self.plan.headline if self.plan else 'not decided'}",
                *(
                    f"          (changed on the way; before, {p.headline})"
                    for p in self.earlier_plans
                ),
                f"tasks     {self.tasks:,} done, {self.errors:,} of them with an error"
                + (f"; {self.retries:,} tries more" if self.retries else "")
                + (f"; {self.abandoned:,} left to themselves" if self.abandoned else ""),
                f"wall      {self.wall_s:.3f} s on {self._workers_text()}{self._prediction_text()}",
                f"for-loop  {self.loop_s:.3f} s, the times of the tasks added up",
                f"speed-up  {self.speedup:.2f} x",
                *([f"workers   {self.shortage}"] if self.shortage else []),
                *([f"memory    {self.memory}"] if self.memory else []),
                *([f"shared    {size_text(self.shared_bytes)}"] if self.shared_bytes else []),
            )
        )

    def _workers_text(self) -> str:
        others = len(self.workers - {"main"})
        text = f"{others} worker{'s' * (others != 1)}"
        if "main" not in self.workers:
            return text
        return f"{text} and the caller" if others else "the caller"

    def _prediction_text(self) -> str:
        predicted = self.predicted_s
        return "" if predicted is None else f" (predicted: {predicted:.3f} s)"
