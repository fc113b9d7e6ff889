"""plait.Executor keeps the promises of concurrent.futures, on every kind of worker."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import itertools
import os
import select
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import plait
from plait import executor as executor_module
from tests.conftest import Way, only

DEADLINE_S = 8.0  # by then a thing has happened that nothing holds up


def executor(way: Way, max_workers: int = 2) -> plait.Executor:
    return plait.Executor(max_workers, **way.executor)


@contextmanager
def opened(way: Way, max_workers: int = 2, **options: Any) -> Iterator[plait.Executor]:
    """Open an executor that must end in time; one that does not would hang all tests at exit."""
    pool = plait.Executor(max_workers, **way.executor, **options)
    try:
        yield pool
    finally:
        closing = threading.Thread(target=pool.shutdown, daemon=True)
        closing.start()
        closing.join(DEADLINE_S)
        if closing.is_alive():
            executor_module._open.discard(pool)
            raise AssertionError("the executor does not end")


class InThread(threading.Thread):
    """A call in a thread of its own, that has to end in time."""

    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._call = call
        self._value: Any = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._value = self._call()
        except BaseException as error:
            self._error = error

    def value(self) -> Any:
        self.join(DEADLINE_S)
        assert not self.is_alive(), "it still waits"
        if self._error is not None:
            raise self._error
        return self._value


class Gates:
    """Tasks that end when they are let through, on every kind of worker, and tell who began."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._begun = folder / "begun"
        os.mkfifo(self._begun)
        self._reader = os.open(self._begun, os.O_RDWR)
        self._fds: dict[Any, int] = {}

    def task(self, name: Any) -> Callable[[], Any]:
        """Return a task that says that it begins, and waits until ``open(name)``."""
        path, begun = self._folder / f"gate-{name}", self._begun
        os.mkfifo(path)
        self._fds[name] = os.open(path, os.O_RDWR)

        def wait() -> Any:
            with begun.open("w") as file:
                file.write("!")
            with path.open() as file:
                file.read(1)
            return name

        return wait

    def coroutine(self, name: Any) -> Callable[[], Any]:
        """Return the same as a coroutine function, but it only ends if it is cancelled."""
        begun = self._begun

        async def wait() -> Any:
            with begun.open("w") as file:
                file.write("!")
            await asyncio.Event().wait()
            return name

        return wait

    def await_begun(self, count: int = 1) -> None:
        """Block until so many more tasks have begun."""
        for _ in range(count):
            assert select.select([self._reader], [], [], DEADLINE_S)[0], "no task begins"
            os.read(self._reader, 1)

    def open(self, name: Any) -> None:
        os.write(self._fds[name], b"!")

    def close(self) -> None:
        for name, fd in self._fds.items():
            self.open(name)  # else a task that a failed test left would wait for ever
            os.close(fd)
        os.close(self._reader)


@pytest.fixture
def gates(tmp_path: Path) -> Iterator[Gates]:
    made = Gates(tmp_path)
    yield made
    made.close()


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


# --- Waiting, and being called back --------------------------------------------------------


@only("threads", "server", "spawn")
def test_threads_that_wait_at_once_all_get_theirs(way: Way, gates: Gates) -> None:
    orders = [(0, 1, 2, 3, 4), (4, 3, 2, 1, 0), (2, 0, 4, 1, 3)]
    with opened(way, 5) as pool:
        for number, order in enumerate(orders):
            futures = [pool.submit(gates.task((number, n))) for n in range(5)]
            waiting = [InThread(future.result) for future in futures]
            gates.await_begun(5)
            for n in order:
                gates.open((number, n))
                assert waiting[n].value() == (number, n)


def test_threads_that_submit_and_wait_all_get_theirs(way: Way) -> None:
    called: list[int] = []

    def work(n: int) -> list[int]:
        values = []
        for turn in range(25):
            futures = [pool.submit(way.fn(pow), n, power) for power in range(turn % 4 + 1)]
            if turn % 3:
                futures[0].add_done_callback(lambda _: called.append(n))
            if turn % 5:  # else nobody waits for all but the last
                values += [future.result() for future in futures]
            else:
                values.append(futures[-1].result())
        return values

    expected = {
        n: [
            n**power
            for turn in range(25)
            for power in (range(turn % 4 + 1) if turn % 5 else [turn % 4])
        ]
        for n in range(8)
    }
    with opened(way, 2) as pool:
        threads = {n: InThread(lambda n=n: work(n)) for n in range(8)}  # type: ignore[misc]
        assert {n: thread.value() for n, thread in threads.items()} == expected
    assert sorted(called) == sorted(list(range(8)) * 16)


