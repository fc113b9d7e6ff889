"""A task may call plait again, in every way and at any depth: the plain answer, and no hang."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import plait
from plait import executor as executor_module
from tests.conftest import Pairs, Way

# A hang must end its test; what hangs is a daemon thread then.
DEADLINE_S = 5.0

Sum = Callable[[Callable[[int], int], list[int], dict[str, Any]], int]


def by_map(fn: Callable[[int], int], items: list[int], options: dict[str, Any]) -> int:
    return sum(plait.map(fn, items, **options))


def by_starmap(fn: Callable[[int], int], items: list[int], options: dict[str, Any]) -> int:
    return sum(plait.starmap(fn, [(item,) for item in items], **options))


def by_imap(fn: Callable[[int], int], items: list[int], options: dict[str, Any]) -> int:
    return sum(plait.imap(fn, items, **options))


def by_run(fn: Callable[[int], int], items: list[int], options: dict[str, Any]) -> int:
    return sum(outcome.unwrap() for outcome in plait.run(fn, items, **options))


def by_amap(fn: Callable[[int], int], items: list[int], options: dict[str, Any]) -> int:
    return sum(asyncio.run(plait.amap(fn, items, **options)))


def by_arun(fn: Callable[[int], int], items: list[int], options: dict[str, Any]) -> int:
    async def collect() -> int:
        return sum([outcome.unwrap() async for outcome in plait.arun(fn, items, **options)])

    return asyncio.run(collect())


CALLS = (by_map, by_starmap, by_imap, by_run, by_amap, by_arun)


def fibonacci(n: int, call: Sum, workers: list[int], options: dict[str, Any]) -> int:
    """Compute a Fibonacci number by calls in calls; each depth has its number of workers."""
    if n < 2:
        return n
    here = {**options, "max_workers": workers[n % len(workers)]}
    return call(lambda k: fibonacci(k, call, workers, options), [n - 1, n - 2], here)


def in_time(call: Callable[[], Any]) -> Any:
    """Return what a call returns, or raise what it raises; a hang is a TimeoutError."""
    future: concurrent.futures.Future[Any] = concurrent.futures.Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future.result(DEADLINE_S)


@pytest.mark.parametrize("workers", [[1], [2], [1, 2, 3]], ids=str)
@pytest.mark.parametrize("call", CALLS)
def test_recursion_on_threads_ends(call: Sum, workers: list[int]) -> None:
    options = {"backend": "threads"}
    assert in_time(lambda: fibonacci(7, call, workers, options)) == 13


@pytest.mark.parametrize("call", [by_map, by_imap, by_run])
def test_calls_in_calls_end_on_every_backend(way: Way, call: Sum) -> None:
    def outer(k: int) -> int:
        return call(way.fn(lambda x: x + k), [1, 2], {**way.options, "max_workers": 2})

    options = {**way.options, "max_workers": 2}
    assert in_time(lambda: call(way.fn(outer), [10, 20], options)) == 2 * (10 + 20) + 2 * 3


def test_three_kinds_of_workers_within_each_other() -> None:
    async def inner(x: int) -> int:
        return 2 * x

    def middle(k: int) -> int:
        values: list[int] = plait.map(inner, [k, k], max_workers=1)  # type: ignore[arg-type]
        return sum(values)

    async def outer(k: int) -> int:
        return sum(plait.map(middle, [k, k + 1], backend="threads", max_workers=1))

    assert in_time(lambda: plait.map(outer, [1, 2, 3], max_workers=1)) == [12, 20, 28]


def test_a_recursion_on_few_workers_does_not_start_a_thread_for_each_call() -> None:
    most = 0

    def note(n: int) -> int:
        nonlocal most
        names = [t.name for t in threading.enumerate() if t.name.startswith("plait-thread")]
        most = max(most, len(names))
        return n if n < 2 else sum(plait.map(note, [n - 1, n - 2], **options))

    options: dict[str, Any] = {"backend": "threads", "max_workers": 2}
    before = sum(t.name.startswith("plait-thread") for t in threading.enumerate())
    assert in_time(lambda: note(10)) == 55
    assert most - before < 60  # for 176 calls


# --- Executors -----------------------------------------------------------------------------


@contextlib.contextmanager
def opened(workers: int, **options: Any) -> Iterator[plait.Executor]:
    """Open an executor whose test may hang: then it is not waited for."""
    pool = plait.Executor(workers, **options)
    try:
        yield pool
        in_time(pool.shutdown)
    except TimeoutError:
        executor_module._open.discard(pool)  # or it would hold up the end of all tests
        raise


def by_result(pool: plait.Executor, fn: Callable[[int], int], items: list[int]) -> int:
    futures = [pool.submit(fn, item) for item in items]
    return sum(future.result() for future in futures)


def by_result_in_time(pool: plait.Executor, fn: Callable[[int], int], items: list[int]) -> int:
    futures = [pool.submit(fn, item) for item in items]
    return sum(future.result(timeout=DEADLINE_S) for future in futures)


def by_exception(pool: plait.Executor, fn: Callable[[int], int], items: list[int]) -> int:
    futures = [pool.submit(fn, item) for item in items]
    assert [future.exception() for future in futures] == [None] * len(items)
    return sum(future.result() for future in futures)


def by_wait(pool: plait.Executor, fn: Callable[[int], int], items: list[int]) -> int:
    futures = [pool.submit(fn, item) for item in items]
    done, _ = concurrent.futures.wait(futures)
    return sum(future.result() for future in done)


def by_as_completed(pool: plait.Executor, fn: Callable[[int], int], items: list[int]) -> int:
    futures = [pool.submit(fn, item) for item in items]
    return sum(future.result() for future in concurrent.futures.as_completed(futures))


def by_executor_map(pool: plait.Executor, fn: Callable[[int], int], items: list[int]) -> int:
    return sum(pool.map(fn, items))


def by_gather(pool: plait.Executor, fn: Callable[[int], int], items: list[int]) -> int:
    async def collect() -> int:
        loop = asyncio.get_running_loop()
        return sum(await asyncio.gather(*[loop.run_in_executor(pool, fn, n) for n in items]))

    return asyncio.run(collect())


FUTURES = (by_result, by_result_in_time, by_exception, by_wait, by_as_completed, by_executor_map)


def _names(waits: tuple[Callable[..., int], ...]) -> str:
    return "-".join(wait.__name__ for wait in waits)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("options", [{}, {"task_timeout": 60}], ids=["plain", "limited"])
@pytest.mark.parametrize("wait", [*FUTURES, by_gather])
def test_recursion_in_an_executor_of_threads_ends(
    wait: Callable[..., int], options: dict[str, Any], workers: int
) -> None:
    with opened(workers, **options) as pool:

        def fib(n: int) -> int:
            return n if n < 2 else wait(pool, fib, [n - 1, n - 2])

        assert in_time(lambda: fib(7)) == 13


@pytest.mark.parametrize("wait", FUTURES)
def test_a_serial_executor_runs_what_its_tasks_submit_at_once(wait: Callable[..., int]) -> None:
    with opened(1, backend="serial") as pool:

        def fib(n: int) -> int:
            return n if n < 2 else wait(pool, fib, [n - 1, n - 2])

        assert in_time(lambda: fib(6)) == 8


@pytest.mark.parametrize("options", [{}, {"task_timeout": 60}], ids=["plain", "limited"])
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("waits", list(itertools.permutations(FUTURES, 2)), ids=_names)
def test_a_recursion_may_wait_in_turns_for_maps_and_for_futures(
    waits: tuple[Callable[..., int], ...], workers: int, options: dict[str, Any]
) -> None:
    with opened(workers, **options) as pool:

        def fib(n: int) -> int:
            return n if n < 2 else waits[n % 2](pool, fib, [n - 1, n - 2])

        assert in_time(lambda: fib(7)) == 13


def test_two_executors_whose_tasks_wait_for_each_other() -> None:
    with opened(1) as one, opened(1) as other:

        def ping(n: int) -> int:
            return n and 1 + other.submit(pong, n - 1).result()

        def pong(n: int) -> int:
            return n and 1 + one.submit(ping, n - 1).result()

        assert in_time(lambda: one.submit(ping, 9).result()) == 9


def test_a_helper_thread_of_a_task_may_wait_for_its_executor() -> None:
    with opened(1) as pool:

        def task() -> int:
            async def wait() -> int:
                return await asyncio.to_thread(pool.submit(int, "7").result)

            return asyncio.run(wait())

        assert in_time(lambda: pool.submit(task).result()) == 7


def test_an_executor_runs_no_more_tasks_at_once_than_it_has_workers() -> None:
    count = Pairs(DEADLINE_S)
    with opened(2) as pool:
        concurrent.futures.wait([pool.submit(count, n) for n in range(20)])
        list(pool.map(count, range(20), chunksize=1))
    assert count.most == 2


@pytest.mark.parametrize("wait", [by_result, by_executor_map])
def test_a_coroutine_that_would_hold_up_its_own_loop_is_told(wait: Callable[..., int]) -> None:
    with opened(2, backend="asyncio") as pool:

        async def inner(x: int) -> int:
            return x

        async def outer() -> int:
            return wait(pool, inner, [1, 2])

        with pytest.raises(plait.DeadlockError, match=r"asyncio\.wrap_future"):
            in_time(lambda: pool.submit(outer).result())


def test_a_coroutine_may_await_what_it_submits_to_its_own_executor() -> None:
    with opened(2, backend="asyncio") as pool:

        async def inner(x: int) -> int:
            return x

        async def outer() -> Any:
            future: Any = pool.submit(inner, 5)
            return await asyncio.wrap_future(future)

        assert in_time(lambda: pool.submit(outer).result()) == 5
