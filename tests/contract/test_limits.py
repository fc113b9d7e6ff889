"""Limits of time and memory: what is ended, what is told, and that the rest goes on."""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import plait
from plait import limits
from plait.limits import TimeLimit
from plait.outcome import Call, Chunk, Finished
from plait.worker import run_apart
from tests.conftest import Way, double, only, wait_gone

EVERYWHERE = ("serial", "threads", "asyncio", "server", "spawn", "auto")


@pytest.fixture
def gate() -> Any:
    """Hold back tasks on threads until the test is over, or they would outlive it."""
    event = threading.Event()
    yield event
    event.set()


def hanging(way: str, gate: threading.Event, guilty: int) -> Any:
    """Return a function that hangs for one item, in the form for that kind of worker."""
    if way in ("server", "spawn"):

        def task(x: int) -> int:
            time.sleep(60 if x == guilty else 0)
            return x

        return task

    async def coroutine(x: int) -> int:
        await asyncio.sleep(60 if x == guilty else 0)
        return x

    def waiting(x: int) -> int:
        if x == guilty:
            gate.wait()
        return x

    return coroutine if way == "asyncio" else waiting


def way_options(name: str) -> dict[str, Any]:
    return {"max_workers": 2, **(Way(name).options if name != "auto" else {"backend": "auto"})}


@pytest.mark.parametrize("name", EVERYWHERE)
@pytest.mark.parametrize("guilty", [0, 7])
def test_only_the_task_over_its_time_fails(name: str, guilty: int, gate: threading.Event) -> None:
    fn = hanging(name, gate, guilty)
    run = plait.run(fn, range(20), task_timeout=0.2, ordered=True, **way_options(name))
    outcomes = list(run)
    assert [outcome.index for outcome in outcomes] == list(range(20))
    error = outcomes.pop(guilty).error
    assert isinstance(error, plait.TaskTimeout)
    assert isinstance(error, TimeoutError)
    assert (error.limit_s, error.index) == (0.2, guilty)
    assert error.after_s >= 0.2
    assert f"ask {guilty}, {fn.__name__}({guilty}), attempt 1 ran for" in str(error)
    assert all(outcome.ok for outcome in outcomes)
    is_thread = name in ("serial", "threads", "auto")
    assert error.is_abandoned == is_thread
    assert run.report.abandoned == is_thread
    assert ("left to itself" in str(error)) == is_thread


@pytest.mark.parametrize("name", EVERYWHERE)
def test_the_whole_call_may_have_a_limit(name: str, gate: threading.Event) -> None:
    fn = hanging(name, gate, 4)
    with pytest.raises(plait.RunTimeout, match=r"not over after timeout=0.3 s") as caught:
        plait.map(fn, range(20), timeout=0.3, chunksize=1, **way_options(name))
    assert isinstance(caught.value, TimeoutError)
    done = [outcome.value for outcome in caught.value.plait_run.outcomes]  # type: ignore[attr-defined]
    assert len(done) == caught.value.done
    assert set(done) >= {0, 1, 2, 3}


@pytest.mark.parametrize("name", EVERYWHERE)
def test_results_that_are_there_come_before_the_limit(name: str, gate: threading.Event) -> None:
    values = plait.imap(
        hanging(name, gate, 3), range(9), timeout=0.3, chunksize=1, **way_options(name)
    )
    assert [next(values), next(values), next(values)] == [0, 1, 2]
    with pytest.raises(plait.RunTimeout):
        next(values)


@pytest.mark.parametrize("name", EVERYWHERE)
def test_an_input_that_hangs_does_not_hold_up_the_limit(name: str, gate: threading.Event) -> None:
    def items() -> Any:
        yield 1
        gate.wait()

    fn = Way("asyncio").fn(double) if name == "asyncio" else double
    plait.map(fn, [1], **way_options(name))  # a worker may take long to start
    run = plait.run(fn, items(), timeout=1, **way_options(name))
    assert next(run).value == 2
    with pytest.raises(plait.RunTimeout):
        next(run)
    gate.set()


def test_a_call_that_is_complete_is_not_late(way: Way) -> None:
    """The reader takes its time, and the limit passes; but nothing is left to be done."""
    plait.map(way.fn(double), range(3), **way.options)  # a worker may take long to start
    run = plait.run(way.fn(double), range(3), timeout=1, chunksize=3, **way.options)
    first = next(run)
    time.sleep(1.05)
    assert sorted([first.value, *(outcome.value for outcome in run)]) == [0, 2, 4]


def test_limits_that_are_not_reached_change_nothing(way: Way) -> None:
    given = {"task_timeout": 60, "timeout": 60, **way.options}
    assert plait.map(way.fn(double), range(3000), **given) == [2 * x for x in range(3000)]
    assert plait.map(double, range(3000), task_timeout="9x", timeout=60) == [
        2 * x for x in range(3000)
    ]


def finished(*seconds: float) -> Finished:
    (stretch,) = run_apart(Call(abs), list(range(len(seconds))), flush_s=60)
    times = [(0.0, one) for one in seconds]
    chunk = Chunk(0, list(range(len(seconds))))
    return Finished.of(chunk, 0, stretch._replace(times=times), "w", 1)


