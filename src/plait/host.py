"""What this machine lets us use: CPUs, memory, and of processes what their system tells.

Nobody else in plait asks the machine, but for the clocks in clocks.py.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from contextlib import suppress

from plait.clocks import monotonic

__all__ = [
    "WORKER_MARK",
    "QueueClock",
    "can_measure_memory",
    "child_pids",
    "cpu_count",
    "family_pids",
    "family_rss_bytes",
    "memory_bytes",
    "monotonic",
    "oom_kills",
    "peak_rss_bytes",
    "process_groups",
    "queued_s",
    "rss_bytes",
    "thread_cpu_s",
    "worker_mark",
]

_CGROUP = "/sys/fs/cgroup"
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:  # noqa: PTH123  pathlib takes longer to import than all this
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


def thread_cpu_s(thread: threading.Thread) -> float:
    """Return the seconds that a living thread was on a CPU; 0 where it cannot be known."""
    if thread.ident is None or not hasattr(time, "pthread_getcpuclockid"):
        return 0.0
    with suppress(OSError):  # it has just ended
        return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
    return 0.0


def queued_s() -> float:
    """Return how long all threads of this process have ever waited for a free CPU, added up.

    In seconds; 0 where the system does not tell (anywhere but on Linux).
    """
    total = 0
    with suppress(OSError):
        for thread in os.listdir("/proc/self/task"):  # noqa: PTH208  pathlib is slow to import
            with suppress(OSError, ValueError, IndexError):
                total += int(_read(f"/proc/self/task/{thread}/schedstat").split()[1])
    return total / 1e9


READ_EVERY_S = 0.05


class QueueClock:
    """How long this thread waited for a free CPU, again and again, at a microsecond a reading.

    For the thread that makes it, as the main thread of a worker process. Says 0 where the
    system does not tell (anywhere but on Linux).
    """

    def __init__(self, every_s: float = READ_EVERY_S) -> None:
        """Read at most once in so many seconds."""
        self._every_s = every_s
        try:
            self._fd = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._fd = -1
        self._last = self._due = 0.0
        self.read_since_last()

    def read_since_last(self) -> float:
        """Return the seconds since the last reading that were spent waiting for a CPU.

        Who asks again at once gets 0, and what has come together when some time has passed.
        """
        now, last = monotonic(), self._last
        if now < self._due:
            return 0.0
        self._due = now + self._every_s
        with suppress(OSError, ValueError, IndexError):
            self._last = int(os.pread(self._fd, 64, 0).split()[1]) / 1e9
        return self._last - last

    def close(self) -> None:
        """Give the file back."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


# --- Processes ---------------------------------------------------------------------------

WORKER_MARK = "PLAIT_WORKER"
"""The environment variable in which a worker leaves its pid to all that it starts."""


def child_pids(pid: int) -> list[int]:
    """Return the children of a process; none where it cannot be known (only Linux tells)."""
    found: list[int] = []
    with suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208  pathlib is slow to import
            with suppress(OSError):  # the thread ended meanwhile
                found += map(int, _read(f"/proc/{pid}/task/{thread}/children").split())
    return found


def family_pids(pid: int) -> list[int]:
    """Return a process and all that descends from it now, as far as it can be known."""
    family = [pid]
    for member in family:  # it grows meanwhile
        family += child_pids(member)
    return family


def process_groups(pid: int) -> tuple[int, ...]:
    """Return the process group and the session of a process; nothing if it is gone."""
    with suppress(OSError):
        return os.getpgid(pid), os.getsid(pid)
    return ()


def worker_mark(pid: int) -> int:
    """Return the pid of the worker whose mark a process has inherited, 0 if it has none."""
    with suppress(OSError, ValueError):
        for entry in _read(f"/proc/{pid}/environ").split("\0"):
            name, _, value = entry.partition("=")
            if name == WORKER_MARK:
                return int(value)
    return 0


def can_measure_memory() -> bool:
    """Whether this system tells how much memory other processes have; on Linux /proc does."""
    return sys.platform != "linux" or os.path.exists("/proc/self/statm")  # noqa: PTH110


def family_rss_bytes(pid: int) -> int:
    """Return the resident memory of a process and all of its descendants; 0 if it is gone.

    On Linux it takes 20 µs, where psutil takes 150: it is asked after each chunk.
    """
    if sys.platform != "linux":  # untested
        return _family_rss_bytes_anywhere(pid)
    rss_bytes = 0
    for member in family_pids(pid):
        with suppress(OSError):
            rss_bytes += int(_read(f"/proc/{member}/statm").split()[1]) * _PAGE_BYTES
    return rss_bytes


def _family_rss_bytes_anywhere(pid: int) -> int:
    import psutil

    rss_bytes = 0
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        for member in (process, *process.children(recursive=True)):
            with suppress(psutil.Error):
                rss_bytes += member.memory_info().rss
    return rss_bytes


def rss_bytes() -> int:
    """Return the resident memory of this process; 0 where the system does not tell (not Linux)."""
    with suppress(OSError, ValueError, IndexError):
        return int(_read("/proc/self/statm").split()[1]) * _PAGE_BYTES
    return 0


def peak_rss_bytes() -> int:
    """Return the most resident memory that this process ever had; 0 where that is not known."""
    try:
        import resource  # not on Windows
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def oom_kills() -> int | None:
    """Return how often the system's OOM killer struck in this process's cgroup; None: unknown.

    That of the whole machine would say nothing about this program.
    """
    groups = _own_cgroups()
    own = _with_ancestors(_CGROUP, groups.get(""))
    own_v1 = _with_ancestors(f"{_CGROUP}/memory", groups.get("memory"))
    # In a container the root of what is mounted may be its own group.
    for file in [
        *(f"{folder}/memory.events" for folder in (*own[:1], *own[-1:])),
        *(f"{folder}/memory.oom_control" for folder in (*own_v1[:1], *own_v1[-1:])),
    ]:
        with suppress(OSError, ValueError):
            facts = dict(line.split() for line in _read(file).splitlines())
            return int(facts.get("oom_kill", ""))
    return None


def memory_bytes() -> int:
    """Return how much memory this process may use: that of the machine, or of its cgroups."""
    groups = _own_cgroups()
    files = [
        *(f"{folder}/memory.max" for folder in _with_ancestors(_CGROUP, groups.get(""))),
        *(
            f"{folder}/memory.limit_in_bytes"
            for folder in _with_ancestors(f"{_CGROUP}/memory", groups.get("memory"))
        ),
    ]
    limits = [_physical_bytes()]
    for file in files:
        with suppress(OSError, ValueError):  # no such file, or "max"
            limits.append(int(_read(file)))
    return min(limits)


def _physical_bytes() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * _PAGE_BYTES
    except (AttributeError, ValueError, OSError):
        import psutil

        return int(psutil.virtual_memory().total)
