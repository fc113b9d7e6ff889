"""Pipes: as those of ``multiprocessing``, sent to anybody at any time, and whoever is killed."""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plait.shared import Connection, Pipe, pipes
from tests.shared.test_queues import (
    WAYS,
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


def test_an_end_is_the_same_object_when_it_comes_back() -> None:
    here, there = Pipe()
    assert pickle.loads(pickle.dumps(here)) is here
    assert repr(there) == "<plait.shared Connection: end 2 of a pipe, open>"
    here.close()
    with pytest.raises(EOFError):
        there.recv()
    assert "closed" in repr(here)


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
