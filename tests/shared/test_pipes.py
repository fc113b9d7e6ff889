"""Pipes: as those of ``multiprocessing``, sent to anybody at any time, and whoever is killed."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import os
import pickle
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plait.shared import Connection, Pipe, holders, pipes
from plait.shared.memory import Region
from tests.shared.test_queues import (
    WAYS,
    Fuse,
    forked,
    interruptible,
    running,
    sleeps,
    start_subprocess,
    until,
    wait_dead,
    with_fuse,
)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have deaths noticed sooner."""
    monkeypatch.setattr(pipes, "LOOK_S", 0.05)


def echo(end: Connection) -> None:
    with contextlib.suppress(EOFError):
        while True:
            end.send(end.recv())


@pytest.mark.parametrize("way", WAYS)
def test_messages_go_there_and_back(way: str) -> None:
    here, there = Pipe()
    with running(way, echo, [(there,)]):
        if way not in ("plait", "fork"):
            there.close()  # it is on its way, or there
        for item in (None, {"a": [1]}, bytes(10_000_000), lambda: 5):
            here.send(item)
            came = here.recv()
            assert came() == 5 if callable(item) else came == item
        here.close()
        there.close()


def test_bytes_are_sent_as_one_message_each() -> None:
    receiver, sender = Pipe(duplex=False)
    assert (receiver.readable, receiver.writable) == (True, False)
    assert (sender.readable, sender.writable) == (False, True)
    for data in (b"", b"abc", bytearray(b"abc"), memoryview(b"abc")):
        sender.send_bytes(data)
        assert receiver.recv_bytes() == data
    sender.send_bytes(b"abcdef", 1, 3)
    assert receiver.recv_bytes() == b"bcd"
    sender.send({"a": 1})
    assert pickle.loads(receiver.recv_bytes()) == {"a": 1}
    sender.send_bytes(b"too long")
    with pytest.raises(OSError, match="8 bytes is longer than maxlength=3"):
        receiver.recv_bytes(3)
    with pytest.raises(ValueError, match="offset=4, size=9"):
        sender.send_bytes(b"abcdef", 4, 9)
    with pytest.raises(OSError, match="cannot send"):
        receiver.send(1)
    with pytest.raises(OSError, match="cannot receive"):
        sender.recv()


def test_poll_tells_of_messages_and_of_the_end() -> None:
    here, there = Pipe()
    assert not here.poll()
    began = time.monotonic()
    assert not here.poll(0.05)
    assert time.monotonic() - began >= 0.05
    there.send(1)
    assert here.poll(None)
    assert here.recv() == 1
    there.close()
    assert here.poll()
    with pytest.raises(EOFError):
        here.recv()


def test_what_was_sent_before_the_end_is_received() -> None:
    here, there = Pipe()
    there.send(1)
    there.close()
    there.close()
    assert there.closed
    assert here.recv() == 1
    with pytest.raises(EOFError, match="closed"):
        here.recv()
    with pytest.raises(BrokenPipeError):
        here.send(1)
    with pytest.raises(OSError, match="this end"):
        there.send(1)
    with pytest.raises(pickle.PicklingError):
        pickle.dumps(there)


def test_an_end_is_closed_when_it_is_let_go_of() -> None:
    def files() -> int:
        gc.collect()
        return len(list(Path("/proc/self/fd").iterdir()))

    here, there = Pipe()
    del there
    with pytest.raises(EOFError), here:
        here.recv()
    assert here.closed
    del here
    before = files()
    for _ in range(50):
        Pipe()
    assert files() <= before


def close_after_one(end: Connection) -> None:
    assert end.recv() == "go"
    end.close()
    signal.pause()


def test_closing_wakes_who_waits_elsewhere() -> None:
    here, there = Pipe()
    pid = forked(close_after_one, there)
    there.close()
    here.send("go")
    began = time.monotonic()
    # The child has this end as well, by the fork; that does not count, it has not used it.
    with pytest.raises(EOFError):
        here.recv()
    assert time.monotonic() - began < 0.9
    os.kill(pid, signal.SIGKILL)
    wait_dead(pid)


def test_a_fork_may_be_slow_to_begin(quick: None) -> None:
    """Its parent closes its own end at once, and does not take the child's for closed."""
    here, there = Pipe()
    pid = os.fork()
    if not pid:
        there.send("at last")
        os._exit(0)
    there.close()
    assert here.recv() == "at last"
    wait_dead(pid)


def test_when_all_who_have_an_end_are_dead_the_other_is_told(quick: None) -> None:
    here, there = Pipe()
    children = [forked(take_one_and_sleep, there) for _ in range(2)]
    there.close()
    here.send(1)
    here.send(2)
    assert {here.recv(), here.recv()} == {1, 2}
    for pid in children:
        assert not here.poll()
        os.kill(pid, signal.SIGKILL)
        wait_dead(pid)
    with pytest.raises(EOFError):
        here.recv()


