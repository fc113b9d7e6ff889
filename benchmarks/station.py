"""What a measurement has to hand: the pools of its engine, kept warm, and the clock.

A measurement is a function ``measure(station, ...) -> float`` in a file of claims/. It runs in
the host of an engine (host.py), once for each turn in a race.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from itertools import count
from time import perf_counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.adapters import Pool
    from benchmarks.engines import Engine

__all__ = ["WORKERS", "Station", "WrongAnswer", "best_chunksize", "check", "open_pool"]

WORKERS = 2
BRIEF_S = 0.5


class WrongAnswer(Exception):
    """An engine returned something else than the plain loop."""


def check(what: str, *, is_right: bool) -> None:
    """Raise WrongAnswer, unless all is well."""
    if not is_right:
        raise WrongAnswer(f"{what}: a wrong answer")


class Station:
    """One engine and its open pools, by the number of their workers."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.turns = count(1)
        self._pools: dict[int, Pool] = {}

    def pool(self, workers: int = WORKERS) -> Pool:
        """Return a pool that is warm: all of its workers have just had something to do.

        Between two turns the others may have taken minutes, in which some engines let idle
        workers go.
        """
        is_new = workers not in self._pools
        if is_new:
            self._pools[workers] = self.engine.open(workers)
        pool = self._pools[workers]
        # A new process has its first few hundred pages of memory copied as it touches them.
        pool.map(self.engine.nap, [0.001] * ((100 if is_new else 2) * workers), 1)
        return pool

    def map_s(
        self,
        fn: Callable[..., Any],
        items: Iterable[Any],
        expected: object,
        *,
        workers: int = WORKERS,
        chunksize: int | None = None,
    ) -> float:
        """Return the seconds of one map on a warm pool; see that the results are right.

        Neither that nor the disposal of the results counts.
        """
        seconds, results = self.timed_map(fn, items, workers=workers, chunksize=chunksize)
        check(self.engine.name, is_right=results == expected)
        return seconds

    def timed_map(
        self,
        fn: Callable[..., Any],
        items: Iterable[Any],
        *,
        workers: int = WORKERS,
        chunksize: int | None = None,
    ) -> tuple[float, list[Any]]:
        """Return the seconds of one map on a warm pool, and its results, to be checked."""
        pool = self.pool(workers)
        gc.collect()
        started = perf_counter()
        results = pool.map(fn, items, chunksize)
        return perf_counter() - started, results

    def close(self) -> None:
        """End all workers."""
        while self._pools:
            self._pools.popitem()[1].close()


def open_pool(station: Station) -> None:
    """Have the engine open its pool, the first thing in a host."""
    station.pool()


def best_chunksize(
    station: Station, measure: Callable[..., float], args: tuple[Any, ...], sizes: list[int]
) -> int:
    """Return the chunk size, of those given, with which a measure of this engine is fastest.

    Its last argument is the chunk size. Brief work is tried twice; the better try counts.
    """
    if len(sizes) == 1:
        return sizes[0]
    tries = 2 if measure(station, *args, sizes[0]) < BRIEF_S else 1
    return min(sizes, key=lambda size: min(measure(station, *args, size) for _ in range(tries)))
