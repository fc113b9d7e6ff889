"""Run a function in each kind of worker that shared data is promised for."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from typing import Any

import pytest

import plait
from tests.start import Program

PLACES = ("thread", "server", "spawn", "mp-fork", "mp-spawn", "subprocess")
PROGRAM = """
import pickle, sys
sys.path[:] = pickle.load(sys.stdin.buffer)
function, args = pickle.load(sys.stdin.buffer)
sys.stdout.buffer.write(pickle.dumps(function(*args)))
"""


def in_subprocess(function: Callable[..., Any], *args: Any) -> Program[bytes]:
    """Start a function in a fresh interpreter; what it returns is pickled on its stdout."""
    child = Program([sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin is not None
    child.stdin.write(pickle.dumps(sys.path))
    child.stdin.write(pickle.dumps((function, args)))
    child.stdin.close()
    return child


def _send(writer: Any, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    writer.send(function(*args))


class Elsewhere:
    """Starts functions in one kind of worker; ``start`` returns their futures."""

    def __init__(self, name: str, stack: ExitStack) -> None:
        self.name = name
        self._stack = stack

    def start(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        if self.name in ("server", "spawn"):
            method: Any = self.name
            executor = plait.Executor(backend="processes", max_workers=1, start_method=method)
            self._stack.callback(executor.shutdown)
            return executor.submit(function, *args)
        done: Future[Any] = Future()
        work = {"thread": self._here, "subprocess": self._subprocess}.get(self.name, self._mp)
        collect = work(function, args)

        def fill() -> None:
            try:
                done.set_result(collect())
            except BaseException as error:
                done.set_exception(error)

        thread = threading.Thread(target=fill)
        thread.start()
        self._stack.callback(thread.join)
        return done

    def _here(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Callable[[], Any]:
        return lambda: function(*args)

    def _subprocess(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Callable[[], Any]:
        child = in_subprocess(function, *args)

        def collect() -> Any:
            with child:
                assert child.stdout is not None
                return pickle.loads(child.stdout.read())

        return collect

    def _mp(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Callable[[], Any]:
        context: Any = multiprocessing.get_context(self.name.removeprefix("mp-"))
        reader, writer = context.Pipe(duplex=False)
        child = context.Process(target=_send, args=(writer, function, args))
        child.start()
        writer.close()

        def collect() -> Any:
            with reader:
                value = reader.recv()
            child.join()
            child.close()
            return value

        return collect


@pytest.fixture(params=PLACES)
def elsewhere(request: pytest.FixtureRequest) -> Iterator[Elsewhere]:
    with ExitStack() as stack:
        yield Elsewhere(request.param, stack)


def until(is_so: Callable[[], bool]) -> None:
    """Return when something is seen that nothing tells of: that another one waits."""
    end = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < end
        os.sched_yield()
