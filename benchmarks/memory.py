"""What /proc says about the memory of a process, in MB (of 10**6 bytes)."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["peak_mb", "private_mb", "proportional_mb", "resident_mb"]

PAGE = os.sysconf("SC_PAGE_SIZE")


def resident_mb() -> float:
    """Return the memory of this process that is in RAM."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * PAGE / 1e6


def peak_mb() -> float:
    """Return the most that was ever in RAM of this process."""
    return _kilobytes(Path("/proc/self/status"))["VmHWM"] * 1024 / 1e6


def private_mb(pid: int) -> float:
    """Return the memory that a process shares with no other (USS)."""
    rollup = _kilobytes(Path(f"/proc/{pid}/smaps_rollup"))
    return (rollup["Private_Clean"] + rollup["Private_Dirty"]) * 1024 / 1e6


def proportional_mb(pid: int) -> float:
    """Return the memory of a process, its part of what it shares included (PSS)."""
    return _kilobytes(Path(f"/proc/{pid}/smaps_rollup"))["Pss"] * 1024 / 1e6


def _kilobytes(file: Path) -> dict[str, int]:
    lines = (line.split() for line in file.read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) for words in lines if words[-1:] == ["kB"]}
