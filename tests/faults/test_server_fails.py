"""The process that starts workers cannot start, or dies for good: one clear error, one try."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import plait
from plait.backends import child
from plait.server_process import server
from tests.conftest import children, close_all, wait_gone

pytestmark = [pytest.mark.usefixtures("clean"), pytest.mark.timeout(60)]

PROCESSES: dict[str, Any] = {"backend": "processes", "max_workers": 2}


class Wrong:
    """A program that is called Python and is none; it notes how often it was started."""

    def __init__(self, folder: Path) -> None:
        self._notes = folder / "notes"
        self.path = folder / "python-wrong"
        self.path.write_text(
            f"#!/bin/sh\necho started >> {self._notes}\necho these are my last words >&2\nexit 3\n"
        )
        self.path.chmod(0o755)

    @property
    def starts(self) -> int:
        return len(self._notes.read_text().split()) if self._notes.exists() else 0


@pytest.fixture
def wrong(tmp_path: Path) -> Wrong:
    return Wrong(tmp_path)


def spin(n: int) -> int:
    end = time.monotonic() + 0.01
    while time.monotonic() < end:
        pass
    return n


def test_what_is_no_python_is_named_and_tried_once(
    wrong: Wrong, monkeypatch: pytest.MonkeyPatch
) -> None:
    close_all()
    monkeypatch.setattr(sys, "executable", str(wrong.path))
    for _ in range(3):
        with pytest.raises(plait.WorkerStartError) as caught:
            plait.map(abs, range(10), **PROCESSES)
        assert wrong.starts == 1
        text = str(caught.value)
        for part in (
            "could not be started",
            str(wrong.path),
            "exited with code 3",
            "my last words",
        ):
            assert part in text


def test_auto_takes_another_way_and_says_so(wrong: Wrong, monkeypatch: pytest.MonkeyPatch) -> None:
    close_all()
    monkeypatch.setattr(sys, "executable", str(wrong.path))
    run = plait.run(spin, range(60), ordered=True, max_workers=8)
    assert [outcome.value for outcome in run] == list(range(60))
    assert wrong.starts == 1
    assert "exited with code 3" in str(run.report)
    assert run.plan is not None
    assert run.plan.backend != "processes"
    assert plait.map(spin, range(60), max_workers=8) == list(range(60))
    assert wrong.starts == 1


def test_an_environment_in_which_no_python_starts(run_python: Callable[..., Any]) -> None:
    program = (
        "import os, plait; os.environ['PYTHONHOME'] = '/nowhere'\n"
        "try: plait.map(abs, [-1], backend='processes')\n"
        "except plait.WorkerStartError as error: print(error)\n"
        "print(plait.map(abs, [-1]))\n"
    )
    done = run_python("-c", program)
    assert "exited with code 1" in done.stdout
    assert "Fatal Python error" in done.stdout
    assert done.stdout.endswith("[1]\n")
    assert done.stderr == ""


def kill_server() -> None:
    (pid,) = [pid for pid in children() if pid == server._pid]
    os.kill(pid, signal.SIGKILL)
    assert not wait_gone({pid})


def test_where_it_cannot_be_renewed_all_who_wait_hear_of_it(
    wrong: Wrong, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "fifo")

    def hang(n: int) -> None:
        (tmp_path / "fifo").write_text("x")
        time.sleep(600)

    errors: list[BaseException] = []

    def wait() -> None:
        try:
            plait.map(hang, range(10), on_error="return", chunksize=1, **PROCESSES)
        except plait.WorkerStartError as error:
            errors.append(error)

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    (tmp_path / "fifo").read_text()
    monkeypatch.setattr(sys, "executable", str(wrong.path))
    kill_server()
    for thread in threads:
        thread.join()
    assert len(errors) == 3
    assert all("exited with code 3" in str(error) for error in errors)


def test_auto_goes_on_when_it_dies_after_the_choice(
    wrong: Wrong, monkeypatch: pytest.MonkeyPatch
) -> None:
    close_all()
    run = plait.run(spin, range(300), max_workers=2, retries=2, chunksize=1)
    outcomes = []
    for outcome in run:
        outcomes.append(outcome)
        if outcome.worker.startswith("process") and sys.executable != str(wrong.path):
            monkeypatch.setattr(sys, "executable", str(wrong.path))
            kill_server()
    if run.report.earlier_plans:  # else the machine has one CPU, and never took processes
        assert wrong.starts == 1
        assert "exited with code 3" in str(run.report)
    assert sorted(outcome.value for outcome in outcomes) == list(range(300))


def test_a_pool_that_nobody_drives_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its workers end, one after the other, and the server has no room to tell it."""

    def narrow() -> tuple[Any, Any]:
        pair = socket.socketpair()
        for sock in pair:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        return pair

    close_all()
    monkeypatch.setattr(child, "socketpair", narrow)
    with plait.Executor(max_workers=24, backend="processes") as idle:
        idle.submit(os.getpid).result()
        monkeypatch.undo()
        gate = [idle.submit(time.sleep, 0.2) for _ in range(24)]
        for future in gate:
            future.result()
        pids = children() - {server._pid}
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        assert not wait_gone(pids)
        assert plait.map(abs, range(-8, 0), timeout=20, **PROCESSES) == [8, 7, 6, 5, 4, 3, 2, 1]
        assert idle.submit(abs, -1).result() == 1
