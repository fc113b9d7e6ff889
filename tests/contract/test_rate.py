"""So many tasks start in a time, and no more, on every kind of worker."""

from __future__ import annotations

import asyncio
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import plait
from tests.conftest import Way

RATE = "50/s"
APART_S = 0.02
COUNT = 15


def note_start(_: object) -> float:
    """Return when it starts: the clock is the same in all processes."""
    return time.monotonic()


def nap_from_start(seconds: float) -> float:
    started = time.monotonic()
    time.sleep(seconds)
    return started


def check(starts: list[float], count: int = COUNT) -> None:
    """Check that starts are apart; but the first one may come late on a busy machine."""
    starts = sorted(starts)
    assert len(starts) == count
    assert starts[-1] - starts[0] >= (count - 2) * APART_S * 0.9
    close = sum(second - first < APART_S / 4 for first, second in pairwise(starts))
    assert close <= count // 3


def test_a_map_starts_its_tasks_apart(way: Way) -> None:
    check(plait.map(way.fn(note_start), range(COUNT), rate=RATE, **way.options))


def test_tasks_that_take_longer_start_apart_and_run_at_once(way: Way) -> None:
    if way.name == "serial":
        return
    items = [2 * APART_S] * COUNT
    run = plait.run(
        way.fn(nap_from_start), items, rate=RATE, max_workers=4, on_error="raise", **way.options
    )
    check([outcome.value for outcome in run])


@pytest.mark.parametrize("take", ["imap", "starmap", "amap", "run", "map"])
def test_every_call_knows_it(take: str) -> None:
    options: dict[str, Any] = {"rate": RATE, "backend": "threads"}
    if take == "imap":
        check(list(plait.imap(note_start, iter(range(COUNT)), **options)))
    elif take == "starmap":
        check(plait.starmap(note_start, ((n,) for n in range(COUNT)), **options))
    elif take == "amap":
        check(asyncio.run(plait.amap(note_start, range(COUNT), **options)))
    elif take == "run":
        check([outcome.value for outcome in plait.run(note_start, range(COUNT), **options)])
    else:
        check(plait.map(note_start, range(COUNT), **options))


@pytest.mark.parametrize("fn", [note_start, nap_from_start])
def test_auto_keeps_it_too(fn: Any) -> None:
    run = plait.run(fn, [2 * APART_S] * COUNT, rate=RATE, on_error="raise")
    check([outcome.value for outcome in run])


def test_further_tries_are_starts(way: Way, tmp_path: Path) -> None:
    def task(n: int) -> float:
        started = time.monotonic()
        path = tmp_path / str(n)
        with path.open("a") as file:
            file.write(f"{started}\n")
        if len(path.read_text().splitlines()) < 3:
            raise ConnectionError("busy")
        return started

    count = 5
    plait.map(way.fn(task), range(count), retries=2, backoff=0.0, rate=RATE, **way.options)
    lines = [line for path in tmp_path.iterdir() for line in path.read_text().splitlines()]
    check([float(line) for line in lines], 3 * count)


def test_an_executor_has_one_rate_for_all(way: Way) -> None:
    with plait.Executor(2, rate=RATE, **way.executor) as executor:
        half = COUNT // 2
        futures = [executor.submit(way.fn(note_start), n) for n in range(half)]
        values = executor.map(way.fn(note_start), range(COUNT - half))
        check([future.result() for future in futures] + list(values))


def test_calls_with_an_executor_keep_to_its_rate(way: Way) -> None:
    with plait.Executor(2, rate=RATE, **way.executor) as executor:
        check(plait.map(way.fn(note_start), range(COUNT), executor=executor))
        with pytest.raises(plait.OptionError, match="rate='1/s' is not allowed"):
            plait.map(way.fn(note_start), [1], executor=executor, rate="1/s")


def test_a_task_may_wait_for_tasks_of_its_own_executor() -> None:
    def fib(n: int) -> int:
        if n < 2:
            return n
        return sum(future.result() for future in [executor.submit(fib, n - k) for k in (1, 2)])

    with plait.Executor(2, rate="1000/s") as executor:
        assert executor.submit(fib, 6).result() == 8


