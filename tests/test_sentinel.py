"""Somebody who notices that a task takes long, and costs next to nothing where none does."""

from __future__ import annotations

import os
import threading
import time
from queue import SimpleQueue
from typing import Any

import pytest

from plait import sentinel as module
from plait.sentinel import Sentinel


@pytest.fixture
def late_s(monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr(module, "LATE_S", 0.005)
    return 0.005


@pytest.mark.usefixtures("late_s")
def test_it_calls_when_it_is_late() -> None:
    called = threading.Event()
    assert Sentinel().arm(called.set) is not None
    assert called.wait(30)


@pytest.mark.usefixtures("late_s")
def test_it_goes_on_where_no_thread_can_be_started() -> None:
    def start() -> None:
        raise RuntimeError("can't start new thread")

    guard, called = Sentinel(), threading.Event()
    watch = guard.arm(start)
    while guard._watch is watch:
        time.sleep(0.001)
    assert guard.arm(called.set) is not None
    assert called.wait(30)


@pytest.mark.usefixtures("late_s")
def test_it_calls_nothing_that_was_disarmed() -> None:
    guard, called = Sentinel(), threading.Event()
    for _ in range(3):
        guard.disarm(guard.arm(lambda: pytest.fail("it was disarmed")))
    guard.arm(called.set)  # the next one is served after the others would have been
    assert called.wait(30)


def test_it_calls_for_a_slow_task_before_a_late_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SLOW_S", 0.001)
    monkeypatch.setattr(module, "LATE_S", 0.002)
    guard, calls = Sentinel(), SimpleQueue[str]()
    guard.arm(lambda: calls.put("late"), lambda: calls.put("slow"))
    assert [calls.get(timeout=30), calls.get(timeout=30)] == ["slow", "late"]


@pytest.mark.usefixtures("late_s")
def test_who_is_disarmed_when_slow_is_not_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SLOW_S", 0.001)
    guard, slow, next_one = Sentinel(), threading.Event(), threading.Event()

    def disarm() -> None:  # in the sentinel's thread: so it cannot be late
        guard.disarm(watch)
        slow.set()

    watch = guard.arm(lambda: pytest.fail("it was disarmed"), disarm)
    assert slow.wait(30)
    guard.arm(next_one.set)  # served after the other would have been
    assert next_one.wait(30)


def test_it_watches_one_thing_at_a_time() -> None:
    guard = Sentinel()
    first = guard.arm(lambda: None)
    assert guard.arm(lambda: None) is None
    guard.disarm(None)  # of who was refused: no harm to the other
    assert guard.arm(lambda: None) is None
    guard.disarm(first)
    assert guard.arm(lambda: None) is not None


@pytest.mark.usefixtures("late_s")
def test_none_of_many_watches_is_lost() -> None:
    """Armed while it is falling asleep, it must not sleep."""
    guard = Sentinel()
    for _ in range(50):
        called = threading.Event()
        guard.arm(called.set)
        assert called.wait(30)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_program_that_forks_after_a_map_is_not_told_that_it_has_threads(run_python: Any) -> None:
    code = (
        "import os, plait\n"
        "for _ in range(3):\n"
        "    plait.map(abs, range(10))\n"
        "    pid = os.fork()\n"
        "    if not pid:\n"
        "        assert plait.map(abs, [-1, 2, -3]) == [1, 2, 3]\n"
        "        os._exit(0)\n"
        "    assert os.waitpid(pid, 0)[1] == 0\n"
    )
    done = run_python("-W", "always", "-c", code)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_task_that_forks_while_it_is_measured_is_not_told_that_either(run_python: Any) -> None:
    code = (
        "import os, plait, time\n"
        "def task(n):\n"
        "    time.sleep(0.003)\n"
        "    pid = os.fork()\n"
        "    if not pid:\n"
        "        os._exit(0)\n"
        "    return os.waitpid(pid, 0)[1]\n"
        "assert plait.map(task, range(3)) == [0, 0, 0]\n"
    )
    done = run_python("-W", "always", "-c", code)
    assert (done.returncode, done.stderr) == (0, "")


def test_threading_knows_the_main_thread_of_a_program_that_never_imported_it(
    run_python: Any,
) -> None:
    code = (
        "import plait, time\n"
        "plait.map(time.sleep, [0.2, 0.01, 0.01])\n"
        "import threading\n"
        "assert threading.current_thread() is threading.main_thread()\n"
    )
    done = run_python("-W", "error", "-c", code)
    assert (done.returncode, done.stderr) == (0, "")


def test_it_uses_no_cpu_while_nothing_is_watched() -> None:
    guard = Sentinel()
    guard.disarm(guard.arm(lambda: None))
    time.sleep(0.05)  # past what was armed
    before = time.process_time()
    time.sleep(0.2)
    assert time.process_time() - before < 0.05
