"""Tasks that wait, on many threads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.tasks import nap

if TYPE_CHECKING:
    from benchmarks.bench import Bench
    from benchmarks.station import Station

__all__ = ["run"]

THREADS = 32
NAP_S = 0.01


def time_naps(station: Station, count: int) -> float:
    naps = [NAP_S] * count
    return station.map_s(nap, naps, naps, workers=THREADS)


def run(bench: Bench) -> None:
    count = bench.pick(1_000, 500)
    ideal_s = count * NAP_S / THREADS
    ways = {
        "plait": bench.ours("plait threads", time_naps, count),
        **bench.peers(time_naps, count, names=("ThreadPoolExecutor", "joblib threads")),
    }
    title = f"{count:,} sleeps of 10 ms on {THREADS} threads"
    race = bench.race(title, ways, rounds=15)
    bench.at_most(f"{title}: plait / ideal", race.typical("plait") / ideal_s, 1.05)
