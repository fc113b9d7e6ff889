"""Every fault, at every stage of a worker's life, on both kinds of processes.

Each cell asserts that all innocent items have their results, that the guilty one has an
error which says what happened to whom, that the pool works afterwards, and (by the
fixture ``clean``) that no process and no file is left.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

import pytest

import plait
from tests.conftest import Way, only, wait_gone

pytestmark = [pytest.mark.usefixtures("clean"), pytest.mark.timeout(30)]

LIMIT_BYTES = 150_000_000
TIMEOUT_S = 0.4


class Broken(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


def hang() -> NoReturn:
    while True:
        time.sleep(60)


def blow_memory() -> NoReturn:
    kept = []
    for _ in range(50):  # half a gigabyte, then no more: the machine is to live
        kept.append(b"x" * 10_000_000)
        time.sleep(0.002)
    hang()


def commit(fault: str) -> None:
    """Do what a worker should never do."""
    if fault == "raises":
        raise Broken(7, "it broke")
    if fault == "sys.exit":
        sys.exit(5)
    if fault == "os._exit":
        os._exit(6)
    if fault.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, fault))
    if fault == "segfault":
        ctypes.string_at(0)
    if fault == "ignores SIGTERM":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        hang()
    if fault == "hangs":
        hang()
    if fault == "memory":
        blow_memory()


FAULTS = (
    "raises",
    "sys.exit",
    "os._exit",
    "SIGKILL",
    "SIGSEGV",
    "SIGABRT",
    "segfault",
    "SIGSTOP",
    "hangs",
    "ignores SIGTERM",
    "memory",
)


def options(way: Way, fault: str) -> dict[str, Any]:
    """Return the options of a map in which that fault is to be survived."""
    given: dict[str, Any] = {"max_workers": 2, "chunksize": 3, **way.options}
    if fault in ("hangs", "ignores SIGTERM"):
        given["task_timeout"] = TIMEOUT_S
    if fault == "memory":
        given["memory_limit"] = LIMIT_BYTES
    return given


class OnArrival:
    """Commits a fault where it is unpickled."""

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def __reduce__(self) -> Any:
        return commit, (self.fault,)

    def __repr__(self) -> str:
        return "<guilty>"


class OnReturn:
    """Commits a fault where it is pickled."""

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def __reduce__(self) -> Any:
        commit(self.fault)
        return str, ()


class Plain:
    """An item that says what is to be done."""

    def __init__(self, fault: str, stage: str) -> None:
        self.fault, self.stage = fault, stage

    def __repr__(self) -> str:
        return "<guilty>"


def task(item: Any) -> Any:
    if not isinstance(item, Plain):
        return item
    if item.stage == "running":
        commit(item.fault)
    return OnReturn(item.fault)


SIGNALS = {
    "SIGKILL": signal.SIGKILL,
    "SIGSEGV": signal.SIGSEGV,
    "SIGABRT": signal.SIGABRT,
    "segfault": signal.SIGSEGV,
}


def check_error(fault: str, stage: str, outcome: plait.Outcome) -> None:
    """Assert that the error of the guilty task is the right one, and says all there is to say."""
    error = outcome.error
    assert error is not None
    if fault in ("raises", "sys.exit"):
        # What is no Exception ends a program: without a task's own word it stays a cause.
        if stage == "pickling the result" or (fault == "sys.exit" and stage != "running"):
            assert isinstance(error, plait.NotPicklable)
            assert type(error.__cause__) is (Broken if fault == "raises" else SystemExit)
        elif fault == "raises":
            assert type(error) is Broken
            assert error.code == 7
        else:
            assert type(error) is SystemExit
            assert error.code == 5
        (text,) = error.__notes__
    else:
        text = str(error)
        assert isinstance(error, plait.TaskError)
        assert (error.index, error.attempt) == (5, 1)
        assert (error.worker, error.pid) == (outcome.worker, outcome.pid)
    if isinstance(error, plait.WorkerDied):
        assert error.signal == {**SIGNALS, "SIGSTOP": signal.SIGKILL}.get(fault)
        assert error.exitcode == (6 if fault == "os._exit" else None)
        assert error.peak_bytes > 5_000_000
        ending = "exited with code 6" if fault == "os._exit" else fault
        assert ending.replace("segfault", "SIGSEGV") in text
        if fault in ("SIGSEGV", "SIGABRT", "segfault"):
            assert "in commit" in error.stack
            assert "in commit" in text
    elif fault == "hangs":
        assert isinstance(error, plait.TaskTimeout)
        assert error.limit_s == TIMEOUT_S <= error.after_s
        assert "in hang" in error.stack
    elif fault == "ignores SIGTERM":
        assert isinstance(error, plait.TaskTimeout)
    elif fault == "memory":
        assert isinstance(error, plait.MemoryLimitExceeded)
        assert error.rss_bytes > error.limit_bytes == LIMIT_BYTES
        assert "150.0 MB" in text
    for part in ("ask 5", "task(<guilty>)", "attempt 1", outcome.worker, f"pid {outcome.pid}"):
        assert part in text
    assert outcome.pid > 0


def works(way: Way) -> bool:
    return plait.map(abs, [-1, -2, -3], max_workers=2, **way.options) == [1, 2, 3]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("stage", ["unpickling the item", "running", "pickling the result"])
@pytest.mark.parametrize(
    "process_way", ["server", pytest.param("spawn", marks=pytest.mark.soak)], indirect=True
)
def test_only_the_guilty_task_fails(process_way: Way, fault: str, stage: str) -> None:
    item = OnArrival(fault) if stage == "unpickling the item" else Plain(fault, stage)
    items = [*range(5), item, *range(6, 12)]
    outcomes = list(plait.run(task, items, ordered=True, **options(process_way, fault)))
    assert [outcome.index for outcome in outcomes] == list(range(12))
    guilty = outcomes.pop(5)
    assert [outcome.value for outcome in outcomes] == [*range(5), *range(6, 12)]
    assert all(outcome.ok for outcome in outcomes)
    check_error(fault, stage, guilty)
    assert works(process_way)


IN_INITIALIZER = {
    "raises": "The initializer failed in process-[0-9]+: Broken",
    "sys.exit": "The initializer failed in process-[0-9]+: SystemExit",
    "os._exit": "exited with code 6 before it was ready",
    "SIGKILL": "was killed by SIGKILL before it was ready",
    "SIGSEGV": "was killed by SIGSEGV before it was ready",
    "SIGABRT": "was killed by SIGABRT before it was ready",
    "segfault": "was killed by SIGSEGV before it was ready",
    "SIGSTOP": "stopped by SIGSTOP, before it was ready",
    "memory": "more than memory_limit=150.0 MB, before it was ready",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_in_the_initializer_it_is_one_clear_error(process_way: Way, fault: str) -> None:
    given = options(process_way, fault)
    given |= {"initializer": commit, "initargs": (fault,)}
    if fault in IN_INITIALIZER:
        with pytest.raises(plait.WorkerStartError, match=IN_INITIALIZER[fault]):
            plait.map(abs, range(20), **given)
    else:  # how long it may take, only the user knows
        with pytest.raises(plait.RunTimeout, match="Perhaps the initializer") as caught:
            plait.map(abs, range(20), timeout=0.5, **given)
        assert caught.value.plait_run.outcomes == []  # type: ignore[attr-defined]
    assert works(process_way)


@pytest.mark.parametrize("fault", FAULTS)
def test_an_idle_worker_harms_nobody(
    process_way: Way, fault: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A thread that a task left behind does it, when the map is over."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)

    def leave_a_thread(_: int) -> int:
        def run() -> None:
            gate.read_text()
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            if fault != "ignores SIGTERM":
                commit(fault)
            hang()

        threading.Thread(target=run).start()
        return os.getpid()

    given = {**options(process_way, fault), "max_workers": 1}
    (pid,) = plait.map(leave_a_thread, [0], **given)
    fd = os.open(gate, os.O_WRONLY)
    os.write(fd, b"go")
    os.close(fd)
    if fault in (*SIGNALS, "os._exit"):
        assert not wait_gone({pid})
    assert plait.map(abs, range(-6, 0), **given) == [6, 5, 4, 3, 2, 1]
    capfd.readouterr()


@pytest.mark.parametrize("fault", ["raises", "sys.exit", "hangs"])
@only("serial", "threads", "asyncio")
def test_what_can_befall_threads_and_coroutines(way: Way, fault: str) -> None:
    import asyncio

    async def wait_for_ever() -> None:
        await asyncio.Event().wait()

    gate = threading.Event()

    def run(item: Any) -> Any:
        if isinstance(item, Plain):
            if item.fault == "hangs":
                gate.wait()
            commit(item.fault)
        return item

    async def run_async(item: Any) -> Any:
        if isinstance(item, Plain) and item.fault == "hangs":
            await wait_for_ever()
        return run(item)

    items = [*range(5), Plain(fault, "running"), *range(6, 12)]
    fn = run_async if way.name == "asyncio" else run
    given: dict[str, Any] = {"max_workers": 2, "chunksize": 3, **way.options}
    if fault == "hangs":
        given["task_timeout"] = 0.1
    made = plait.run(fn, items, ordered=True, **given)
    outcomes = list(made)
    gate.set()
    guilty = outcomes.pop(5)
    assert [outcome.value for outcome in outcomes] == [*range(5), *range(6, 12)]
    if fault == "hangs":
        assert isinstance(guilty.error, plait.TaskTimeout)
        assert guilty.error.is_abandoned == (way.name != "asyncio")
        assert made.report.abandoned == (way.name != "asyncio")
    else:
        assert type(guilty.error) is (Broken if fault == "raises" else SystemExit)
    assert plait.map(way.fn(abs), [-1], **way.options) == [1]


@pytest.mark.parametrize("fault", ["raises", "sys.exit"])
@only("serial", "threads", "asyncio")
def test_the_initializer_of_threads_and_coroutines(way: Way, fault: str) -> None:
    with pytest.raises((plait.WorkerStartError, Broken, SystemExit)):
        plait.map(way.fn(abs), range(20), initializer=commit, initargs=(fault,), **way.options)
    assert plait.map(way.fn(abs), [-1], **way.options) == [1]
