"""Equal tasks that compute for 1 ms each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.bare import halves_s
from benchmarks.station import WORKERS, Station
from benchmarks.tasks import burn, burnt, loops_for

if TYPE_CHECKING:
    from benchmarks.bench import Bench

__all__ = ["LIMIT", "TUNABLE", "run", "time_burns"]

LIMIT = "two bare processes"
TUNABLE = ("ProcessPoolExecutor", "Pool", "joblib", "loky", "mpire", "pebble", "ray")


def time_burns(station: Station, loops: list[int], chunksize: int | None = None) -> float:
    return station.map_s(burn, loops, list(map(burnt, loops)), chunksize=chunksize)


def run(bench: Bench) -> None:
    count = bench.pick(2_000, 200)
    loops = [loops_for(0.001)] * count
    parts = [loops[number::WORKERS] for number in range(WORKERS)]
    ways = {
        "plait": bench.ours("plait", time_burns, loops),
        LIMIT: bench.way("loop", halves_s, burn, parts),
        "for-loop": bench.way("loop", time_burns, loops),
        **bench.peers(time_burns, loops),
        **bench.tuned(time_burns, loops, sizes=[8, 32, 125], names=bench.pick(TUNABLE, ())),
    }
    title = f"{count:,} tasks of 1 ms"
    race = bench.race(title, ways, rounds=15)
    bench.note(f"burn({loops[0]}) takes 1 ms of an undisturbed CPU.")
    if best := race.lowest(race.peers):
        bench.at_least(f"{title}: {best} / plait", race.ratio(best, "plait"), 0.97)
    bench.at_least(f"{title}: {LIMIT} / plait", race.ratio(LIMIT, "plait"), 0.95)
