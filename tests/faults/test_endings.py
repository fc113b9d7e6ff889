"""How a run ends: cancelled, interrupted, terminated, killed; nothing goes on after it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, wait
from pathlib import Path
from typing import Any

import pytest

import plait
from plait.shield import Shield
from tests.conftest import Way, children, only, wait_gone
from tests.start import Program

pytestmark = [pytest.mark.usefixtures("clean"), pytest.mark.timeout(60)]


# --- Cancelling ----------------------------------------------------------------------------


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


def tell_and_hang(fifo: Path) -> Callable[[int], int]:
    def task(x: int) -> int:
        if x >= 0:
            return x
        with fifo.open("w") as file:
            file.write(str(os.getpid()))
        time.sleep(600)
        return x

    return task


def test_a_running_future_is_really_ended(process_way: Way, fifo: Path) -> None:
    with plait.Executor(max_workers=1, **process_way.executor) as executor:
        running = executor.submit(tell_and_hang(fifo), -1)
        pid = int(fifo.read_text())
        queued = [executor.submit(abs, -x) for x in range(5)]
        assert queued[4].cancel()
        assert not running.done()
        assert running.cancel()
        assert not wait_gone({pid})
        assert running.cancelled()
        assert running.done()
        with pytest.raises(CancelledError):
            running.result()
        with pytest.raises(CancelledError):
            running.exception()
        assert [future.result() for future in queued[:4]] == [0, 1, 2, 3]
        assert not running.cancelled() or running in wait([running]).done
        assert queued[4].cancelled()
        assert not queued[0].cancel()  # it is over


@only("serial", "threads")
def test_a_future_that_cannot_be_ended_says_so(way: Way) -> None:
    started, gate = threading.Event(), threading.Event()

    def task() -> str:
        started.set()
        gate.wait()
        return "done"

    with plait.Executor(max_workers=1, **way.executor) as executor:
        future = executor.submit(task)
        started.wait()
        assert not future.cancel()
        gate.set()
        assert future.result() == "done"


@pytest.mark.parametrize("leave", ["cancel", "with", "loop", "imap", "error"])
def test_leaving_a_run_leaves_nothing_running(
    process_way: Way, fifo: Path, tmp_path: Path, leave: str
) -> None:
    fn = tell_and_hang(fifo)
    given = {"max_workers": 2, "chunksize": 1, "ordered": False, **process_way.options}
    if leave == "imap":
        values = plait.imap(fn, [1, -1, *range(100)], **given)
        assert next(values) == 1
        pid = int(fifo.read_text())
        values.close()  # type: ignore[attr-defined]
    else:
        run = plait.run(fn, [1, -1, *range(100)], **given)
        pid = leave_run(run, leave, fifo)
    assert not wait_gone({pid}, seconds=5)
    assert plait.map(abs, [-3], **process_way.options) == [3]


def leave_run(run: plait.Run, leave: str, fifo: Path) -> int:
    if leave == "with":
        with run:
            next(run)
            return int(fifo.read_text())
    if leave == "loop":
        for _ in run:
            pid = int(fifo.read_text())
            break
        return pid
    if leave == "error":
        try:
            for _ in run:
                pid = int(fifo.read_text())
                raise ZeroDivisionError
        except ZeroDivisionError:
            return pid
    next(run)
    pid = int(fifo.read_text())
    run.cancel()
    return pid


# --- Signals to the parent -----------------------------------------------------------------

# Prints the pids of all that it starts; then its tasks hang, each in its own way.
PARENT = """
import os, signal, subprocess, sys, time, zlib
import plait

started = []
def task(n):
    if n < 4:
        time.sleep(0.05)  # so that no task is sent to a worker ahead of time
        return n
    pids = [os.getpid()]
    if n == 4:  # in Python
        started.append(subprocess.Popen(["sleep", "600"], start_new_session=True))
        pids.append(started[0].pid)
        os.write(out, f"{pids}\\n".encode())
        while True:
            pass
    reader, writer = os.pipe()
    if os.fork() == 0:  # a daemon of the old school
        os.setsid()
        child = os.fork()
        if child:
            os.write(writer, str(child).encode())
            os._exit(0)
        time.sleep(600)
    pids.append(int(os.read(reader, 20)))
    os.write(out, f"{pids}\\n".encode())
    time.sleep(600)  # asleep

