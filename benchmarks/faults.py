"""What surviving costs: how soon a dead worker is replaced, and what limits and retries add.

Run it: python benchmarks/faults.py [--quick]

The peers have no row here: multiprocessing.Pool waits for ever when a worker is killed, and
ProcessPoolExecutor gives up all that is not finished.
"""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from time import monotonic
from typing import Any, Literal

import pairs
import tasks

import plait

TASKS = 2_000


def die_once(note: Path, number: int) -> int:
    """Note the time and be killed, if this is task 0."""
    if number == 0:
        note.write_text(str(monotonic()))
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def replacement_s(method: Literal["server", "spawn"], note: Path) -> float:
    """Kill the only worker; return the seconds until the next task began on another."""
    died, following = plait.run(
        partial(die_once, note), range(2), ordered=True, chunksize=1, max_workers=1,
        backend="processes", start_method=method,
    )  # fmt: skip
    assert isinstance(died.error, plait.WorkerDied)
    assert following.pid != died.pid
    return following.started - float(note.read_text())


def show_replacement(times: int) -> None:
    print("1. from the death of a worker to the next task on another (bar: 50 ms)")
    methods: tuple[Literal["server", "spawn"], ...] = ("server", "spawn")
    with tempfile.TemporaryDirectory() as folder:
        for method in methods:
            seconds = [replacement_s(method, Path(folder, "note")) for _ in range(times)]
            low, _, high = (1e3 * s for s in quantiles(seconds, n=4))
            middle = 1e3 * median(seconds)
            print(f"   {method:8} median {middle:6.1f} ms, quartiles {low:.1f} to {high:.1f}")


def show_overhead(rounds: int) -> None:
    loops = tasks.loops_for(0.001)

    def mapped(**options: Any) -> pairs.Measure:
        return pairs.timed(
            lambda: plait.map(
                tasks.burn, [loops] * TASKS, backend="processes", max_workers=2, **options
            )
        )

    ways = {
        "plain": mapped(),
        "task_timeout, retries": mapped(task_timeout=60, retries=3),
        "and memory_limit": mapped(task_timeout=60, retries=3, memory_limit="4GB"),
        "task_timeout='5x'": mapped(task_timeout="5x"),
    }
    title = f"2. {TASKS:,} tasks of 1 ms with limits (bar: 3% more)"
    print(pairs.race(title, ways, rounds=rounds, reference="plain"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    quick = parser.parse_args().quick
    show_replacement(7 if quick else 31)
    show_overhead(3 if quick else 15)


if __name__ == "__main__":
    main()
