"""Start a worker process, hear that it ended, kill it.

Used by backends/processes.py only. There are two ways to start one, with one face:

ServerLauncher  forks it from the server (backends/server.py), which tells when it ends.
SpawnLauncher   starts a fresh interpreter from a thread that then waits for its end.

Both make the channel and the status page before the process exists and hand it its
ends, so the first messages can be sent at once and are read when it is ready. That a
process ended is heard from whoever can wait for it, never from its channel: a program
that a task started may hold the channel open.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from contextlib import suppress
from typing import NamedTuple, Protocol

from plait.backends.messages import StatusPage, new_page_fd
from plait.backends.server import Order, receive_order, send_order
from plait.channel import Channel
from plait.errors import WorkerStartError
from plait.host import python_arguments

__all__ = ["Ended", "Launcher", "ServerLauncher", "SpawnLauncher", "close_server"]

# What a fresh interpreter runs: `-c BOOT module function numbers... -- sys.path...`.
BOOT = (
    "import sys; n = sys.argv.index('--'); sys.path[:] = sys.argv[n + 1:]; "
    "from importlib import import_module; "
    "getattr(import_module(sys.argv[1]), sys.argv[2])(*map(int, sys.argv[3:n]))"
)


def _command(function: str, *numbers: int) -> list[str]:
    module, _, name = function.rpartition(".")
    return [*python_arguments(), "-c", BOOT, module, name, *map(str, numbers), "--", *sys.path]


class Ended(NamedTuple):
    """A worker process ended with an exit code, or minus a signal; None: it cannot be known."""

    number: int
    status: int | None


class Launcher(Protocol):
    """One way to start worker processes. ``fileno`` becomes readable when some ended.

    A launcher that is lost cannot start any more, until ``renew``, which changes ``fileno``.
    """

    pids: dict[int, int]
    is_lost: bool

    def renew(self) -> None:
        """Make a lost launcher work again."""
        ...

    def fileno(self) -> int:
        """Return what to wait on."""
        ...

    def start(self, number: int) -> tuple[Channel, StatusPage]:
        """Start a worker; its pid is known a little later."""
        ...

    def take_ended(self) -> list[Ended]:
        """Return who ended since the last call; does not block."""
        ...

    def kill(self, number: int) -> None:
        """Kill a worker, and what it started."""
        ...

    def close(self) -> None:
        """End what is left of the workers."""
        ...

    def abandon(self) -> None:
        """Let go of the workers, in a forked child: they are the parent's."""
        ...


class _Server:
    """The fork server of this process; started at the first need, and again if it died."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the two below
        self._process: subprocess.Popen[bytes] | None = None
        self._root: socket.socket | None = None

    def open_control(self) -> socket.socket:
        """Return a new control socket."""
        ours, theirs = socket.socketpair()
        with self._lock, theirs:
            for _ in range(2):  # the second time with a new server, if the old one died
                if self._root is None:
                    self._start()
                assert self._root is not None
                try:
                    send_order(self._root, Order(b"OPEN"), (theirs.fileno(),))
                except OSError:  # it died
                    self._stop()
                else:
                    return ours
        ours.close()
        raise WorkerStartError("The server process that starts workers died twice.")

    def _start(self) -> None:
        self._root, theirs = socket.socketpair()
        with theirs:
            fd = theirs.fileno()
            try:
                self._process = subprocess.Popen(
                    _command("plait.backends.server.main", fd, os.getpid()),
                    stdin=subprocess.DEVNULL,
                    pass_fds=(fd,),
                    start_new_session=True,  # the terminal's Ctrl-C is for the parent only
                )
            except OSError as error:
                self._root.close()
                self._root = None
                raise WorkerStartError(f"Python could not be started: {error}") from error

    def _stop(self) -> None:
        if self._root is not None:
            self._root.close()
        if self._process is not None:
            self._process.wait()
        self._root = self._process = None

    def close(self) -> None:
        """End the server, and with it all of its workers."""
        with self._lock:
            self._stop()

    def forget(self) -> None:
        """In a forked child of this process: the server is the parent's."""
        root, process = self._root, self._process
        self.__init__()  # type: ignore[misc]  # a new lock, too: another thread may have held it
        if root is not None:
            root.close()
        if process is not None:
            process.returncode = 0  # not ours to wait for, and no ResourceWarning about it


_server = _Server()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_server.forget)


def close_server() -> None:
    """End the fork server, and with it all of its workers."""
    _server.close()


