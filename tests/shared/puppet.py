"""Another process that does what a test tells it, one thing after the other, in its main thread.

What it is told travels by cloudpickle: lambdas of a test are welcome. Nothing here sleeps: a test
waits for an answer, or looks until something can be seen.
"""

from __future__ import annotations

import contextlib
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import cloudpickle

from plait.shared import Lock, locks, who_holds
from tests.start import Program

SOON_S = 0.05
"""After so long a puppet that waits for a lock looks for a deadlock, and is seen to wait."""


class Puppet:
    """The process, as a test sees it."""

    def __init__(self) -> None:
        self._process = Program(
            [sys.executable, "-m", "tests.shared.puppet"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.pid = self._process.pid

    def begin(self, fn: Callable[..., Any], *args: Any) -> None:
        """Have it do something, without waiting for that."""
        assert self._process.stdin is not None
        data = cloudpickle.dumps((fn, args))
        self._process.stdin.write(len(data).to_bytes(8, "big") + data)
        self._process.stdin.flush()

    def answer(self) -> Any:
        """Wait until it is done; raises what it raised."""
        assert self._process.stdout is not None
        value, error = pickle.load(self._process.stdout)
        if error is not None:
            raise error
        return value

    def do(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Have it do something, and wait for that."""
        self.begin(fn, *args)
        return self.answer()

    def kill(self) -> None:
        """Kill it, and wait until it is no more."""
        self._process.kill()
        self.end()

    def end(self) -> int:
        """Have it end, unless it has, and return its exit code."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.stdout.close()
        return self._process.wait(20)

    def interrupt(self) -> None:
        """Send it a Ctrl-C."""
        self._process.send_signal(signal.SIGINT)


@contextlib.contextmanager
def puppets(count: int) -> Iterator[list[Puppet]]:
    """Have some, which are killed at the end."""
    all_ = [Puppet() for _ in range(count)]
    try:
        yield all_
    finally:
        for puppet in all_:
            puppet.kill()


def until(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    """Look until something is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to be so"
        time.sleep(0.001)


def is_waited_for(lock: Lock, by: int = 1) -> bool:
    """Whether so many wait for this lock, which is seen after LOOK_S."""
    return any(row.what == lock._cell.label and len(row.waiting) >= by for row in who_holds())


_kept: list[Any] = []


def keep(thing: Any) -> Any:
    """Have it stay there."""
    _kept.append(thing)
    return thing


def is_kept(thing: Any) -> bool:
    """Whether it is what was kept last, the very same."""
    return thing is _kept[-1]


_threads: dict[str, tuple[threading.Thread, list[Any]]] = {}


def begin_in_thread(name: str, fn: Callable[..., Any], *args: Any) -> None:
    """Do it in a new thread."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.extend((fn(*args), None))
        except Exception as error:
            outcome.extend((None, error))

    thread = threading.Thread(target=run, name=name, daemon=True)
    _threads[name] = thread, outcome
    thread.start()


def end_of_thread(name: str) -> Any:
    """Wait for that thread: what came of it."""
    thread, outcome = _threads.pop(name)
    thread.join(20)
    assert outcome, f"thread {name} hangs"
    value, error = outcome
    if error is not None:
        raise error
    return value


def main(commands: BinaryIO, answers: BinaryIO) -> None:
    locks.LOOK_S = SOON_S
    while head := commands.read(8):
        fn, args = cloudpickle.loads(commands.read(int.from_bytes(head, "big")))
        reply: tuple[Any, BaseException | None]
        try:
            reply = fn(*args), None
        except BaseException as error:
            reply = None, error
        del fn, args
        answers.write(pickle.dumps(reply))
        answers.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from tests.shared import puppet  # so that what comes by reference finds this one

    puppet.main(sys.stdin.buffer, sys.stdout.buffer)
