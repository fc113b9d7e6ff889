"""An executor that is dropped, or idle: its work is finished, and it keeps nothing."""

from __future__ import annotations

import gc
import subprocess
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import wait
from typing import Any

import pytest

import plait
from plait import executor as executor_module
from tests.conftest import Way, children, only

pytestmark = pytest.mark.timeout(60)


def wait_ended() -> None:
    """Wait until the executors that were dropped have let their workers go."""
    for is_over in list(executor_module._ending):
        assert is_over.acquire(timeout=30)
        is_over.release()


@pytest.mark.usefixtures("clean")  # no open file and no process is left
def test_a_dropped_executor_finishes_its_work_and_leaves(way: Way) -> None:
    threads = set(threading.enumerate())
    pool = plait.Executor(2, **way.executor)
    futures = [pool.submit(way.fn(abs), -n) for n in range(20)]
    values = pool.map(way.fn(abs), [-1, -2])
    del pool
    assert [future.result(30) for future in futures] == list(range(20))
    assert list(values) == [1, 2]
    del futures, values
    gc.collect()
    wait_ended()
    for thread in set(threading.enumerate()) - threads:
        if thread.name != "plait-janitor":
            thread.join(30)  # it is at its last line
            assert not thread.is_alive(), thread.name
    wait_ended()  # one of these threads may have been the last to know the executor
    if way.is_process:
        assert len(children()) <= 1  # the server, which is the program's


@pytest.mark.parametrize("backend", ["threads", "serial", "asyncio", "processes"])
@pytest.mark.parametrize("drop", ["pool = None", "pass"])
def test_work_of_an_executor_without_shutdown_is_done_at_exit(
    run_python: Callable[..., subprocess.CompletedProcess[str]], backend: str, drop: str
) -> None:
    a = "async " if backend == "asyncio" else ""
    ended = run_python(
        "-c",
        f"""
import time, plait
{a}def task(n):
    time.sleep(0.05)
    print(f"done {{n}}\\n", end="")
pool = plait.Executor(2, {backend!r})
for n in range(4):
    pool.submit(task, n)
{drop}
""",
    )
    assert sorted(ended.stdout.splitlines()) == [f"done {n}" for n in range(4)]
    assert (ended.stderr, ended.returncode) == ("", 0)


class Thing:
    """What can be referred to weakly, and be pickled."""

    def __call__(self, other: object = None) -> Thing:
        return Thing()


def fail(thing: Thing) -> None:
    raise KeyError(thing)


@only("serial", "threads", "server")
def test_an_idle_executor_keeps_nothing_alive(way: Way) -> None:
    with plait.Executor(2, **way.executor) as pool:
        fn, argument = Thing(), Thing()
        future: Any = pool.submit(fn, argument)
        value = future.result()
        failed: Any = pool.submit(fail, argument)
        wait([failed])
        things = [weakref.ref(thing) for thing in (fn, argument, value, future, failed)]
        del fn, argument, value, future, failed
        until = time.monotonic() + 30
        while any(thing() for thing in things) and time.monotonic() < until:
            wait([pool.submit(abs, 1)])  # the other worker may be at its last line
            gc.collect()
        assert [thing() for thing in things] == [None] * 5


@only("serial", "threads", "server")
def test_the_iterator_of_a_map_does_not_keep_the_last_value(way: Way) -> None:
    with plait.Executor(1, **way.executor) as pool:
        values = pool.map(Thing(), [1, 2, 3])
        for thread in list(pool._maps):
            thread.join(30)
        for _ in range(3):
            value = weakref.ref(next(values))
            gc.collect()
            assert value() is None


def test_a_task_of_a_map_that_was_given_up_never_starts() -> None:
    begun, release = threading.Event(), threading.Event()
    started = []

    def task(n: int) -> int:
        started.append(n)
        if n:
            begun.set()
            release.wait(30)
        return n

    with plait.Executor(1) as pool:
        values: Any = pool.map(task, range(9), chunksize=1)
        assert next(values) == 0
        assert begun.wait(30)
        values.close()
        release.set()
    assert started == [0, 1]


