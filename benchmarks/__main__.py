"""The command: python -m benchmarks. Measures claim after claim, then writes what it found.

A wrong answer, or a failure of plait's, ends its claim and is told at the end; the exit code is
then 1. A bar that is missed is no failure: it is a figure, of a machine that may be busy.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import traceback
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks import charts, machine, tables
from benchmarks.bench import Bench
from benchmarks.claims import CLAIMS, LONG
from benchmarks.engines import versions
from benchmarks.hosts import Hosts
from benchmarks.pairs import LeftOut
from benchmarks.station import WrongAnswer
from benchmarks.workloads import WORKLOADS

OPENING_LIMIT_S = 60.0


def main() -> int:
    options = parse(sys.argv[1:])
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was measured is kept, too
    options.out.mkdir(parents=True, exist_ok=True)
    facts: dict[str, Any] = {
        "machine": machine.describe(),
        "versions": versions(),
        "is quick": options.quick,
        "load before": machine.load(),
    }
    print(tables.heading(facts))
    with (
        (options.out / "engines.log").open("w") as log,
        Hosts(log, OPENING_LIMIT_S) as hosts,
    ):
        bench = Bench(
            hosts,
            is_quick=options.quick,
            most_rounds=options.rounds,
            workloads=options.workloads,
        )
        started = perf_counter()
        try:
            for name in options.claims:
                measure(bench, name)
            hosts.close()
        except KeyboardInterrupt:
            print("\nInterrupted.")
            return 130
        finally:
            facts |= {"load after": machine.load(), "seconds": round(perf_counter() - started)}
            write(options.out, facts, bench)
            print(f"{tables.bars(bench.sections)}\n\nAll of it, with charts: {options.out}")
    return 1 if any(section.error for section in bench.sections) else 0


def parse(arguments: list[str]) -> argparse.Namespace:
    """Return the options: ``quick``, ``claims``, ``workloads``, ``rounds`` and ``out``."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="less of everything, in a minute")
    parser.add_argument(
        "--claims",
        type=partial(some_of, CLAIMS, "claim"),
        metavar="NAME,...",
        help=f"which ones: {', '.join(CLAIMS)} (default: all; quick: all but {', '.join(LONG)})",
    )
    parser.add_argument(
        "--workloads",
        type=partial(some_of, WORKLOADS, "workload"),
        default=list(WORKLOADS),
        metavar="NAME,...",
        help=f"which ones, of choice and families: {', '.join(WORKLOADS)} (default: all)",
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="at most so many for each race")
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks"), metavar="DIR")
    options = parser.parse_args(arguments)
    options.claims = options.claims or [
        name for name in CLAIMS if not (options.quick and name in LONG)
    ]
    return options


def some_of(known: Iterable[str], kind: str, text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in known]:
        raise argparse.ArgumentTypeError(f"no {kind} is called {', '.join(unknown)}")
    return names


def measure(bench: Bench, name: str) -> None:
    section = bench.begin(name)
    started = perf_counter()
    print(f"\n=== {name} " + "=" * (70 - len(name)), flush=True)
    try:
        CLAIMS[name](bench)
    except (WrongAnswer, LeftOut) as error:
        section.error = str(error)
        print(f"FAILED: {error}", flush=True)
    print(f"({perf_counter() - started:.0f} s)", flush=True)


def write(out: Path, facts: dict[str, Any], bench: Bench) -> None:
    """Write everything that was measured so far."""
    as_json = tables.as_dict(facts, bench.sections)
    (out / "results.json").write_text(json.dumps(as_json, indent=1) + "\n")
    (out / "results.md").write_text(tables.markdown(facts, bench.sections))
    try:
        charts.draw(out, bench.sections)
    except ImportError:
        print("\nNo charts: matplotlib is not installed.")
    except Exception:  # noqa: BLE001  the figures are not to be lost for a picture
        traceback.print_exc()


if __name__ == "__main__":
    sys.exit(main())
