"""What an endless map and an idle worker take, in MB."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from functools import cache
from itertools import count, islice
from typing import TYPE_CHECKING, Any, cast

from benchmarks.memory import private_mb, proportional_mb, resident_mb
from benchmarks.pairs import Role, Way
from benchmarks.station import WORKERS, Station, check
from benchmarks.tasks import pid_after, square

if TYPE_CHECKING:
    from benchmarks.bench import Bench

__all__ = ["run"]

SAMPLE_EVERY = 2_000
STREAMERS = ("Pool", "ProcessPoolExecutor", "mpire", "pebble", "joblib")
OWNERS = ("Pool", "ProcessPoolExecutor", "loky", "mpire", "pebble", "joblib")


def growth_of_endless(station: Station, results: int) -> float:
    """Return how many MB this process grew at most while it took squares of an endless input."""
    pool = station.pool()
    start = resident_now()
    with closing(cast("Any", pool.lazily(square, count()))) as squares:
        return peak_while(station, islice(squares, results)) - start


def growth_of_lazy(station: Station, results: int, chunksize: int | None = None) -> float:
    """Return how many MB this process grew at most while it took the squares of a generator."""
    pool = station.pool()
    start = resident_now()  # some engines read all of the input at once
    squares = pool.lazily(square, (number for number in range(results)), chunksize)
    return peak_while(station, squares) - start


def resident_now() -> float:
    gc.collect()
    return resident_mb()


def peak_while(station: Station, squares: Iterator[int]) -> float:
    peak = resident_mb()
    for place, value in enumerate(squares):
        if place % SAMPLE_EVERY == 0:
            peak = max(peak, resident_mb())
            check(station.engine.name, is_right=value == place * place)
    return max(peak, resident_mb())


def memory_of(pid: int) -> tuple[float, float]:
    """Return the memory that is a process's own, and that with its part of what it shares."""
    return private_mb(pid), proportional_mb(pid)


def worker_mb(station: Station) -> tuple[float, float]:
    """Return ``memory_of`` a worker that has had a few small tasks."""
    pids = set(station.pool().map(pid_after, [0.05] * (4 * WORKERS), 1))
    check(station.engine.name, is_right=len(pids) == WORKERS)
    return memory_of(min(pids))


def bare_mb(station: Station) -> tuple[float, float]:
    """Return ``memory_of`` a Python that sleeps."""
    del station
    program = "import time; print(flush=True); time.sleep(60)"
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as sleeper:
        assert sleeper.stdout
        sleeper.stdout.readline()
        found = memory_of(sleeper.pid)
        sleeper.kill()
    return found


def run(bench: Bench) -> None:
    measure_endless(bench)
    compare_growth(bench)
    compare_workers(bench)


def measure_endless(bench: Bench) -> None:
    results = bench.pick(10_000_000, 1_000_000)
    grown = bench.fresh("plait", growth_of_endless, results)()
    bench.note(f"plait.imap, {results:,} squares of an endless input: parent {grown:+.1f} MB.")
    bench.at_most(f"imap, {results:,} tiny tasks: MB that the parent grows", grown, 30)


def compare_growth(bench: Bench) -> None:
    results = bench.pick(1_000_000, 200_000)
    ways = {"plait": Way(bench.fresh("plait", growth_of_lazy, results), "ours")}
    for name in bench.allowed(bench.pick(STREAMERS, STREAMERS[:2])):
        ways[f"{name} (chunksize=100)"] = Way(bench.fresh(name, growth_of_lazy, results, 100))
    title = f"{results:,} squares of a generator: what the parent grows"
    bench.race(title, ways, rounds=1, unit="MB")


def compare_workers(bench: Bench) -> None:
    measured = cache(bench.call_fresh)  # both kinds at once

    def way(role: Role, engine: str, place: int) -> Way:
        measure = bare_mb if engine == "loop" else worker_mb
        return Way(lambda: float(measured(engine, measure)[place]), role)

    for place, kind in enumerate(("its own", "with its part of what is shared")):
        ways = {
            "plait": way("ours", "plait", place),
            "bare Python": way("yardstick", "loop", place),
            **{name: way("peer", name, place) for name in bench.pick(OWNERS, OWNERS[:2])},
        }
        bench.race(f"Memory of one worker, {kind}", ways, rounds=1, unit="MB")
