"""What random programs found, each in its smallest form; what is not mended is marked."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

import plait
from plait.inputs import DirectInput
from plait.outcome import Call, Chunk, Finished
from tests.conftest import Way
from tests.properties import uneven
from tests.properties.programs import most_at_once

pytestmark = [pytest.mark.usefixtures("clean"), pytest.mark.timeout(30)]

EXIT_IN_COROUTINE = """
import sys, plait
async def task(n):
    if n == 2:
        sys.exit(3)
    return n
outcomes = list(plait.run(task, range(5), ordered=True, backend="asyncio", task_timeout=60.0))
print([outcome.value for outcome in outcomes], repr(outcomes[2].error))
"""


def test_sys_exit_in_a_coroutine_with_a_limit_of_time_is_its_outcome() -> None:
    done = subprocess.run(
        [sys.executable, "-c", EXIT_IN_COROUTINE],
        capture_output=True,
        text=True,
        timeout=5,
        check=True,
    )
    assert done.stdout == "[0, 1, None, 3, 4] SystemExit(3)\n"


def test_a_task_cancelled_before_its_worker_is_ready_never_runs(
    process_way: Way, tmp_path: Path
) -> None:
    def task() -> None:
        time.sleep(0.3)
        (tmp_path / "ended").touch()

    with plait.Executor(1, **process_way.executor) as executor:
        future = executor.submit(task)
        assert future.cancel()
        assert future.cancelled()
        assert executor.submit(abs, -1).result() == 1
    assert not (tmp_path / "ended").exists()


def test_waiting_for_the_next_try_does_not_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first task waits for its second try, and holds back all that may be read ahead."""
    waits = Counter[str]()
    wait = DirectInput.wait

    def count(self: DirectInput, timeout: float | None = None) -> None:
        waits["all"] += 1
        wait(self, timeout)

    monkeypatch.setattr(DirectInput, "wait", count)
    monkeypatch.setattr(random, "random", lambda: 1.0)
    tries = Counter[int]()

    def task(n: int) -> int:
        tries[n] += 1
        if n == 0 and tries[n] == 1:
            raise ValueError("not yet")
        return n

    values = plait.imap(
        task,
        list(range(30)),
        backend="threads",
        max_workers=2,
        buffersize=4,
        retries=1,
        backoff=(0.5, 1.0, 0.5),
    )
    assert list(values) == list(range(30))
    assert waits["all"] < 100


def test_a_map_raises_the_error_that_ended_it_not_one_that_was_to_be_tried_again() -> None:
    def task(n: int) -> int:
        if n == 0:
            raise KeyError("would be tried again")
        raise ValueError("final")

    with pytest.raises(ValueError, match="final"):
        plait.map(
            task, [0, 1], backend="serial", chunksize=2, retries=3, retry_on=KeyError, backoff=60.0
        )


def test_outcomes_that_were_handed_out_are_not_listed_again() -> None:
    run = plait.run(
        lambda n: n, list(range(20)), backend="threads", chunksize=5, max_workers=1, ordered=True
    )
    assert [next(run).index, next(run).index] == [0, 1]
    run.cancel()
    left = [outcome.index for outcome in run.outcomes]
    assert not {0, 1} & set(left)


def test_a_worker_runs_no_more_tasks_than_it_may(process_way: Way) -> None:
    outcomes = plait.run(
        abs, range(20), chunksize=5, max_workers=1, max_tasks_per_child=2, **process_way.options
    )
    assert max(Counter(outcome.pid for outcome in outcomes).values()) <= 2


AFTER_ABANDONED_THREADS = """
import time, plait
def works():
    return plait.map(abs, [-1, -2, -3], backend="threads", max_workers=1, chunksize=1)
works()
plait.map(
    time.sleep, [5], backend="threads", max_workers=1, task_timeout=0.1, on_error="return"
)
print(works(), flush=True)
"""


def test_a_pool_whose_threads_were_all_abandoned_works() -> None:
    done = subprocess.run(
        [sys.executable, "-c", AFTER_ABANDONED_THREADS],
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
    )
    assert done.stdout == "[1, 2, 3]\n"


def test_a_map_of_coroutines_raises_the_error_that_ended_it() -> None:
    async def task(n: int) -> None:
        if n == 1:
            raise ValueError("the real one")
        await asyncio.sleep(60)

    with pytest.raises(ValueError, match="the real one"):
        plait.map(task, [0, 1])


def test_no_more_workers_work_at_once_than_may(process_way: Way) -> None:
    """A chunk that was brief waits behind another; its worker has run what it may."""

    def task(n: int) -> int:
        time.sleep(0.01)
        return n

    run = plait.run(
        task, range(20), chunksize=1, max_workers=1, max_tasks_per_child=1, **process_way.options
    )
    assert most_at_once(list(run)) == 1


def test_the_server_dies_as_workers_start_and_another_starts_them() -> None:
    has_to_stop = threading.Event()

    def kill_server() -> None:
        me = psutil.Process()
        while not has_to_stop.is_set():
            for server in me.children():
                if len(server.children()) >= 2:  # as many as are started at once
                    server.kill()
                    return

    killer = threading.Thread(target=kill_server)
    killer.start()
    try:
        values = plait.map(
            abs, range(20), backend="processes", start_method="spawn", max_workers=4, chunksize=1
        )
        assert values == list(range(20))
    finally:
        has_to_stop.set()
        killer.join()


def test_a_plan_that_is_left_waits_for_what_runs_also_where_a_try_is_due() -> None:
    """It looked at its workers not once, as the time until the next try was over."""
    tasks = [uneven.Task(0.0003, "nothing") for _ in range(150)]
    tasks[36] = uneven.Task(0.001, "nothing", failures=99)
    for _ in range(5):
        uneven.check(
            uneven.Call(
                "map",
                "range",
                tuple(tasks),
                {"buffersize": 50, "retries": 1, "backoff": 0.0},
                is_plain=False,
                changes=((0, "processes"), (3, "serial")),
                helped=(5, "processes"),
            )
        )


def test_an_error_that_would_be_tried_again_is_not_the_one_that_is_raised() -> None:
    """The first task failed once, after the second had failed for good: a loop raises that."""
    has_failed = threading.Event()

    def task(n: int) -> int:
        if n == 0:
            assert has_failed.wait(20)
            time.sleep(0.01)
            raise OSError(0)
        has_failed.set()
        raise LookupError(n)

    with pytest.raises(LookupError):
        plait.map(
            task,
            range(2),
            backend="threads",
            max_workers=2,
            retries=1,
            backoff=0.0,
            retry_on=OSError,
            chunksize=1,
        )


def test_a_wait_that_is_over_at_once_looks_at_what_is_there(process_way: Way) -> None:
    with plait.Executor(1, **process_way.executor) as executor:
        lane = executor._backend.open_lane(Call(abs))
        try:
            lane.submit(Chunk(0, [-3]))
            finished: list[Finished] = []
            while not finished:
                finished = lane.wait_outcomes(0.0)
            assert finished[0].values == [3]
        finally:
            lane.close()
