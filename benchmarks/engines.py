"""The engines by name: plait, its peers, and what is needed to open one.

To add one: an adapter in pypi_adapters.py, a line in ``ENGINES``, its name in ``PROCESS_PEERS``.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from benchmarks import adapters, pypi_adapters, tasks

if TYPE_CHECKING:
    from benchmarks.adapters import Pool

__all__ = ["ENGINES", "PICKLING_PEERS", "PROCESS_PEERS", "Engine", "versions"]


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine.

    Attributes:
        name: what it is called in tables.
        open: starts so many workers.
        package: what has to be installed; None: it comes with Python.
        sends_singly: without a chunk size it sends task by task, so that what a few tasks
            take foretells what many would.
        is_quick: the quick run has it, too.
        nap: what its workers are kept warm with.
    """

    name: str
    open: Callable[[int], Pool]
    package: str | None = None
    sends_singly: bool = False
    is_quick: bool = True
    nap: Callable[[float], Any] = tasks.nap

    @property
    def is_installed(self) -> bool:
        """Whether it can be opened here."""
        return self.package is None or find_spec(self.package) is not None


def _process_pool(method: str) -> Callable[[int], Pool]:
    return partial(adapters.open_processes, method)


_ALL = (
    Engine("plait", partial(adapters.open_plait, "processes"), "plait"),
    Engine("plait threads", partial(adapters.open_plait, "threads"), "plait"),
    Engine("plait auto", adapters.open_plait_auto, "plait"),
    Engine("plait serial", partial(adapters.open_plait, "serial"), "plait"),
    Engine("plait asyncio", partial(adapters.open_plait, "asyncio"), "plait", nap=tasks.doze),
    Engine("plait.Executor", partial(adapters.open_plait_executor, "processes"), "plait"),
    Engine("plait.Executor threads", partial(adapters.open_plait_executor, "threads"), "plait"),
    Engine("ProcessPoolExecutor", _process_pool("fork"), sends_singly=True),
    Engine("ProcessPoolExecutor forkserver", _process_pool("forkserver")),
    Engine("ProcessPoolExecutor spawn", _process_pool("spawn")),
    Engine("ThreadPoolExecutor", adapters.open_threads),
    Engine("asyncio", adapters.open_gather, nap=tasks.doze),
    Engine("Pool", adapters.open_standard_pool),
    Engine("joblib", partial(pypi_adapters.open_joblib, "loky"), "joblib"),
    Engine("joblib threads", partial(pypi_adapters.open_joblib, "threading"), "joblib"),
    Engine("loky", pypi_adapters.open_loky, "loky", sends_singly=True, is_quick=False),
    Engine("mpire", pypi_adapters.open_mpire, "mpire"),
    Engine("pebble", pypi_adapters.open_pebble, "pebble", sends_singly=True, is_quick=False),
    Engine("ray", pypi_adapters.open_ray, "ray", is_quick=False),
    Engine("dask", pypi_adapters.open_dask, "distributed", sends_singly=True, is_quick=False),
    Engine("loop", adapters.open_loop),
)
ENGINES = {engine.name: engine for engine in _ALL}

PICKLING_PEERS = ("ProcessPoolExecutor", "Pool", "mpire", "pebble", "loky")
"""Pools of processes that send everything by pickle; joblib and Ray share large arrays."""

PROCESS_PEERS = (*PICKLING_PEERS, "joblib", "ray", "dask")


def versions() -> dict[str, str]:
    """Return the version of Python and of every package that an engine needs."""
    packages = sorted({engine.package for engine in _ALL if engine.package} | {"numpy"})
    found = {"python": platform.python_version()}
    return found | {package: _version(package) for package in packages}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