@only("threads", "server", "spawn")
def test_wait_and_as_completed_hear_of_each_future(way: Way, gates: Gates) -> None:
    with opened(way, 3) as pool:
        futures = {n: pool.submit(gates.task(n)) for n in range(3)}
        everything = InThread(lambda: concurrent.futures.wait(futures.values()))
        first = InThread(
            lambda: concurrent.futures.wait(futures.values(), return_when="FIRST_COMPLETED")
        )
        completed = concurrent.futures.as_completed(futures.values())
        gates.await_begun(3)
        assert not concurrent.futures.wait(futures.values(), timeout=0).done
        for n in (1, 2, 0):
            gates.open(n)
            assert InThread(lambda: next(completed)).value() is futures[n]
            if n == 1:
                assert first.value().done == {futures[1]}
        assert everything.value().done == set(futures.values())
        assert list(completed) == []


def test_a_callback_comes_though_nobody_waits(way: Way) -> None:
    called = threading.Event()
    heard: list[Future[int]] = []

    def note(future: Future[int]) -> None:
        heard.append(future)
        called.set()

    with opened(way) as pool:
        future = pool.submit(way.fn(pow), 2, 10)
        future.add_done_callback(note)
        assert called.wait(DEADLINE_S)
        assert heard == [future]
        assert future.result() == 1024
        future.add_done_callback(note)  # at once, as it is over
        assert heard == [future, future]


def test_a_callback_may_submit(way: Way) -> None:
    values: list[int] = []
    is_over = threading.Event()

    def go_on(future: Future[int]) -> None:
        values.append(future.result())
        if len(values) == 20:
            is_over.set()
        else:
            pool.submit(way.fn(abs), -len(values)).add_done_callback(go_on)

    with opened(way) as pool:
        pool.submit(way.fn(abs), 0).add_done_callback(go_on)
        assert is_over.wait(DEADLINE_S)
    assert values == list(range(20))


@only("threads", "server", "spawn")
def test_a_callback_may_wait_for_another_future(way: Way, gates: Gates) -> None:
    called = threading.Event()
    values: list[Any] = []
    with opened(way, 2) as pool:
        first, second = pool.submit(gates.task(1)), pool.submit(gates.task(2))

        def wait_for_second(_: object) -> None:
            gates.open(2)
            values.append(second.result())
            called.set()

        first.add_done_callback(wait_for_second)
        gates.open(1)
        assert called.wait(DEADLINE_S)
        assert values == [2]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_callback_that_raises_harms_nobody(way: Way, caplog: pytest.LogCaptureFixture) -> None:
    def fail(future: Future[int]) -> None:
        raise LookupError("in a callback")

    with opened(way) as pool:
        futures = [pool.submit(way.fn(pow), n, 2) for n in range(10)]
        for future in futures:
            future.add_done_callback(fail)
        assert [future.result() for future in futures] == [n * n for n in range(10)]
    assert "in a callback" in caplog.text


def test_what_was_submitted_runs_to_the_end_though_nobody_waits(way: Way, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDWR)

    def write(n: int) -> None:
        with fifo.open("w") as file:
            file.write(f"{n}\n")

    with opened(way, 1) as pool:
        for n in range(40):
            pool.submit(way.fn(write), n)
        text = ""
        while text.count("\n") < 40:
            assert select.select([reader], [], [], DEADLINE_S)[0], text
            text += os.read(reader, 1000).decode()
    os.close(reader)
    assert sorted(map(int, text.split())) == list(range(40))


