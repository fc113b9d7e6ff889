"""The choice, as a pure function; and what it says."""

from __future__ import annotations

import itertools
import os
import time
from typing import Any

import plait
from plait.model import Facts, Sample
from plait.options import Options
from plait.plans import choose

BUSY = Sample(tasks=2, task_s=0.010, cpu_share=0.99)
WAITING = Sample(tasks=2, task_s=0.010, cpu_share=0.01)


def plan(options: dict[str, Any] | None = None, **facts: Any) -> plait.Plan:
    facts = {"cpus": 4, "sample": BUSY, "remaining": 1000, **facts}
    return choose(Options.of(options or {}), Facts(**facts))


def test_work_that_computes_goes_to_processes() -> None:
    chosen = plan()
    assert (chosen.backend, chosen.max_workers) == ("processes", 4)
    assert str(chosen) == "processes x 4: it computes 99% of its time (10 ms a task)."


def test_work_that_waits_goes_to_threads() -> None:
    chosen = plan(sample=WAITING)
    assert (chosen.backend, chosen.max_workers) == ("threads", 32)
    assert "it waits 99% of its time" in chosen.reason


def test_the_more_it_computes_the_fewer_threads() -> None:
    assert plan(sample=Sample(2, 0.010, 0.45)).max_workers == 16
    assert plan(sample=Sample(2, 0.010, 0.20), cpus=2).max_workers == 16


def test_coroutine_functions_go_to_asyncio() -> None:
    assert plan(sample=None, is_coroutine=True).backend == "asyncio"


def test_what_is_over_soon_stays_in_the_loop() -> None:
    assert plan(remaining=5).backend == "serial"
    assert plan(sample=Sample(10, 1e-6, 1.0)).backend == "serial"
    assert plan(sample=Sample(1, 1e-6, 0.0), remaining=3).backend == "serial"
    assert plan(remaining=0).reason == (
        "it was done before workers could have started (10 ms a task)."
    )


def test_a_warm_pool_pays_sooner() -> None:
    assert plan(remaining=5, is_warm=True).backend == "processes"


def test_an_input_of_unknown_length_is_taken_for_long() -> None:
    assert plan(remaining=None).backend == "processes"
    assert plan(remaining=None, sample=WAITING).backend == "threads"


def test_one_cpu_or_one_task_has_no_use_for_processes() -> None:
    assert plan(cpus=1).backend == "serial"
    assert plan({"max_workers": 1}).backend == "serial"
    assert plan(remaining=1, sample=Sample(1, 10.0, 1.0)).backend == "serial"


def test_a_function_that_cannot_travel_stays_and_says_why() -> None:
    chosen = plan(unpicklable="it holds a lock")
    assert chosen.backend == "serial"
    assert chosen.reason.endswith("it cannot go to processes: it holds a lock")


def test_inside_a_worker_nothing_starts_processes() -> None:
    assert plan(is_nested=True).backend == "serial"
    assert plan({"backend": "processes"}, is_nested=True).backend == "serial"
    assert plan({"backend": "threads"}, is_nested=True).backend == "threads"


def test_what_was_asked_for_is_done() -> None:
    for backend in ("serial", "threads", "processes", "asyncio"):
        chosen = plan({"backend": backend, "max_workers": 3}, sample=None)
        assert chosen.backend == backend
        assert chosen.max_workers == (1 if backend == "serial" else 3)
        assert chosen.reason == "it was asked for."


# --- The same on real functions --------------------------------------------------------------


def burn(n: int) -> int:
    return sum(i * i for i in range(n))


def chosen_for(fn: Any, items: Any, **options: Any) -> tuple[str, list[plait.Outcome]]:
    run = plait.run(fn, items, ordered=True, **options)
    outcomes = list(run)
    assert run.plan is not None
    return run.plan.backend, outcomes


def test_auto_on_a_function_that_computes() -> None:
    if os.cpu_count() == 1:
        return
    backend, outcomes = chosen_for(burn, [100_000] * 150, max_workers=2)
    assert backend == "processes"
    assert {outcome.value for outcome in outcomes} == {burn(100_000)}
    assert [outcome.index for outcome in outcomes] == list(range(150))
    assert outcomes[0].worker == "main"  # the sample counts, and nothing is run twice
    assert outcomes[-1].worker.startswith("process-")


def test_auto_on_a_function_that_waits() -> None:
    backend, outcomes = chosen_for(time.sleep, [0.01] * 40)
    assert backend == "threads"
    assert len(outcomes) == 40


def test_auto_on_tiny_tasks_is_a_plain_loop() -> None:
    backend, outcomes = chosen_for(abs, range(10))
    assert backend == "serial"
    assert {outcome.worker for outcome in outcomes} == {"main"}


def test_auto_on_a_coroutine_function() -> None:
    async def task(x: int) -> int:
        return x

    assert chosen_for(task, range(10))[0] == "asyncio"


def test_auto_on_an_endless_input_reads_on() -> None:
    values = plait.imap(abs, itertools.count())
    assert list(itertools.islice(values, 50_000)) == list(range(50_000))
    values.close()  # type: ignore[attr-defined]


def test_auto_stops_at_an_error_in_the_sample() -> None:
    calls = []

    def task(n: int) -> int:
        calls.append(n)
        if n == 2:
            raise LookupError(n)
        return n

    try:
        plait.map(task, range(1000))
    except LookupError as error:
        assert error.plait_run.report.errors == 1  # type: ignore[attr-defined]  # noqa: PT017
    assert len(calls) < 20


def test_auto_runs_the_initializer_before_the_sample() -> None:
    ready: list[str] = []

    def task(_: int) -> str:
        return ready[0]

    assert plait.map(task, range(3), initializer=ready.append, initargs=("yes",)) == ["yes"] * 3
    assert ready == ["yes"]


def test_a_function_with_a_lock_inside_stays_here() -> None:
    import threading

    lock = threading.Lock()

    def task(n: int) -> int:
        with lock:
            return burn(n)

    backend, outcomes = chosen_for(task, [100_000] * 30, max_workers=2)
    assert backend == "serial"
    assert len(outcomes) == 30
