"""Processes with all that they started: whose they are, how they are ended, what one takes.

Used for hosts (hosts.py) and for fresh scripts (claims/cold.py, claims/printing.py).
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from multiprocessing.connection import wait
from pathlib import Path
from time import perf_counter
from typing import IO, cast

import psutil

from benchmarks.pairs import LeftOut

__all__ = ["environment", "family", "kill", "script_s"]

TRACKING_S = 5.0
ROOT = Path(__file__).resolve().parent.parent


def environment() -> dict[str, str]:
    """Return the environment for hosts and scripts, which is that of a user.

    They keep bytecode, buffer what they print, and find this package.
    """
    environ = dict(os.environ)
    for name in ("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED"):
        environ.pop(name, None)
    path = [str(ROOT), environ.get("PYTHONPATH", "")]
    environ["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    environ["RAY_USAGE_STATS_ENABLED"] = "0"  # it would report its use over the network
    return environ


def family(leader: int) -> list[psutil.Process]:
    """Return what the leader of a session started, also what is left of those that ended.

    Not the leader: psutil would take its exit code from the Popen that waits for it.
    """
    found = {process for process in psutil.process_iter() if _session(process.pid) == leader}
    with suppress(psutil.NoSuchProcess):
        found.update(psutil.Process(leader).children(recursive=True))
    return [process for process in found if process.pid != leader]


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def kill(processes: list[psutil.Process], patience_s: float = 0) -> None:
    """Kill what has not ended by itself after so many seconds.

    Those that remove the others' files and semaphores when these are gone go last, and have a
    moment for it: what joblib and loky leave in /dev/shm may be large.
    """
    alive = _alive_after(processes, patience_s)
    trackers = [process for process in alive if _is_tracker(process)]
    _kill_all(process for process in alive if process not in trackers)
    _kill_all(_alive_after(trackers, TRACKING_S))


def _alive_after(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Wait until all have ended, so long at most, and return those that have not.

    By pidfds: psutil would wait until their parent, which may be slow, has noticed.
    """
    deadline = perf_counter() + seconds
    running: dict[int, psutil.Process] = {}
    for process in processes:
        with suppress(ProcessLookupError):
            running[os.pidfd_open(process.pid)] = process
    while running and (ended := wait(list(running), max(0.0, deadline - perf_counter()))):
        for pidfd in cast("list[int]", ended):
            os.close(pidfd)
            del running[pidfd]
    for pidfd in running:
        os.close(pidfd)
    return list(running.values())


def _kill_all(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _is_tracker(process: psutil.Process) -> bool:
    try:
        return any("resource_tracker" in word for word in process.cmdline())
    except psutil.Error:
        return False


def script_s(
    command: list[str], limit_s: float, *, stdout: int | IO[bytes] = subprocess.DEVNULL
) -> float:
    """Return the seconds from the start of a program to its end; LeftOut if it fails or is late.

    Popen.wait(timeout) would look every few milliseconds; a pidfd tells at once.
    """
    started = perf_counter()
    process = subprocess.Popen(
        command,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    pidfd = os.pidfd_open(process.pid)
    is_done = False
    try:
        is_done = bool(wait([pidfd], limit_s))
        seconds = perf_counter() - started
    finally:
        os.close(pidfd)
        left = family(process.pid)
        if not is_done:
            process.kill()
        kill(left)
    _, errors = process.communicate()
    if not is_done:
        raise LeftOut(f"not done after {limit_s:.0f} s")
    if process.returncode:
        last = errors.decode(errors="replace").strip().splitlines()[-1:]
        raise LeftOut(f"its script failed: {' '.join(last)[:200]}")
    return seconds
