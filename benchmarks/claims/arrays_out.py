"""Large arrays as results, and the memory of the parent that takes them."""

from __future__ import annotations

import gc
from time import perf_counter
from typing import TYPE_CHECKING

from benchmarks.engines import PICKLING_PEERS, PROCESS_PEERS
from benchmarks.memory import peak_mb
from benchmarks.pairs import Way
from benchmarks.station import Station, check
from benchmarks.tasks import ARRAY_ITEMS, filled

if TYPE_CHECKING:
    from benchmarks.bench import Bench

__all__ = ["run"]


def time_arrays(station: Station, count: int) -> float:
    turn = next(station.turns)
    values = range(turn, turn + count)
    pool = station.pool()
    gc.collect()
    started = perf_counter()
    arrays = pool.map(filled, values)
    seconds = perf_counter() - started
    sums = [float(array.sum()) for array in arrays]
    check(station.engine.name, is_right=sums == [float(ARRAY_ITEMS * value) for value in values])
    return seconds


def peak_of_arrays(station: Station, count: int) -> float:
    """Return the peak memory of this process after one map, in MB."""
    time_arrays(station, count)
    return peak_mb()


def run(bench: Bench) -> None:
    count = bench.pick(48, 12)
    ways = {
        "plait": bench.ours("plait", time_arrays, count),
        "for-loop": bench.way("loop", time_arrays, count),
        **bench.peers(time_arrays, count),
    }
    title = f"{count} arrays of 8 MB out"
    race = bench.race(title, ways, rounds=11)
    bench.at_most_peers(title, race, 1 / 2, among=PICKLING_PEERS)
    compare_peaks(bench, count, title)


def compare_peaks(bench: Bench, count: int, title: str) -> None:
    ways = {
        "plait": Way(bench.fresh("plait", peak_of_arrays, count), "ours"),
        "for-loop": Way(bench.fresh("loop", peak_of_arrays, count), "yardstick"),
        **{
            name: Way(bench.fresh(name, peak_of_arrays, count))
            for name in bench.pick(PROCESS_PEERS, PICKLING_PEERS[:2])
        },
    }
    race = bench.race(f"{title}: the parent's peak memory", ways, rounds=1, unit="MB")
    bench.at_most_peers(f"{title}, the parent's peak memory", race, 1.0, among=PICKLING_PEERS)
