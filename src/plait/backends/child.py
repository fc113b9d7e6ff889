"""Start a worker process, hear what becomes of it, end it.

Used by backends/processes.py only. There are two launchers, with one face:

ServerLauncher    has the server (backends/server.py) start it, forked or as a fresh
                  interpreter, and is told what becomes of it.
ThreadLauncher    starts a fresh interpreter from a thread that then waits for its end: for
                  systems without fork.

Both make the channel and the status page before the process exists and hand it its
ends, so the first messages can be sent at once and are read when it is ready. That a
process ended is heard from whoever can wait for it, never from its channel: a program
that a task started may hold the channel open.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from contextlib import suppress
from typing import NamedTuple, Protocol

from plait.backends.messages import StatusPage, new_file_fd, new_page_fd
from plait.backends.server import Order, receive_order, send_order
from plait.channel import Channel
from plait.errors import WorkerStartError
from plait.host import python_command
from plait.segments import SegmentView

if sys.platform != "win32":
    import fcntl

__all__ = ["Born", "Change", "Launcher", "close_server", "open_launcher"]

# So much may be printed while nobody reads it, before the one who prints has to wait.
OUTPUT_BYTES = 1 << 20


class Change(NamedTuple):
    """What became of worker ``number``: "ended", "stopped" or "continued".

    ``status`` is its exit code, or minus a signal, or the signal that stopped it; None: it
    cannot be known. ``peak_bytes`` is the most memory that it had; 0: it cannot be known.
    """

    number: int
    what: str
    status: int | None = None
    peak_bytes: int = 0


class Born(NamedTuple):
    """The parent's ends of all that a new worker was given; ``outputs``: stdout, stderr."""

    channel: Channel
    page: StatusPage
    view: SegmentView
    outputs: tuple[int, ...]


class Launcher(Protocol):
    """One way to start worker processes. ``fileno`` becomes readable when some changed.

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

    def start(self, number: int, items_fd: int) -> Born:
        """Start a worker, which reads items from a file; its pid is known a little later."""
        ...

    def take_changes(self) -> list[Change]:
        """Return what became of the workers since the last call; does not block."""
        ...

    def end(self, number: int, grace_s: float = 0.0) -> None:
        """Ask a worker to end, and kill it, and what it started, after some seconds."""
        ...

    def close(self) -> None:
        """End what is left of the workers."""
        ...

    def abandon(self) -> None:
        """Let go of the workers, in a forked child: they are the parent's."""
        ...


def open_launcher(start_method: str) -> Launcher:
    """Return a launcher for a start method: "server" or "spawn"."""
    if hasattr(os, "fork"):
        return ServerLauncher(is_fresh=start_method == "spawn")
    return ThreadLauncher()


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
                    python_command("plait.backends.server.main", fd, os.getpid()),
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


def _output_pipe() -> tuple[int, int]:
    """Return the ends of a pipe with much room: reading it never blocks, writing rarely does."""
    ours, theirs = os.pipe()
    os.set_blocking(ours, False)
    if sys.platform == "linux":
        with suppress(OSError):  # the user has too many large pipes
            fcntl.fcntl(ours, fcntl.F_SETPIPE_SZ, OUTPUT_BYTES)
    return ours, theirs


def _file_of(obj: object) -> int:
    """Return a file, open and without a name, in which an object is pickled."""
    fd = new_file_fd("plait-environ")
    os.write(fd, pickle.dumps(obj))
    return fd


def close_server() -> None:
    """End the fork server, and with it all of its workers."""
    _server.close()


