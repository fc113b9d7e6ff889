"""What ties processes together: what they inherit, who ends with whom, how a family is ended.

Used by the fork server and by workers, at their start and at their end.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
from contextlib import suppress

from plait.host import family_pids

__all__ = ["adopt_orphans", "die_with_parent", "kill_family", "send_signal", "take_root"]

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
if sys.platform == "linux":
    LIBC = ctypes.CDLL(None)


def die_with_parent() -> None:
    """Ask the kernel (Linux) to kill this process when the thread that started it ends.

    It works while a task sleeps or sits in C code, when nothing in Python could notice.
    Elsewhere a worker notices at the end of its task that its channel is closed.
    """
    if sys.platform == "linux":
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def adopt_orphans() -> None:
    """Ask the kernel (Linux) to make this process the parent of its descendants' orphans."""
    if sys.platform == "linux":
        LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1)


def send_signal(pid: int, signum: signal.Signals) -> None:
    """Signal a child, which was not reaped: so the pid is its own."""
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signum)


def kill_family(pid: int) -> None:
    """Kill a process, its group, and all that descends from it now."""
    for member in family_pids(pid):
        send_signal(member, signal.SIGKILL)
    with suppress(ProcessLookupError, PermissionError):
        if os.getpgid(pid) == pid:
            os.killpg(pid, signal.SIGKILL)


def take_root() -> socket.socket:
    """Return the root socket, which came as standard input, and close what else was inherited."""
    for fd in _open_fds():
        with suppress(OSError):
            if fd > 2 and os.get_inheritable(fd):  # what Python opens itself is not inheritable
                os.close(fd)
    null = os.open(os.devnull, os.O_RDWR)
    while null <= 2:  # standard output or error was closed
        null = os.dup(null)
    root = os.dup(0)
    os.dup2(null, 0)
    os.close(null)
    return socket.socket(fileno=root)


def _open_fds() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/dev/fd")]  # noqa: PTH208
    except OSError:
        return list(range(1024))
