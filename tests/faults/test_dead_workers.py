"""A worker dies: only the task that it was running fails, and the pool goes on."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

import plait
from tests.conftest import Way, children, wait_gone
from tests.start import Program

pytestmark = pytest.mark.usefixtures("clean")


class Bomb:
    """Ends the process that unpickles it."""

    def __reduce__(self) -> Any:
        return os._exit, (9,)


class LateBomb:
    """Ends the process that pickles it, if that is a worker."""

    def __init__(self) -> None:
        self.home = os.getpid()

    def __reduce__(self) -> Any:
        if os.getpid() != self.home:
            os.kill(os.getpid(), signal.SIGKILL)
        return LateBomb, ()


def run_item(item: Any) -> Any:
    if item == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if item == "exit":
        os._exit(7)
    if item == "abort":
        signal.signal(signal.SIGABRT, signal.SIG_DFL)
        os.abort()
    if item == "late":
        bomb = LateBomb()
        bomb.home = 0
        return bomb
    return item


@pytest.mark.parametrize("chunksize", [1, 4, 50])
@pytest.mark.parametrize(
    ("item", "exitcode", "signum"),
    [
        ("kill", None, signal.SIGKILL),
        ("exit", 7, None),
        ("abort", None, signal.SIGABRT),
        ("late", None, signal.SIGKILL),
        (Bomb(), 9, None),
    ],
)
def test_only_the_guilty_task_fails(
    process_way: Way, item: Any, exitcode: int | None, signum: int | None, chunksize: int
) -> None:
    items = [*range(10), item, *range(11, 30)]
    outcomes = list(
        plait.run(
            run_item, items, ordered=True, chunksize=chunksize, max_workers=2, **process_way.options
        )
    )
    assert [outcome.index for outcome in outcomes] == list(range(30))
    guilty = outcomes.pop(10)
    assert [outcome.value for outcome in outcomes] == [*range(10), *range(11, 30)]
    error = guilty.error
    assert isinstance(error, plait.WorkerDied)
    assert (error.exitcode, error.signal, error.index) == (exitcode, signum, 10)
    assert error.pid > 0
    ending = "exited with code" if signum is None else signal.Signals(signum).name
    assert ending in str(error)
    assert "while it ran task 10" in str(error)
    assert plait.map(abs, [-1, -2], max_workers=2, **process_way.options) == [1, 2]


def test_a_task_that_kills_its_worker_among_tiny_ones(process_way: Way) -> None:
    items: list[Any] = list(range(20_000))
    items[15_000] = "kill"
    outcomes = list(plait.run(run_item, items, ordered=True, max_workers=2, **process_way.options))
    failed = [outcome for outcome in outcomes if not outcome.ok]
    assert [outcome.index for outcome in failed] == [15_000]
    assert isinstance(failed[0].error, plait.WorkerDied)
    assert [outcome.value for outcome in outcomes if outcome.ok] == [
        item for item in items if item != "kill"
    ]


def test_with_chunksize_one_nothing_runs_twice(process_way: Way, tmp_path: Path) -> None:
    def task(n: int) -> int:
        with (tmp_path / str(n)).open("x"):  # a second run of a task would fail here
            pass
        if n % 7 == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return n

    outcomes = list(
        plait.run(task, range(30), ordered=True, chunksize=1, max_workers=2, **process_way.options)
    )
    assert [o.index for o in outcomes if not o.ok] == [3, 10, 17, 24]
    assert all(isinstance(o.error, plait.WorkerDied) for o in outcomes if not o.ok)


def test_a_slow_task_that_finished_is_not_run_again(process_way: Way, tmp_path: Path) -> None:
    def task(n: int) -> int:
        with (tmp_path / str(n)).open("x"):
            pass
        time.sleep(0.002)
        if n == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        return n

    outcomes = list(
        plait.run(task, range(10), ordered=True, chunksize=10, max_workers=1, **process_way.options)
    )
    assert [o.index for o in outcomes if not o.ok] == [7]


def test_every_task_kills_its_worker(process_way: Way) -> None:
    outcomes = list(plait.run(run_item, ["kill"] * 12, max_workers=2, **process_way.options))
    assert len(outcomes) == 12
    assert all(isinstance(outcome.error, plait.WorkerDied) for outcome in outcomes)


def test_a_grandchild_that_holds_the_channel_does_not_hide_the_death(
    process_way: Way, tmp_path: Path
) -> None:
    """The channel of the dead worker stays open, in the child that it forked."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)

    def task(item: str) -> str:
        if item == "fork":
            if os.fork() == 0:
                os.setsid()
                gate.read_text()  # until the test is over
                os._exit(0)
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    outcomes = list(
        plait.run(task, ["a", "fork", "b"], ordered=True, max_workers=1, **process_way.options)
    )
    assert isinstance(outcomes[1].error, plait.WorkerDied)
    assert [outcomes[0].value, outcomes[2].value] == ["a", "b"]
    fd = os.open(gate, os.O_RDWR)
    os.write(fd, b"go")
    os.close(fd)


