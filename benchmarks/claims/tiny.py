"""Squares: tasks so tiny that all of the time is what it costs to give and take them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.tasks import square

if TYPE_CHECKING:
    from benchmarks.bench import Bench
    from benchmarks.station import Station

__all__ = ["run"]


def time_squares(station: Station, count: int, chunksize: int | None = None) -> float:
    items = range(count)
    return station.map_s(square, items, list(map(square, items)), chunksize=chunksize)


def run(bench: Bench) -> None:
    compare(bench, 100_000, rounds=31)
    if bench.is_quick:
        bench.note("1,000,000 squares: not part of the quick run.")
    else:
        compare(bench, 1_000_000, rounds=15)


def compare(bench: Bench, count: int, rounds: int) -> None:
    sizes = [count // 200, count // 50, count // 10, count // 2]
    some = 2_000
    ways = {
        "plait": bench.ours("plait", time_squares, count),
        "for-loop": bench.way("loop", time_squares, count),
        **bench.peers(time_squares, count, sample=((some,), count / some)),
        **bench.tuned(time_squares, count, sizes=bench.pick(sizes, sizes[1:2]), names=TUNABLE),
    }
    race = bench.race(f"{count:,} squares", ways, rounds=rounds)
    bench.at_most_peers(f"{count:,} squares", race, 1.0)


TUNABLE = ("ProcessPoolExecutor", "Pool", "joblib", "loky", "mpire", "pebble", "ray")
