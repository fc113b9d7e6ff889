"""Squares that are taken one after the other; plait does it for an input without an end, too."""

from __future__ import annotations

import gc
from contextlib import closing
from itertools import count, islice
from time import perf_counter
from typing import TYPE_CHECKING, Any, cast

from benchmarks.station import Station, check
from benchmarks.tasks import square

if TYPE_CHECKING:
    from benchmarks.bench import Bench

__all__ = ["run"]

PEERS = ("ProcessPoolExecutor", "Pool", "joblib", "mpire", "pebble", "ray")


def time_endless(station: Station, results: int) -> float:
    pool = station.pool()
    gc.collect()
    started = perf_counter()
    squares = cast("Any", pool.lazily(square, count()))
    with closing(squares):
        total = sum(islice(squares, results))
    seconds = perf_counter() - started
    check(station.engine.name, is_right=total == sum(map(square, range(results))))
    return seconds


def time_lazily(station: Station, results: int, chunksize: int | None) -> float:
    pool = station.pool()
    gc.collect()
    started = perf_counter()
    total = sum(pool.lazily(square, iter(range(results)), chunksize))
    seconds = perf_counter() - started
    check(station.engine.name, is_right=total == sum(map(square, range(results))))
    return seconds


def run(bench: Bench) -> None:
    results = 100_000
    peers = bench.peers(time_lazily, results, 100, names=PEERS)
    ways = {
        "plait": bench.ours("plait", time_lazily, results, None),
        "plait, endless input": bench.ours("plait", time_endless, results),
        **{f"{name} (chunksize=100)": way for name, way in peers.items()},
    }
    race = bench.race(f"{results:,} squares, taken lazily", ways, rounds=15)
    bench.at_most_peers("squares taken lazily", race, 1.0)