def take_one_and_sleep(end: Connection) -> None:
    end.send(end.recv())
    signal.pause()


def test_a_sender_is_told_of_the_death_of_the_other_end(quick: None) -> None:
    here, there = Pipe()
    pid = forked(take_one_and_sleep, there)
    there.close()
    here.send(1)
    assert here.recv() == 1
    os.kill(pid, signal.SIGKILL)
    wait_dead(pid)
    with pytest.raises(BrokenPipeError):
        send_for_ever(here)


def send_for_ever(end: Connection) -> None:
    while True:
        end.send("anybody there?")


def test_a_child_is_told_of_its_parents_death(quick: None) -> None:
    """It has the parent's end by the fork, as with ``multiprocessing``, but does not use it."""
    read, write = os.pipe()
    parent = forked(parent_of_one, write)
    os.close(write)
    assert os.read(read, 9) == b"ready"
    os.kill(parent, signal.SIGKILL)
    wait_dead(parent)
    assert os.read(read, 9) == b"EOF"
    os.close(read)


def parent_of_one(write: int) -> None:
    here, there = Pipe()
    if os.fork() == 0:
        here_is_unused = here
        os.write(write, b"ready")
        try:
            there.recv()
        except EOFError:
            os.write(write, b"EOF")
        assert here_is_unused
        os._exit(0)
    signal.pause()


def test_a_sender_waits_while_a_thousand_messages_are_not_received(quick: None) -> None:
    here, there = Pipe()
    pid = forked(send_many, there, 2000)
    until(lambda: sleeps(pid))
    assert [here.recv() for _ in range(2000)] == list(range(2000))
    assert wait_dead(pid) == 0
    pid = forked(send_many, there, 2000)
    until(lambda: sleeps(pid))
    there.close()
    here.close()
    assert wait_dead(pid) == 1  # BrokenPipeError


def send_many(end: Connection, count: int) -> None:
    for number in range(count):
        end.send(number)


def test_an_end_that_is_on_its_way_counts_until_its_sender_dies(quick: None) -> None:
    here, there = Pipe()
    data = pickle.dumps(there)
    there.close()
    assert not here.poll(0.1)
    again = pickle.loads(data)
    assert again is not there
    again.send(1)
    assert here.recv() == 1
    again.close()
    with pytest.raises(EOFError):
        here.recv()


# --- Forks that come to nothing ------------------------------------------------------------

come_by_fork = Connection._come_by_fork


