"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import psutil

__all__ = ["describe", "load"]


def describe() -> dict[str, str]:
    """Return the machine in words, for a file."""
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "cpus": f"{len(os.sched_getaffinity(0))} CPUs",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
    }


def load() -> str:
    """Return how busy the machine was in the last 1, 5 and 15 minutes."""
    return ", ".join(f"{load:.1f}" for load in os.getloadavg())


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()
