"""Watch how a run goes: how many workers to keep busy, and whether another plan is better. Pure.

Used by runs.py, which tells what has finished and when. There are two things to be learned on
the way. How many tasks that wait are to run at once is found by trying (climb.py). And the
sample may have been unlike the rest, or may not have shown everything: short releases of the GIL
look as if threads could use them, an input of unknown length as if it were short. So what is
measured under way takes the place of what the sample said, and the choice is made once more; the
time between two such looks doubles.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, NamedTuple

from plait.climb import Climber
from plait.model import GIL_TAX, WAITS_BELOW, Sample, predict
from plait.plans import choose

if TYPE_CHECKING:
    from plait.options import Options
    from plait.outcome import Finished
    from plait.plans import Plan

__all__ = ["Machine", "Pilot"]

FIRST_LOOK_S = 0.03
MOST_CLIMBED = 128
"""So many threads are tried where nobody said how many."""
BETTER = 0.75
"""Another plan has to be predicted to take less than this share of what the present one will."""
ROUNDS = 3
"""So many tasks of each worker are waited for at the least."""
SURE_S, SURE_TASKS = 0.1, 8
IDLE = 0.7
BUSY = 0.5
"""Workers that are at work for less, and a parent that is for more than these shares of the time:
they wait for it."""


class Machine(NamedTuple):
    """What can be asked of this process, in seconds since ever.

    Attributes:
        queued_s: for how long all of its threads together have waited for a free CPU: what
            threads lose to other programs they do not lose to the GIL.
        cpu_s: for how long they were on one.
        is_for_tasks: all that they do is; not where an input is made as it is read.
    """

    queued_s: Callable[[], float] = lambda: 0.0
    cpu_s: Callable[[], float] = lambda: 0.0
    is_for_tasks: bool = True


class Pilot:
    """Steers one lane of a run.

    Attributes:
        workers: how many to keep busy now.
        is_leaving: nothing more is to be begun here.
    """

    def __init__(
        self,
        plan: Plan,
        options: Options,
        now: float,
        left: Collection[str] = (),
        machine: Machine | None = None,
    ) -> None:
        """``left`` are the backends that were tried before: none is tried twice."""
        self._plan = plan
        self._options = options
        self._left = left
        self.workers = plan.max_workers
        self.is_leaving = False
        self._machine = machine or Machine()
        can_climb = self._climbs and plan.max_workers > 1
        self._climber = Climber(plan.max_workers, self.capacity) if can_climb else None
        self._learned_at = now
        self._since: float | None = None  # it is looked at; at first, when first results came
        self._look_s = FIRST_LOOK_S
        self._tasks = 0  # that finished since
        self._busy_s = 0.0
        self._queued_s = 0.0  # of that, in processes, without a CPU
        self._queued_at = self._cpu_at = 0.0  # what the machine told then

    @property
    def _climbs(self) -> bool:
        """Whether more than the planned number of workers may be tried."""
        plan, options = self._plan, self._options
        is_open = plan.facts is not None and options.max_workers is None
        waits = plan.sample is not None and plan.sample.cpu_share < WAITS_BELOW
        return plan.backend == "threads" and is_open and waits

    @property
    def _takes_turns(self) -> bool:
        """Whether the workers may turn out to wait for the GIL."""
        plan = self._plan
        computes = plan.sample is not None and plan.sample.cpu_share >= WAITS_BELOW
        return plan.backend == "threads" and plan.facts is not None and computes

    @property
    def capacity(self) -> int:
        """How many workers the pool has to have room for."""
        planned = self._plan.max_workers
        return max(MOST_CLIMBED, planned) if self._climbs else planned

    def depth(self, most: int) -> int:
        """Return how many chunks a worker may have at once now, at the most ``most``.

        Where the pool has more workers than are to be busy, no chunk waits behind another: the
        others would take it.
        """
        return most if self.workers >= self.capacity else 1

    # --- How many workers ---------------------------------------------------------------

    def learn(
        self,
        batch: list[Finished],
        now: float,
        progress: tuple[int, float] = (0, 0.0),
        *,
        is_full: bool = True,
    ) -> None:
        """Take in what finished, and tasks and seconds of what did and was not told yet.

        ``is_full`` says that there was enough to do for all workers.
        """
        untold, untold_s = progress
        tasks = untold + (0 if untold else sum(len(finished.values) for finished in batch))
        if self._since is None:
            self._watch_from(now)  # what came now began before the clock did
        else:
            self._tasks += tasks
            self._busy_s += untold_s or sum(finished.seconds for finished in batch)
            self._queued_s += sum(finished.queued_s for finished in batch)
        climber = self._climber
        if climber is not None:
            seconds, self._learned_at = now - self._learned_at, now
            if is_full:
                climber.learn(tasks, seconds)
            self.workers = climber.size

    # --- Which plan ---------------------------------------------------------------------

    def is_due(self, now: float) -> bool:
        """Whether it is time to look at the plan again."""
        if self._plan.facts is None or self.is_leaving or self._since is None:
            return False
        if self._tasks < ROUNDS * self.workers:
            return False
        return now - self._since >= self._look_s

    def _watch_from(self, now: float) -> None:
        self._since, self._tasks, self._busy_s, self._queued_s = now, 0, 0.0, 0.0
        self._queued_at = self._machine.queued_s() if self._takes_turns else 0.0
        self._cpu_at = self._machine.cpu_s()

    def look_again(self, remaining: int | None, done: int, now: float) -> Sample | None:
        """Return what is known of the tasks now, if it speaks for another backend.

        ``done`` tasks are done in all, ``remaining`` are left (None: unknown).
        """
        self._look_s *= 2
        facts, sample = self._plan.facts, self._plan.sample
        measure = MEASURES.get(self._plan.backend)
        if self._options.rate is not None and self._plan.backend != "serial":
            return None  # that workers wait for their time says nothing of them
        if facts is None or sample is None or measure is None or self._since is None:
            return None
        if self._plan.backend != "serial":
            sample = sample.in_worker
        seen = measure(self, sample, now - self._since)._replace(tasks=done)
        self._watch_from(now)
        has_processes = self._plan.backend == "processes"
        if has_processes:
            seen = seen._replace(first_s=0.0)  # they have done that
        facts = facts._replace(
            sample=seen, remaining=remaining, is_warm=facts.is_warm or has_processes
        )
        plan = choose(self._options, facts)
        return seen if self._is_other(plan) else None

    def is_worth(self, plan: Plan) -> bool:
        """Whether to change to a plan: it has to be clearly better than to go on as until now."""
        chosen = plan.chosen
        if chosen is None or plan.facts is None or not self._is_other(plan):
            return False
        return chosen.seconds < BETTER * predict(self._plan.backend, plan.facts).seconds

    def _is_other(self, plan: Plan) -> bool:
        return plan.backend != self._plan.backend and plan.backend not in self._left

    def _see_in_loop(self, sample: Sample, elapsed_s: float) -> Sample:  # noqa: ARG002
        return sample._replace(task_s=self._busy_s / self._tasks)

    def _see_on_threads(self, sample: Sample, elapsed_s: float) -> Sample:
        """Infer from the throughput who holds the GIL: if they do not add up, they take turns.

        But tasks may have become slower, or the machine: as far as they used more than one CPU at
        once, they did not hold the GIL, of which there is one.
        """
        if not self._takes_turns:
            return sample
        awake_s = max(0.0, elapsed_s - (self._machine.queued_s() - self._queued_at) / self.workers)
        in_turn = awake_s / self._tasks / (sample.task_s * GIL_TAX)
        cpu_s = self._machine.cpu_s() - self._cpu_at
        most = sample.cpu_share
        if cpu_s > 0.0:
            most = min(most, sample.busy_cpus * elapsed_s / cpu_s)
        return sample._replace(gil_share=max(sample.held_share, min(in_turn, most)))

    def _see_on_processes(self, sample: Sample, elapsed_s: float) -> Sample:
        """Infer from idle workers and a busy parent what the journey costs."""
        assert self._plan.facts is not None
        workers, costs = self._plan.max_workers, self._plan.facts.costs
        pace = costs.pace if workers > 1 else 1.0
        # Workers wait for a CPU between tasks, too, which is no part of them: so they are taken to
        # be as long as those of the sample, at least, if they were with all the waiting.
        awake_s = self._busy_s - self._queued_s
        awake_s = max(awake_s, min(self._busy_s, sample.task_s * self._tasks))
        seen = sample._replace(task_s=pace * awake_s / self._tasks)
        parent_s = self._machine.cpu_s() - self._cpu_at
        # At first a parent is busy with importing what it needs once.
        if elapsed_s < SURE_S or self._tasks < SURE_TASKS * workers:
            return seen
        is_busy = parent_s > BUSY * elapsed_s and self._machine.is_for_tasks
        if self._busy_s > IDLE * workers * elapsed_s or not is_busy:
            return seen
        return seen._replace(carry_s=max(sample.carry_s, 2 * parent_s / self._tasks))


Measure = Callable[[Pilot, Sample, float], Sample]
MEASURES: dict[str, Measure] = {
    "serial": Pilot._see_in_loop,  # noqa: SLF001
    "threads": Pilot._see_on_threads,  # noqa: SLF001
    "processes": Pilot._see_on_processes,  # noqa: SLF001
}
