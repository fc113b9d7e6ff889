"""What it costs to measure before choosing: on a tiny run, and on one of more than a second."""

from __future__ import annotations

from functools import partial
from statistics import median
from threading import Lock
from time import perf_counter
from typing import TYPE_CHECKING, Any

from benchmarks.station import Station, check
from benchmarks.tasks import burn, burnt, loops_for, square

if TYPE_CHECKING:
    from benchmarks.bench import Bench

__all__ = ["run"]

TIMES = 3_000
ITEMS = range(10)


def small_map_s(station: Station) -> float:
    """Return the median of many maps of ten squares, one after the other."""
    return median_s(station.pool().map)


def bare_map_s(station: Station) -> float:
    """Return the same of ``list(map(...))``."""
    del station
    return median_s(lambda fn, items: list(map(fn, items)))


def median_s(do_map: Any) -> float:
    seconds: list[float] = []
    for _ in range(TIMES):
        started = perf_counter()
        results = do_map(square, ITEMS)
        seconds.append(perf_counter() - started)
    check("ten squares", is_right=results == [x * x for x in ITEMS])
    return median(seconds)


def locked_burn(lock: object, loops: int) -> int:
    """Compute, and have something about it that no process can be given."""
    del lock
    return burn(loops)


def free_map_s(station: Station, loops: list[int]) -> float:
    """Return the seconds of one map over tasks that compute."""
    return station.map_s(burn, loops, list(map(burnt, loops)))


def bound_map_s(station: Station, loops: list[int]) -> float:
    """Return the same of tasks that have to stay in this process."""
    return station.map_s(partial(locked_burn, Lock()), loops, list(map(burnt, loops)))


def run(bench: Bench) -> None:
    compare_small(bench)
    loops = [loops_for(0.001)] * bench.pick(3_000, 300)
    compare_free(bench, loops)
    compare_bound(bench, loops[: len(loops) // 2])


def compare_small(bench: Bench) -> None:
    ways = {
        "plait auto": bench.ours("plait auto", small_map_s),
        "list(map(...))": bench.way("plait auto", bare_map_s),
    }
    race = bench.race("A map of ten squares", ways, rounds=15, unit="us")
    pairs = zip(*(race.taken(way) for way in ways), strict=True)
    more_us = 1e6 * median(ours - bare for ours, bare in pairs)
    bench.at_most("a map of ten squares: µs more than list(map(...))", more_us, 20)


def compare_free(bench: Bench, loops: list[int]) -> None:
    """Race plait without options with what it is to choose."""
    claim = f"{len(loops):,} tasks of 1 ms"
    ways = {
        "plait auto": bench.ours("plait auto", free_map_s, loops),
        "plait processes x 2": bench.way("plait", free_map_s, loops),
    }
    race = bench.race(f"{claim}: chosen, and asked for", ways, rounds=21)
    over = race.ratio("plait auto", "plait processes x 2")
    bench.at_most(f"{claim}: plait auto / plait processes", over, 1.02)


def compare_bound(bench: Bench, loops: list[int]) -> None:
    """Race plait without options with a for-loop, over tasks that no process can be given."""
    ways = {
        "plait auto": bench.ours("plait auto", bound_map_s, loops),
        "for-loop": bench.way("loop", bound_map_s, loops),
    }
    title = f"{len(loops):,} tasks of 1 ms that no process can take"
    race = bench.race(title, ways, rounds=15)
    bench.at_most(f"{title}: plait auto / for-loop", race.ratio("plait auto", "for-loop"), 1.02)