def test_a_relative_limit_follows_the_median_of_what_succeeded() -> None:
    limit = TimeLimit("5x")
    seen = [limit.seconds]
    for seconds in ((1, 2, 3, 4), (100,), [0.01] * 50):  # four say little
        limit.learn(finished(*seconds))
        seen.append(limit.seconds)
    assert limit.is_set
    assert seen == [None, None, 15.0, limits.LEAST_RELATIVE_S]
    assert (TimeLimit(3).seconds, TimeLimit(3).is_set) == (3, True)
    assert not TimeLimit().is_set


@only("threads", "server", "spawn")
def test_a_relative_limit_ends_what_hangs(
    way: Way, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LEAST_RELATIVE_S", 0.2)
    fn = hanging(way.name, gate, 30)
    outcomes = list(
        plait.run(fn, range(40), task_timeout="5x", chunksize=1, max_workers=2, **way.options)
    )
    assert [outcome.index for outcome in outcomes if not outcome.ok] == [30]
    (error,) = [outcome.error for outcome in outcomes if not outcome.ok]
    assert isinstance(error, plait.TaskTimeout)
    assert error.limit_s == 0.2


class SlowToLoad:
    """A function that needs half a second to arrive in a worker, as one with large imports."""

    def __reduce__(self) -> Any:
        return load_slowly, ()

    def __call__(self, x: int) -> int:
        return 2 * x


def load_slowly() -> SlowToLoad:
    time.sleep(0.5)
    return SlowToLoad()


def test_loading_the_function_is_not_the_first_tasks_time(process_way: Way) -> None:
    given = {"max_workers": 2, "chunksize": 2, **process_way.options}
    assert plait.map(SlowToLoad(), range(8), task_timeout=0.25, **given) == list(range(0, 16, 2))


def test_a_function_that_takes_for_ever_to_load_is_ended_with_its_run(process_way: Way) -> None:
    class Stuck(SlowToLoad):
        def __reduce__(self) -> Any:
            return time.sleep, (600,)

    with pytest.raises(plait.RunTimeout):
        plait.map(Stuck(), range(8), timeout=0.3, max_workers=2, **process_way.options)


@pytest.mark.usefixtures("clean")
def test_a_task_that_is_ended_can_clean_up(process_way: Way, tmp_path: Path) -> None:
    def task(name: str) -> None:
        path = tmp_path / name
        path.touch()
        try:
            time.sleep(60)
        finally:
            path.unlink()

    values: list[Any] = plait.map(
        task, ["a"], task_timeout=0.2, on_error="return", **process_way.options
    )
    assert isinstance(values[0], plait.TaskTimeout)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("clean")
def test_what_a_task_started_ends_with_it(process_way: Way, tmp_path: Path) -> None:
    """In its process group or not, forked or a program, child or grandchild."""

    def task(_: int) -> None:
        pids = [
            subprocess.Popen(["sleep", "600"]).pid,
            subprocess.Popen(["sleep", "600"], start_new_session=True).pid,
        ]
        gate = os.pipe()
        if os.fork() == 0:
            os.setsid()
            grandchild = os.fork()
            if grandchild:
                os.write(gate[1], f"{os.getpid()} {grandchild}".encode())
            time.sleep(600)
            os._exit(0)
        pids += map(int, os.read(gate[0], 100).split())
        (tmp_path / "pids").write_text(" ".join(map(str, pids)))
        time.sleep(600)

    values: list[Any] = plait.map(
        task, [0], task_timeout=0.3, on_error="return", **process_way.options
    )
    assert isinstance(values[0], plait.TaskTimeout)
    pids = {int(pid) for pid in (tmp_path / "pids").read_text().split()}
    assert len(pids) == 4
    assert not wait_gone(pids)


def test_a_worker_runs_so_many_tasks_at_most(process_way: Way) -> None:
    def pid(_: int) -> int:
        return os.getpid()

    for chunksize in (1, 2, 5):
        given = {"chunksize": chunksize, "max_workers": 2, **process_way.options}
        pids = Counter(plait.map(pid, range(20), max_tasks_per_child=5, **given))
        assert max(pids.values()) <= 5


def test_a_worker_that_keeps_much_memory_is_replaced(process_way: Way) -> None:
    def leak(_: int) -> int:
        kept = globals().setdefault("leaked", [])
        kept.append(bytes(range(256)) * 160_000)  # 41 MB
        return os.getpid()

    given = {"max_workers": 1, "chunksize": 1, **process_way.options}
    pids = plait.map(leak, range(6), memory_limit="150MB", **given)
    assert len(set(pids)) >= 2


@pytest.mark.parametrize("name", ["memory_limit", "max_tasks_per_child"])
@pytest.mark.parametrize("backend", ["serial", "threads"])
def test_what_needs_processes_says_so(name: str, backend: Any) -> None:
    with pytest.raises(plait.OptionError, match="only processes can be ended"):
        plait.map(abs, [1], backend=backend, **{name: 1})  # type: ignore[arg-type]


def test_a_memory_limit_has_auto_choose_processes() -> None:
    run = plait.run(abs, range(-3, 0), memory_limit="1GB", ordered=True)
    assert [outcome.value for outcome in run] == [3, 2, 1]
    assert run.plan is not None
    assert str(run.plan).startswith("processes x ")
    assert "a memory limit was asked for" in run.plan.reason


class Own(BaseException):
    """No Exception, as asyncio.CancelledError is none."""


def test_what_is_no_exception_comes_out_of_the_sample_at_once() -> None:
    def fail(_: int) -> None:
        raise Own

    with pytest.raises(Own):
        plait.map(fail, range(3), task_timeout=60)
