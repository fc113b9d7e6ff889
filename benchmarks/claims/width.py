"""Many workers that wait, and one parent that has to keep them all busy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.bare import round_trips_per_s
from benchmarks.tasks import nap

if TYPE_CHECKING:
    from benchmarks.bench import Bench
    from benchmarks.station import Station

__all__ = ["BARE", "IDEAL", "NAP_S", "TITLE", "run"]

NAP_S = 0.003
WIDTHS = (2, 4, 8, 16, 32, 64, 128)
TITLE = "naps of 3 ms, one by one, workers:"
BARE = "bare prototype"
IDEAL = f"workers / {NAP_S * 1e3:.0f} ms"
OWN_CHUNKS = "plait, chunks by itself"
PEERS = ("Pool", "ProcessPoolExecutor", "mpire")


def naps_per_s(station: Station, count: int, workers: int, chunksize: int | None = 1) -> float:
    naps = [NAP_S] * count
    return count / station.map_s(nap, naps, naps, workers=workers, chunksize=chunksize)


def run(bench: Bench) -> None:
    for workers in bench.pick(WIDTHS, (2, 16, 128)):
        count = workers * bench.pick(150, 50)
        ways = {
            "plait": bench.ours("plait", naps_per_s, count, workers),
            OWN_CHUNKS: bench.ours("plait", naps_per_s, count, workers, None),
            BARE: bench.way("loop", round_trips_per_s, nap, NAP_S, count, workers),
            **bench.peers(naps_per_s, count, workers, names=bench.pick(PEERS, PEERS[:1])),
        }
        race = bench.race(f"{count:,} {TITLE} {workers}", ways, rounds=9, unit="tasks/s")
        share = race.ratio("plait", BARE)
        bench.note(f"{workers} workers: {workers / NAP_S:,.0f} tasks/s would be ideal.")
        if workers == WIDTHS[-1]:
            bench.at_least(f"{workers} workers: plait / {BARE}", share, 0.85)
            own = race.ratio(OWN_CHUNKS, BARE)
            bench.at_least(f"{workers} workers: {OWN_CHUNKS} / {BARE}", own, 0.85)
        bench.hosts.close("plait", *PEERS)  # and with them their workers