out = os.dup(1)
os.set_inheritable(out, True)
path = f"/proc/{os.getpid()}/fd/{out}"
real_task = task
def task(n):
    global out
    out = os.open(path, os.O_WRONLY)
    return real_task(n)

try:
    plait.map(task, range(6), backend="processes", start_method=sys.argv[1], max_workers=2,
              chunksize=1)
except KeyboardInterrupt as error:
    print(sorted(o.value for o in error.plait_run.outcomes if o.ok), flush=True)
    raise SystemExit(130)
"""


@pytest.fixture
def parent(process_way: Way, tmp_path: Path) -> Iterator[tuple[Program[str], set[int]]]:
    """Start a program that maps, and give it with the pids of all that it started."""
    places = {name: str(tmp_path) for name in ("TMPDIR", "XDG_RUNTIME_DIR")}
    with Program(
        [sys.executable, "-c", PARENT, process_way.name],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **places},
    ) as process:
        assert process.stdout is not None
        pids: set[int] = set()
        for _ in range(2):
            pids |= set(map(int, process.stdout.readline().strip("[]\n").split(",")))
        family = pids | (children() - {process.pid})
        assert len(pids) == 4
        assert len(family) >= 5  # and the server
        try:
            yield process, family
        finally:
            process.kill()
    assert list(tmp_path.iterdir()) == []


Parent = tuple["Program[str]", set[int]]


def test_ctrl_c_is_one_interrupt_that_carries_what_was_done(parent: Parent) -> None:
    process, family = parent
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (out, err) == ("[0, 1, 2, 3]\n", "")  # and no worker says anything
    assert process.returncode == 130
    assert not wait_gone(family)
    assert time.monotonic() - started < 10  # 2 s on a machine with nothing else to do


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL, signal.SIGHUP])
def test_all_ends_with_the_parent(parent: Parent, signum: signal.Signals) -> None:
    process, family = parent
    process.send_signal(signum)
    assert process.wait() == -signum
    assert not wait_gone(family)
    assert process.stderr is not None
    assert process.stderr.read() == ""


def test_the_first_ctrl_c_waits_for_a_shield_and_the_second_does_not() -> None:
    hits: list[str] = []

    def interrupt(times: int) -> None:
        with Shield(lambda: hits.append("rung")) as shield:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
            assert shield.is_hit
            hits.append("went on")

    with pytest.raises(KeyboardInterrupt):
        interrupt(1)
    assert hits == ["rung", "went on"]
    with pytest.raises(KeyboardInterrupt):
        interrupt(2)
    assert hits == ["rung", "went on", "rung"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_amid_the_books_of_a_pool_leaves_it_whole(
    process_way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread that uses the same pool goes on, wherever the signal strikes."""
    from plait.backends import dispatcher

    struck: list[int] = []
    original = dispatcher.Dispatcher.assign

    def strike(self: Any, worker: Any, job: Any) -> None:
        if threading.current_thread() is threading.main_thread() and len(struck) < 1:
            struck.append(1)
            signal.raise_signal(signal.SIGINT)  # with the lock held
        original(self, worker, job)

    monkeypatch.setattr(dispatcher.Dispatcher, "assign", strike)
    given = {"max_workers": 2, **process_way.options}
    results: list[int] = []
    other = threading.Thread(
        target=lambda: results.extend(plait.map(abs, range(-300, 0), chunksize=1, **given))
    )
    other.start()
    with pytest.raises(KeyboardInterrupt):
        plait.map(abs, range(1000), chunksize=1, **given)
    other.join()
    assert results == list(range(300, 0, -1))
    assert struck == [1]
