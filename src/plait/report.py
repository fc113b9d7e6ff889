"""The run in numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plait.outcome import Finished
    from plait.plan import Plan

__all__ = ["Report"]


@dataclass(slots=True)
class Report:
    """What a run did, and how long it took. ``print(run.report)`` shows it.

    Attributes:
        plan: what was decided (None until it was).
        tasks: finished tasks, with those that failed.
        errors: tasks that failed.
        wall_s: seconds from the call to the last outcome.
        task_s: seconds that the tasks took, added up over all workers.
        loop_s: seconds that a for-loop would take for the finished tasks, predicted from
            the sample; where no sample was taken, ``task_s``.
        workers: the names of the workers that finished something.
    """

    plan: Plan | None = None
    tasks: int = 0
    errors: int = 0
    wall_s: float = 0.0
    task_s: float = 0.0
    workers: set[str] = field(default_factory=set)

    def add(self, finished: Finished) -> None:
        """Count finished tasks."""
        self.tasks += len(finished.values)
        self.errors += len(finished.errors)
        self.task_s += finished.seconds
        self.workers.add(finished.worker)

    @property
    def loop_s(self) -> float:
        """The predicted time of a for-loop, in seconds."""
        sample = self.plan.sample if self.plan else None
        return self.task_s if sample is None else sample.task_s * self.tasks

    @property
    def speedup(self) -> float:
        """How many times faster than the predicted for-loop."""
        return self.loop_s / self.wall_s if self.wall_s else 1.0

    def __str__(self) -> str:
        basis = (
            "predicted from the sample" if self.plan and self.plan.sample else "sum of the tasks"
        )
        return "\n".join(
            (
                f"plan      {self.plan or 'not decided'}",
                f"tasks     {self.tasks:,} done, {self.errors:,} of them with an error",
                f"wall      {self.wall_s:.3f} s, on {len(self.workers)} worker(s)",
                f"for-loop  {self.loop_s:.3f} s, {basis}",
                f"speed-up  {self.speedup:.2f} x",
            )
        )
