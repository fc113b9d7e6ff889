"""Sweeps: what is measured, in which order; what is said of it; nothing is left behind."""

from __future__ import annotations

import doctest
import json
import os
import threading
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest

import plait
from plait import sweep_rows, sweeping
from plait.backends import open_backend
from plait.backends.contract import Backend
from plait.errors import OptionError, UnknownOption, WorkerStartError
from plait.options import Options
from plait.sweep_rows import LOOP, Row, Timing, Way
from plait.sweeps import Sweep
from tests.conftest import Way as WorkerWay
from tests.conftest import double, fail_at_three

pytestmark = pytest.mark.usefixtures("clean")

TINY: dict[str, Any] = {"backends": ("threads",), "sizes": (1, 2), "repeats": 2}


class Notes:
    """Pools that were opened and closed, in order; their workers are real."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[tuple[str, str, int]] = []
        monkeypatch.setattr(sweeping, "open_backend", self.open)

    def open(self, name: str, workers: int, options: Options) -> Backend:
        backend = open_backend(name, workers, options)
        self.events.append(("open", name, workers))
        close = backend.close

        def note() -> None:
            self.events.append(("close", name, workers))
            close()

        backend.close = note  # type: ignore[method-assign]
        return backend


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> Notes:
    return Notes(monkeypatch)


@pytest.mark.parametrize("module", [sweeping, sweep_rows])
def test_the_examples_in_its_docstrings(module: ModuleType) -> None:
    assert doctest.testmod(module).failed == 0


# --- What is measured --------------------------------------------------------------------


def test_each_run_has_a_pool_of_its_own_which_is_closed(notes: Notes) -> None:
    plait.sweep(double, range(5), **TINY)
    opened, closed = notes.events[::2], notes.events[1::2]
    assert [event[1:] for event in opened] == [event[1:] for event in closed]
    assert {event[0] for event in opened} == {"open"}
    assert {event[0] for event in closed} == {"close"}
    assert len(opened) == (TINY["repeats"] + 1) * 2


def test_in_each_round_everybody_has_one_turn_and_the_order_changes() -> None:
    ways = [LOOP, *(Way(name, size) for name in ("threads", "processes") for size in (1, 2, 4, 8))]
    turns = list(sweeping._turns(ways, 5))
    rounds = [turns[start : start + len(ways)] for start in range(0, len(turns), len(ways))]
    assert [{counts for _, counts in each} for each in rounds] == [{False}, *[{True}] * 5]
    assert all(sorted(way for way, _ in each) == sorted(ways) for each in rounds)
    assert len({tuple(way for way, _ in each) for each in rounds}) == len(rounds)
    assert turns == list(sweeping._turns(ways, 5))


def test_all_work_is_done_by_the_loop_and_by_each_size() -> None:
    done: list[tuple[str, int]] = []
    plait.sweep(lambda x: done.append((threading.current_thread().name, x)), "ab", **TINY)
    in_loop = [item for name, item in done if name == "MainThread"]
    on_threads = [item for name, item in done if name.startswith("plait-thread")]
    assert in_loop == [*"ab"] * 3
    assert sorted(on_threads) == sorted([*"ab"] * 6)


def test_opening_running_and_closing_have_times_of_their_own(
    monkeypatch: pytest.MonkeyPatch, notes: Notes
) -> None:
    """The clock goes on by itself: by 1 from look to look, and by what opening takes."""
    now = 0.0

    def tick() -> float:
        nonlocal now
        now += 1
        return now

    def open_slowly(name: str, workers: int, options: Options) -> Backend:
        nonlocal now
        now += 10 * workers
        return notes.open(name, workers, options)

    monkeypatch.setattr(sweeping, "monotonic", tick)
    monkeypatch.setattr(sweeping, "open_backend", open_slowly)
    swept = plait.sweep(double, range(5), **TINY)
    assert list(swept.loops) == [1, 1]
    assert {timing for row in swept.rows for timing in row.timings} == {(11, 1, 1), (21, 1, 1)}
    assert [row.total_s for row in swept.rows] == [13, 23]
    assert [row.speedup for row in swept.rows] == [1 / 13, 1 / 23]
    assert [row.efficiency for row in swept.rows] == [1 / 13, 1 / 46]


def test_all_kinds_of_workers(way: WorkerWay) -> None:
    if way.name == "serial":
        return
    options = dict(way.options)
    backend = options.pop("backend")
    swept = plait.sweep(
        way.fn(double), [1, 2, 3], backends=[backend], sizes=[2, 1, 2], repeats=1, **options
    )
    assert [row.way for row in swept.rows] == [(backend, 1), (backend, 2)]
    assert all(second >= 0 for row in swept.rows for timing in row.timings for second in timing)
    assert (swept.function, swept.tasks, len(swept.loops)) == ("double", 3, 1)


def test_a_coroutine_function_is_swept_on_asyncio() -> None:
    async def later(x: int) -> int:
        return x

    swept = plait.sweep(later, range(3), sizes=(1, 2), repeats=1)
    assert swept.backends == ("asyncio",)
    assert swept.loop_s > 0


def test_items_are_read_once() -> None:
    swept = plait.sweep(double, iter(range(7)), **TINY)
    assert swept.tasks == 7


def test_options_are_for_each_run() -> None:
    tries: list[int] = []

    def flaky(x: int) -> int:
        tries.append(x)
        if len(tries) % 2:
            raise OSError
        return x

    plait.sweep(flaky, [1], backends=["threads"], sizes=[1], repeats=1, retries=1, backoff=0)
    assert len(tries) == 2 * 2 * 2  # each time it fails once, in the loop, too


def test_an_initializer_runs_in_each_pool_and_before_the_loop() -> None:
    begun: list[str] = []
    plait.sweep(
        double,
        [1],
        backends=["threads"],
        sizes=[1],
        repeats=1,
        initializer=lambda: begun.append(threading.current_thread().name.partition("-")[0]),
    )
    assert sorted(begun) == ["MainThread", "MainThread", "plait", "plait"]


def test_what_only_processes_obey_does_not_hinder_the_loop() -> None:
    swept = plait.sweep(
        double, [1], backends=["processes"], sizes=[1], repeats=1, memory_limit="4GB"
    )
    assert swept.rows[0].way == ("processes", 1)


def test_progress_counts_runs() -> None:
    told: list[tuple[int, int | None]] = []
    plait.sweep(double, range(3), **TINY, progress=lambda done, total: told.append((done, total)))
    assert told == [(done, 9) for done in range(1, 10)]


# --- Errors ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "error", "text"),
    [
        ({"backends": ()}, OptionError, "backends must be some of 'threads', 'processes', 'asy"),
        ({"backends": "threads"}, OptionError, "in a tuple"),
        ({"backends": ("auto",)}, OptionError, "some of 'threads'"),
        ({"backends": ("threads", "serial")}, OptionError, "the loop always runs"),
        ({"backends": ("asyncio",)}, OptionError, "'asyncio' is for coroutine functions"),
        ({"backends": None}, OptionError, "backends=None is not allowed"),
        ({"sizes": ()}, OptionError, "sizes must be whole numbers from 1 up, in a tuple"),
        ({"sizes": (2, 0)}, OptionError, "whole numbers from 1 up"),
        ({"sizes": (2, True)}, OptionError, "whole numbers from 1 up"),
        ({"sizes": 4}, OptionError, "in a tuple like"),
        ({"repeats": 0}, OptionError, "repeats must be a whole number from 1 up"),
        ({"repeats": 1.5}, OptionError, "repeats must be a whole number"),
        ({"backend": "threads"}, UnknownOption, "A sweep tries several: say backends="),
        ({"max_workers": 4}, UnknownOption, "A sweep tries several: say sizes="),
        ({"n_jobs": 4}, UnknownOption, "plait has no option 'n_jobs'"),
        ({"retries": -1}, OptionError, "retries must be"),
        ({"memory_limit": "1GB"}, OptionError, "only processes can be ended"),
        ({"items": []}, ValueError, "at least one item"),
        ({"items": range(0)}, ValueError, "at least one item"),
        ({"items": 7}, TypeError, "the items are no iterable but int"),
        ({"fn": 7}, TypeError, "plait needs a function to call, not int"),
    ],
)
def test_mistakes_are_told_before_anything_runs(
    notes: Notes, wrong: dict[str, Any], error: type[Exception], text: str
) -> None:
    ran: list[int] = []
    given = {"fn": ran.append, "items": [1, 2], **TINY, **wrong}
    fn, items = given.pop("fn"), given.pop("items")
    with pytest.raises(error, match=text):
        plait.sweep(fn, items, **given)
    assert (ran, notes.events) == ([], [])


def test_processes_are_not_for_a_sweep_inside_a_task() -> None:
    def task(_: int) -> str:
        try:
            plait.sweep(double, [1])
        except OptionError as error:
            return str(error)
        return "it ran"

    (text,) = plait.map(task, [0], backend="processes")
    assert "a worker starts no processes of its own" in text


@pytest.mark.parametrize("backend", ["threads", "processes"])
def test_an_error_of_a_task_is_raised_as_map_raises_it(notes: Notes, backend: str) -> None:
    with pytest.raises(KeyError) as caught:
        plait.sweep(fail_at_three, range(5), backends=[backend], sizes=[2], repeats=1)
    assert caught.value.args == (3,)
    assert caught.value.__notes__[0].startswith("plait: task 3, fail_at_three(3), attempt 1, on")
    assert [outcome.value for outcome in caught.value.plait_run.outcomes[:3]] == [0, 1, 2]  # type: ignore[attr-defined]


@pytest.mark.parametrize("backend", ["threads", "processes"])
def test_an_error_on_workers_alone_closes_their_pool(notes: Notes, backend: str) -> None:
    caller = threading.get_ident(), os.getpid()

    def fail_elsewhere(x: int) -> int:
        if (threading.get_ident(), os.getpid()) != caller:
            raise KeyError(x)
        return x

    with pytest.raises(KeyError, match="1"):
        plait.sweep(fail_elsewhere, [1], backends=[backend], sizes=[2], repeats=1)
    assert [event[0] for event in notes.events] == ["open", "close"]


def test_errors_that_are_asked_for_as_values_are_no_hindrance() -> None:
    swept = plait.sweep(fail_at_three, range(5), **TINY, on_error="return")
    assert len(swept.rows) == 2


def test_a_pool_whose_workers_cannot_start_is_closed(notes: Notes) -> None:
    def fail() -> None:
        if threading.current_thread() is not threading.main_thread():
            raise OSError("no licence")

    with pytest.raises(WorkerStartError, match="no licence"):
        plait.sweep(double, [1], **TINY, initializer=fail)
    assert notes.events[-1][0] == "close"


def test_ctrl_c_leaves_no_pool(notes: Notes) -> None:
    def interrupt(done: int, total: int | None) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        plait.sweep(
            double, [1], backends=["processes"], sizes=[2, 4], repeats=1, progress=interrupt
        )
    assert [event[0] for event in notes.events] == ["open", "close"]


# --- What is said of it ------------------------------------------------------------------


def swept(loop: float, **totals: dict[int, float]) -> Sweep:
    """Make a sweep of five rounds that hardly vary, on two CPUs."""
    wobble = (1.0, 1.002, 0.998, 1.001, 0.999)
    loops = tuple(loop * factor for factor in wobble)
    rows = []
    for backend, by_size in totals.items():
        for size, total in by_size.items():
            timings = tuple(Timing(0.001, total * factor - 0.003, 0.002) for factor in wobble)
            rows.append(Row(backend, size, timings, loops))
    return Sweep("render", 100, 2, loops, tuple(rows))


CPU_BOUND = swept(
    2.0,
    threads={2: 2.1, 4: 2.12, 8: 2.3},
    processes={2: 1.05, 4: 1.06, 8: 1.2},
)


def test_a_function_that_computes_gets_as_many_processes_as_there_are_cpus() -> None:
    assert CPU_BOUND.recommended == ("processes", 2)
    assert CPU_BOUND.best == ("processes", 2)
    text = str(CPU_BOUND)
    assert text.startswith("render, 100 tasks: medians of 5 rounds, on 2 CPUs\n")
    assert "\nRecommended: 2 processes.\nThreads: the loop is as fast, or faster.\n" in text
    assert (
        "\n2 processes: 1.90 times as fast as the loop. More bring nothing; "
        "8 processes take 14% longer.\n"
    ) in text
    marked = [line for line in text.splitlines() if line.endswith("<-")]
    assert [line.split()[:2] for line in marked] == [["processes", "2"]]


def test_a_function_that_waits_gets_more_threads_as_long_as_they_help() -> None:
    waits = swept(10.0, threads={1: 10.1, 4: 2.6, 16: 0.7, 64: 0.695}, processes={4: 2.7})
    assert waits.recommended == ("threads", 16)
    assert "16 threads: 14.29 times as fast as the loop. More bring nothing here." in str(waits)
    assert "4 processes: 3.70 times as fast as the loop. More were not tried." in str(waits)
    law = waits.laws["threads"]
    assert law is not None
    assert law.contention < 0.05
    assert waits.laws["processes"] is None


def test_a_function_that_is_over_at_once_gets_the_loop() -> None:
    tiny = swept(0.00001, threads={2: 0.004, 4: 0.005}, processes={2: 0.02})
    assert tiny.recommended == LOOP
    assert "Recommended: the loop.\n" in str(tiny)
    assert "Processes: the loop is as fast, or faster." in str(tiny)
    assert "it takes 3 sizes above 1 to tell what holds workers up, and here are 2." in str(tiny)


def test_of_two_kinds_that_are_as_good_the_one_with_fewer_workers_is_recommended() -> None:
    assert swept(4.0, threads={8: 1.0}, processes={4: 1.02}).recommended == ("processes", 4)
    assert swept(4.0, threads={4: 1.0}, processes={4: 0.99}).recommended == ("processes", 4)


def test_a_busy_machine_is_told_of() -> None:
    busy = replace(CPU_BOUND, waited=0.42)
    assert "\nOther programs had the CPUs: the loop waited for one 42% of its time." in str(busy)
    assert "Other programs" not in str(replace(CPU_BOUND, waited=0.05))


def test_how_long_a_thread_waited_for_a_cpu_is_a_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeping, "read_thread_clock", lambda: (3.0, 1.0, 0.5))
    assert sweeping._share_waited((1.0, 0.0, 0.0)) == 0.25
    assert sweeping._share_waited((3.0, 1.0, 0.5)) == 0
    monkeypatch.undo()
    assert 0 <= plait.sweep(double, range(5), **TINY).waited <= 1


def test_times_of_a_row_are_medians_and_quartiles() -> None:
    timings = tuple(Timing(float(n), 10.0 * n, 0.0) for n in (5, 1, 4, 2, 3))
    row = Row("threads", 2, timings, (110.0, 22.0, 88.0, 44.0, 66.0))
    assert (row.open_s, row.run_s, row.close_s, row.total_s) == (3, 30, 0, 33)
    assert (row.min_s, row.spread) == (11, (22, 44))
    assert (row.speedup, row.efficiency) == (2, 1)


def test_a_notebook_gets_a_table_with_the_recommended_row_in_bold() -> None:
    html = CPU_BOUND._repr_html_()
    bold = html.partition('<tr style="font-weight: bold">')[2].partition("</tr>")[0]
    assert bold.startswith("<td>processes</td><td>2</td>")
    assert "<caption>render, 100 tasks: medians of 5 rounds, on 2 CPUs</caption>" in html
    assert "Recommended: 2 processes.<br>" in html
    assert "law of scaling" in html
    ElementTree.fromstring(f"<html>{html.replace('<br>', '<br/>')}</html>")


def refuse_constant(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def test_json_has_all_of_it() -> None:
    record = json.loads(CPU_BOUND.to_json(), parse_constant=refuse_constant)
    assert record["recommended"] == {"backend": "processes", "workers": 2}
    assert (record["function"], record["tasks"], record["cpus"]) == ("render", 100, 2)
    assert record["loop"]["median_s"] == 2.0
    row = next(row for row in record["rows"] if row["backend"] == "processes")
    assert row["total"]["median_s"] == pytest.approx(1.05)
    assert len(row["rounds"]) == 5
    assert row["rounds"][0]["open_s"] == 0.001
    assert record["laws"]["processes"]["peak_90"][0] >= 1
    no_peak = swept(1.0, threads={2: 0.5, 4: 0.25, 8: 0.125})
    record = json.loads(no_peak.to_json(), parse_constant=refuse_constant)
    assert record["laws"]["threads"]["peak"] is None
    assert "none" in str(no_peak)
