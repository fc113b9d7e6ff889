"""Tasks that compute for very different times: most are short, a few hold much of the work."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from benchmarks.bare import balanced, halves_s
from benchmarks.claims.cpu import LIMIT, TUNABLE, time_burns
from benchmarks.station import WORKERS
from benchmarks.tasks import burn, loops_for
from benchmarks.workloads import unequal

if TYPE_CHECKING:
    from benchmarks.bench import Bench
    from benchmarks.pairs import Race

__all__ = ["run"]


def run(bench: Bench) -> None:
    count, mean_s = bench.pick((1_500, 0.0022), (100, 0.0015))
    longest_last = sorted(unequal(count, loops_for(mean_s)))
    shuffled = random.Random(2).sample(longest_last, count)
    title = f"{count:,} Pareto tasks"
    race = compare(bench, f"{title}, the longest last", longest_last)
    bench.at_most_peers(f"{title}, the longest last", race, 1.0)
    race = compare(bench, f"{title}, shuffled", shuffled)
    bench.at_most_peers(f"{title}, shuffled", race, 1.0)
    bench.at_least(f"{title}, shuffled: {LIMIT} / plait", race.ratio(LIMIT, "plait"), 0.94)


def compare(bench: Bench, title: str, loops: list[int]) -> Race:
    ways = {
        "plait": bench.ours("plait", time_burns, loops),
        LIMIT: bench.way("loop", halves_s, burn, balanced(loops, WORKERS)),
        "for-loop": bench.way("loop", time_burns, loops),
        **bench.peers(time_burns, loops),
        **bench.tuned(time_burns, loops, sizes=[1, 4, 16], names=bench.pick(TUNABLE, ())),
    }
    return bench.race(title, ways, rounds=11)
