"""What ties processes together: what they inherit, who ends with whom, how a family is ended.

Used by the fork server and by workers, at their start and at their end.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Any

from plait.bare import Socket, signal
from plait.host import family_pids

if sys.platform == "linux":
    from _ctypes import call_function, dlopen, dlsym  # ctypes takes a millisecond to load

__all__ = ["adopt_orphans", "die_with_parent", "kill_family", "send_signal", "take_root"]

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def _prctl(option: int, value: int) -> None:
    main_program: Any = None  # which has the C library
    call_function(dlsym(dlopen(main_program, 0), "prctl"), (option, value))


def die_with_parent() -> None:
    """Ask the kernel (Linux) to kill this process when the thread that started it ends.

    It works while a task sleeps or sits in C code, when nothing in Python could notice.
    Elsewhere a worker notices at the end of its task that its channel is closed.
    """
    if sys.platform == "linux":
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def adopt_orphans() -> None:
    """Ask the kernel (Linux) to make this process the parent of its descendants' orphans."""
    if sys.platform == "linux":
        _prctl(PR_SET_CHILD_SUBREAPER, 1)


def send_signal(pid: int, signum: int) -> None:
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


def take_root() -> Socket:
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
    return Socket(fileno=root)


def _open_fds() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/dev/fd")]  # noqa: PTH208
    except OSError:
        return list(range(1024))
