"""The choice, as a pure function; and what it says."""

from __future__ import annotations

import itertools
import math
import os
import re
import threading
import time
from typing import Any

import pytest

import plait
from plait.measurements import Measurements
from plait.model import Facts, Sample
from plait.options import Options
from plait.plans import choose
from plait.probe import TRIED_TASKS
from tests.conftest import needs_gil

BUSY = Sample(tasks=20, task_s=0.010, cpu_share=0.99, gil_share=1.0)
FREE = Sample(tasks=20, task_s=0.010, cpu_share=0.99, gil_share=0.05)
WAITING = Sample(tasks=2, task_s=0.010, cpu_share=0.01)


def plan(options: dict[str, Any] | None = None, **facts: Any) -> plait.Plan:
    facts = {"cpus": 4, "sample": BUSY, "remaining": 1000, **facts}
    return choose(Options.of(options or {}), Facts(**facts))


def test_work_that_computes_in_python_goes_to_processes() -> None:
    chosen = plan()
    assert (chosen.backend, chosen.max_workers) == ("processes", 4)
    assert chosen.headline == (
        "processes x 4: it computes 99% of its time (10 ms a task), "
        "holding the GIL for 99% of it: one process for each CPU."
    )


def test_work_that_lets_go_of_the_gil_goes_to_threads() -> None:
    chosen = plan(sample=FREE)
    assert (chosen.backend, chosen.max_workers) == ("threads", 4)
    assert "holding the GIL for 5% of it only" in chosen.reason


def test_work_that_waits_goes_to_threads() -> None:
    chosen = plan(sample=WAITING)
    assert (chosen.backend, chosen.max_workers) == ("threads", 32)
    assert "it waits 99% of its time" in chosen.reason
    assert plan({"max_workers": 7}, sample=WAITING).max_workers == 7


def test_so_many_threads_that_the_wait_is_covered() -> None:
    """Little's law, and a quarter more: a task in ten that computes is on one of two CPUs."""
    sample = Sample(20, 0.010, cpu_share=0.1, gil_share=0.1)
    assert 10 <= plan(sample=sample, cpus=2).max_workers <= 14


def test_work_that_waits_and_needs_the_gil_goes_to_processes_where_that_is_faster() -> None:
    chosen = plan(sample=Sample(20, 0.010, cpu_share=0.45, gil_share=0.45), is_warm=True)
    assert chosen.backend == "processes"
    assert chosen.max_workers > 4  # while some wait, others compute
    assert "what it computes needs the GIL" in chosen.reason


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


def test_an_input_of_unknown_length_is_taken_to_be_ten_times_what_was_seen() -> None:
    assert plan(remaining=None).backend == "processes"
    assert plan(remaining=None, sample=WAITING).backend == "threads"
    assert plan(remaining=None, sample=BUSY._replace(tasks=1)).backend == "serial"
    assert plan(remaining=None).predicted_s is None


def test_one_cpu_or_one_task_has_no_use_for_processes() -> None:
    assert plan(cpus=1).backend == "serial"
    assert "there is one CPU for it" in plan(cpus=1).reason
    assert plan({"max_workers": 1}).backend == "serial"
    assert "one worker was asked for" in plan({"max_workers": 1}).reason
    alone = plan(remaining=1, sample=Sample(1, 10.0, 1.0))
    assert alone.backend == "serial"
    assert "there is one task left" in alone.reason


def test_a_function_that_cannot_travel_stays_and_says_why() -> None:
    chosen = plan(unpicklable="it holds a lock")
    assert chosen.backend == "serial"
    assert chosen.reason.endswith("processes are ruled out: it holds a lock")
    assert next(one for one in chosen.choices if one.backend == "processes").seconds == math.inf


def test_a_function_that_uses_all_cpus_by_itself_stays() -> None:
    chosen = plan(sample=FREE._replace(own_cpus=3.8))
    assert chosen.backend == "serial"
    assert "it uses 3.8 CPUs by itself" in chosen.reason


def test_a_function_that_does_as_well_on_one_cpu_goes_to_workers() -> None:
    """The threads of BLAS are of little use for small matrices."""
    sample = FREE._replace(own_cpus=3.8, one_cpu_s=1.2 * FREE.task_s)
    chosen = plan(sample=sample)
    assert chosen.backend == "threads"
    assert chosen.max_workers == 4
    assert "limited to one it takes 12 ms: 4 at once do more" in chosen.reason


def test_a_function_that_needs_its_cpus_keeps_them() -> None:
    chosen = plan(sample=FREE._replace(own_cpus=3.8, one_cpu_s=3.7 * FREE.task_s))
    assert chosen.backend == "serial"
    assert "it uses 3.8 CPUs by itself (10 ms a task), 37 ms on one" in chosen.reason