@only("threads", "server", "spawn")
def test_waiting_may_end_before_the_task_does(way: Way, gates: Gates) -> None:
    with opened(way, 1) as pool:
        running, waiting = pool.submit(gates.task(1)), pool.submit(pow, 2, 2)
        gates.await_begun()
        for timeout in (0, 0.03):
            for future in (running, waiting):
                with pytest.raises(TimeoutError):
                    future.result(timeout=timeout)
                with pytest.raises(TimeoutError):
                    future.exception(timeout=timeout)
                assert not future.done()
        gates.open(1)
        assert running.result(timeout=DEADLINE_S) == 1
        assert waiting.exception(timeout=DEADLINE_S) is None
        assert waiting.result(timeout=0) == 4


def test_who_only_asks_now_and_then_gets_the_result_too(way: Way) -> None:
    def ask() -> list[int]:
        values: list[int] = []
        while len(values) < len(futures):
            with contextlib.suppress(TimeoutError):
                values.append(futures[len(values)].result(timeout=0))
        return values

    with opened(way) as pool:
        futures = [pool.submit(way.fn(pow), n, 2) for n in range(20)]
        assert InThread(ask).value() == [n * n for n in range(20)]


@only("threads", "server", "spawn")
def test_who_waits_for_a_cancelled_future_is_told_at_once(way: Way, gates: Gates) -> None:
    with opened(way, 1) as pool:
        running = pool.submit(gates.task(1))
        gates.await_begun()
        for _ in range(10):
            waiting = pool.submit(pow, 2, 2)
            looked = note_looks(waiting)
            waiter = InThread(waiting.result)
            looked(2 if way.is_process else 1)
            assert waiting.cancel()
            with pytest.raises(CancelledError):
                waiter.value()
        assert not running.done()
        gates.open(1)
        assert running.result() == 1


def note_looks(future: Any) -> Callable[[int], None]:
    """Return a function that blocks until it was asked so often whether a future is done.

    A thread in ``result`` asks once as it comes and, where it drives, again before it sleeps.
    """
    asked = threading.Semaphore(0)
    is_done = future.done

    def done() -> Any:
        answer = is_done()
        asked.release()
        return answer

    future.done = done

    def wait(count: int) -> None:
        for _ in range(count):
            assert asked.acquire(timeout=DEADLINE_S)

    return wait


@only("server", "spawn")
def test_who_waits_for_a_running_task_is_told_when_it_is_cancelled(way: Way, gates: Gates) -> None:
    for number in range(3):
        names = [(number, n) for n in range(3)]
        with opened(way, 3) as pool:
            futures = [pool.submit(gates.task(name)) for name in names]
            gates.await_begun(3)
            waiters = [InThread(future.result) for future in futures]
            assert futures[number].cancel()
            with pytest.raises(CancelledError):
                waiters[number].value()
            for n in {0, 1, 2} - {number}:
                gates.open(names[n])
                assert waiters[n].value() == names[n]


