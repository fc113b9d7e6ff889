"""Calls share warm workers and take turns; ``executor=`` gives a call workers of its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import plait
from plait.backends import open_backend
from plait.backends.contract import Backend
from plait.options import Options
from plait.outcome import Call, Chunk
from plait.shared import Event, List, Semaphore
from tests.conftest import Pairs, Way, double, only
from tests.contract.test_nested import in_time

SHARING = only("threads", "asyncio", "server", "spawn")


def waiter(way: Way, event: Event) -> Callable[..., Any]:
    """Return a task that ends when an event is set, and holds up nothing but its place."""
    if way.name != "asyncio":
        return lambda _: event.wait(30)

    async def wait(_: int) -> bool:
        return await asyncio.to_thread(event.wait, 30)

    return wait


@contextlib.contextmanager
def busy(way: Way, tasks: int, **options: Any) -> Iterator[None]:
    """Have another thread's call keep workers busy meanwhile."""
    release, begun = Event(), Semaphore(0)
    wait = waiter(way, release)

    async def coroutine(task: int) -> Any:
        begun.release()
        return await wait(task)

    def function(task: int) -> Any:
        begun.release()
        return wait(task)

    fn = coroutine if way.name == "asyncio" else function
    outcomes = plait.run(fn, range(tasks), ordered=False, chunksize=1, **options)
    thread = threading.Thread(target=lambda: list(outcomes), daemon=True)
    thread.start()
    most = options.get("max_workers", 2)
    try:
        for _ in range(min(tasks, most)):
            assert begun.acquire(timeout=30)
        yield
    finally:
        release.set()
        thread.join(30)
    assert outcomes.report.errors == 0


@SHARING
def test_a_quick_call_does_not_wait_behind_the_long_tasks_of_another(way: Way) -> None:
    options = {**way.options, "max_workers": 2}
    with busy(way, 8, **options):
        assert in_time(lambda: plait.map(way.fn(double), range(4), **options)) == [0, 2, 4, 6]
        values = in_time(lambda: list(plait.imap(way.fn(double), range(4), **options)))
        assert values == [0, 2, 4, 6]
        amap = plait.amap(way.fn(double), range(4), **options)
        assert in_time(lambda: asyncio.run(amap)) == [0, 2, 4, 6]


def test_many_quick_calls_at_once_beside_one_that_takes_all_workers() -> None:
    options: dict[str, Any] = {"backend": "threads", "max_workers": 2}
    with busy(Way("threads"), 8, **options):
        calls = concurrent.futures.ThreadPoolExecutor(8)
        many: Any = plait.map
        futures = [calls.submit(many, double, range(n), **options) for n in range(40)]
        values = [future.result(30) for future in futures]
        calls.shutdown()
    assert values == [[2 * x for x in range(n)] for n in range(40)]


def order_of_turns(backend: Backend, release: Event) -> list[str]:
    """Return in which order tasks of two lanes began, the second of which came later."""
    began: Any = List()

    def task(name: str) -> None:
        began.append(name)
        if name == "a0":
            release.wait(30)

    one, other = backend.open_lane(Call(task)), backend.open_lane(Call(task))
    try:
        one.submit(*[Chunk(n, [f"a{n}"]) for n in range(8)])
        other.submit(*[Chunk(n, [f"b{n}"]) for n in range(3)])
        release.set()
        while other.pending:
            other.wait_outcomes()
        while one.pending:
            one.wait_outcomes()
    finally:
        one.close()
        other.close()
    return list(began)


@only("threads", "server", "spawn")
def test_chunks_of_several_calls_are_run_in_turns(way: Way) -> None:
    options = Options.of({**way.options, "max_workers": 1})
    backend = open_backend(options.backend, 1, options)
    try:
        began = in_time(lambda: order_of_turns(backend, Event()))
    finally:
        backend.close()
    assert sorted(began) == sorted([f"a{n}" for n in range(8)] + [f"b{n}" for n in range(3)])
    assert began.index("b0") <= 2
    assert began.index("b2") <= 6


# --- executor= -------------------------------------------------------------------------------