def test_what_needs_the_gil_needs_it_for_as_long_on_one_cpu() -> None:
    sample = BUSY._replace(gil_share=0.6, own_cpus=3.8, one_cpu_s=2 * BUSY.task_s)
    assert sample.in_worker.held_share == pytest.approx(0.3)
    assert FREE.in_worker is FREE


def test_tiny_tasks_gain_nothing_by_letting_go_of_the_gil() -> None:
    """Seen with squares: one beat fell between two steps, and 75% went to threads."""
    tiny = Sample(40_000, 8e-8, cpu_share=1.0, gil_share=0.6, carry_s=1e-7)
    assert plan(cpus=2, sample=tiny, remaining=3_000_000).backend == "serial"


def test_to_wake_up_needs_no_gil() -> None:
    """With it, 1,000 sleeps of 10 ms were predicted to take twice as long as they do."""
    asleep = Sample(2, 0.010, cpu_share=0.012)
    assert asleep.held_share == pytest.approx(0.003)
    computes_too = Sample(2, 0.010, cpu_share=0.2, gil_share=0.15)
    assert computes_too.held_share == pytest.approx(0.19)


def test_what_costs_more_to_send_than_to_do_stays() -> None:
    chosen = plan(sample=BUSY._replace(carry_s=0.04))
    assert chosen.backend == "serial"
    assert "to send it to a process and back takes 40 ms more" in chosen.reason


def test_workers_that_do_not_fit_into_memory_are_not_started() -> None:
    sample = BUSY._replace(memory_bytes=4e9)
    assert plan(sample=sample, free_bytes=11e9).max_workers == 2


def test_inside_a_worker_nothing_starts_processes() -> None:
    assert plan(is_nested=True).backend == "serial"
    assert plan({"backend": "processes"}, is_nested=True).backend == "serial"
    assert plan({"backend": "threads"}, is_nested=True).backend == "threads"


def test_what_was_asked_for_is_done() -> None:
    for backend in ("serial", "threads", "processes", "asyncio"):
        chosen = plan({"backend": backend, "max_workers": 3}, sample=None)
        assert chosen.backend == backend
        assert chosen.max_workers == (1 if backend == "serial" else 3)
        assert str(chosen).endswith(": it was asked for.")
        assert chosen.predicted_s is None


# --- What is said ----------------------------------------------------------------------------


def test_a_plan_prints_as_a_table_with_the_reason_and_what_would_change_it() -> None:
    lines = str(plan()).splitlines()
    assert lines[0].startswith("processes x 4: ")
    assert lines[1].split() == ["way", "workers", "seconds", "between", "why", "not"]
    assert [line.split()[:1] for line in lines[2:4]] == [["serial"], ["threads"]]
    assert lines[4].startswith(">  processes")
    assert lines[5].startswith("Below about ")