def killed_before_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork a child that is killed before it has said which ends it has, and wait for it."""
    with monkeypatch.context() as patch:
        patch.setattr(Connection, "_come_by_fork", die)
        pid = os.fork()
        assert pid, "the child should have died"
    assert wait_dead(pid) == -signal.SIGKILL


def die(_: Connection) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def is_told_of_the_end(end: Connection) -> bool:
    """Whether that is so soon: not to wait for ever where it is not."""
    if not end.poll(5):
        return False
    with pytest.raises(EOFError):
        end.recv()
    return True


def open_now() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_child_that_is_killed_before_it_says_what_it_has_has_nothing(
    quick: None, monkeypatch: pytest.MonkeyPatch, no_files_left: None
) -> None:
    here, there = Pipe()
    killed_before_it_says_so(monkeypatch)
    assert not here.poll(0.1)
    there.close()
    assert is_told_of_the_end(here)
    with pytest.raises(BrokenPipeError):
        here.send(1)


def test_that_is_seen_by_a_third_process(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = Pipe()
    third = forked(expect_the_end, here)
    killed_before_it_says_so(monkeypatch)
    there.close()
    assert wait_dead(third) == 0


def expect_the_end(end: Connection) -> None:
    assert is_told_of_the_end(end)


@pytest.mark.soak
def test_a_program_that_forks_for_nothing_for_long_is_told_as_well(
    quick: None, monkeypatch: pytest.MonkeyPatch, no_files_left: None
) -> None:
    """Nothing piles up, in the list of who has an end or among the files."""
    here, there = Pipe()
    for _ in range(2 * holders.LINES):
        killed_before_it_says_so(monkeypatch)
    there.close()
    assert is_told_of_the_end(here)


def test_a_hook_of_somebody_else_may_kill_the_child_first(run_python: Callable[..., Any]) -> None:
    done = run_python(
        "-c",
        "import os, signal\n"
        "os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), signal.SIGKILL))\n"
        "from plait.shared import Pipe\n"
        "left, right = Pipe()\n"
        "os.waitpid(os.fork(), 0)\n"
        "right.close()\n"
        "print(left.poll(5))",
    )
    assert done.stdout.split() == ["True"], done.stderr


def test_a_fork_that_fails_is_no_fork(quick: None) -> None:
    pid = forked(fail_to_fork)
    assert wait_dead(pid) == 0


def fail_to_fork() -> None:
    """Reach the limit of processes, which is none for root."""
    if os.geteuid() == 0:
        os.setuid(65_534)
        ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: /proc/self is ours again
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    here, there = Pipe()
    files = open_now()
    with pytest.raises(BlockingIOError):
        os.fork()
    assert open_now() == files
    there.close()
    assert is_told_of_the_end(here)


def test_a_child_forks_one_that_is_killed(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = Pipe()
    child = forked(fork_for_nothing, there, monkeypatch)
    there.close()
    assert here.recv() == "done"
    assert is_told_of_the_end(here)  # and the child lives
    os.kill(child, signal.SIGKILL)
    wait_dead(child)


def fork_for_nothing(end: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    killed_before_it_says_so(monkeypatch)
    end.send("done")
    end.close()
    signal.pause()


def test_a_child_forks_another_one_and_is_killed_before_it_says_what_it_has(
    quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = Pipe()
    read, write = os.pipe()
    with monkeypatch.context() as patch:
        patch.setattr(Connection, "_come_by_fork", fork_and_die)
        if not (pid := os.fork()):
            os.read(read, 1)
            there.send("from the grandchild")
            os._exit(0)
    assert wait_dead(pid) == -signal.SIGKILL
    there.close()
    assert not here.poll(0.2)
    os.write(write, b"x")
    assert here.recv() == "from the grandchild"
    assert is_told_of_the_end(here)
    os.close(read)
    os.close(write)


def fork_and_die(_: Connection) -> None:
    Connection._come_by_fork = come_by_fork  # type: ignore[method-assign]
    if os.fork():
        os.kill(os.getpid(), signal.SIGKILL)


def test_two_threads_fork_at_once(
    quick: None, monkeypatch: pytest.MonkeyPatch, no_files_left: None
) -> None:
    """The child of the one inherits what marks that of the other, and lives on."""
    here, there = Pipe()
    is_expected, may_go = threading.Event(), threading.Event()
    files = open_now()
    expect = pipes._Fork.expect

    def expect_and_wait(fork: pipes._Fork, ends: list[Connection]) -> None:
        expect(fork, ends)
        if threading.current_thread() is thread:
            is_expected.set()
            may_go.wait()

    def come_or_die(end: Connection) -> None:
        if threading.get_ident() == thread.ident:
            die(end)
        come_by_fork(end)

    monkeypatch.setattr(pipes._Fork, "expect", expect_and_wait)
    monkeypatch.setattr(Connection, "_come_by_fork", come_or_die)
    died: list[int] = []
    thread = threading.Thread(target=lambda: died.append(wait_dead(os.fork())))
    thread.start()
    is_expected.wait()
    lives = forked(close_both_and_pause, here, there, files)
    assert here.recv() == "as many files are open"
    may_go.set()
    thread.join()
    assert died == [-signal.SIGKILL]
    there.close()
    assert is_told_of_the_end(here)
    os.kill(lives, signal.SIGKILL)
    wait_dead(lives)


def close_both_and_pause(here: Connection, there: Connection, files: int) -> None:
    there.send("as many files are open" if open_now() == files else f"{open_now()}, not {files}")
    here.close()
    there.close()
    signal.pause()


def test_a_fork_of_a_signals_handler_amidst_another_ends_before_that(
    quick: None, monkeypatch: pytest.MonkeyPatch, no_files_left: None
) -> None:
    here, there = Pipe()
    expect = pipes._Fork.expect
    inner: list[int] = []

    def expect_and_fork(fork: pipes._Fork, ends: list[Connection]) -> None:
        expect(fork, ends)
        if not inner:
            inner.append(0)
            inner[0] = forked(os._exit, 0)

    monkeypatch.setattr(pipes._Fork, "expect", expect_and_fork)
    pid = os.fork()
    if not pid:
        time.sleep(0.2)
        there.send("from the outer one")
        os._exit(0)
    assert wait_dead(inner[0]) == 0
    there.close()
    assert here.recv() == "from the outer one"
    assert is_told_of_the_end(here)
    wait_dead(pid)
    assert not pipes._forks


def test_who_inherits_a_mark_and_runs_no_hook_does_not_have_the_end_once_it_has_arrived(
    quick: None, monkeypatch: pytest.MonkeyPatch, no_files_left: None
) -> None:
    here, there = Pipe()
    expect = pipes._Fork.expect
    hookless: list[int] = []

    def expect_and_fork(fork: pipes._Fork, ends: list[Connection]) -> None:
        expect(fork, ends)
        hookless.append(ctypes.PyDLL(None).fork())  # as a library in C would
        if not hookless[0]:
            signal.pause()

    with monkeypatch.context() as patch:
        patch.setattr(pipes._Fork, "expect", expect_and_fork)
        pid = forked(there.send, "arrived")
    there.close()
    assert here.recv() == "arrived"
    assert is_told_of_the_end(here)
    os.kill(hookless[0], signal.SIGKILL)
    wait_dead(hookless[0])
    wait_dead(pid)


@pytest.mark.parametrize("can_be_marked", [True, False])
def test_a_child_may_be_slow_to_say_what_it_has(
    can_be_marked: bool, quick: None, monkeypatch: pytest.MonkeyPatch, no_files_left: None
) -> None:
    """Its parent closes its end, and looks around: also where there were too many files."""
    here, there = Pipe()
    others = Pipe()
    mark = Region.mark
    marks: list[Any] = []

    def mark_once(region: Region, *numbers: int) -> Any:
        if marks and not can_be_marked:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        marks.append(mark(region, *numbers))
        return marks[-1]

    def come_late(end: Connection) -> None:
        os.read(read, 1)
        come_by_fork(end)

    monkeypatch.setattr(Region, "mark", mark_once)
    monkeypatch.setattr(Connection, "_come_by_fork", come_late)
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        there.send("at last")
        os._exit(0)
    there.close()
    assert not here.poll(0.2)
    os.write(write, b"all4")
    assert here.recv() == "at last"
    assert others[0].closed is others[1].closed is False
    assert is_told_of_the_end(here)
    wait_dead(pid)
    os.close(read)
    os.close(write)
    marks.clear()


@pytest.mark.soak
def test_a_child_may_be_killed_at_any_bytecode_of_its_arrival(
    quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has the end beside it is not forgotten; and when that one has ended, nobody has it."""
    length, status = 1, -9
    while status == -9:
        here, there = Pipe()
        pids = [forked(send_and_pause, there) for _ in range(2)]  # each has a line in the list
        assert here.recv() == here.recv() == "ready"
        os.kill(pids[0], signal.SIGKILL)  # it is this one's that the child takes
        wait_dead(pids[0])
        with monkeypatch.context() as patch:
            patch.setattr(Connection, "_come_by_fork", come_with_a_fuse(length))
            if not (pid := os.fork()):
                os._exit(0)
        status = wait_dead(pid)
        there.close()
        assert not here._end_if_alone()
        os.kill(pids[1], signal.SIGKILL)
        wait_dead(pids[1])
        assert here._end_if_alone()
        length += 3
    assert status == 0


