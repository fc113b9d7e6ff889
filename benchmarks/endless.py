"""The memory and the time of 100,000 results taken from an endless input.

A script of its own: the memory of other claims must not count. Started by dispatch.py,
prints one line of JSON. Reads /proc, so Linux only.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from itertools import count, islice
from multiprocessing import get_context
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any, cast

import pairs
import tasks

import plait

RESULTS = 100_000
SAMPLE_EVERY = 2_000
PAGE = os.sysconf("SC_PAGE_SIZE")


def resident_mb() -> float:
    """Return the memory of this process that is in RAM."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * PAGE / 1e6


def open_squares() -> closing[Any]:
    """Start an imap over all whole numbers; leaving the ``with`` block ends it."""
    squares = plait.imap(tasks.square, count(), backend="processes", max_workers=2)
    return closing(cast("Any", squares))


def measure_growth() -> dict[str, float]:
    """Take the results and return the MB at the start, and how many more at the end, at most."""
    gc.collect()
    start = peak = resident_mb()
    with open_squares() as squares:
        for place in range(RESULTS):
            assert next(squares) == place * place
            if place % SAMPLE_EVERY == 0:
                peak = max(peak, resident_mb())
    gc.collect()
    end = resident_mb()
    return {"start": start, "end": end - start, "peak": max(peak, end) - start}


def take_from_plait() -> None:
    with open_squares() as squares:
        drain(islice(squares, RESULTS))


def take_from_pool(pool: Pool) -> None:
    drain(pool.imap(tasks.square, range(RESULTS), chunksize=100))


def drain(values: Iterator[int]) -> None:
    for _ in values:
        pass


def main(rounds: int) -> None:
    with get_context("fork").Pool(2) as pool:
        plait.map(tasks.square, range(10_000), backend="processes", max_workers=2)
        growth = measure_growth()
        ways = {
            "Pool.imap(range, chunksize=100)": pairs.timed(lambda: take_from_pool(pool)),
            "plait.imap(count())": pairs.timed(take_from_plait),
        }
        title = f"4. {RESULTS:,} squares taken lazily"
        raced = pairs.race(title, ways, rounds=rounds, reference="Pool.imap(range, chunksize=100)")
    print(json.dumps({"growth": growth, "race": asdict(raced)}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
