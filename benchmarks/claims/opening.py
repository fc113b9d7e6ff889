"""A pool that is opened, computes ten squares, and is closed."""

from __future__ import annotations

import gc
from time import perf_counter
from typing import TYPE_CHECKING

from benchmarks.station import Station, check
from benchmarks.tasks import square

if TYPE_CHECKING:
    from benchmarks.bench import Bench

__all__ = ["run"]

PEERS = (
    "Pool",
    "ProcessPoolExecutor",
    "ProcessPoolExecutor forkserver",
    "ProcessPoolExecutor spawn",
    "joblib",
    "loky",
    "mpire",
    "pebble",
)


def time_opening(station: Station, workers: int) -> float:
    """Return the seconds of a pool's whole life.

    The warm-up of the race was the pool before it, so that servers run already.
    """
    gc.collect()
    started = perf_counter()
    pool = station.engine.open(workers)
    squares = pool.map(square, range(1, 11))
    pool.close()
    seconds = perf_counter() - started
    check(station.engine.name, is_right=squares == [x * x for x in range(1, 11)])
    return seconds


def run(bench: Bench) -> None:
    for workers in bench.pick((2, 4, 8), (2,)):
        ways = {
            "plait": bench.ours("plait.Executor", time_opening, workers),
            **bench.peers(time_opening, workers, names=PEERS),
        }
        title = f"A pool of {workers} opened, ten squares, closed"
        race = bench.race(title, ways, rounds=15)
        bench.at_most(f"{title}: plait / Pool", race.ratio("plait", "Pool"), 1.3)
