"""Large arrays as items, new ones each time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.engines import PICKLING_PEERS, PROCESS_PEERS
from benchmarks.pairs import LeftOut
from benchmarks.station import Station, WrongAnswer
from benchmarks.tasks import ARRAY_ITEMS, filled, total

if TYPE_CHECKING:
    from benchmarks.bench import Bench

__all__ = ["run"]


def time_sums(station: Station, count: int) -> float:
    """Return the seconds of a map over arrays that no engine has seen before."""
    turn = next(station.turns)
    arrays = [filled(turn + number) for number in range(count)]
    expected = [float(ARRAY_ITEMS * (turn + number)) for number in range(count)]
    return station.map_s(total, arrays, expected)


def sees_changes(station: Station) -> bool:
    """Whether an array that is changed in place between two maps arrives changed."""
    arrays: list[Any] = [filled(1), filled(2)]
    pool = station.pool()
    before = pool.map(total, arrays)
    for array in arrays:
        array += 1
    after = pool.map(total, arrays)
    return [y - x for x, y in zip(before, after, strict=True)] == [ARRAY_ITEMS, ARRAY_ITEMS]


def run(bench: Bench) -> None:
    count = bench.pick(48, 12)
    ways = {
        "plait": bench.ours("plait", time_sums, count),
        "for-loop": bench.way("loop", time_sums, count),
        **bench.peers(time_sums, count),
    }
    title = f"{count} fresh arrays of 8 MB in, summed"
    race = bench.race(title, ways, rounds=11)
    bench.at_most_peers(title, race, 1 / 4, among=PICKLING_PEERS)
    for name in ("joblib", "ray"):
        if name in race.figures:
            bench.at_most(f"{title}: plait / {name}", race.ratio("plait", name), 1.0)
    if not bench.call("plait", sees_changes):
        raise WrongAnswer("plait: an array that was changed in place arrived unchanged")
    stale = [name for name in PROCESS_PEERS if name in race.figures and not fresh_in(bench, name)]
    bench.note("Changed in place between two maps, arrays arrive changed in plait.")
    if stale:
        bench.note(f"They arrive unchanged in: {', '.join(stale)}.")


def fresh_in(bench: Bench, name: str) -> bool:
    try:
        return bool(bench.call(name, sees_changes))
    except LeftOut:
        return True  # it has not been seen to fail
