"""How fast the command line starts, beside a Python that does nothing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.pairs import Way
from benchmarks.processes import script_s

if TYPE_CHECKING:
    from benchmarks.bench import Bench

__all__ = ["run"]

COMMANDS = {"plait --version": 4.0, "plait map math:factorial --range 1 10": 8.0}
"""What is typed, and how many times as long as bare Python it may take."""

BARE = "python -c pass"


def run(bench: Bench) -> None:
    script = Path(sys.executable).with_name("plait")
    for typed, bar in COMMANDS.items():
        name, *arguments = typed.split()
        ways = {
            typed: Way(lambda: script_s([str(script), *arguments], 60.0), "ours"),  # noqa: B023
            BARE: Way(lambda: script_s([sys.executable, "-c", "pass"], 60.0), "yardstick"),
        }
        race = bench.race(f"The command {name} {arguments[0]}", ways, rounds=15)
        bench.at_most(f"{typed} / {BARE}", race.ratio(typed, BARE), bar)
