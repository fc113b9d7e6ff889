"""The process of the fork server, as this process sees it: started, found dead, ended.

It is started as soon as a call is known to want processes, before the rest of plait is loaded
here: then both sides load what they need at the same time. So this module imports next to
nothing. What is said to the server is in backends/child.py, what it does in backends/server.py.
"""

from __future__ import annotations

import atexit
import errno
import os
import sys
from _thread import allocate_lock  # as in threading

from plait.bare import DONT_WAIT, Socket, send_fds, signal, socketpair
from plait.clocks import monotonic
from plait.interpreter import python_command, why_not

TYPE_CHECKING = False  # as in typing
if TYPE_CHECKING:
    from typing import Any

__all__ = ["CAN_FORK", "ServerFailed", "ServerProcess", "server", "start_early"]

CAN_FORK = hasattr(os, "fork") and hasattr(os, "posix_spawn")
"""Whether there can be a server: not on Windows."""


# What the first message says that goes to the server, as an Order (backends/orders.py): from now on
# this is standard error. Until then it is a file of ours, should it fail to start.
ERRORS_TO = b"ERRS".ljust(24, b"\0")
# What the system refuses for lack of room; all else is wrong with the command.
LACKS = (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM)
# How long it may take to end once it has closed its socket, and how much of its words is shown.
END_S = 2.0
FAILED_S = 60.0
"""A Python of which no server came is not tried again for so long."""
MOST_WORDS = 2000


class ServerFailed(OSError):
    """The server's command does not work here: it was started, and no server came of it."""


class ServerProcess:
    """The fork server of this process; started at the first need, and again if it died."""

    def __init__(self) -> None:
        self._lock = allocate_lock()  # guards all that is below, but for the last
        self._pid = 0  # 0: it does not run
        self._root: Socket | None = None
        self._words = -1  # the file in which it says why it cannot start
        self._failure: tuple[object, float, str] | None = None  # of which Python, until when, why
        self.users: set[object] = set()  # those who have workers there

    def start(self) -> None:
        """Start it, unless it was. Raises OSError."""
        with self._lock:
            if self._root is None:
                self._start()

    def send(self, data: bytes, fd: int) -> None:
        """Send it a message with a file descriptor, started anew if it died.

        Raises OSError; ServerFailed if it never came up: it is not tried twice.
        """
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
            try:
                send_fds(self._root, data, [fd])
            except ConnectionError:
                self._bury()
                raise

    def why_not(self) -> str:
        """Return why it cannot be started, "" if nothing speaks against it."""
        if self._root is not None:
            return ""
        if self._failure is not None:
            executable, until, text = self._failure
            if executable == sys.executable and monotonic() < until:
                return text
        return why_not()

    def _start(self) -> None:
        if reason := self.why_not():
            raise ServerFailed(reason)
        root, theirs = socketpair()
        try:
            self._words = _open_words()
            self._pid = _spawn(theirs.fileno(), self._words)
        except BaseException:
            root.close()
            self._close_words()
            raise
        finally:
            theirs.close()
        self._root = root
        if self._words >= 0:
            try:  # noqa: SIM105  contextlib takes longer to load than all of this
                send_fds(root, ERRORS_TO, [2])
            except OSError:  # it has ended already, or too many files are on their way
                pass

    def _bury(self) -> None:
        """Forget a server that died. Raises ServerFailed if it never came up."""
        has_lived = self._has_lived()
        words = self._read_words()
        status = self._stop()
        if not has_lived:
            ending = "did not answer" if status is None else _status_text(status)
            said = f" Its last words:\n{words}\n" if words else ""
            failure = (
                f"The server process that starts them could not be started: "
                f"{_shown_command()} {ending} before it was ready.{said}"
            )
            if status != -signal.SIGKILL:  # somebody else's doing
                self._failure = (sys.executable, monotonic() + FAILED_S, failure)
            raise ServerFailed(failure)

    def _has_lived(self) -> bool:
        """Whether the server has come up: then it has said so, and nothing else."""
        assert self._root is not None
        try:
            return bool(self._root.recv(1, DONT_WAIT))
        except OSError:
            return False

    def _read_words(self) -> str:
        if self._words < 0:
            return ""
        _wait_for(self._pid)  # it may be at its last words
        size = os.fstat(self._words).st_size
        data = os.pread(self._words, MOST_WORDS, max(0, size - MOST_WORDS))
        return data.decode("utf-8", "replace").strip()

    def _close_words(self) -> None:
        if self._words >= 0:
            os.close(self._words)
        self._words = -1

    def _stop(self) -> int | None:
        """End it, and return how it ended: its exit code, or minus a signal; None: unknown."""
        status = None
        if self._root is not None:
            self._root.close()
            try:
                if not _wait_for(self._pid):  # it is no server of ours, or hangs
                    os.kill(self._pid, signal.SIGKILL)
                    os.waitpid(self._pid, 0)
                else:
                    status = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
            except (ChildProcessError, ProcessLookupError):
                pass  # somebody has waited for every child there is
        self._close_words()
        self._root, self._pid = None, 0
        return status

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


