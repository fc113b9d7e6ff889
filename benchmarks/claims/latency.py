"""One task that does nothing, from submit to result, on a warm pool."""

from __future__ import annotations

from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING

from benchmarks.station import Station, check
from benchmarks.tasks import nothing

if TYPE_CHECKING:
    from benchmarks.bench import Bench

__all__ = ["run"]

TIMES = 200
ENOUGH_S = 0.2
WARM_S = 0.05  # CPUs that have just slept wake up late, for a while


def time_calls(station: Station) -> float:
    """Return the median of many calls, one after the other; of fewer where they are slow."""
    pool = station.pool()
    warm_from = perf_counter()
    while perf_counter() - warm_from < WARM_S:
        pool.call(nothing)
    seconds: list[float] = []
    while len(seconds) < TIMES and sum(seconds) < ENOUGH_S:
        started = perf_counter()
        result = pool.call(nothing)
        seconds.append(perf_counter() - started)
        check(station.engine.name, is_right=result is None)
    return median(seconds)


def run(bench: Bench) -> None:
    ways = {"plait": bench.ours("plait.Executor", time_calls), **bench.peers(time_calls)}
    race = bench.race("No-op, submit to result, 2 processes", ways, rounds=15, unit="us")
    bench.at_most_peers("no-op on processes", race, 1 / 2.5)
    ways = {
        "plait": bench.ours("plait.Executor threads", time_calls),
        **bench.peers(time_calls, names=("ThreadPoolExecutor", "joblib threads")),
    }
    race = bench.race("No-op, submit to result, 2 threads", ways, rounds=15, unit="us")
    bench.at_most_peers("no-op on threads", race, 1.1, among=["ThreadPoolExecutor"])
