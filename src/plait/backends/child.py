"""Have the fork server start a worker process, hear what becomes of it, end it.

Used by backends/processes.py only. What a launcher is says launcher.py; where there is no fork
thread_launcher.py has another one.
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import ExitStack, closing, suppress

from plait.backends.launcher import Born, Change, Launcher
from plait.backends.messages import OUTPUT_BYTES, StatusPage, new_file_fd, new_page_fd
from plait.backends.orders import (
    Order,
    Preload,
    Preloaded,
    file_of,
    object_in,
    pack_order,
    receive_order,
    send_order,
)
from plait.bare import Socket, socketpair
from plait.channel import Channel
from plait.errors import WorkerStartError, lack_text
from plait.interpreter import why_not
from plait.segments import SegmentView
from plait.server_process import CAN_FORK, ServerFailed, server

if sys.platform != "win32":
    import fcntl

__all__ = ["no_start_error", "open_launcher"]

# So many files are left to the program, rather than to have a further worker.
SPARE_FILES = 16


def open_launcher(start_method: str, preload: tuple[str, ...] = ()) -> Launcher:
    """Return a launcher for a start method: "server" or "spawn"."""
    if CAN_FORK:
        return ServerLauncher(is_fresh=start_method == "spawn", preload=preload)
    if reason := why_not():
        raise no_start_error(ServerFailed(reason))
    from plait.backends.thread_launcher import ThreadLauncher

    return ThreadLauncher()


ADVICE = "backend='threads' needs none."


def _open_control() -> Socket:
    """Return a new control socket to the server."""
    try:
        ours, theirs = socketpair()
    except OSError as error:
        raise no_start_error(error) from error
    try:
        server.users.add(ours)
        with closing(theirs):
            server.send(pack_order(Order(b"OPEN")), theirs.fileno())
    except OSError as error:
        _close_control(ours)
        raise no_start_error(error) from error
    return ours


def _close_control(control: Socket) -> None:
    server.users.discard(control)
    control.close()


def no_start_error(error: OSError) -> WorkerStartError:
    """Return what is raised where no worker can be had at all."""
    is_wrong = isinstance(error, ServerFailed)
    reason = f"{error} {ADVICE}" if is_wrong else lack_text(error.errno or 0)
    return WorkerStartError(f"No worker process can be started. {reason}")


def _output_pipe() -> tuple[int, int]:
    """Return the ends of a pipe with much room: reading it never blocks, writing rarely does."""
    ours, theirs = os.pipe()
    os.set_blocking(ours, False)
    if sys.platform == "linux":
        with suppress(OSError):  # the user has too many large pipes
            fcntl.fcntl(ours, fcntl.F_SETPIPE_SZ, OUTPUT_BYTES)
    return ours, theirs


def _check_spare(fd: int) -> None:
    """Raise OSError if so few files could still be opened that the program would miss them."""
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and fd + SPARE_FILES >= soft:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


class ServerLauncher:
    """Has the server start workers: as forks of it, or as fresh interpreters."""

    def __init__(self, *, is_fresh: bool, preload: tuple[str, ...] = ()) -> None:
        self.pids: dict[int, int] = {}
        self.preloaded: list[Preloaded] = []
        self._is_fresh = is_fresh
        self._preload = preload
        self._alive: set[int] = set()
        self._control = _open_control()
        self.is_lost = False
        try:
            self.preload()
        except OSError as error:
            self._control.close()
            raise no_start_error(error) from error

    def renew(self) -> None:
        """Find the server, or a new one."""
        _close_control(self._control)
        self._control = _open_control()
        self.is_lost = False
        self.preload()

    def preload(self) -> None:
        """Have the server import modules, before it starts the workers that come now."""
        if self._preload:
            self._order(Order(b"LOAD"), file_of(Preload.here(self._preload)))

    def _order(self, order: Order, *fds: int) -> None:
        """Send an order, and close what goes with it."""
        with suppress(OSError):  # take_changes() will tell that the server died
            send_order(self._control, order, fds)
        for fd in fds:
            os.close(fd)

    def fileno(self) -> int:
        """Return what to wait on."""
        return self._control.fileno()

    def start(self, number: int, items_fd: int) -> Born:
        """Start a worker; its pid is known a little later."""
        with ExitStack() as made, ExitStack() as lent:

            def keep(stack: ExitStack, fd: int) -> int:
                stack.callback(os.close, fd)
                return fd

            def open_pipe() -> tuple[int, int]:
                ours, theirs = _output_pipe()
                return keep(made, ours), keep(lent, theirs)

            ours, theirs = socketpair()
            made.callback(ours.close)
            lent.callback(theirs.close)
            page_fd = keep(lent, new_page_fd())
            results_fd = keep(made, new_file_fd("plait-results"))
            (out, their_out), (err, their_err) = open_pipe(), open_pipe()
            given = [theirs.fileno(), page_fd, items_fd, results_fd, their_out, their_err]
            if self._is_fresh:
                given.append(keep(lent, file_of(dict(os.environ))))
            if self._alive:  # the first one is worth the last file
                _check_spare(max(given))
            page, channel = StatusPage(page_fd), Channel(ours)
            made.callback(page.close)
            # What had to be loaded here to pack a function has to be there to load it.
            needs_all = "cloudpickle" in sys.modules and not self._is_fresh
            order = Order(b"EXEC" if self._is_fresh else b"FORK", number, needs_all)
            with suppress(ConnectionError):  # take_changes() will tell its death
                send_order(self._control, order, tuple(given))
            self._alive.add(number)
            made.pop_all()
        return Born(channel, page, SegmentView(results_fd), (out, err))

    def take_changes(self) -> list[Change]:
        """Return what became of the workers since the last call; does not block."""
        changes: list[Change] = []
        try:
            self._control.setblocking(False)
            while True:
                (verb, number, value, peak), fds = receive_order(self._control)
                if verb == b"PID ":
                    self.pids[number] = value
                elif verb in (b"ENDS", b"FAIL"):
                    self._alive.discard(number)
                    what = "ended" if verb == b"ENDS" else "failed"
                    changes.append(Change(number, what, value, peak))
                elif verb == b"LOAD":
                    self.preloaded.append(Preloaded(*object_in(*fds)))
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
        _close_control(self._control)

    abandon = close  # the server ends the workers when the last copy of its socket closes