def _wait_for(pid: int) -> bool:
    """Wait until a child has ended, but not for ever; False if it goes on."""
    if not hasattr(os, "pidfd_open"):
        return True
    from select import select

    try:
        fd = os.pidfd_open(pid)
    except OSError:  # it is gone
        return True
    try:
        return bool(select([fd], [], [], END_S)[0])
    finally:
        os.close(fd)


def _status_text(status: int) -> str:
    return f"exited with code {status}" if status >= 0 else f"was killed by signal {-status}"


def _shown_command() -> str:
    """Return the command, without what is long and always the same."""
    command = python_command("plait.backends.server.main")
    end = command.index("-c") + 1 if "-c" in command else 2
    return " ".join([*command[:end], "..."])


def _open_words() -> int:
    """Return a file for what a server says that cannot start; -1: there is none."""
    if not hasattr(os, "memfd_create"):
        return -1
    try:
        os.fstat(2)
    except OSError:  # it is closed here, and is to be there
        return -1
    return os.memfd_create("plait-server", os.MFD_CLOEXEC)


def _spawn(fd: int, words_fd: int) -> int:
    """Start the server, with a socket in place of its standard input, and return its pid.

    The socket is nothing that a program started by another thread at the same time could inherit.
    """
    command = python_command("plait.backends.server.main", os.getpid())
    copy = os.dup(fd)  # it may be 0 itself, where standard input is closed
    # No signal is blocked there, whatever this thread blocks: it has to hear of its children.
    actions = [(os.POSIX_SPAWN_DUP2, copy, 0)]
    if words_fd >= 0:
        actions.append((os.POSIX_SPAWN_DUP2, words_fd, 2))
    how: Any = {"file_actions": actions, "setsigmask": []}
    try:
        # In a session of its own: the terminal's Ctrl-C is for the parent only.
        return os.posix_spawn(command[0], command, os.environ, setsid=True, **how)
    except NotImplementedError:  # then the server does that, a little later
        return os.posix_spawn(command[0], command, os.environ, **how)
    except OSError as error:
        if error.errno in LACKS:
            raise
        raise ServerFailed(
            f"The server process that starts them could not be started: "
            f"{_shown_command()}: {error.strerror}."
        ) from error
    finally:
        os.close(copy)


server = ServerProcess()
if CAN_FORK:
    os.register_at_fork(after_in_child=server.forget)
    # Pools are closed before: exit functions run in the reverse order of their registration.
    atexit.register(server.close)


def start_early() -> None:
    """Start the server for a call that will want it, or probably will.

    Says nothing if that fails: whoever then needs the server hears why.
    """
    # Another thread may be amid the import of this; in a worker it is there from the start.
    depth = getattr(sys.modules.get("plait.worker"), "depth", None)
    if not CAN_FORK or (depth is not None and depth()):  # no processes inside of one
        return
    try:  # noqa: SIM105
        server.start()
    except OSError:
        pass