class ServerLauncher:
    """Has the server start workers: as forks of it, or as fresh interpreters."""

    def __init__(self, *, is_fresh: bool) -> None:
        self.pids: dict[int, int] = {}
        self._is_fresh = is_fresh
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

    def start(self, number: int, items_fd: int) -> Born:
        """Start a worker; its pid is known a little later."""
        ours, theirs = socket.socketpair()
        page_fd, results_fd = new_page_fd(), new_file_fd("plait-results")
        (out, their_out), (err, their_err) = _output_pipe(), _output_pipe()
        given = [page_fd, items_fd, results_fd, their_out, their_err]
        if self._is_fresh:
            given.append(_file_of(dict(os.environ)))
        order = Order(b"EXEC" if self._is_fresh else b"FORK", number)
        self._alive.add(number)
        with theirs, suppress(BrokenPipeError):  # take_changes() will tell that the server died
            send_order(self._control, order, (theirs.fileno(), *given))
        born = Born(Channel(ours), StatusPage(page_fd), SegmentView(results_fd), (out, err))
        for fd in given:
            if fd not in (items_fd, results_fd):
                os.close(fd)
        return born

    def take_changes(self) -> list[Change]:
        """Return what became of the workers since the last call; does not block."""
        changes: list[Change] = []
        try:
            self._control.setblocking(False)
            while True:
                (verb, number, value, peak), _ = receive_order(self._control)
                if verb == b"PID ":
                    self.pids[number] = value
                elif verb == b"ENDS":
                    self._alive.discard(number)
                    changes.append(Change(number, "ended", value, peak))
                else:
                    what = "stopped" if verb == b"STOP" else "continued"
                    changes.append(Change(number, what, value))
        except (EOFError, ConnectionError):  # the server died, and so did its workers
            changes += [Change(number, "ended") for number in self._alive]
            self._alive.clear()
            self.is_lost = True
            return changes
        except BlockingIOError:
            self._control.setblocking(True)
        return changes

    def end(self, number: int, grace_s: float = 0.0) -> None:
        """Ask a worker to end; the server knows whether its pid is still its own."""
        with suppress(OSError):
            send_order(self._control, Order(b"END ", number, int(grace_s * 1000)))

    def close(self) -> None:
        """End what is left of the workers."""
        self._control.close()

    abandon = close  # the server ends the workers when the last copy of its socket closes


class ThreadLauncher:
    """Starts each worker as a fresh interpreter, with portable means only.

    Its workers' output goes where the parent's goes, and what they start may outlive them.
    """

    def __init__(self) -> None:
        self.pids: dict[int, int] = {}
        self.is_lost = False
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._ended: deque[Change] = deque()
        self._bell, self._bell_end = socket.socketpair()
        self._bell.setblocking(False)

    def renew(self) -> None:
        """Nothing to do: there is nothing to lose."""

    def fileno(self) -> int:
        """Return what to wait on."""
        return self._bell.fileno()

    def start(self, number: int, items_fd: int) -> Born:
        """Start a worker; its pid is known a little later."""
        ours, theirs = socket.socketpair()
        page_fd, results_fd = new_page_fd(), new_file_fd("plait-results")
        page = StatusPage(page_fd)
        # Copies, as the thread may come to it late; the worker gets them under other numbers.
        fds = (page_fd, os.dup(items_fd), os.dup(results_fd)) if page_fd >= 0 else ()
        threading.Thread(
            target=self._watch, args=(number, theirs, fds), name="plait-watch", daemon=True
        ).start()
        return Born(Channel(ours), page, SegmentView(results_fd), ())

    def _watch(self, number: int, theirs: socket.socket, fds: tuple[int, ...]) -> None:
        """Start the process and wait for its end, in one thread.

        The kernel ties a worker's life to the thread that started it (see
        child_main.die_with_parent), so that thread must live as long as the worker.
        """
        status: int | None = None
        try:
            with theirs:
                process = self._spawn(theirs, fds)
            self._processes[number] = process
            self.pids[number] = process.pid
            status = process.wait()
        except OSError as error:
            status = error.errno
        finally:
            self._ended.append(Change(number, "ended", status))
            with suppress(OSError):  # the pool is closed
                self._bell_end.send(b"!")

    def _spawn(self, theirs: socket.socket, fds: tuple[int, ...]) -> subprocess.Popen[bytes]:
        fd = theirs.fileno()
        main = "plait.backends.child_main.main_spawned"
        command = python_command(main, fd, *(fds or (-1, -1, -1)))
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
                pass_fds=(fd, *fds),
                process_group=0,  # the terminal's Ctrl-C is for the parent only
            )
        finally:
            for fd in fds:
                os.close(fd)

    def take_changes(self) -> list[Change]:
        """Return who ended since the last call; does not block."""
        with suppress(BlockingIOError):
            self._bell.recv(4096)
        ended = []
        while self._ended:
            ended.append(self._ended.popleft())
            self._processes.pop(ended[-1].number, None)
        return ended

    def end(self, number: int, grace_s: float = 0.0) -> None:  # noqa: ARG002
        """Kill a worker, and what it started, at once: there is nobody to wait for the grace."""
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
            self.end(number)
        self.abandon()

    def abandon(self) -> None:
        """Let go of the workers, in a forked child: they are the parent's."""
        self._processes = {}
        self._bell.close()
        self._bell_end.close()
