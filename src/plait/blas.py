"""Keep the threads inside numpy and its kind from multiplying with the workers.

A matrix product uses all CPUs by itself. In as many workers as there are CPUs it would start
CPUs x CPUs threads, which is slower than one. So that workers x threads = CPUs, worker
processes get environment variables before they load anything, and while a pool of threads
works the libraries that are loaded are told (threadpoolctl). So are those that a worker has
from its start, as they were preloaded.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any

from plait.host import cpu_count

__all__ = [
    "VARIABLES",
    "find_libraries",
    "follow_environment",
    "thread_limit",
    "with_thread_limits",
]

VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
# Where threadpoolctl's kinds of libraries look as they are loaded.
VARIABLE_OF = {
    "openmp": "OMP_NUM_THREADS",
    "openblas": "OPENBLAS_NUM_THREADS",
    "mkl": "MKL_NUM_THREADS",
    "blis": "BLIS_NUM_THREADS",
}
# Modules that bring such a library along.
USERS = ("numpy", "scipy", "sklearn", "torch", "numexpr", "faiss")


def threads_for(workers: int, cpus: int) -> int:
    """Return how many threads each of so many workers may use, at least 1."""
    return max(1, cpus // workers)


def with_thread_limits(environ: Mapping[str, str], workers: int, cpus: int) -> dict[str, str]:
    """Return an environment for workers; what the user has set stays."""
    threads = str(threads_for(workers, cpus))
    return {**dict.fromkeys(VARIABLES, threads), **environ}


def find_libraries() -> Any:
    """Return threadpoolctl's view of what is loaded; None if there is no such library."""
    loaded = tuple(name for name in USERS if name in sys.modules)
    return _find(loaded) if loaded else None


@lru_cache(maxsize=1)
def _find(loaded: tuple[str, ...]) -> Any:  # noqa: ARG001  the cache's key: it takes a millisecond
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def follow_environment() -> None:
    """Have libraries that were loaded before the environment was set use so many threads."""
    controller = find_libraries()
    for library in controller.lib_controllers if controller else ():
        with suppress(KeyError, ValueError):  # the user has set it to something else
            threads = int(os.environ[VARIABLE_OF[library.internal_api]])
            if threads != library.num_threads:
                library.set_num_threads(threads)


class ThreadLimit:
    """The limit for this process, held while pools of threads work, or it is tried (probe.py).

    The libraries have one limit for the whole process. The first to come sets it, and when
    the last has gone it is as it was.
    """

    def __init__(self) -> None:
        # Guards everything below. Taken again by a thread that has it, where the garbage collector
        # finds a run that was dropped just then, and closes it.
        self._lock = threading.RLock()
        self._holders = 0
        self._limiter: Any = None

    def hold(self, workers: int) -> None:
        """Limit the libraries that are loaded now."""
        with self._lock:
            self._holders += 1
            controller = find_libraries() if self._limiter is None else None
            if controller is not None:
                self._limiter = controller.limit(limits=threads_for(workers, cpu_count()))

    def release(self) -> None:
        """Take back one ``hold``."""
        with self._lock:
            self._holders -= 1
            if not self._holders and self._limiter is not None:
                self._limiter.restore_original_limits()
                self._limiter = None


thread_limit = ThreadLimit()