@only("asyncio", "server", "spawn")
def test_a_task_that_was_ended_is_cancelled_also_if_its_end_is_heard_first(
    way: Way, gates: Gates, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = gates.coroutine if way.name == "asyncio" else gates.task
    with opened(way, 1) as pool:
        running, next_one = pool.submit(task(1)), pool.submit(task(2))
        gates.await_begun()
        lane = pool._desk._lane  # type: ignore[attr-defined]
        cancel = lane.cancel

        def cancel_and_be_slow(first: int) -> bool:
            was_ended: bool = cancel(first)
            gates.await_begun()  # the next one has its place: so everything was heard
            return was_ended

        monkeypatch.setattr(lane, "cancel", cancel_and_be_slow)
        assert running.cancel()
        assert running.cancelled()
        with pytest.raises(CancelledError):
            running.result(timeout=0)
        monkeypatch.undo()
        assert next_one.cancel()


@only("threads", "server", "spawn")
def test_futures_can_be_awaited(way: Way, gates: Gates) -> None:
    async def main() -> list[Any]:
        loop = asyncio.get_running_loop()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(loop.run_in_executor(pool, gates.task("closed")), 0.03)
        gates.open("closed")
        futures = [asyncio.wrap_future(pool.submit(pow, n, 2)) for n in range(10)]
        calls = [loop.run_in_executor(pool, pow, n, 3) for n in range(10)]
        return await asyncio.wait_for(asyncio.gather(*futures, *calls), DEADLINE_S)

    with opened(way, 2) as pool:
        assert asyncio.run(main()) == [n**2 for n in range(10)] + [n**3 for n in range(10)]


# --- The end of an executor ----------------------------------------------------------------


@only("threads", "server", "spawn")
def test_an_executor_ends_though_another_thread_waits_for_a_future(way: Way, gates: Gates) -> None:
    with opened(way, 1) as pool:
        future = pool.submit(gates.task(1))
        gates.await_begun()
        looked = note_looks(future)
        waiter = InThread(future.result)
        looked(2 if way.is_process else 1)
        closing = InThread(pool.shutdown)
        gates.open(1)
        assert waiter.value() == 1
        closing.value()


@only("threads", "server", "spawn")
def test_what_has_not_begun_can_be_cancelled_at_the_end(way: Way, gates: Gates) -> None:
    with opened(way, 1) as pool:
        running = pool.submit(gates.task(1))
        gates.await_begun()
        waiting = [pool.submit(pow, n, 2) for n in range(10)]
        waiters = [InThread(future.result) for future in waiting]
        pool.shutdown(wait=False, cancel_futures=True)
        for waiter in waiters:
            with pytest.raises(CancelledError):
                waiter.value()
        assert not running.done()
        gates.open(1)
        assert running.result(timeout=DEADLINE_S) == 1


@only("threads", "server", "spawn")
def test_who_is_called_back_at_the_end_may_use_the_executor(way: Way, gates: Gates) -> None:
    heard: list[Any] = []
    with opened(way, 1) as pool:
        running = pool.submit(gates.task(1))
        gates.await_begun()
        waiting = pool.submit(pow, 2, 2)

        def use(future: Future[int]) -> None:
            heard.append(future.cancelled())
            running.add_done_callback(lambda _: heard.append("done"))
            with pytest.raises(plait.PoolClosed):
                pool.submit(pow, 2, 2)

        waiting.add_done_callback(use)
        closing = InThread(lambda: pool.shutdown(wait=False, cancel_futures=True))
        closing.value()
        gates.open(1)
        assert running.result(timeout=DEADLINE_S) == 1
    assert heard == [True, "done"]


class Unpicklable:
    """Cannot be packed, in one way or another."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __reduce__(self) -> Any:
        raise self._error


@only("server", "spawn")
def test_an_argument_that_cannot_be_packed_fails_its_future_alone(way: Way) -> None:
    released = memoryview(bytes(300_000))
    released.release()
    odd = [Unpicklable(ValueError("no")), Unpicklable(RecursionError()), released]
    with opened(way, 2) as pool:
        for argument in odd:
            futures = [pool.submit(abs, -1), pool.submit(id, argument), pool.submit(abs, -2)]
            assert futures[0].result(timeout=DEADLINE_S) == 1
            assert isinstance(futures[1].exception(timeout=DEADLINE_S), plait.NotPicklable)
            assert futures[2].result(timeout=DEADLINE_S) == 2


def test_idle_threads_use_no_time(way: Way) -> None:
    with opened(way) as pool:
        counts = []
        for _ in range(3):
            futures = [pool.submit(way.fn(pow), n, 2) for n in range(20)]
            assert [future.result() for future in futures] == [n * n for n in range(20)]
            list(pool.map(way.fn(abs), range(10)))
            counts.append({thread.name for thread in threading.enumerate()})
        assert counts[1] - {"plait-executor-map"} == counts[2] - {"plait-executor-map"}
        before = time.process_time()
        threading.Event().wait(0.3)  # the one thing here that takes its time
        assert time.process_time() - before < 0.03


@only("threads")
def test_the_thread_that_ran_a_task_resolves_its_future(way: Way, gates: Gates) -> None:
    callers: list[Any] = []
    with opened(way, 1) as pool:
        gate = pool.submit(gates.task(1))
        future = pool.submit(threading.get_ident)
        future.add_done_callback(lambda _: callers.append(threading.get_ident()))
        gates.open(1)
        assert gate.result() == 1
        assert future.result() != threading.get_ident()
    assert callers == [future.result()]