@only("threads", "server")
def test_a_callback_that_raises_anything_ends_no_worker(way: Way) -> None:
    gate = threading.Event()

    def callback(future: Any) -> None:
        raise SystemExit("odd")

    with plait.Executor(1, **way.executor) as pool:
        for _ in range(3):
            begin = plait.shared.Event()
            future: Any = pool.submit(begin.wait)
            future.add_done_callback(callback)
            future.add_done_callback(lambda _: gate.set())
            begin.set()
            assert gate.wait(30)
            gate.clear()
        assert pool.submit(abs, -2).result(30) == 2


# --- Runs ----------------------------------------------------------------------------------


# In programs of their own, which end also where the collector hangs.
IN_ITS_OWN_TASK = """
import gc, os, threading, plait
gc.disable()
begun, dropped, collected = threading.Event(), threading.Event(), threading.Event()

def task(n):
    if n:
        begun.set()
        dropped.wait(30)
        gc.collect()
        collected.set()
    return n

circle = [iter(plait.{make}(task, range(2), backend="threads", max_workers=2, chunksize=1))]
circle.append(circle)
next(circle[0])
assert begun.wait(30)
del circle
dropped.set()
print(collected.wait(10), flush=True)
os._exit(0)
"""

WITH_A_LOCK = """
import gc, os, threading, plait
gc.disable()
begun, over, lock = threading.Event(), threading.Event(), threading.Lock()

def task(n):
    if n:
        begun.set()
        with lock:
            over.set()
    return n

def collect():
    circle = [iter(plait.{make}(task, range(2), backend="threads", max_workers=2, chunksize=1))]
    circle.append(circle)
    with lock:
        next(circle[0])
        assert begun.wait(30)
        del circle
        gc.collect()

threading.Thread(target=collect, daemon=True).start()
print(over.wait(10), flush=True)
os._exit(0)
"""

LEFT = """
import gc, os, threading, plait
gc.disable()
begun, release, started = threading.Event(), threading.Event(), []

def task(n):
    started.append(n)
    if n:
        begun.set()
        release.wait(30)
    return n

options = dict(backend="threads", max_workers=2, initializer=int)  # a pool of its own
circle = [iter(plait.{make}(task, range(9), chunksize=1, **options))]
circle.append(circle)
next(circle[0])
assert begun.wait(30)
del circle
threading.Timer(10, os._exit, (1,)).start()
gc.collect()
release.set()
for thread in threading.enumerate():
    if thread.name.startswith(("plait-thread", "plait-ending")):
        thread.join()
print(len(started) < 9, flush=True)
os._exit(0)
"""


@pytest.mark.parametrize("make", ["imap", "run"])
@pytest.mark.parametrize(
    "program", [IN_ITS_OWN_TASK, WITH_A_LOCK, LEFT], ids=["in its task", "with a lock", "left"]
)
def test_the_garbage_collector_does_not_wait_for_the_tasks_of_a_run(
    run_python: Callable[..., subprocess.CompletedProcess[str]], program: str, make: str
) -> None:
    ended = run_python("-c", program.replace("{make}", make))
    assert (ended.stdout, ended.stderr, ended.returncode) == ("True\n", "", 0)


def test_a_shutdown_waits_for_a_map_that_is_being_started(monkeypatch: pytest.MonkeyPatch) -> None:
    errors: list[BaseException] = []

    def shut_down() -> None:
        try:
            pool.shutdown()
        except BaseException as error:
            errors.append(error)

    class SlowStart(threading.Thread):
        def start(self) -> None:
            if self.name == "plait-executor-map":
                other.start()
                other.join(0.2)  # it is to wait for us
            super().start()

    pool = plait.Executor(1)
    other = threading.Thread(target=shut_down)
    monkeypatch.setattr(threading, "Thread", SlowStart)
    assert list(pool.map(abs, [-1, -2])) == [1, 2]
    other.join(30)
    assert errors == []
