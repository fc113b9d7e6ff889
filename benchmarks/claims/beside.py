"""Small calls beside one whose tasks sleep on all workers: they share the warm pool."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

import plait
from benchmarks.pairs import Way
from benchmarks.station import check
from benchmarks.tasks import square
from plait.shared import Event, Semaphore

if TYPE_CHECKING:
    from benchmarks.bench import Bench

__all__ = ["run"]

CALLS, ITEMS, WORKERS = 8, list(range(4)), 4


def small_calls_s(**options: Any) -> float:
    """Return the seconds of 8 calls of 4 tiny tasks, one after the other."""
    expected = [square(item) for item in ITEMS]
    started = perf_counter()
    for _ in range(CALLS):
        check("plait", is_right=plait.map(square, ITEMS, **options) == expected)
    return perf_counter() - started


@contextmanager
def sleeping_call(**options: Any) -> Iterator[None]:
    """Have a call with the same options sleep on all workers meanwhile."""
    release, asleep = Event(), Semaphore(0)

    def nap(_: int) -> None:
        asleep.release()
        release.wait()

    call = threading.Thread(target=plait.map, args=(nap, range(4 * WORKERS)), kwargs=options)
    call.start()
    try:
        for _ in range(WORKERS):
            asleep.acquire()
        yield
    finally:
        release.set()
        call.join()


def alone_s(options: dict[str, Any]) -> float:
    """Measure them alone, with workers that are there."""
    small_calls_s(**options)
    return small_calls_s(**options)


def beside_s(options: dict[str, Any]) -> float:
    """Measure them beside the sleeping call; they are warm, as they are alone."""
    with sleeping_call(**options):
        small_calls_s(**options)
        return small_calls_s(**options)


def loop_s() -> float:
    """Measure the same as a plain loop; its time says how little there is to do."""
    started = perf_counter()
    for _ in range(CALLS):
        [square(item) for item in ITEMS]
    return perf_counter() - started


def run(bench: Bench) -> None:
    for backend in ("threads", "processes"):
        options = {"backend": backend, "max_workers": WORKERS, "chunksize": 1}
        ways = {
            "plait, beside": Way(partial(beside_s, options), "ours"),
            "plait, alone": Way(partial(alone_s, options), "yardstick"),
            "for-loop": Way(loop_s, "yardstick"),
        }
        title = f"{CALLS} calls of {len(ITEMS)} squares on {WORKERS} {backend} beside sleeping ones"
        race = bench.race(title, ways, rounds=15)
        bench.at_most(f"{title}: / alone", race.ratio("plait, beside", "plait, alone"), 2.0)