@pytest.mark.parametrize("remaining", [3, 40, 1000])
@pytest.mark.parametrize("sample", [BUSY, FREE, WAITING, BUSY._replace(task_s=2e-5)])
def test_what_would_change_the_choice_is_true(sample: Sample, remaining: int) -> None:
    chosen = plan(sample=sample, remaining=remaining)
    number = re.search(r"about ([\d,]+) tasks", chosen.hint)
    if number is None:
        assert chosen.hint == "Another number of tasks would not change that."
        return
    count = int(number[1].replace(",", ""))
    other = chosen.hint.split(": ")[1].split(" x ")[0].strip(".")
    beyond = 2 * count if chosen.backend == "serial" else max(1, count // 2)
    assert other != chosen.backend
    assert plan(sample=sample, remaining=beyond).backend != chosen.backend


def test_in_a_notebook_it_is_a_table_whose_chosen_row_stands_out() -> None:
    html = plan()._repr_html_()
    assert '<tr style="font-weight: bold"><td>processes</td><td>4</td>' in html
    assert "<caption>processes x 4: it computes" in html
    assert "<table>" in plan({"backend": "threads"})._repr_html_()


def test_what_processes_would_not_share_is_a_warning_of_the_plan() -> None:
    chosen = plan(writes=("it appends to the global list FOUND",))
    assert chosen.warnings == ("it appends to the global list FOUND; processes do not share that.",)
    assert "Careful: it appends to the global list FOUND" in str(chosen)
    assert plan(sample=WAITING, writes=("it sets x",)).warnings == ()


def test_a_prediction_counts_the_sample_too() -> None:
    chosen = plan(spent_s=0.5)
    assert chosen.chosen is not None
    assert chosen.predicted_s == 0.5 + chosen.chosen.seconds
    assert chosen.chosen.low < chosen.chosen.seconds < chosen.chosen.high


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


@pytest.mark.parametrize(("own_cpus", "tries"), [(1.9, True), (0.0, False)])
def test_tasks_that_use_several_cpus_are_tried_on_one(
    own_cpus: float, monkeypatch: pytest.MonkeyPatch, *, tries: bool
) -> None:
    import numpy as np
    from threadpoolctl import threadpool_info, threadpool_limits

    monkeypatch.setattr(Measurements, "_own_cpus", lambda *_: own_cpus)
    ones = np.ones((100, 100))

    def threads() -> int:
        return max(int(library["num_threads"]) for library in threadpool_info())

    def task(n: int) -> tuple[float, int]:
        values = [float((ones @ ones)[0, 0] + n) for _ in range(10)]
        return values[0], threads()

    with threadpool_limits(2):
        with plait.run(task, range(200), max_workers=1) as run:
            outcomes = list(run)
        assert threads() == 2
    assert [outcome.value[0] for outcome in outcomes] == [100.0 + n for n in range(200)]
    limited = [outcome.index for outcome in outcomes if outcome.value[1] == 1]
    assert run.plan is not None
    assert run.plan.sample is not None
    assert (run.plan.sample.one_cpu_s is not None) == bool(limited) == tries
    if tries:  # on a busy machine one CPU may turn out to be the better choice, and the rest has it
        tried = limited[:TRIED_TASKS]  # fewer, if the first of them takes too long
        assert tried == list(range(tried[0], tried[0] + len(tried)))


def test_auto_runs_the_initializer_before_the_sample() -> None:
    ready: list[str] = []

    def task(_: int) -> str:
        return ready[0]

    assert plait.map(task, range(3), initializer=ready.append, initargs=("yes",)) == ["yes"] * 3
    assert ready == ["yes"]


@needs_gil
def test_a_function_with_a_lock_inside_stays_here() -> None:
    import threading

    lock = threading.Lock()

    def task(n: int) -> int:
        with lock:
            return burn(n)

    backend, outcomes = chosen_for(task, [100_000] * 30, max_workers=2)
    assert backend == "serial"
    assert len(outcomes) == 30


# --- plait.plan ------------------------------------------------------------------------------


def test_plan_runs_the_sample_and_nothing_more() -> None:
    begun = []

    def task(n: int) -> None:
        begun.append(n)
        time.sleep(0.005)

    chosen = plait.plan(task, range(1000))
    assert chosen.backend == "threads"
    assert chosen.max_workers >= 16
    assert begun == list(range(len(begun)))
    assert 2 <= len(begun) <= 40
    assert chosen.predicted_s is not None
    assert chosen.predicted_s < 5


@needs_gil
def test_plan_tells_all_though_processes_are_out_of_the_question() -> None:
    lock = threading.Lock()
    seen: list[int] = []

    def task(n: int) -> None:
        with lock:
            seen.append(n)

    chosen = plait.plan(task, range(100_000))
    assert chosen.backend == "serial"
    processes = next(one for one in chosen.choices if one.backend == "processes")
    assert "is a _thread.lock, which cannot be pickled" in processes.why_not
    assert chosen.facts is not None
    assert any("appends to" in text for text in chosen.facts.writes)


def test_plan_raises_what_a_task_or_the_input_raises() -> None:
    def source() -> Any:
        yield 1
        raise OSError("the disk is gone")

    with pytest.raises(ZeroDivisionError) as caught:
        plait.plan(lambda n: 1 / n, [2, 1, 0] * 100)
    assert [outcome.ok for outcome in caught.value.plait_run.outcomes][:2] == [True, True]  # type: ignore[attr-defined]
    with pytest.raises(OSError, match="the disk is gone"):
        plait.plan(abs, source())
    assert plait.plan(lambda n: 1 / n, [0] * 10, on_error="return").backend == "serial"


def test_plan_of_what_was_asked_for_runs_nothing() -> None:
    def refuse(_: int) -> None:
        raise AssertionError

    assert str(plait.plan(refuse, [1], backend="threads", max_workers=3)) == (
        "threads x 3: it was asked for."
    )
    with pytest.raises(plait.UnknownOption):
        plait.plan(refuse, [1], n_jobs=2)  # type: ignore[call-arg]


def test_plan_leaves_no_thread_and_no_process(clean: None) -> None:
    plait.plan(burn, [20_000] * 1000)


def test_the_report_sets_the_prediction_beside_the_time() -> None:
    run = plait.run(time.sleep, [0.005] * 60)
    assert len(list(run)) == 60
    assert run.plan is not None
    assert run.report.predicted_s == run.plan.predicted_s
    assert f"(predicted: {run.report.predicted_s:.3f} s)" in str(run.report)


def test_a_report_is_a_table_in_a_notebook() -> None:
    run = plait.run(lambda x: 1 / x, [1, 0], backend="serial")
    list(run)
    html = run.report._repr_html_()
    assert html.count("<tr>") == 6
    assert "<td>tasks</td><td>2 done, 1 of them with an error</td>" in html
    for line in str(run.report).splitlines():
        name, text = line[:10].strip(), line[10:]
        assert f"<td>{name}</td><td>{text}</td>" in html
    assert "<td>plan</td><td>not decided</td>" in plait.Report()._repr_html_()
