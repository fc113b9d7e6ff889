"""What it costs to give work to processes: plait beside the standard library.

    python benchmarks/dispatch.py [--quick] [--claims 13] [--json FILE]

All ways get the same functions, two workers and warm pools, and take turns (pairs.py).
Prints a table for each claim and then, for each figure that is claimed somewhere, whether
it holds here. Linux, for fork and /proc. Give it a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing import get_context
from multiprocessing.pool import Pool
from pathlib import Path
from statistics import median
from typing import Any

import pairs
import tasks

import plait

HERE = Path(__file__).parent
WORKERS = 2
POOL_MAP = "Pool.map"
PLAIT_MAP = "plait.map"

map_by_plait = partial(plait.map, backend="processes", max_workers=WORKERS)

Ways = Mapping[str, Callable[[], object]]


@dataclass(frozen=True, slots=True)
class Bench:
    """The pools that the standard library brings, and what was measured so far."""

    pool: Pool
    executor: ProcessPoolExecutor
    is_quick: bool
    races: list[pairs.Race] = field(default_factory=list)
    bars: list[pairs.Bar] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def race(
        self,
        title: str,
        ways: Mapping[str, pairs.Measure],
        *,
        rounds: int,
        reference: str,
        unit: str = "ms",
    ) -> pairs.Race:
        """Run a race of so many rounds (quick: of three), and show it."""
        rounds = self.rounds(rounds)
        race = pairs.race(title, ways, rounds=rounds, reference=reference, unit=unit)
        self.show(race)
        return race

    def rounds(self, full: int) -> int:
        """Return how many rounds a claim gets."""
        return min(full, 3) if self.is_quick else full

    def show(self, race: pairs.Race) -> None:
        """Print a race, and keep it."""
        self.races.append(race)
        print(f"\n{race}", flush=True)

    def note(self, text: str) -> None:
        """Print a sentence, and keep it."""
        self.notes.append(text)
        print(text, flush=True)

    def claim(self, text: str, figure: float, limit: float, *, is_floor: bool = False) -> None:
        """Keep a bar, to be printed at the end."""
        self.bars.append(pairs.Bar(text, figure, limit, is_floor))


# --- The claims --------------------------------------------------------------------------


def claim_cpu_tasks(bench: Bench) -> None:
    items = [tasks.loops_for(0.001)] * 2_000
    ways: Ways = {
        "for-loop": lambda: [tasks.burn(item) for item in items],
        "two bare processes": lambda: run_bare(tasks.burn, items),
        POOL_MAP: lambda: bench.pool.map(tasks.burn, items),
        "PPE.map(chunksize=32)": lambda: list(bench.executor.map(tasks.burn, items, chunksize=32)),
        "PPE.map": lambda: list(bench.executor.map(tasks.burn, items)),
        PLAIT_MAP: lambda: map_by_plait(tasks.burn, items),
    }
    measures = timed_all(ways, expected=[tasks.burn(items[0])] * len(items))
    race = bench.race("1. 2,000 CPU tasks of 1 ms", measures, rounds=15, reference=POOL_MAP)
    bench.note(f"burn({items[0]}) takes 1 ms of an undisturbed CPU.")
    bench.claim("2,000 x 1 ms: plait.map / Pool.map", race.ratio(PLAIT_MAP), 1.05)


def claim_tiny_tasks(bench: Bench) -> None:
    items = range(100_000)
    in_2000s = partial(bench.executor.map, tasks.square, items, chunksize=2_000)
    ways: Ways = {
        "for-loop": lambda: [tasks.square(item) for item in items],
        POOL_MAP: lambda: bench.pool.map(tasks.square, items),
        "PPE.map(chunksize=2000)": lambda: list(in_2000s()),
        PLAIT_MAP: lambda: map_by_plait(tasks.square, items),
    }
    expected = list(map(tasks.square, items))
    measures = timed_all(ways, expected)
    race = bench.race("2. 100,000 squares", measures, rounds=31, reference=POOL_MAP)
    bench.claim("100,000 squares: plait.map / Pool.map", race.ratio(PLAIT_MAP), 1.5)
    if bench.is_quick:
        bench.note("PPE.map with its default chunksize takes more than 10 s: not with --quick.")
        return
    slow: Ways = {
        "PPE.map": lambda: list(bench.executor.map(tasks.square, items)),
        PLAIT_MAP: ways[PLAIT_MAP],
    }
    title = "2. 100,000 squares, PPE with its default chunksize"
    race = bench.race(title, timed_all(slow, expected), rounds=2, reference=PLAIT_MAP)
    figure = race.ratio("PPE.map")
    bench.claim("100,000 squares: PPE.map default / plait.map", figure, 100, is_floor=True)


def claim_round_trip(bench: Bench) -> None:
    def compare(workers: str, ways: Ways, reference: str) -> None:
        title = f"3. No-op there and back, {workers}"
        measures = {way: pairs.typical(work, times=200) for way, work in ways.items()}
        bench.race(title, measures, rounds=10, reference=reference, unit="us")

    with plait.Executor(WORKERS, backend="processes") as ours:
        ways: Ways = {
            "Pool.apply": lambda: bench.pool.apply(tasks.nothing),
            "PPE.submit": lambda: bench.executor.submit(tasks.nothing).result(),
            "plait.Executor.submit": lambda: ours.submit(tasks.nothing).result(),
        }
        compare("processes", ways, "Pool.apply")
    with ThreadPoolExecutor(WORKERS) as theirs, plait.Executor(WORKERS, "threads") as ours:
        ways = {
            "TPE.submit": lambda: theirs.submit(tasks.nothing).result(),
            "plait.Executor.submit": lambda: ours.submit(tasks.nothing).result(),
        }
        compare("threads", ways, "TPE.submit")


def claim_constant_memory(bench: Bench) -> None:
    ended = run_python(HERE / "endless.py", bench.rounds(15), stdout=subprocess.PIPE)
    answer = json.loads(ended.stdout)
    bench.show(pairs.Race(**answer["race"]))
    growth = answer["growth"]
    bench.note(
        f"Memory of the parent: {growth['start']:.1f} MB at the start, {growth['end']:+.1f} MB "
        f"after 100,000 results, {growth['peak']:+.1f} MB at most."
    )
    bench.claim("imap over an endless input: growth in MB", growth["peak"], 20)


def claim_cold_start(bench: Bench) -> None:
    def script(*arguments: str | Path) -> Callable[[], object]:
        return lambda: run_python(*arguments)

    cold = HERE / "cold.py"
    ways: Ways = {
        "for-loop": script(cold, "loop"),
        "PPE fork": script(cold, "fork"),
        "PPE forkserver": script(cold, "forkserver"),
        "PPE spawn": script(cold, "spawn"),
        "plait.map": script(cold, "plait"),
    }
    title = "5. A fresh script: ten squares on two processes"
    bench.race(title, timed_all(ways), rounds=15, reference="PPE forkserver")
    bare, imported = "python -c pass", "python -c 'import plait'"
    ways = {bare: script("-c", "pass"), imported: script("-c", "import plait")}
    race = bench.race("5. Import", timed_all(ways), rounds=20, reference=bare)
    extra = map(float.__sub__, race.seconds[imported], race.seconds[bare])
    bench.note(f"import plait: {median(extra) * 1e3:.1f} ms (median of the differences).")


CLAIMS: dict[str, Callable[[Bench], None]] = {
    "1": claim_cpu_tasks,
    "2": claim_tiny_tasks,
    "3": claim_round_trip,
    "4": claim_constant_memory,
    "5": claim_cold_start,
}


# --- How they are measured ---------------------------------------------------------------


def timed_all(ways: Ways, expected: object = None) -> dict[str, pairs.Measure]:
    return {way: pairs.timed(work, expected) for way, work in ways.items()}


def run_bare(fn: Callable[[int], object], items: list[int]) -> None:
    """Call a function with every item in processes that have nothing else to do."""
    pids = []
    for number in range(WORKERS):
        pid = os.fork()
        if pid == 0:
            for item in items[number::WORKERS]:
                fn(item)
            os._exit(0)
        pids.append(pid)
    for pid in pids:
        os.waitpid(pid, 0)


def run_python(*arguments: object, stdout: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run a fresh Python to its end, one that keeps its bytecode as usual."""
    environ = dict(os.environ)
    environ.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=environ, stdout=stdout, check=True, text=True)


