"""The hosts, seen from the command: started when needed, told what to do, given up when late.

A host that does not answer in time, or ends, is killed with all that it started, and what was
to be measured is LeftOut. The next that is asked of its engine starts another host.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import IO, TYPE_CHECKING, Any, Self

from benchmarks.engines import ENGINES
from benchmarks.pairs import LeftOut
from benchmarks.processes import environment, family, kill
from benchmarks.station import WrongAnswer, open_pool

if TYPE_CHECKING:
    from benchmarks.host import Answer

__all__ = ["Host", "Hosts"]

CLOSING_S = 10.0  # for an engine to end its workers
LINGERING_S = 2.0  # and for helpers of its own to see that


class Host:
    """One engine in a process of its own, which does one thing at a time."""

    def __init__(self, engine: str, log: IO[str]) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.host", engine, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is the command's
            )
        self._commands = Connection(ours.detach())
        self._pidfd = os.pidfd_open(self._process.pid)
        self.is_open = True

    def call(self, function: Callable[..., Any], args: tuple[Any, ...], limit_s: float) -> Any:
        """Have a function called in the host, and return what it returns.

        Raises LeftOut if it fails or is late, WrongAnswer if the engine's results are wrong.
        """
        self._commands.send((function, args))
        if not wait([self._commands, self._pidfd], limit_s):
            self.kill()
            raise LeftOut(f"not done after {limit_s:.0f} s")
        try:
            answer: Answer = self._commands.recv()
        except (EOFError, ConnectionResetError):
            self.kill()
            raise LeftOut(f"its process ended with exit code {self._process.returncode}") from None
        match answer:
            case "done", result:
                return result
            case "wrong", text:
                raise WrongAnswer(text)
            case _, text:
                raise LeftOut(text)

    def close(self) -> None:
        """Let the host end its workers and itself; kill what is left after a while."""
        if self.is_open:
            started = family(self._process.pid)
            self._commands.close()
            wait([self._pidfd], CLOSING_S)
            kill(started, LINGERING_S)
            self.kill()

    def kill(self) -> None:
        """Kill the host and all that it started."""
        if self.is_open:
            self.is_open = False
            self._commands.close()
            left = family(self._process.pid)
            self._process.kill()
            kill(left)
            self._process.wait()
            os.close(self._pidfd)


class Hosts:
    """At most one host for each engine, kept for the next claim."""

    def __init__(self, log: IO[str], opening_limit_s: float) -> None:
        self._log = log
        self._opening_limit_s = opening_limit_s
        self._hosts: dict[str, Host] = {}
        self._given_up: dict[str, str] = {}

    def start(self, name: str) -> Host:
        """Return a host that is used by nobody else; raise LeftOut if there can be none."""
        if not ENGINES[name].is_installed:
            raise LeftOut("not installed")
        if name in self._given_up:
            raise LeftOut(self._given_up[name])
        return Host(name, self._log)

    def get(self, name: str) -> Host:
        """Return the host of an engine, with a pool that is open.

        An engine that cannot be opened is not tried again for each claim.
        """
        host = self._hosts.get(name)
        if host is None or not host.is_open:
            host = self._hosts[name] = self.start(name)
            try:
                host.call(open_pool, (), self._opening_limit_s)
            except LeftOut as reason:
                self._given_up[name] = f"could not be opened: {reason}"
                host.kill()
                raise LeftOut(self._given_up[name]) from None
        return host

    def close(self, *names: str) -> None:
        """End the hosts of some engines, or all."""
        for name in names or tuple(self._hosts):
            if host := self._hosts.pop(name, None):
                host.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for host in self._hosts.values():
            host.kill()
