"""plait.Executor keeps the promises of concurrent.futures, on every kind of worker."""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import plait
from tests.conftest import Way, only


def executor(way: Way, max_workers: int = 2) -> plait.Executor:
    return plait.Executor(max_workers, **way.executor)


def test_submit_returns_a_future(way: Way) -> None:
    with executor(way) as pool:
        future = pool.submit(way.fn(pow), 2, 10)
        assert isinstance(future, concurrent.futures.Future)
        assert future.result() == 1024


def test_keywords_arrive(way: Way) -> None:
    with executor(way) as pool:
        assert pool.submit(way.fn(int), "ff", base=16).result() == 255


def test_the_error_comes_from_result(way: Way) -> None:
    with executor(way) as pool:
        future = pool.submit(way.fn(int), "x")
        with pytest.raises(ValueError, match="invalid literal"):
            future.result()
        assert isinstance(future.exception(), ValueError)


def test_many_futures_complete(way: Way) -> None:
    with executor(way) as pool:
        futures = [pool.submit(way.fn(pow), n, 2) for n in range(200)]
        done = list(concurrent.futures.as_completed(futures))
    assert sorted(future.result() for future in done) == [n * n for n in range(200)]


def test_submit_from_several_threads(way: Way) -> None:
    results: dict[int, list[int]] = {}
    with executor(way) as pool:

        def work(n: int) -> None:
            futures = [pool.submit(way.fn(pow), n, 2) for _ in range(50)]
            results[n] = [future.result() for future in futures]

        threads = [threading.Thread(target=work, args=(n,)) for n in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == {n: [n * n] * 50 for n in range(5)}


def test_map_is_in_order_and_lazy_to_read(way: Way) -> None:
    with executor(way) as pool:
        assert list(pool.map(way.fn(pow), range(50), itertools.repeat(2))) == [
            n * n for n in range(50)
        ]


def test_map_runs_although_nobody_reads_it(way: Way, tmp_path: Path) -> None:
    def touch(name: str) -> None:
        (tmp_path / name).touch()

    with executor(way) as pool:
        pool.map(way.fn(touch), "abcdef")
    assert sorted(path.name for path in tmp_path.iterdir()) == list("abcdef")


def test_map_raises_in_its_place(way: Way) -> None:
    with executor(way) as pool:
        values = pool.map(way.fn(int), ["1", "2", "x", "4"])
        assert [next(values), next(values)] == [1, 2]
        with pytest.raises(ValueError, match="invalid literal"):
            next(values)


@only("threads", "server", "spawn")
def test_a_waiting_task_can_be_cancelled(way: Way, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    with executor(way, 1) as pool:
        first = pool.submit(gate.read_text)
        last = pool.submit(pow, 2, 2)
        assert last.cancel()
        gate.write_text("open")
        assert first.result() == "open"
    assert last.cancelled()


def test_after_shutdown_nothing_is_taken(way: Way) -> None:
    pool = executor(way)
    future = pool.submit(way.fn(pow), 2, 2)
    pool.shutdown()
    assert future.result() == 4
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(way.fn(pow), 2, 2)
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.map(way.fn(pow), [1], [2])
    pool.shutdown()


def test_shutdown_without_waiting_still_finishes(way: Way) -> None:
    pool = executor(way)
    futures = [pool.submit(way.fn(pow), n, 2) for n in range(20)]
    pool.shutdown(wait=False)
    assert [future.result() for future in futures] == [n * n for n in range(20)]
    pool.shutdown()


@only("serial", "threads", "server", "spawn")
def test_from_an_asyncio_program(way: Way) -> None:
    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        with executor(way) as pool:
            calls = [loop.run_in_executor(pool, pow, n, 2) for n in range(10)]
            return await asyncio.gather(*calls)

    assert asyncio.run(main()) == [n * n for n in range(10)]


def test_nothing_is_left(way: Way, clean: None) -> None:
    with executor(way) as pool:
        assert pool.submit(way.fn(pow), 2, 3).result() == 8


def test_an_executor_cannot_choose() -> None:
    with pytest.raises(plait.OptionError, match="only map"):
        plait.Executor(backend="auto")  # type: ignore[arg-type]


@only("threads", "asyncio", "server", "spawn")
def test_a_failing_initializer_fails_every_future(way: Way) -> None:
    def prepare() -> None:
        raise LookupError("no licence")

    with plait.Executor(2, initializer=prepare, **way.executor) as pool:
        futures = [pool.submit(way.fn(pow), n, 2) for n in range(5)]
        for future in futures:
            with pytest.raises(plait.WorkerStartError, match="no licence"):
                future.result()


def test_limits_hold_for_what_is_submitted(way: Way) -> None:
    gate = threading.Event()

    def hang(x: int) -> int:
        if x == 1:
            gate.wait()
        return x

    def sleep(x: int) -> int:
        if x == 1:
            time.sleep(60)
        return x

    async def hang_async(x: int) -> int:
        if x == 1:
            await asyncio.sleep(60)
        return x

    fn: Callable[[int], Any] = hang_async if way.name == "asyncio" else hang
    if way.is_process:
        fn = sleep
    with plait.Executor(2, task_timeout=0.2, **way.executor) as pool:
        futures = [pool.submit(fn, x) for x in range(4)]
        assert isinstance(futures[1].exception(), plait.TaskTimeout)
        assert [future.result() for future in futures if future is not futures[1]] == [0, 2, 3]
        with pytest.raises(plait.TaskTimeout):
            list(pool.map(fn, range(4)))
        gate.set()


def test_workers_of_an_executor_are_replaced_after_so_many_tasks(process_way: Way) -> None:
    with plait.Executor(1, max_tasks_per_child=2, **process_way.executor) as pool:
        pids = [pool.submit(os.getpid).result() for _ in range(6)]
    assert len(set(pids)) == 3


def test_errors_name_what_was_submitted(process_way: Way) -> None:
    def die(_: int, *, hard: bool) -> None:
        os._exit(3 if hard else 4)

    with plait.Executor(1, **process_way.executor) as pool:
        error = pool.submit(die, 7, hard=True).exception()
    assert isinstance(error, plait.WorkerDied)
    assert "task 0, die(7, hard=True), attempt 1" in str(error)