# --- The script --------------------------------------------------------------------------


def machine() -> str:
    load = ", ".join(f"{load:.1f}" for load in os.getloadavg())
    return f"Python {platform.python_version()}, {os.cpu_count()} CPUs, load {load}"


def as_dict(bench: Bench, before: str) -> dict[str, Any]:
    return {
        "machine": {"before": before, "after": machine()},
        "races": [asdict(race) for race in bench.races],
        "notes": bench.notes,
        "bars": [bar.as_dict() for bar in bench.bars],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="plait's processes beside the standard library's")
    parser.add_argument("--quick", action="store_true", help="3 rounds each, and not the slowest")
    parser.add_argument("--claims", default="12345", help="which ones, e.g. 13 (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round's figures")
    options = parser.parse_args()
    before = machine()
    print(f"{before}. {WORKERS} workers everywhere. PPE, TPE: concurrent.futures.")
    fork = get_context("fork")
    with fork.Pool(WORKERS) as pool, ProcessPoolExecutor(WORKERS, mp_context=fork) as executor:
        executor.submit(tasks.nothing).result()  # it forks now, before plait has a thread
        bench = Bench(pool, executor, options.quick)
        for name, claim in CLAIMS.items():
            if name in options.claims:
                claim(bench)
    print(f"\n{machine()} at the end", *bench.bars, sep="\n")
    if options.json:
        options.json.write_text(json.dumps(as_dict(bench, before), indent=1) + "\n")


if __name__ == "__main__":
    main()