def test_an_idle_worker_that_dies_is_replaced(process_way: Way) -> None:
    def pid(_: int) -> int:
        return os.getpid()

    (before,) = set(plait.map(pid, range(3), max_workers=1, **process_way.options))
    os.kill(before, signal.SIGKILL)
    assert not wait_gone({before})
    (after,) = set(plait.map(pid, range(3), max_workers=1, **process_way.options))
    assert after != before


def test_the_server_dies_and_another_takes_its_place() -> None:
    def kill_server(item: int) -> int:
        if item == 5:
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(60)
        return item

    outcomes = list(
        plait.run(kill_server, range(10), ordered=True, max_workers=1, chunksize=1,
                  backend="processes", start_method="server")
    )  # fmt: skip
    assert [outcome.index for outcome in outcomes if not outcome.ok] == [5]
    error = outcomes[5].error
    assert isinstance(error, plait.WorkerDied)
    assert "vanished" in str(error)


def test_workers_that_die_in_the_initializer_are_one_clear_error(process_way: Way) -> None:
    def die() -> None:
        os._exit(4)

    with pytest.raises(plait.WorkerStartError, match=r"exited with code 4 before it was ready"):
        plait.map(abs, range(10), initializer=die, max_workers=2, **process_way.options)


def test_a_worker_that_dies_just_after_sending_loses_and_repeats_nothing(
    process_way: Way, tmp_path: Path
) -> None:
    """Its box still has what was sent; found there after the death, it must not count twice."""

    def die_when_sent() -> None:
        from plait.backends.messages import StatusPage

        def die(_: object) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        StatusPage.empty = die  # type: ignore[method-assign, assignment]

    def task(n: int) -> int:
        with (tmp_path / str(n)).open("x"):
            pass
        time.sleep(0.0012)  # long enough to be kept in the box
        return n

    values = plait.map(
        task, range(6), chunksize=2, initializer=die_when_sent, max_workers=1, **process_way.options
    )
    assert values == list(range(6))


def die_on_receipt() -> None:
    """Have a worker end with the item 13, before it notes which task it is to begin."""
    from plait.backends import child_main

    worker: Any = child_main._Worker
    work, work_alone = worker._work, worker._work_alone

    def die_with(items: Any) -> None:
        if 13 in items:
            os.kill(os.getpid(), signal.SIGKILL)

    def work_or_die(self: Any, message: Any) -> None:
        die_with(message.items)
        work(self, message)

    def work_alone_or_die(self: Any, fields: Any) -> Any:
        die_with(fields[5])
        return work_alone(self, fields)

    worker._work, worker._work_alone = work_or_die, work_alone_or_die


