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

TYPE_CHECKING = False  # as in typing
if TYPE_CHECKING:
    from typing import Any

__all__ = ["CAN_FORK", "ServerProcess", "python_command", "server", "start_early"]

CAN_FORK = hasattr(os, "fork") and hasattr(os, "posix_spawn")
"""Whether there can be a server: not on Windows."""


class ServerProcess:
    """The fork server of this process; started at the first need, and again if it died."""

    def __init__(self) -> None:
        self._lock = allocate_lock()  # guards the two below
        self._pid = 0  # 0: it does not run
        self._root: Socket | None = None

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
                    self._stop()
                else:
                    return
            self._start()
            assert self._root is not None
            send_fds(self._root, data, [fd])

    def _start(self) -> None:
        root, theirs = socketpair()
        try:
            self._pid = _spawn(theirs.fileno())
        except OSError:
            root.close()
            raise
        finally:
            theirs.close()
        self._root = root

    def _stop(self) -> None:
        if self._root is not None:
            self._root.close()
            try:  # noqa: SIM105  contextlib takes longer to load than all of this
                os.waitpid(self._pid, 0)
            except ChildProcessError:  # somebody has waited for every child there is
                pass
        self._root, self._pid = None, 0

    def close(self) -> None:
        """End it, and with it all of its workers."""
        with self._lock:
            self._stop()

    def forget(self) -> None:
        """In a forked child of this process: the server is the parent's."""
        root = self._root
        self.__init__()  # type: ignore[misc]  # a new lock, too: another thread may have held it
        if root is not None:
            root.close()


def _spawn(fd: int) -> int:
    """Start the server, with a socket in place of its standard input, and return its pid.

    The socket is nothing that a program started by another thread at the same time could inherit.
    """
    if not sys.executable:
        raise OSError("sys.executable is empty")
    command = python_command("plait.backends.server.main", os.getpid())
    copy = os.dup(fd)  # it may be 0 itself, where standard input is closed
    # No signal is blocked there, whatever this thread blocks: it has to hear of its children.
    how: Any = {"file_actions": [(os.POSIX_SPAWN_DUP2, copy, 0)], "setsigmask": []}
    try:
        # In a session of its own: the terminal's Ctrl-C is for the parent only.
        return os.posix_spawn(command[0], command, os.environ, setsid=True, **how)
    except NotImplementedError:  # then the server does that, a little later
        return os.posix_spawn(command[0], command, os.environ, **how)
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


def python_command(function: str, *numbers: int) -> list[str]:
    """Return the command by which a fresh Python calls ``module.function(*numbers)``.

    It has this Python's ``-O``, ``-W`` and ``-X`` settings and its ``sys.path``, and heeds the
    environment and the site as little as this one (``-I``, ``-E``, ``-s``, ``-S``).
    """
    arguments = [sys.executable]
    arguments += [letter for name, letter in _APART.items() if getattr(sys.flags, name)]
    if sys.flags.optimize:
        arguments.append("-" + "O" * sys.flags.optimize)
    for warning in sys.warnoptions:
        arguments += ["-W", warning]
    for name, value in sys._xoptions.items():  # noqa: SLF001  documented by CPython
        arguments += ["-X", name if value is True else f"{name}={value}"]
    module, _, name = function.rpartition(".")
    return [*arguments, "-c", _BOOT, module, name, *map(str, numbers), "--", *sys.path]


_APART = {"isolated": "-I", "ignore_environment": "-E", "no_user_site": "-s", "no_site": "-S"}

# Run as `-c BOOT module function numbers... -- sys.path...`. There is no garbage while modules are
# loaded, and looking for it takes a tenth of that time.
_BOOT = (
    "import gc, sys; gc.disable(); n = sys.argv.index('--'); sys.path[:] = sys.argv[n + 1:]; "
    "from importlib import import_module; module = import_module(sys.argv[1]); gc.enable(); "
    "getattr(module, sys.argv[2])(*map(int, sys.argv[3:n]))"
)
