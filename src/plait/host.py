"""What this machine lets us use: CPUs, the clock, the time a thread really ran.

Nobody else in plait asks the machine.
"""

from __future__ import annotations

import math
import os
import sys
import time
from contextlib import suppress
from typing import NamedTuple

__all__ = [
    "QueueClock",
    "ThreadClock",
    "cpu_count",
    "monotonic",
    "python_arguments",
    "read_thread_clock",
]

monotonic = time.monotonic
"""The clock of every duration in plait; on Linux the same in all processes."""

_CGROUP = "/sys/fs/cgroup"


def _read(path: str) -> str:
    with open(path) as file:  # noqa: PTH123  pathlib takes longer to import than all this
        return file.read()


def cpu_count() -> int:
    """Return how many CPUs this process may use: affinity and cgroup quota, at least 1.

    >>> cpu_count() >= 1
    True
    """
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    else:
        allowed = os.cpu_count() or 1
    return max(1, math.ceil(min(allowed, _cgroup_cpus(_own_cgroups(), _CGROUP))))


def _own_cgroups() -> dict[str, str]:
    """Return the cgroup of this process by controller ("" is version 2)."""
    groups: dict[str, str] = {}
    with suppress(OSError):
        for line in _read("/proc/self/cgroup").splitlines():
            _, controllers, path = line.split(":", 2)
            for controller in controllers.split(","):
                groups[controller] = path
    return groups


def _cgroup_cpus(groups: dict[str, str], root: str) -> float:
    """Return the smallest CPU quota of a process's own cgroups and all their ancestors.

    The quota of a container is often set on an ancestor, not on the process's own
    group (joblib/loky#634), and the root's says nothing about either.
    """
    quota = math.inf
    for folder in _with_ancestors(root, groups.get("")):
        quota = min(quota, _read_quota(f"{folder}/cpu.max"))
    for folder in _with_ancestors(f"{root}/cpu", groups.get("cpu")):
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        quota = min(quota, _read_quota(*(f"{folder}/{name}" for name in names)))
    return quota


def _with_ancestors(root: str, group: str | None) -> list[str]:
    if group is None:
        return []
    parts = group.strip("/").split("/")
    return [f"{root}/{'/'.join(parts[:n])}".rstrip("/") for n in range(len(parts), -1, -1)]


def _read_quota(*files: str) -> float:
    """Return CPUs from ``quota period`` in one file or two; infinity where there is no limit."""
    try:
        quota, period = " ".join(_read(file) for file in files).split()
        return float(quota) / float(period) if float(quota) > 0 else math.inf
    except (OSError, ValueError):  # no such file, or "max"
        return math.inf


class ThreadClock(NamedTuple):
    """Readings of the calling thread, in seconds: wall, on a CPU, waiting for a free CPU."""

    wall: float
    cpu: float
    queued: float


def read_thread_clock() -> ThreadClock:
    """Read the clocks of the calling thread.

    The time spent waiting for a CPU is known on Linux only (0 elsewhere). Without it a
    busy machine would make a computing function look as if it waited for something.
    """
    queued = 0.0
    with suppress(OSError, ValueError, IndexError):
        queued = int(_read("/proc/thread-self/schedstat").split()[1]) / 1e9
    return ThreadClock(monotonic(), time.thread_time(), queued)


class QueueClock:
    """How long this thread waited for a free CPU, again and again, at a microsecond a reading.

    For a thread of its own, as the main thread of a worker process is. Says 0 where the
    system does not tell (anywhere but on Linux).
    """

    def __init__(self) -> None:
        try:
            self._fd = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._fd = -1
        self._last = 0.0
        self.read_since_last()

    def read_since_last(self) -> float:
        """Return the seconds since the last reading that were spent waiting for a CPU."""
        last = self._last
        with suppress(OSError, ValueError, IndexError):
            self._last = int(os.pread(self._fd, 64, 0).split()[1]) / 1e9
        return self._last - last


def python_arguments() -> list[str]:
    """Return the command of this Python with its ``-O``, ``-W`` and ``-X`` settings."""
    arguments = [sys.executable]
    if sys.flags.optimize:
        arguments.append("-" + "O" * sys.flags.optimize)
    for warning in sys.warnoptions:
        arguments += ["-W", warning]
    for name, value in sys._xoptions.items():  # noqa: SLF001  documented by CPython
        arguments += ["-X", name if value is True else f"{name}={value}"]
    return arguments
