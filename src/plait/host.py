"""What this machine lets us use: CPUs, the clock, the time a thread really ran.

Nobody else in plait asks the machine.
"""

from __future__ import annotations

import math
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

__all__ = ["ThreadClock", "cpu_count", "monotonic", "python_arguments", "read_thread_clock"]

monotonic = time.monotonic
"""The clock of every duration in plait; on Linux the same in all processes."""

_CGROUP = Path("/sys/fs/cgroup")


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
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            for controller in controllers.split(","):
                groups[controller] = path
    return groups


def _cgroup_cpus(groups: dict[str, str], root: Path) -> float:
    """Return the smallest CPU quota of a process's own cgroups and all their ancestors.

    The quota of a container is often set on an ancestor, not on the process's own
    group (joblib/loky#634), and the root's says nothing about either.
    """
    quota = math.inf
    if "" in groups:
        for folder in _with_ancestors(root, groups[""]):
            quota = min(quota, _read_quota(folder / "cpu.max"))
    if "cpu" in groups:
        for folder in _with_ancestors(root / "cpu", groups["cpu"]):
            quota = min(
                quota, _read_quota(folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us")
            )
    return quota


def _with_ancestors(root: Path, group: str) -> list[Path]:
    folder = root / group.strip("/")
    return [folder, *(parent for parent in folder.parents if parent.is_relative_to(root))]


def _read_quota(*files: Path) -> float:
    """Return CPUs from ``quota period`` in one file or two; infinity where there is no limit."""
    try:
        quota, period = " ".join(file.read_text() for file in files).split()
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
        queued = int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    return ThreadClock(monotonic(), time.thread_time(), queued)


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
