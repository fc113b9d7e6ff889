"""Who is alive, who this process is, and where its program is: as shared data tells of it."""

from __future__ import annotations

import os
import sys
from types import FrameType

__all__ = ["is_alive", "place_in", "process_name", "short_stack", "start_of", "whoami"]

STACK_DEPTH = 4


def is_alive(pid: int, tid: int, start: int = 0) -> bool:
    """Whether a thread of a process is there, and no zombie; the one with this start, if given."""
    found = start_of(pid, tid)
    return found < 0 or (found > 0 and start in (0, found))


def start_of(pid: int, tid: int) -> int:
    """Return when a thread began, as the system counts it; 0: it has ended.

    Numbers are used again: with this they mean one thread only. -1: it cannot be found out, say
    since too many files are open; then nobody is to be taken for dead.
    """
    try:
        with open(f"/proc/{pid}/task/{tid}/stat", "rb") as file:  # noqa: PTH123
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    except OSError:
        return -1
    return 0 if fields[0] in (b"Z", b"X") else int(fields[19])


def whoami() -> str:
    """Return who this process is, as texts tell it: its number and its name."""
    return f"{os.getpid()} {process_name()}"


def process_name() -> str:
    """Return what this process is called: by plait if it is a worker, else by multiprocessing."""
    # Another thread may be amid the import of these; where they matter they are there.
    name = getattr(sys.modules.get("plait.worker"), "name", None)
    if name:
        return str(name)
    process = getattr(sys.modules.get("multiprocessing.process"), "current_process", None)
    return str(process().name) if process else "MainProcess"


def place_in(frame: FrameType) -> str:
    """Return a place in the program, for all who will come by: they may have other callers."""
    here, *callers = short_stack(frame).splitlines()
    return "\n".join([here, *(f"  first called from {line}" for line in callers)])


def short_stack(frame: FrameType | None) -> str:
    """Return where a frame is, and its callers up to plait itself, as some lines of text."""
    lines: list[str] = []
    while frame is not None and len(lines) < STACK_DEPTH:
        if lines and frame.f_globals.get("__name__", "").startswith("plait."):
            break
        code = frame.f_code
        lines.append(f"{code.co_filename}:{frame.f_lineno} in {code.co_qualname}")
        frame = frame.f_back
    return "\n".join(lines)