def test_every_call_runs_on_the_workers_of_an_executor(way: Way) -> None:
    fn = way.fn(double)
    with plait.Executor(2, **way.executor) as pool:
        assert plait.map(fn, [1, 2], executor=pool) == [2, 4]
        assert plait.starmap(fn, [(1,), (2,)], executor=pool) == [2, 4]
        assert list(plait.imap(fn, [1, 2], executor=pool)) == [2, 4]
        outcomes = list(plait.run(fn, [1, 2], ordered=True, executor=pool))
        assert [outcome.value for outcome in outcomes] == [2, 4]
        assert asyncio.run(plait.amap(fn, [1, 2], executor=pool)) == [2, 4]
        plan = plait.plan(fn, [1, 2], executor=pool)
        assert (plan.backend, plan.max_workers) == (pool.options.backend, pool.options.max_workers)
        if way.is_process:
            pids = [o.pid for _ in range(9) for o in plait.run(fn, range(9), executor=pool)]
            assert len(set(pids)) <= 2


def test_an_executor_runs_no_more_at_once_whoever_asks() -> None:
    count = Pairs(30)
    with plait.Executor(2) as pool:
        calls = [
            threading.Thread(
                target=plait.map, args=(count, range(10)), kwargs={"executor": pool, "chunksize": 1}
            )
            for _ in range(3)
        ]
        for call in calls:
            call.start()
        concurrent.futures.wait([pool.submit(count, n) for n in range(10)])
        for call in calls:
            call.join()
    assert count.most == 2


@SHARING
def test_a_call_on_an_executor_is_not_held_up_by_others(way: Way) -> None:
    with busy(way, 4, **way.options, max_workers=2), plait.Executor(1, **way.executor) as pool:
        assert in_time(lambda: plait.map(way.fn(double), [1, 2], executor=pool)) == [2, 4]


def test_options_that_an_executor_has_may_be_given_again() -> None:
    with plait.Executor(2, initializer=int) as pool:
        options: dict[str, Any] = {"backend": "threads", "max_workers": 2, "initializer": int}
        assert plait.map(abs, [-1], executor=pool, **options) == [1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"backend": "processes"}, "backend must be 'threads', as the executor has it"),
        ({"max_workers": 3}, "max_workers must be 2, as the executor has it"),
        ({"initializer": print}, "initializer must be None, as the executor has it"),
        ({"start_method": "spawn"}, "start_method must be None"),
        ({"preload": ("json",)}, r"preload must be \(\), as the executor has it"),
        ({"max_tasks_per_child": 1}, "max_tasks_per_child must be None"),
        ({"memory_limit": "2GB"}, "only processes can be ended"),
    ],
    ids=str,
)
def test_options_that_contradict_an_executor_are_an_error(
    options: dict[str, Any], words: str
) -> None:
    with plait.Executor(2) as pool, pytest.raises(plait.OptionError, match=words):
        plait.map(abs, [1], executor=pool, **options)


def test_what_is_no_executor_of_plait_is_an_error() -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        other: Any = pool
        with pytest.raises(plait.OptionError, match=r"a plait\.Executor, or None"):
            plait.map(abs, [1], executor=other)


def test_a_limit_that_a_serial_executor_cannot_watch_is_an_error() -> None:
    words = "None on a serial executor"
    with plait.Executor(1, "serial") as pool, pytest.raises(plait.OptionError, match=words):
        plait.map(abs, [1], executor=pool, task_timeout=1)
    with plait.Executor(1, "serial", task_timeout=60) as pool:
        assert plait.map(abs, [-1], executor=pool, task_timeout=30) == [1]


def test_limits_of_an_executor_hold_for_calls_on_it() -> None:
    release = threading.Event()
    with plait.Executor(1, task_timeout=0.05) as pool:
        with pytest.raises(plait.TaskTimeout):
            plait.map(lambda _: release.wait(30), [1], executor=pool)
        release.set()


def test_a_call_on_an_executor_that_was_shut_down_is_told(way: Way) -> None:
    pool = plait.Executor(1, **way.executor)
    pool.shutdown()
    with pytest.raises(plait.PoolClosed):
        plait.map(way.fn(double), [1], executor=pool)


def test_a_call_that_is_under_way_when_its_executor_is_shut_down_is_told() -> None:
    def items() -> Iterator[int]:
        yield 1
        pool.shutdown()
        yield from range(100)

    pool = plait.Executor(1)
    with pytest.raises(plait.PoolClosed):
        plait.map(abs, items(), executor=pool, chunksize=1)
