"""A function that carries 20 MB with it, new ones each time, and tiny tasks."""

from __future__ import annotations

import random
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.tasks import byte_plus

if TYPE_CHECKING:
    from benchmarks.bench import Bench
    from benchmarks.station import Station

__all__ = ["run"]

NBYTES = 20_000_000


def fresh_data(kind: str, turn: int) -> Any:
    data = random.Random(turn).randbytes(NBYTES)
    if kind == "bytes":
        return data
    import numpy as np

    return np.frombuffer(data, dtype=np.uint8).copy()


def time_captured(station: Station, kind: str, count: int) -> float:
    data = fresh_data(kind, next(station.turns))
    expected = [int(data[index]) + index for index in range(count)]
    return station.map_s(partial(byte_plus, data), range(count), expected)


def run(bench: Bench) -> None:
    count, some = 500, 5
    for kind in bench.pick(("bytes", "array"), ("bytes",)):
        ways = {
            "plait": bench.ours("plait", time_captured, kind, count),
            **bench.peers(time_captured, kind, count, sample=((kind, some), count / some)),
        }
        title = f"20 MB of {kind} captured by the function, {count} tiny tasks"
        race = bench.race(title, ways, rounds=11)
        bench.at_most_peers(title, race, 1 / 2)
