"""What surviving costs: how soon a dead worker is replaced, and what limits and retries add.

The peers have no row here: multiprocessing.Pool waits for ever when a worker is killed, and
ProcessPoolExecutor gives up all that is not finished.
"""

from __future__ import annotations

import os
import signal
import tempfile
from functools import partial
from importlib import import_module
from pathlib import Path
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any

from benchmarks.station import WORKERS, Station, check
from benchmarks.tasks import burn, burnt, loops_for

if TYPE_CHECKING:
    from benchmarks.bench import Bench

__all__ = ["run"]

LIMITS: dict[str, dict[str, Any]] = {
    "task_timeout, retries": {"task_timeout": 60, "retries": 3},
    "and memory_limit": {"task_timeout": 60, "retries": 3, "memory_limit": "4GB"},
    "task_timeout='5x'": {"task_timeout": "5x"},
}


def die_once(note: Path, number: int) -> int:
    """Note the time and be killed, if this is task 0."""
    if number == 0:
        note.write_text(str(monotonic()))
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def replacement_s(station: Station, method: str) -> float:
    """Kill the only worker; return the seconds until the next task began on another."""
    del station
    plait: Any = import_module("plait")
    with tempfile.TemporaryDirectory() as folder:
        note = Path(folder, "note")
        died, following = plait.run(
            partial(die_once, note), range(2), ordered=True, chunksize=1, max_workers=1,
            backend="processes", start_method=method,
        )  # fmt: skip
        check("plait", is_right=isinstance(died.error, plait.WorkerDied))
        check("plait", is_right=following.pid != died.pid)
        return float(following.started - float(note.read_text()))


def limited_s(station: Station, loops: list[int], options: dict[str, Any]) -> float:
    """Return the seconds of a map with limits."""
    plait: Any = import_module("plait")
    station.pool()
    started = perf_counter()
    results = plait.map(burn, loops, backend="processes", max_workers=WORKERS, **options)
    seconds = perf_counter() - started
    check("plait", is_right=results == list(map(burnt, loops)))
    return seconds


def run(bench: Bench) -> None:
    ways = {
        "server": bench.ours("plait", replacement_s, "server"),
        "spawn": bench.way("plait", replacement_s, "spawn"),
    }
    race = bench.race("From a worker's death to the next task on another", ways, rounds=31)
    bench.at_most("ms from a worker's death to the next task", 1e3 * race.typical("server"), 50)
    loops = [loops_for(0.001)] * bench.pick(2_000, 300)
    ways = {
        "plain": bench.ours("plait", limited_s, loops, {}),
        **{name: bench.way("plait", limited_s, loops, given) for name, given in LIMITS.items()},
    }
    race = bench.race(f"{len(loops):,} tasks of 1 ms with limits", ways, rounds=15)
    for name in LIMITS:
        bench.at_most(f"tasks of 1 ms with limits: {name} / plain", race.ratio(name, "plain"), 1.03)
