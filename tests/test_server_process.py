"""The process of the fork server, as its parent sees it: started early, found dead, ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import plait
from plait import interpreter, probe, server_process
from plait.backends import child
from tests.conftest import children, close_all, needs_gil, wait_gone

pytestmark = pytest.mark.usefixtures("clean")

PROCESSES: dict[str, Any] = {"backend": "processes", "start_method": "server", "max_workers": 1}


def has_server() -> bool:
    return bool(children())


@pytest.mark.parametrize(
    "start",
    [
        lambda: plait.imap(abs, [1], backend="processes"),
        lambda: plait.run(abs, [1], backend="processes"),
        lambda: plait.run(abs, [1], memory_limit="1GB"),
        lambda: plait.map(abs, [1], backend="processes", max_workers=0),
    ],
)
def test_a_call_that_names_processes_starts_it_at_once(start: Any) -> None:
    close_all()
    with suppress(plait.OptionError):
        start()
    assert has_server()


def test_other_calls_do_not_start_it() -> None:
    close_all()
    plait.map(abs, [1])
    plait.map(abs, [1], backend="threads")
    list(plait.imap(abs, [1], backend="serial"))
    plait.map(lambda x: sum(range(x)), [10_000] * 10)
    plait.Executor(1, "threads").shutdown()
    assert not has_server()


def spin(_: int) -> None:
    total = 0
    for n in range(30_000):
        total += n * n


@needs_gil
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="no processes on one CPU")
def test_auto_starts_it_while_it_takes_its_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    for budget in ("BUDGET_S", "CLEAR_S"):
        monkeypatch.setattr(probe, budget, 60)  # the sample goes on, on a slow machine too
    close_all()
    run = plait.run(spin, range(1000), max_workers=2)
    next(run)
    next(run)
    assert run.plan is None  # it has not chosen yet
    assert has_server()
    run.cancel()


def test_bad_options_leave_nothing_behind(run_python: Any) -> None:
    code = (
        "import plait\n"
        "try: plait.map(abs, [1], backend='processes', chunksize=0)\n"
        "except plait.OptionError as error: print(error.option)\n"
    )
    done = run_python("-X", "dev", "-W", "error", "-c", code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "chunksize\n", "")


def test_who_cannot_start_it_hears_why_when_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    close_all()
    for wrong in ("/nowhere/python", "", None):
        monkeypatch.setattr(sys, "executable", wrong)
        server_process.start_early()
        with pytest.raises(plait.WorkerStartError, match=r"can be started\. sys\.executable is"):
            plait.map(abs, [1], **PROCESSES)


def test_a_server_that_dies_at_once_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    close_all()
    monkeypatch.setattr(interpreter, "_BOOT", "raise SystemExit('what it said')")
    monkeypatch.setattr(server_process, "server", server_process.ServerProcess())
    monkeypatch.setattr(child, "server", server_process.server)
    for _ in range(2):
        with pytest.raises(plait.WorkerStartError) as caught:
            plait.map(abs, [1], **PROCESSES)
        assert f"{sys.executable} -" in str(caught.value)
        assert "exited with code 1 before it was ready" in str(caught.value)
        assert "what it said" in str(caught.value)


def test_it_is_the_leader_of_its_own_session() -> None:
    close_all()
    server_process.start_early()
    plait.map(abs, [1], backend="processes", max_workers=1)
    servers = [pid for pid in children() if os.getsid(pid) == pid]
    assert len(servers) == 1


def test_it_does_not_hold_what_its_parent_has_open(tmp_path: Path) -> None:
    close_all()
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(fifo, os.O_WRONLY)
    os.set_inheritable(writer, True)
    try:
        server_process.start_early()
        plait.map(abs, [1], **PROCESSES)
    finally:
        os.close(writer)
    assert os.read(reader, 1) == b""  # its end: nobody else can write
    os.close(reader)


@pytest.mark.parametrize("closed", ["0", "1", "2", "0, 1, 2", "0, 2"])
def test_with_standard_streams_closed(closed: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = (
        "import os, pathlib\n"
        f"for fd in ({closed},): os.close(fd)\n"
        "import plait\n"
        "values = plait.map(abs, [-1, -2], backend='processes', max_workers=2)\n"
        f"pathlib.Path({str(out)!r}).write_text(str(values))\n"
    )
    subprocess.run([sys.executable, "-c", code], timeout=30, check=False)
    assert out.read_text() == "[1, 2]"


def test_it_hears_of_its_workers_whatever_its_parent_blocks() -> None:
    close_all()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGTERM})
    try:
        (outcome,) = plait.run(os._exit, [3], **PROCESSES)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert isinstance(outcome.error, plait.WorkerDied)
    assert outcome.error.exitcode == 3


def test_its_parent_may_have_waited_for_it() -> None:
    for _ in range(2):
        plait.map(abs, [1], **PROCESSES)
        (found,) = (pid for pid in children() if os.getsid(pid) == pid)
        os.kill(found, signal.SIGKILL)
        assert os.waitpid(found, 0)[0] == found
    assert plait.map(abs, [-1], **PROCESSES) == [1]


def test_it_is_reaped() -> None:
    plait.map(abs, [1], **PROCESSES)
    before = children()
    close_all()
    assert not wait_gone(before)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_a_forked_child_has_its_own() -> None:
    plait.map(abs, [1], **PROCESSES)
    before = children()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        values = plait.map(abs, [-7], **PROCESSES)
        os.write(writer, str(values).encode())
        close_all()
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        assert file.read() == "[7]"
    os.waitpid(pid, 0)
    assert children() == before
    assert plait.map(abs, [-1], **PROCESSES) == [1]


def test_no_server_starts_inside_a_worker() -> None:
    def inner(_: int) -> bool:
        list(plait.run(abs, [1], backend="processes"))
        return server_process.server._root is not None

    assert plait.map(inner, [0], **PROCESSES) == [False]
