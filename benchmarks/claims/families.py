"""Ten choices out of ten: by fresh programs, on a quiet machine and on a busy one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from benchmarks.claims.choice import chosen
from benchmarks.ground import Ground, prepared

if TYPE_CHECKING:
    from benchmarks.bench import Bench
    from benchmarks.workloads import Workload

__all__ = ["run"]

RUNS = (10, 2)
QUIET, BUSY = "quiet", "busy"


@contextmanager
def busy(programs: int) -> Iterator[None]:
    """Have so many programs compute all the time."""
    with ExitStack() as stack:
        for _ in range(programs):
            command = [sys.executable, "-c", "while True: pass"]
            process = stack.enter_context(subprocess.Popen(command, start_new_session=True))
            stack.callback(process.kill)
        yield


def count_choices(bench: Bench, ground: Ground, workload: Workload) -> Counter[str]:
    """Return how often fresh programs chose which family.

    Always for all of the work: for less of it another family may be right.
    """
    args = (workload.name, workload.tasks[0], ground)
    runs = range(bench.pick(*RUNS))
    return Counter(bench.call_fresh("plait auto", chosen, *args).backend for _ in runs)


def run(bench: Bench) -> None:
    with prepared() as ground:
        quiet = [count_choices(bench, ground, workload) for workload in bench.workloads]
        with busy(len(os.sched_getaffinity(0))):
            loaded = [count_choices(bench, ground, workload) for workload in bench.workloads]
    rows = ["workload | right | quiet | every CPU busy", "--- | --- | --- | ---"]
    for workload, *counts in zip(bench.workloads, quiet, loaded, strict=True):
        rows.append(" | ".join([workload.name, " or ".join(workload.families), *map(said, counts)]))
    bench.note("\n" + "\n".join(f"| {row} |" for row in rows) + "\n")
    for machine, found in ((QUIET, quiet), (BUSY, loaded)):
        always = sum(is_right(*pair) for pair in zip(bench.workloads, found, strict=True))
        claim = (
            f"workloads with the right family in {bench.pick(*RUNS)} of {bench.pick(*RUNS)} runs"
        )
        bench.at_least(f"{claim}, {machine} machine", always, len(bench.workloads))


def said(count: Counter[str]) -> str:
    return ", ".join(f"{family} {times}" for family, times in count.most_common())


def is_right(workload: Workload, count: Counter[str]) -> bool:
    return set(count) <= set(workload.families)
