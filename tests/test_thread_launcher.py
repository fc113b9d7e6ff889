"""Workers without a server: how they start where there is no fork, tried out where there is."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

import plait
from plait.backends import processes, thread_launcher
from tests.conftest import close_all, double

pytestmark = pytest.mark.usefixtures("clean", "without_server")

OPTIONS: dict[str, Any] = {"backend": "processes", "start_method": "spawn", "max_workers": 2}


@pytest.fixture
def without_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(processes, "open_launcher", lambda *_: thread_launcher.ThreadLauncher())
    yield
    close_all()


def kill_at_five(x: int) -> int:
    if x == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def hang_at_five(x: int) -> int:
    time.sleep(60 if x == 5 else 0)
    return x


def test_values_errors_and_large_results_come_back() -> None:
    assert plait.map(double, range(1000), **OPTIONS) == [2 * x for x in range(1000)]
    assert plait.map(bytes, [10**6] * 3, **OPTIONS) == [bytes(10**6)] * 3
    with pytest.raises(ZeroDivisionError):
        plait.map(lambda x: 1 // x, [1, 0], **OPTIONS)


@pytest.mark.parametrize("has_page", [True, False])
def test_a_worker_that_is_killed_fails_one_task(
    monkeypatch: pytest.MonkeyPatch, has_page: bool
) -> None:
    if not has_page:  # as on Windows
        monkeypatch.setattr(thread_launcher, "new_page_fd", lambda: -1)
    given = {"chunksize": 3, "ordered": True, **OPTIONS}
    outcomes = list(plait.run(kill_at_five, range(12), **given))
    error = outcomes.pop(5).error
    assert isinstance(error, plait.WorkerDied)
    assert error.signal == signal.SIGKILL
    assert all(outcome.ok for outcome in outcomes)


@pytest.mark.parametrize("has_page", [True, False])
def test_a_task_over_its_time_is_ended(monkeypatch: pytest.MonkeyPatch, has_page: bool) -> None:
    if not has_page:
        monkeypatch.setattr(thread_launcher, "new_page_fd", lambda: -1)
    given = {"chunksize": 3, "ordered": True, "task_timeout": 2, **OPTIONS}
    outcomes = list(plait.run(hang_at_five, range(12), **given))
    assert isinstance(outcomes.pop(5).error, plait.TaskTimeout)
    assert all(outcome.ok for outcome in outcomes)


def test_what_was_printed_before_a_crash_is_there(capfd: pytest.CaptureFixture[str]) -> None:
    def task(_: int) -> None:
        print("printed")
        os._exit(3)

    plait.map(task, [0], on_error="return", **OPTIONS)
    assert capfd.readouterr().out == "printed\n"
