"""The process of the fork server, as this process sees it: started, found dead, ended.

It is started as soon as a call is known to want processes, before the rest of plait is loaded
here: then both sides load what they need at the same time. So this module imports next to
nothing. What is said to the server is in backends/child.py, what it does in backends/server.py.
"""

from __future__ import annotations

import atexit
import os
import sys
from _thread import allocate_lock  # as in threading

from plait.bare import Socket, send_fds, socketpair
from plait.interpreter import python_command, why_not

TYPE_CHECKING = False  # as in typing
if TYPE_CHECKING:
    from typing import Any

__all__ = ["CAN_FORK", "ServerProcess", "server", "start_early"]

CAN_FORK = hasattr(os, "fork") and hasattr(os, "posix_spawn")
"""Whether there can be a server: not on Windows."""
MOST_WORDS = 2000


class ServerProcess:
    """The fork server of this process; started at the first need, and again if it died."""

    def __init__(self) -> None:
        self._lock = allocate_lock()  # guards all that is below, but for the last two
        self._pid = 0  # 0: it does not run
        self._root: Socket | None = None
        self._command: list[str] = []
        self._words_fd = -1  # what it says on standard error as it starts
        self._failed: object = ()  # sys.executable, if that did not become a server
        self._failure = ""
        self.has_answered = False
        self.users: set[object] = set()  # those who have workers there

    def start(self) -> None:
        """Start it, unless it was. Raises OSError."""
        with self._lock:
            if self._root is None:
                self._start()

    def send(self, data: bytes, fd: int) -> None:
        """Send it a message with a file descriptor, started anew if it died. Raises OSError."""
        with self._lock:
            if self._root is not None:
                try:
                    send_fds(self._root, data, [fd])
                except OSError:  # it died
                    self._bury()
                else:
                    return
            self._start()
            assert self._root is not None
            send_fds(self._root, data, [fd])

    def why_not(self) -> str:
        """Return why it cannot be started, "" if nothing speaks against it."""
        if self._root is not None and self.has_answered:
            return ""
        return self._failure if self._failed == sys.executable else why_not()

    def _start(self) -> None:
        if reason := self.why_not():
            raise OSError(reason)
        root, theirs = socketpair()
        self._words_fd = _open_words()
        try:
            self._pid, self._command = _spawn(theirs.fileno(), self._words_fd)
        except OSError:
            root.close()
            self._close_words()
            raise
        finally:
            theirs.close()
        self._root, self.has_answered = root, False

    def _bury(self) -> None:
        """Note its death. What never came to work is not started again, but for a kill."""
        status = self._wait()
        was_killed = status is not None and os.WIFSIGNALED(status) and os.WTERMSIG(status) == 9
        if not (self.has_answered or was_killed) and self._words_fd >= 0:
            self._failure = _failure_text(self._command, status, self._words_fd)
            self._failed = sys.executable
        self._stop()

    def _wait(self) -> int | None:
        try:
            return os.waitpid(self._pid, 0)[1] if self._pid else None
        except ChildProcessError:  # somebody has waited for every child there is
            return None
        finally:
            self._pid = 0

    def _stop(self) -> None:
        if self._root is not None:
            self._root.close()
            self._wait()
        self._close_words()
        self._root = None

    def _close_words(self) -> None:
        if self._words_fd >= 0:
            os.close(self._words_fd)
        self._words_fd = -1

    def close(self) -> None:
        """End it, and with it all of its workers."""
        with self._lock:
            self._stop()

    def close_unused(self) -> None:
        """End it if nobody has workers there."""
        with self._lock:
            if not self.users:
                self._stop()

    def forget(self) -> None:
        """In a forked child of this process: the server is the parent's."""
        root = self._root
        self._close_words()
        self.__init__()  # type: ignore[misc]  # a new lock, too: another thread may have held it
        if root is not None:
            root.close()


def _spawn(fd: int, words_fd: int) -> tuple[int, list[str]]:
    """Start the server; return its pid and the command.

    It has the socket ``fd`` in place of its standard input: nothing that a program started by
    another thread at the same time could inherit. What it says on standard error until it is at
    work goes to the file ``words_fd``, if there is one.
    """
    stderr_fd = _copy_stderr() if words_fd >= 0 else -1
    copy = os.dup(fd)  # it may be 0 itself, where standard input is closed
    actions = [(os.POSIX_SPAWN_DUP2, copy, 0)]
    if stderr_fd >= 0:
        actions += [
            (os.POSIX_SPAWN_DUP2, 2, stderr_fd),  # kept there, see server.py
            (os.POSIX_SPAWN_DUP2, words_fd, 2),
        ]
    # No signal is blocked there, whatever this thread blocks: it has to hear of its children.
    how: Any = {"file_actions": actions, "setsigmask": []}
    try:
        command = python_command("plait.backends.server.main", os.getpid(), stderr_fd)
        try:
            # In a session of its own: the terminal's Ctrl-C is for the parent only.
            pid = os.posix_spawn(command[0], command, os.environ, setsid=True, **how)
        except NotImplementedError:  # then the server does that, a little later
            pid = os.posix_spawn(command[0], command, os.environ, **how)
    finally:
        os.close(copy)
        if stderr_fd >= 0:
            os.close(stderr_fd)
    return pid, command


def _open_words() -> int:
    """Return a file for what the server says as it starts, -1 if there can be none."""
    try:
        fd = os.memfd_create("plait-server")
    except (AttributeError, OSError):  # not Linux
        return -1
    return _above_streams(fd)


def _copy_stderr() -> int:
    """Return a copy of standard error, -1 if it is closed."""
    try:
        # What is not inheritable is another file of this process, under that number.
        return _above_streams(os.dup(2)) if os.get_inheritable(2) else -1
    except OSError:
        return -1


def _above_streams(fd: int) -> int:
    if fd > 2:
        return fd
    os.close(fd)  # a standard stream is closed here: that is a rare place, and this is a comfort
    return -1


def _failure_text(command: list[str], status: int | None, words_fd: int) -> str:
    """Return what became of a command that was to be the server."""
    said = os.pread(words_fd, MOST_WORDS, max(0, os.fstat(words_fd).st_size - MOST_WORDS))
    words = said.decode(errors="replace").strip()
    shown = " ".join([*command[:2], "..."])
    code = None if status is None else os.waitstatus_to_exitcode(status)
    ending = "vanished" if code is None else f"exited with code {code}"
    if code is not None and code < 0:
        ending = f"was killed by signal {-code}"
    text = f"the command {shown!r} {ending} before it was at work."
    if "\n" in words:
        return f"{text} It said:\n{words}\n"
    return f"{text} It said: {words.rstrip('.')}." if words else text


server = ServerProcess()
if CAN_FORK:
    os.register_at_fork(after_in_child=server.forget)
    # Pools are closed before: exit functions run in the reverse order of their registration.
    atexit.register(server.close)


def start_early() -> None:
    """Start the server for a call that will want it, or probably will.

    Says nothing if that fails: whoever then needs the server hears why.
    """
    worker = sys.modules.get("plait.worker")
    if not CAN_FORK or (worker is not None and worker.depth()):  # no processes inside of one
        return
    try:  # noqa: SIM105
        server.start()
    except OSError:
        pass