def test_what_waits_for_a_worker_does_not_start_together_when_that_is_free() -> None:
    gate = threading.Event()
    with plait.Executor(1, rate=RATE) as executor:
        first = executor.submit(gate.wait)
        futures = [executor.submit(note_start, n) for n in range(6)]
        threading.Timer(8 * APART_S, gate.set).start()
        assert first.result()
        check([future.result() for future in futures], 6)


def test_what_waits_for_its_time_can_be_cancelled_and_never_starts() -> None:
    ran: list[int] = []
    with plait.Executor(2, rate="1/min") as executor:
        first, *others = [executor.submit(ran.append, n) for n in range(5)]
        first.result()
        assert all(future.cancel() for future in others)
    assert ran == [0]
    assert all(future.cancelled() for future in others)


def test_a_shutdown_that_cancels_does_not_wait_for_the_times() -> None:
    executor = plait.Executor(2, rate="1/min")
    futures = [executor.submit(abs, n) for n in range(5)]
    assert futures[0].result() == 0
    executor.shutdown(cancel_futures=True)
    assert all(future.cancelled() for future in futures[1:])
    with pytest.raises(plait.PoolClosed):
        executor.submit(abs, 1)


def test_a_shutdown_finishes_what_waits_for_its_time(way: Way) -> None:
    with plait.Executor(2, rate=RATE, **way.executor) as executor:
        futures = [executor.submit(way.fn(note_start), n) for n in range(5)]
    check([future.result(timeout=0) for future in futures], 5)


def test_an_initializer_that_fails_is_told_to_every_future(process_way: Way) -> None:
    def fail() -> None:
        raise RuntimeError("no")

    with plait.Executor(2, rate=RATE, initializer=fail, **process_way.executor) as executor:
        futures = [executor.submit(note_start, n) for n in range(3)]
        for future in futures:
            assert isinstance(future.exception(), plait.WorkerStartError)


def test_a_call_that_is_over_in_time_stops_waiting_for_the_next_start() -> None:
    with pytest.raises(plait.RunTimeout) as caught:
        plait.map(note_start, range(5), rate="1/min", timeout=0.2)
    assert len(caught.value.plait_run.outcomes) == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("backend", ["threads", "serial", "auto", "processes"])
def test_a_run_that_waits_for_the_next_start_can_be_cancelled(backend: Any) -> None:
    with plait.run(note_start, range(5), rate="1/min", backend=backend) as run:
        assert next(run).ok
    assert run.report.tasks == 1


def test_an_input_that_waits_is_run_as_it_comes() -> None:
    """An item that is not there yet takes nobody's turn."""
    arrived: list[float] = []

    def items() -> Any:
        for n in range(5):
            yield n
            while len(arrived) <= n:  # the reader below has it
                time.sleep(0.001)

    for start in plait.imap(note_start, items(), rate=RATE, backend="threads"):
        arrived.append(start)
    check(arrived, 5)


@pytest.mark.parametrize(
    "rate", ["10", "10/x", "/s", "0/s", "-1/s", "nan/s", "inf/s", 0, -2.0, True, [1], "ten/s"]
)
def test_a_bad_rate_is_an_error_before_any_work(rate: Any) -> None:
    with pytest.raises(plait.OptionError, match="rate must be a text like '10/s'"):
        plait.map(pytest.fail, [1], rate=rate)
    with pytest.raises(plait.OptionError, match="rate must be a text like '10/s'"):
        plait.Executor(rate=rate)


def test_chunks_of_several_tasks_and_a_rate_exclude_each_other() -> None:
    with pytest.raises(plait.OptionError, match=r"chunksize must be 1 or 'auto' with rate='9/s'"):
        plait.map(pytest.fail, [1], rate="9/s", chunksize=4)


@pytest.mark.parametrize("retry_after", [5, "retry-after", "error.seconds", ""])
def test_a_bad_retry_after_is_an_error_before_any_work(retry_after: Any) -> None:
    with pytest.raises(plait.OptionError, match="retry_after must be the name of an attribute"):
        plait.map(pytest.fail, [1], retry_after=retry_after)