@pytest.mark.parametrize("chunksize", [1, 7])
def test_an_item_that_ends_whoever_receives_it_fails_in_the_end(
    process_way: Way, chunksize: int
) -> None:
    run = plait.run(
        abs, range(20), chunksize=chunksize, initializer=die_on_receipt, max_workers=2,
        ordered=True, **process_way.options,
    )  # fmt: skip
    outcomes = list(run)
    assert [outcome.index for outcome in outcomes] == list(range(20))
    error = outcomes.pop(13).error
    assert isinstance(error, plait.WorkerDied)
    assert (error.index, error.signal) == (13, signal.SIGKILL)
    assert "as it was to begin task 13" in str(error)
    assert "2 workers before it" in str(error)
    assert [outcome.value for outcome in outcomes] == [*range(13), *range(14, 20)]


def test_a_worker_from_which_tasks_were_taken_back_dies(process_way: Way, tmp_path: Path) -> None:
    """It notes the first of them, finds that it is not its own any more, and dies just then."""
    os.mkfifo(tmp_path / "gate")

    def die_when_robbed() -> None:
        from plait.backends.messages import StatusPage

        begin = StatusPage.begin

        def begin_or_die(page: Any, seq: int, place: int) -> bool:
            if not begin(page, seq, place):
                os.kill(os.getpid(), signal.SIGKILL)
            return True

        StatusPage.begin = begin_or_die  # type: ignore[method-assign, assignment]

    def task(n: int) -> int:
        if n == 0:
            (tmp_path / "gate").read_text()  # until the others of this chunk were run elsewhere
        if n == 3:
            (tmp_path / "gate").write_text("go")
        return n

    values = plait.map(
        task, range(5), chunksize=4, initializer=die_when_robbed, max_workers=2,
        **process_way.options,
    )  # fmt: skip
    assert values == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("sent", [1, 8, 3000])
def test_a_message_that_is_half_written(process_way: Way, sent: int) -> None:
    """A worker dies amid the sending of its result."""

    def die_amid_the_result() -> None:
        from plait.backends.messages import NUMBERS, Results
        from plait.channel import Sender, _frame

        send = Sender.send

        def send_or_die(sender: Any, message: Any) -> None:
            if message[0] == NUMBERS[Results] and message[3] and message[3][0] != 1:
                data = b"".join(_frame(message))
                sender._sock.send(data[:sent])
                os.kill(os.getpid(), signal.SIGKILL)
            send(sender, message)

        Sender.send = send_or_die  # type: ignore[method-assign, assignment]

    outcomes = list(
        plait.run(
            lambda n: [n] * 5000 if n == 5 else 1, range(12), chunksize=1, max_workers=2,
            initializer=die_amid_the_result, ordered=True, timeout=20, **process_way.options,
        )
    )  # fmt: skip
    assert [outcome.index for outcome in outcomes if not outcome.ok] == [5]
    assert isinstance(outcomes[5].error, plait.WorkerDied)


def test_an_error_ends_what_runs(process_way: Way) -> None:
    """A task that would go on for ten minutes does not hold up the error of another."""

    def task(seconds: int) -> None:
        if seconds == 0:
            raise ValueError("no")
        time.sleep(seconds)

    with pytest.raises(ValueError, match="no"):
        plait.map(task, [600, 0], max_workers=2, chunksize=1, **process_way.options)
    assert plait.map(abs, [-1], max_workers=2, **process_way.options) == [1]


PARENT = """
import os, sys, time, plait
def task(n):
    os.write(1, b"%d\\n" % os.getpid())
    if n == 1:
        while True:  # never lets go of the CPU
            pass
    time.sleep(600)
plait.map(task, [0, 1], backend="processes", start_method=sys.argv[1], max_workers=2)
"""


def test_nothing_outlives_a_parent_that_is_killed(process_way: Way, tmp_path: Path) -> None:
    import subprocess
    import sys

    parent = Program(
        [sys.executable, "-c", PARENT, process_way.name], stdout=subprocess.PIPE, cwd=tmp_path
    )
    assert parent.stdout is not None
    with parent.stdout as lines:
        workers = {int(lines.readline()), int(lines.readline())}
        family = {pid for pid in children() if pid != parent.pid}
        assert workers <= family
        parent.kill()
        parent.wait()
        assert not wait_gone(family, seconds=5)
