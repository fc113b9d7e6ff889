"""What a task may do to its worker and to the world without harming the others."""

from __future__ import annotations

import contextvars
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import plait
from plait.blas import VARIABLES
from tests.conftest import Way, double, only, wait_gone

VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="unset")


# --- Context variables ---------------------------------------------------------------------


def test_context_variables_are_carried_to_every_worker(way: Way) -> None:
    contextvars.copy_context().run(check_context_variables, way)


def check_context_variables(way: Way) -> None:
    def task(_: int) -> str:
        seen = VARIABLE.get()
        VARIABLE.set("of a task")
        return seen

    given = {"max_workers": 2, "chunksize": 1, **way.options}
    assert set(plait.map(way.fn(task), range(6), **given)) <= {"unset", "of a task"}
    token = VARIABLE.set("of the caller")
    seen = set(plait.map(way.fn(task), range(6), **given))
    assert seen == {"of the caller"} if way.name != "serial" else "of the caller" in seen
    VARIABLE.reset(token)
    if way.name != "serial":  # which is the plain loop
        assert set(plait.map(way.fn(task), range(6), **given)) == {"unset"}
        assert VARIABLE.get() == "unset"


MAIN = """
import contextvars, sys, plait
variable = contextvars.ContextVar("variable", default=1)
other = contextvars.ContextVar("other")
def task(_):
    return variable.get(), other.get("none")
options = dict(backend="processes", start_method=sys.argv[1], max_workers=1)
print(plait.map(task, [0], **options))
variable.set(2)
other.set("some")
print(plait.map(task, [0], **options))
print(plait.map(lambda x: x, [variable], **options)[0] is variable)
"""


def test_variables_of_the_main_module_travel_too(process_way: Way, run_python: Any) -> None:
    done = run_python("-c", MAIN, process_way.name)
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["[(1, 'none')]", "[(2, 'some')]", "True"]


@only("threads", "serial")
def test_an_executor_runs_each_task_in_the_context_of_its_submit(way: Way) -> None:
    with plait.Executor(max_workers=1, **way.executor) as executor:
        futures = []
        for name in ("a", "b"):
            token = VARIABLE.set(name)
            futures.append(executor.submit(VARIABLE.get))
            VARIABLE.reset(token)
        assert [future.result() for future in futures] == ["a", "b"]


# --- Threads inside numpy ------------------------------------------------------------------


def test_threads_inside_numpy_are_limited_in_worker_processes(process_way: Way) -> None:
    def limits(_: int) -> tuple[list[str], list[int]]:
        import numpy as np
        from threadpoolctl import threadpool_info

        np.ones(1)
        named = [os.environ[name] for name in VARIABLES]
        return named, [library["num_threads"] for library in threadpool_info()]

    ((named, threads),) = plait.map(limits, [0], max_workers=64, **process_way.options)
    assert set(named) == {"1"}
    assert threads
    assert set(threads) == {1}


def test_the_users_own_limit_stays(process_way: Way, run_python: Any) -> None:
    code = (
        "import os, sys, plait; print(plait.map(lambda _: os.environ['OMP_NUM_THREADS'], [0], "
        "backend='processes', start_method=sys.argv[1], max_workers=64))"
    )
    done = run_python("-c", code, process_way.name, OMP_NUM_THREADS="3")
    assert done.stdout == "['3']\n"


def test_threads_inside_numpy_are_limited_while_threads_work() -> None:
    import numpy as np
    from threadpoolctl import threadpool_info

    def limits(_: int) -> list[int]:
        return [library["num_threads"] for library in threadpool_info()]

    np.ones(1)
    before = limits(0)
    assert before
    assert plait.map(limits, range(2), backend="threads", max_workers=64) == [[1]] * 2
    assert limits(0) == before


# --- What a task does to its process -------------------------------------------------------


@pytest.mark.usefixtures("clean")
def test_a_task_that_forks_and_returns_twice(process_way: Way) -> None:
    def task(x: int) -> int:
        if x == 3:
            os.fork()
        return 2 * x

    given = {"max_workers": 2, "chunksize": 3, **process_way.options}
    assert plait.map(task, range(12), **given) == [2 * x for x in range(12)]
    assert plait.map(task, [3] * 12, **given) == [6] * 12