class ServerLauncher:
    """Forks workers from the server."""

    def __init__(self) -> None:
        self.pids: dict[int, int] = {}
        self._alive: set[int] = set()
        self._control = _server.open_control()
        self.is_lost = False

    def renew(self) -> None:
        """Find the server, or a new one."""
        self._control.close()
        self._control = _server.open_control()
        self.is_lost = False

    def fileno(self) -> int:
        """Return what to wait on."""
        return self._control.fileno()

    def start(self, number: int) -> tuple[Channel, StatusPage]:
        """Start a worker; its pid is known a little later."""
        ours, theirs = socket.socketpair()
        page_fd = new_page_fd()
        self._alive.add(number)
        with theirs, suppress(BrokenPipeError):  # take_ended() will tell that the server died
            send_order(self._control, Order(b"FORK", number), (theirs.fileno(), page_fd))
        return Channel(ours), StatusPage(page_fd)

    def take_ended(self) -> list[Ended]:
        """Return who ended since the last call; does not block."""
        ended: list[Ended] = []
        try:
            self._control.setblocking(False)
            while True:
                order, _ = receive_order(self._control)
                if order.verb == b"PID ":
                    self.pids[order.number] = order.value
                else:
                    self._alive.discard(order.number)
                    ended.append(Ended(order.number, order.value))
        except (EOFError, ConnectionError):  # the server died, and so did its workers
            ended += [Ended(number, None) for number in self._alive]
            self._alive.clear()
            self.is_lost = True
            return ended
        except BlockingIOError:
            self._control.setblocking(True)
        return ended

    def kill(self, number: int) -> None:
        """Kill a worker; the server knows whether the pid is still its own."""
        with suppress(OSError):
            send_order(self._control, Order(b"KILL", number, signal.SIGKILL))

    def close(self) -> None:
        """End what is left of the workers."""
        self._control.close()

    abandon = close  # the server ends the workers when the last copy of its socket closes


class SpawnLauncher:
    """Starts each worker as a fresh interpreter, with portable means only."""

    def __init__(self) -> None:
        self.pids: dict[int, int] = {}
        self.is_lost = False
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._ended: deque[Ended] = deque()
        self._bell, self._bell_end = socket.socketpair()
        self._bell.setblocking(False)

    def renew(self) -> None:
        """Nothing to do: there is nothing to lose."""

    def fileno(self) -> int:
        """Return what to wait on."""
        return self._bell.fileno()

    def start(self, number: int) -> tuple[Channel, StatusPage]:
        """Start a worker; its pid is known a little later."""
        ours, theirs = socket.socketpair()
        page_fd = new_page_fd()
        shared_fd = os.dup(page_fd) if page_fd >= 0 else -1
        threading.Thread(
            target=self._watch, args=(number, theirs, shared_fd), name="plait-watch", daemon=True
        ).start()
        return Channel(ours), StatusPage(page_fd)

    def _watch(self, number: int, theirs: socket.socket, page_fd: int) -> None:
        """Start the process and wait for its end, in one thread.

        The kernel ties a worker's life to the thread that started it (see
        child_main.die_with_parent), so that thread must live as long as the worker.
        """
        status: int | None = None
        try:
            with theirs:
                process = self._spawn(theirs, page_fd)
            self._processes[number] = process
            self.pids[number] = process.pid
            status = process.wait()
        except OSError as error:
            status = error.errno
        finally:
            self._ended.append(Ended(number, status))
            with suppress(OSError):  # the pool is closed
                self._bell_end.send(b"!")

    def _spawn(self, theirs: socket.socket, page_fd: int) -> subprocess.Popen[bytes]:
        fd = theirs.fileno()
        command = _command("plait.backends.child_main.main_spawned", fd, page_fd, os.getpid())
        if sys.platform == "win32":  # untested
            process = subprocess.Popen(command, stdin=subprocess.PIPE)
            assert process.stdin is not None
            with process.stdin as stdin:
                stdin.write(theirs.share(process.pid))
            return process
        try:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                pass_fds=(fd, page_fd),
                process_group=0,  # the terminal's Ctrl-C is for the parent only
            )
        finally:
            os.close(page_fd)

    def take_ended(self) -> list[Ended]:
        """Return who ended since the last call; does not block."""
        with suppress(BlockingIOError):
            self._bell.recv(4096)
        ended = []
        while self._ended:
            ended.append(self._ended.popleft())
            self._processes.pop(ended[-1].number, None)
        return ended

    def kill(self, number: int) -> None:
        """Kill a worker, and what it started."""
        process = self._processes.get(number)
        if process is None or process.returncode is not None:
            return
        with suppress(ProcessLookupError, PermissionError):
            process.kill()
            if hasattr(os, "killpg"):
                os.killpg(process.pid, signal.SIGKILL)

    def close(self) -> None:
        """End what is left of the workers."""
        for number in list(self._processes):
            self.kill(number)
        self.abandon()

    def abandon(self) -> None:
        """Let go of the workers, in a forked child: they are the parent's."""
        self._processes = {}
        self._bell.close()
        self._bell_end.close()
