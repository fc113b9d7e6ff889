"""What is learned while a run goes on: how many at once, and whether another plan is better."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

import plait
from plait import runs, worker
from plait.host import cpu_count
from plait.model import Facts, Sample
from plait.options import Options
from plait.outcome import Finished
from plait.pilot import FIRST_LOOK_S, MOST_CLIMBED, ROUNDS, Machine, Pilot
from plait.plans import choose
from tests.conftest import needs_gil

BUSY = Sample(tasks=20, task_s=0.010, cpu_share=0.99, gil_share=1.0)
FREE = Sample(tasks=20, task_s=0.010, cpu_share=0.99, gil_share=0.0)
WAITING = Sample(tasks=2, task_s=0.010, cpu_share=0.01)


class Flight:
    """A pilot with a clock of its own, fed with tasks that took so long."""

    def __init__(
        self,
        sample: Sample,
        remaining: int | None,
        left: Any = (),
        *,
        is_warm: bool = True,
        is_for_tasks: bool = True,
        **given: Any,
    ) -> None:
        self.options = Options.of(given)
        facts = Facts(cpus=2, sample=sample, remaining=remaining, is_warm=is_warm)
        self.plan = choose(self.options, facts)
        self.queued_s = self.cpu_s = 0.0
        machine = Machine(lambda: self.queued_s, lambda: self.cpu_s, is_for_tasks)
        self.pilot = Pilot(self.plan, self.options, 0.0, left, machine)
        self.now = self.done = 0.0

    def finish(self, tasks: int, every_s: float, each_s: float, **facts: Any) -> None:
        """Have tasks finish, one each so many seconds, that took so long each."""
        for _ in range(tasks):
            self.now += every_s
            times = [(self.now - each_s, each_s)]
            self.pilot.learn([Finished(0, [0], [0], {}, times, "w", 1, **facts)], self.now)
            self.done += 1

    def look(self, remaining: int | None = 1000) -> plait.Plan | None:
        """Return the plan to which it would change."""
        assert self.pilot.is_due(self.now)
        sample = self.pilot.look_again(remaining, int(self.done), self.now)
        if sample is None:
            return None
        facts = Facts(cpus=2, sample=sample, remaining=remaining, is_warm=True)
        plan = choose(self.options, facts)
        return plan if self.pilot.is_worth(plan) else None


def test_a_loop_whose_tasks_get_longer_goes_to_processes() -> None:
    flight = Flight(BUSY._replace(task_s=1e-6), 1000)
    assert flight.plan.backend == "serial"
    flight.finish(20, 0.01, 0.01)
    plan = flight.look()
    assert plan is not None
    assert plan.backend == "processes"


def test_a_loop_that_goes_as_predicted_goes_on() -> None:
    flight = Flight(BUSY._replace(task_s=1e-6), 1000)
    flight.finish(100, 0.001, 1e-6)
    assert flight.look() is None


def test_an_input_of_unknown_length_goes_to_processes_when_it_has_lasted() -> None:
    flight = Flight(BUSY._replace(tasks=1, task_s=1e-4), None)
    assert flight.plan.backend == "serial"
    flight.finish(30, 0.01, 0.01)
    plan = flight.look(remaining=None)
    assert plan is not None
    assert plan.backend == "processes"


def test_threads_that_take_turns_are_given_up() -> None:
    """Short releases of the GIL look as if threads could use them: the throughput tells."""
    flight = Flight(FREE, 1000)
    assert flight.plan.backend == "threads"
    flight.finish(20, 0.0115, 0.02)  # one at a time, and each waits for the other
    plan = flight.look()
    assert plan is not None
    assert plan.backend == "processes"


def test_threads_of_which_one_at_a_time_has_a_cpu_are_given_up() -> None:
    flight = Flight(FREE, 1000)
    flight.finish(20, 0.0115, 0.02)
    flight.cpu_s = flight.now
    plan = flight.look()
    assert plan is not None
    assert plan.backend == "processes"


@pytest.mark.parametrize("is_for_tasks", [True, False])
def test_threads_that_are_on_all_cpus_do_not_wait_for_each_other(*, is_for_tasks: bool) -> None:
    """Seen with large arrays, when the machine stumbled: they went to processes, for four times."""
    flight = Flight(FREE, 1000, is_for_tasks=is_for_tasks)
    flight.finish(20, 0.0115, 0.02)
    flight.cpu_s = 1.9 * flight.now
    assert flight.look() is None


def test_what_the_machine_did_until_the_first_results_does_not_count() -> None:
    flight = Flight(FREE, 1000)
    flight.cpu_s = 10.0
    flight.finish(20, 0.0115, 0.02)
    flight.cpu_s += flight.now
    plan = flight.look()
    assert plan is not None
    assert plan.backend == "processes"


def test_threads_that_work_at_once_stay() -> None:
    flight = Flight(FREE, 1000)
    flight.finish(20, 0.0055, 0.011)
    assert flight.look() is None


def test_threads_that_wait_for_a_cpu_do_not_wait_for_the_gil() -> None:
    """With another program on both CPUs: each of two threads has a CPU for half of the time."""
    flight = Flight(FREE, 1000)
    flight.finish(20, 0.0115, 0.02)
    flight.queued_s = flight.now  # of two threads, half of the time each
    assert flight.look() is None


def test_processes_that_wait_for_the_parent_are_given_up() -> None:
    flight = Flight(BUSY, 1000)
    assert flight.plan.backend == "processes"
    flight.finish(20, 0.05, 0.01)  # both together work a tenth of the time
    flight.cpu_s = 0.9 * flight.now
    plan = flight.look()
    assert plan is not None
    assert plan.backend == "serial"


def test_processes_that_have_no_cpu_stay() -> None:
    """They are idle, and so is the parent: the machine is busy with something else."""
    flight = Flight(BUSY, 1000)
    flight.finish(20, 0.05, 0.01)
    flight.cpu_s = 0.1 * flight.now
    assert flight.look() is None


def test_processes_that_wait_for_a_cpu_between_tasks_too_stay() -> None:
    """Seen on a busy machine: tasks of a millisecond were said to take 0 s, so the loop won."""
    flight = Flight(BUSY, 2000)
    flight.finish(50, 0.015, 0.012, queued_s=0.02)
    assert flight.look() is None
    flight.finish(100, 0.015, 0.012, queued_s=0.012)
    assert flight.look() is None


def test_processes_do_not_wait_for_a_parent_that_is_busy_with_the_input() -> None:
    flight = Flight(BUSY, 1000, is_for_tasks=False)
    flight.finish(20, 0.05, 0.01)
    flight.cpu_s = 0.9 * flight.now
    assert flight.look() is None


def test_processes_that_work_stay() -> None:
    flight = Flight(BUSY, 1000)
    flight.finish(20, 0.006, 0.012)
    assert flight.look() is None


def test_processes_that_have_started_stay_for_the_last_tasks() -> None:
    flight = Flight(BUSY._replace(first_s=0.3), 1000, is_warm=False)
    assert flight.plan.backend == "processes"
    flight.finish(990, 0.0055, 0.010)
    assert flight.look(remaining=10) is None


def test_no_backend_is_tried_twice() -> None:
    flight = Flight(BUSY, 1000, left={"serial", "threads"})
    flight.finish(20, 0.05, 0.01)
    flight.cpu_s = 0.9 * flight.now
    assert flight.look() is None


def test_it_looks_when_enough_was_seen_and_then_at_doubled_times() -> None:
    flight = Flight(BUSY, 1000)
    flight.finish(1, FIRST_LOOK_S, 2 * FIRST_LOOK_S)
    assert not flight.pilot.is_due(flight.now)  # the first results only start the clock
    flight.finish(1, FIRST_LOOK_S, 2 * FIRST_LOOK_S)
    assert not flight.pilot.is_due(flight.now)  # one task tells nothing
    flight.finish(ROUNDS * 2, 0.006, 0.012)
    assert flight.look() is None
    flight.finish(ROUNDS * 2, 0.006, 0.012)
    assert not flight.pilot.is_due(flight.now)
    flight.finish(ROUNDS * 2, 0.006, 0.012)
    assert flight.pilot.is_due(flight.now)


def test_what_was_asked_for_is_not_changed() -> None:
    flight = Flight(BUSY, 1000, backend="threads")
    flight.finish(100, 0.01, 0.02)
    assert not flight.pilot.is_due(flight.now)
    assert flight.pilot.workers == flight.pilot.capacity == flight.plan.max_workers


def test_waiting_threads_climb_while_the_throughput_does() -> None:
    flight = Flight(WAITING, 100_000)
    assert flight.plan.max_workers == 32
    assert flight.pilot.capacity == MOST_CLIMBED
    assert flight.pilot.depth(2) == 1
    for _ in range(600):  # each takes 10 ms, however many there are at once
        flight.finish(1, 0.010 / flight.pilot.workers, 0.010)
    assert flight.pilot.workers > 64


def test_waiting_threads_do_not_climb_where_nothing_is_gained() -> None:
    flight = Flight(WAITING, 100_000)
    for _ in range(1500):  # 2,000 a second are served
        flight.finish(1, max(0.010 / flight.pilot.workers, 1 / 2000), 0.010)
    assert flight.pilot.workers <= 40


def test_a_number_of_threads_that_was_asked_for_is_the_most() -> None:
    flight = Flight(WAITING, 100_000, max_workers=8)
    flight.finish(600, 0.001, 0.010)
    assert flight.pilot.workers == flight.pilot.capacity == 8


@pytest.mark.parametrize("given", [{}, {"rate": "150/s"}])
def test_workers_that_wait_for_their_time_tell_nothing_of_the_gil(given: dict[str, Any]) -> None:
    """Without a rate, tasks that come one after the other seem to hold it."""
    flight = Flight(FREE, 10_000, **given)
    assert flight.plan.backend == "threads"
    flight.finish(40, 0.012, 0.010)
    sample = flight.pilot.look_again(9_000, 40, flight.now)
    assert (sample is None) == bool(given)


# --- In real runs ----------------------------------------------------------------------------


class Server:
    """Serves so many at once and refuses more; notes how many there were."""

    def __init__(self, places: int) -> None:
        self.places = places
        self.lock = threading.Lock()
        self.inside = 0
        self.most = 0
        self.refused = 0

    def ask(self, n: int) -> int:
        with self.lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
            is_full = self.inside > self.places
            self.refused += is_full
        try:
            time.sleep(0.002)
            if is_full:
                raise ConnectionError("503")
            return n
        finally:
            with self.lock:
                self.inside -= 1


@pytest.mark.parametrize("backend", ["threads", "asyncio"])
def test_a_server_that_refuses_is_asked_less_and_all_is_done(backend: Any) -> None:
    server = Server(places=4)

    async def ask(n: int) -> int:
        import asyncio

        return await asyncio.to_thread(server.ask, n)

    values = plait.map(
        ask if backend == "asyncio" else server.ask,
        range(300),
        backend=backend,
        max_workers=24,
        chunksize=1,
        retries=50,
        backoff=0.0,
        slow_down_on=lambda error: "503" in str(error),
    )
    assert values == list(range(300))
    assert server.most > 4  # it began with all of them
    calm = server.refused
    assert calm < 300  # with 24 at once nearly every one would be, again and again


def burn(n: int) -> int:
    return sum(i * i for i in range(n))


@needs_gil
def test_a_plan_is_changed_in_the_middle_and_nothing_is_lost_or_done_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first tasks are tiny, so that it stays in the loop; then they are not."""
    decide: Any = runs.decide  # type: ignore[attr-defined]

    def decide_on_one(question: Any, **given: Any) -> plait.Plan:
        """While tasks are tiny, decide as if one were left: so it is the loop."""
        if question.sample.task_s < 1e-4:
            question = question._replace(remaining=1)
        plan: plait.Plan = decide(question, **given)
        return plan

    monkeypatch.setattr(runs, "decide", decide_on_one)
    monkeypatch.setattr(worker, "MOST_PART", 64)  # no part is left before its end
    begun: list[int] = []
    tiny, long = 100_000, 1_500

    def items() -> Iterator[int]:
        for n in itertools.chain([0] * tiny, [15_000] * long):
            begun.append(n)
            yield n

    run = plait.run(burn, items(), ordered=True, max_workers=2)
    outcomes = list(run)
    assert [outcome.index for outcome in outcomes] == list(range(tiny + long))
    assert [outcome.value for outcome in outcomes] == [0] * tiny + [burn(15_000)] * long
    assert len(begun) == tiny + long
    assert run.plan is not None
    if cpu_count() > 1:
        assert [plan.backend for plan in run.report.earlier_plans] == ["serial"]
        assert run.plan.backend != "serial"
        assert run.report.workers > {"main"}
        assert "changed on the way" in str(run.report)
