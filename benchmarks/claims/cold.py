"""A fresh script that computes ten squares, and what importing costs."""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import median

from benchmarks.bench import Bench, refused
from benchmarks.engines import ENGINES
from benchmarks.pairs import Measure, Role, Way
from benchmarks.processes import script_s

__all__ = ["run"]

SCRIPT = str(Path(__file__).parent.parent / "scripts" / "squares.py")
AUTO = "plait, auto"
FORKSERVER = "ProcessPoolExecutor forkserver"

YARDSTICKS = {"for-loop": "loop", AUTO: "auto"}
PYTHONS = {
    "ProcessPoolExecutor": "fork",
    FORKSERVER: "forkserver",
    "ProcessPoolExecutor spawn": "spawn",
    "Pool": "pool",
}
OTHERS = ("joblib", "loky", "mpire", "pebble", "ray", "dask")
IMPORTS = ("concurrent.futures.process", "multiprocessing.pool")


def run(bench: Bench) -> None:
    compare_scripts(bench)
    compare_imports(bench)


def compare_scripts(bench: Bench) -> None:
    def way(role: Role, word: str) -> Way:
        return Way(fresh_python(bench, SCRIPT, word), role)

    ways = {
        "plait": way("ours", "plait"),
        **{name: way("yardstick", word) for name, word in YARDSTICKS.items()},
        **{name: way("peer", word) for name, word in PYTHONS.items()},
        **others(bench, "{}", SCRIPT),
    }
    race = bench.race("A fresh script: ten squares on 2 processes", ways, rounds=21)
    bench.at_most(f"a fresh script: plait / {FORKSERVER}", race.ratio("plait", FORKSERVER), 0.8)
    bench.at_most("a fresh script: plait, auto / for-loop", race.ratio(AUTO, "for-loop"), 1.25)


def compare_imports(bench: Bench) -> None:
    def way(role: Role, statement: str) -> Way:
        return Way(fresh_python(bench, "-c", statement), role)

    bare = "nothing"
    ways = {
        "plait": way("ours", "import plait"),
        bare: way("yardstick", "pass"),
        **{name: way("peer", f"import {name}") for name in IMPORTS},
        **others(bench, "import {}", "-c"),
    }
    race = bench.race("A fresh Python that imports", ways, rounds=21)
    more = map(float.__sub__, race.taken("plait"), race.taken(bare))
    bench.at_most("import plait: ms more than bare Python", 1e3 * median(more), 40)


def others(bench: Bench, word: str, *arguments: str) -> dict[str, Way]:
    """Return a way for each engine from PyPI, with its name put into the last argument."""
    ways = {}
    for name in bench.allowed(OTHERS):
        ways[name] = Way(fresh_python(bench, *arguments, word.format(name)))
        if not ENGINES[name].is_installed:
            ways[name] = refused("not installed")
    return ways


def fresh_python(bench: Bench, *arguments: str) -> Measure:
    """Measure a fresh Python from its start to its end."""
    command = [sys.executable, *arguments]
    return lambda: script_s(command, bench.pace(1).limit_s)
