"""Keep the threads inside numpy and its kind from multiplying with the workers.

A matrix product uses all CPUs by itself. In as many workers as there are CPUs it would start
CPUs x CPUs threads, which is slower than one. So that workers x threads = CPUs, worker
processes get environment variables before they load anything, and while a pool of threads
works the libraries that are loaded are told (threadpoolctl).
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from typing import Any

from plait.host import cpu_count

__all__ = ["ThreadLimit", "with_thread_limits"]

VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
# Modules that bring such a library along.
USERS = ("numpy", "scipy", "sklearn", "torch", "numexpr", "faiss")


def threads_for(workers: int) -> int:
    """Return how many threads each of so many workers may use, at least 1."""
    return max(1, cpu_count() // workers)


def with_thread_limits(environ: Mapping[str, str], workers: int) -> dict[str, str]:
    """Return an environment for workers; what the user has set stays."""
    threads = str(threads_for(workers))
    return {**dict.fromkeys(VARIABLES, threads), **environ}


class ThreadLimit:
    """The limit for this process, held while pools of threads work.

    The libraries have one limit for the whole process. The first to come sets it, and when
    the last has gone it is as it was.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards everything below
        self._holders = 0
        self._limiter: Any = None
        self._controller: Any = None  # knows the libraries; finding them takes a millisecond
        self._loaded: list[str] = []  # of USERS, when they were looked for

    def hold(self, workers: int) -> None:
        """Limit the libraries that are loaded now."""
        with self._lock:
            self._holders += 1
            loaded = [name for name in USERS if name in sys.modules]
            if self._limiter is None and loaded:
                self._limiter = self._find(loaded).limit(limits=threads_for(workers))

    def _find(self, loaded: list[str]) -> Any:
        if loaded != self._loaded:
            from threadpoolctl import ThreadpoolController

            self._controller, self._loaded = ThreadpoolController(), loaded
        return self._controller

    def release(self) -> None:
        """Take back one ``hold``."""
        with self._lock:
            self._holders -= 1
            if not self._holders and self._limiter is not None:
                self._limiter.restore_original_limits()
                self._limiter = None
