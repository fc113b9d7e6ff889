"""Start worker processes with portable means only: for systems without fork.

Used by backends/child.py there; what a launcher is says launcher.py.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from plait.backends.launcher import Born, Change
from plait.backends.messages import StatusPage, new_file_fd, new_page_fd
from plait.channel import Channel
from plait.interpreter import python_command
from plait.segments import SegmentView

if TYPE_CHECKING:
    from plait.backends.orders import Preloaded

__all__ = ["ThreadLauncher"]


class ThreadLauncher:
    """Starts each worker as a fresh interpreter, from a thread that then waits for its end.

    Its workers' output goes where the parent's goes, and what they start may outlive them.
    """

    def __init__(self) -> None:
        self.pids: dict[int, int] = {}
        self.is_lost = False
        self.preloaded: list[Preloaded] = []
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._ended: deque[Change] = deque()
        self._bell, self._bell_end = socket.socketpair()
        self._bell.setblocking(False)

    def renew(self) -> None:
        """Nothing to do: there is nothing to lose."""

    def preload(self) -> None:
        """Nothing to do: a fresh interpreter has nothing from anybody."""

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
        watch = threading.Thread(
            target=self._watch, args=(number, theirs, fds), name="plait-watch", daemon=True
        )
        try:
            watch.start()
        except RuntimeError as error:  # no further thread is allowed
            page.close()
            for sock in (ours, theirs):
                sock.close()
            for fd in {page_fd, results_fd, *fds} - {-1}:
                os.close(fd)
            raise OSError(errno.EAGAIN, str(error)) from error
        return Born(Channel(ours), page, SegmentView(results_fd), ())

    def _watch(self, number: int, theirs: socket.socket, fds: tuple[int, ...]) -> None:
        """Start the process and wait for its end, in one thread.

        The kernel ties a worker's life to the thread that started it (see
        kinship.die_with_parent), so that thread must live as long as the worker.
        """
        change = Change(number, "ended")
        try:
            with theirs:
                process = self._spawn(theirs, fds)
            self._processes[number] = process
            self.pids[number] = process.pid
            change = Change(number, "ended", process.wait())
        except OSError as error:
            change = Change(number, "failed", error.errno)
        finally:
            self._ended.append(change)
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
