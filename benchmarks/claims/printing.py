"""A fresh script whose tasks print 100,000 lines to a pipe, all of which have to arrive."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

from benchmarks.pairs import Role, Way
from benchmarks.processes import script_s
from benchmarks.scripts.lines import LINES
from benchmarks.station import check

if TYPE_CHECKING:
    from benchmarks.bench import Bench

__all__ = ["run"]

SCRIPT = str(Path(__file__).parent.parent / "scripts" / "lines.py")
FLUSHING = "Pool, each line flushed"
PEERS = {"Pool": "pool", FLUSHING: "flushing_pool", "ProcessPoolExecutor": "executor"}


def printed_s(word: str, tasks: int, limit_s: float, *, may_mix: bool = False) -> float:
    """Return the seconds from the start of the script to its end; see that all lines arrived.

    Processes that write to one pipe, and more than 4 KiB at once, may mix their lines.
    """
    command = [sys.executable, SCRIPT, word, str(tasks)]
    with TemporaryFile() as file:
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=file) as reader:
            assert reader.stdin
            seconds = script_s(command, limit_s, stdout=reader.stdin)
        file.seek(0)
        printed = file.read()
    expected = [b"task %d line %d" % (task, line) for task in range(tasks) for line in range(LINES)]
    if may_mix:
        check(word, is_right=printed.count(b"\n") == len(expected))
    else:
        check(word, is_right=sorted(printed.split(b"\n")) == sorted([*expected, b""]))
    return seconds


def run(bench: Bench) -> None:
    tasks = bench.pick(100, 10)

    def way(role: Role, word: str) -> Way:
        limit_s = bench.pace(1).limit_s
        return Way(partial(printed_s, word, tasks, limit_s, may_mix=role == "peer"), role)

    ways = {
        "plait": way("ours", "plait"),
        "for-loop": way("yardstick", "loop"),
        **{name: way("peer", word) for name, word in PEERS.items()},
    }
    title = f"A fresh script: {tasks} tasks on 2 processes print {tasks * LINES:,} lines to a pipe"
    race = bench.race(title, ways, rounds=11)
    # As after a flush, what a task of plait printed is there before its result.
    bench.at_most(f"{title}: plait / {FLUSHING}", race.ratio("plait", FLUSHING), 1.25)
