"""The clocks, in a module that takes no time to load; host.py knows the rest of the machine."""

from __future__ import annotations

import os
import sys
import time

__all__ = [
    "ThreadClock",
    "clock_of_thread",
    "cpu_of_thread",
    "is_running",
    "monotonic",
    "read_thread_clock",
]

monotonic = time.monotonic
"""The clock of every duration in plait; on Linux the same in all processes."""

ThreadClock = tuple[float, float, float]
"""Readings of the calling thread, in seconds: wall, on a CPU, waiting for a free CPU."""


def read_thread_clock() -> ThreadClock:
    """Read the clocks of the calling thread, in about 6 µs.

    The time spent waiting for a CPU is known on Linux only (0 elsewhere). Without it a
    busy machine would make a computing function look as if it waited for something.
    """
    try:
        queued = int(_read_of_thread("schedstat").split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        queued = 0.0
    return time.monotonic(), time.thread_time(), queued


def clock_of_thread(ident: int, native_id: int) -> ThreadClock:
    """Read the clocks of another living thread, by its identifiers."""
    try:
        cpu, queued = map(int, _read_of_thread("schedstat", native_id).split()[:2])
        return time.monotonic(), cpu / 1e9, queued / 1e9
    except (OSError, ValueError):  # not Linux: untested
        pass
    try:
        clock = time.pthread_getcpuclockid(ident)
        return time.monotonic(), time.clock_gettime(clock), 0.0
    except (AttributeError, OSError):  # then it counts as one that computes
        return time.monotonic(), time.monotonic(), 0.0


def cpu_of_thread(native_id: int) -> float | None:
    """Return how long another thread was on a CPU, to this moment; None: it cannot be known.

    schedstat, as above, is as late as the system's last look, a few milliseconds. The clock's
    number is the one that pthread_getcpuclockid (glibc) makes, which must not be asked for a
    thread that has ended.
    """
    if sys.platform != "linux":
        return None
    try:
        return time.clock_gettime(~native_id << 3 | 6)
    except OSError:
        return None


def is_running(native_id: int) -> bool:
    """Return whether another thread is on a CPU now; True if the system does not tell.

    A thread that last ran on the caller's CPU is not on any: the caller is.
    """
    try:
        state, cpu = _read_stat(native_id)
        return state == b"R" and cpu != _read_stat()[1]
    except (OSError, IndexError):
        return True


def _read_stat(native_id: int = 0) -> tuple[bytes, bytes]:
    """Read the state of a thread, and the number of the CPU that it last ran on."""
    # Behind the name, which is in parentheses and may have any characters.
    fields = _read_of_thread("stat", native_id).rpartition(b")")[2].split()
    return fields[0], fields[36]


def _read_of_thread(name: str, native_id: int = 0) -> bytes:
    """Read what Linux tells of a thread, by default the calling one."""
    thread = f"self/task/{native_id}" if native_id else "thread-self"
    file = os.open(f"/proc/{thread}/{name}", os.O_RDONLY)  # half the time of open()
    try:
        return os.read(file, 1024)
    finally:
        os.close(file)
