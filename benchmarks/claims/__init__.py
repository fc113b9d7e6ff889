"""The claims, in the order in which they are measured: one file for each.

In every file ``run(bench)`` is the claim; what runs in the hosts stands above it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from benchmarks.claims import (
    arrays_in,
    arrays_out,
    beside,
    captured,
    choice,
    cold,
    commands,
    cpu,
    families,
    faults,
    latency,
    lazy,
    memory,
    opening,
    pareto,
    printing,
    probe,
    shared,
    sleeps,
    tiny,
    width,
)

if TYPE_CHECKING:
    from benchmarks.bench import Bench

__all__ = ["CLAIMS", "LONG"]

CLAIMS: dict[str, Callable[[Bench], None]] = {
    "latency": latency.run,
    "tiny": tiny.run,
    "lazy": lazy.run,
    "cpu": cpu.run,
    "pareto": pareto.run,
    "sleeps": sleeps.run,
    "beside": beside.run,
    "arrays-in": arrays_in.run,
    "arrays-out": arrays_out.run,
    "captured": captured.run,
    "cold": cold.run,
    "commands": commands.run,
    "opening": opening.run,
    "width": width.run,
    "memory": memory.run,
    "faults": faults.run,
    "shared": shared.run,
    "printing": printing.run,
    "probe": probe.run,
    "choice": choice.run,
    "families": families.run,
}

LONG = ("choice", "families")
"""Those of all workloads: they take minutes, also when they are quick. Name them."""