@pytest.mark.usefixtures("clean")
def test_a_fork_that_raises_logs_and_prints_harms_nobody(
    process_way: Way, capfd: pytest.CaptureFixture[str]
) -> None:
    def task(x: int) -> int:
        import logging

        pid = os.fork()
        if pid == 0:
            logging.getLogger().error("from the copy")
            raise ValueError("in the copy")
        os.waitpid(pid, 0)
        return x

    assert plait.map(task, range(6), max_workers=2, **process_way.options) == list(range(6))
    assert "from the copy" in capfd.readouterr().err


@pytest.mark.usefixtures("clean")
def test_threads_and_processes_that_a_task_leaves_hold_up_nothing(process_way: Way) -> None:
    def task(x: int) -> int:
        threading.Thread(target=time.sleep, args=(600,)).start()
        return subprocess.Popen(["sleep", "600"], start_new_session=x % 2 == 0).pid

    pids = set(plait.map(task, range(4), max_workers=2, **process_way.options))
    assert plait.map(double, range(4), max_workers=2, **process_way.options) == [0, 2, 4, 6]
    from tests.conftest import close_all

    close_all()
    assert not wait_gone(pids)


@pytest.mark.usefixtures("clean")
def test_children_of_a_living_worker_live_on_when_another_dies(
    process_way: Way, tmp_path: Path
) -> None:
    """The orphans of both are children of the server, which must tell whose they are."""

    def start(_: int) -> tuple[int, int]:
        code = (
            "import os, time; os.fork() and os._exit(0); os.setsid(); "
            "print(os.getpid(), flush=True); time.sleep(600)"
        )
        command = [sys.executable, "-c", code]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            daemon = int(child.stdout.readline())
        time.sleep(0.05)  # so that each of the two workers gets one
        return os.getpid(), daemon

    given = {"max_workers": 2, "chunksize": 1, **process_way.options}
    born = dict(plait.map(start, range(2), **given))
    assert len(born) == 2
    (victim, its_daemon), (_, other_daemon) = born.items()
    os.kill(victim, signal.SIGKILL)
    assert not wait_gone({victim, its_daemon})
    assert wait_gone({other_daemon}, seconds=0) == {other_daemon}


@pytest.mark.usefixtures("clean")
def test_what_a_task_changes_does_not_break_the_channel(process_way: Way, tmp_path: Path) -> None:
    def task(x: int) -> int:
        os.chdir(tmp_path)
        os.environ.clear()
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGUSR1):
            signal.signal(signum, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        sys.stdin = sys.stdout = sys.stderr = None
        sys.path.clear()
        sys.setrecursionlimit(150)
        signal.alarm(0)
        try:
            os.setsid()
        except PermissionError:  # a worker leads its process group
            return x
        return x

    given = {"max_workers": 2, "chunksize": 2, **process_way.options}
    assert plait.map(task, range(8), **given) == list(range(8))
    assert plait.map(abs, range(-8, 0), **given) == list(range(8, 0, -1))


@pytest.mark.usefixtures("clean")
def test_a_process_pool_inside_a_task_is_ended_with_it(process_way: Way) -> None:
    def task(x: int) -> int:
        import multiprocessing

        context = multiprocessing.get_context("fork")
        process = context.Process(target=time.sleep, args=(600,))
        process.start()
        assert process.pid is not None
        return process.pid

    pids = set(plait.map(task, range(2), max_workers=2, max_tasks_per_child=1,
                         **process_way.options))  # fmt: skip
    plait.map(double, range(2), max_workers=2, max_tasks_per_child=1, **process_way.options)
    assert not wait_gone(pids)


def test_the_plan_says_that_it_is_inside_a_worker(process_way: Way) -> None:
    def task(_: int) -> tuple[int, str]:
        run = plait.run(abs, [-1], backend="processes")
        list(run)
        assert run.plan is not None
        return run.plan.depth, str(run.plan)

    ((depth, text),) = plait.map(task, [0], **process_way.options)
    assert depth == 1
    assert text.startswith("serial (inside a worker): this is inside a worker process already")