def send_and_pause(end: Connection) -> None:
    end.send("ready")
    signal.pause()


def come_with_a_fuse(length: int) -> Callable[[Connection], None]:
    def come(end: Connection) -> None:
        if not sys.gettrace():
            sys._getframe().f_trace_opcodes = True
            sys.settrace(Fuse(length))
        come_by_fork(end)

    return come


# --- What an end is ----------------------------------------------------------------------------


def test_an_end_is_the_same_object_when_it_comes_back() -> None:
    here, there = Pipe()
    assert pickle.loads(pickle.dumps(here)) is here
    assert repr(there) == "<plait.shared Connection: end 2 of a pipe, open>"
    here.close()
    with pytest.raises(EOFError):
        there.recv()
    assert "closed" in repr(here)


@pytest.mark.soak
@pytest.mark.parametrize("act", ["send", "close", "pickle"])
def test_a_process_may_be_killed_at_any_bytecode(act: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipes, "LOOK_S", 0.02)
    acts: dict[str, Callable[[Connection], Any]] = {
        "send": lambda end: end.send("x" * 300),
        "close": lambda end: end.close(),
        "pickle": pickle.dumps,
    }
    length, status = 1, -9
    while status == -9:
        here, there = Pipe()
        status = wait_dead(forked(with_fuse, length, lambda end=there: acts[act](end)))
        there.close()
        got = []
        with contextlib.suppress(EOFError):
            while True:
                got.append(here.recv())
        assert got in ([], ["x" * 300])
        length += 13
    assert status == 0


def test_ctrl_c_interrupts_a_wait_at_once() -> None:
    here, there = Pipe()
    assert here.recv is not None
    incoming = there._incoming
    assert incoming is not None
    child = start_subprocess(interruptible, incoming)
    until(lambda: sleeps(child.pid))
    began = time.monotonic()
    child.send_signal(signal.SIGINT)
    assert child.wait(10) == 0
    assert time.monotonic() - began < 0.9
