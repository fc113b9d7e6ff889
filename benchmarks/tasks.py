"""The functions that the engines are given: importable, so that every one can take them."""

from __future__ import annotations

import os
from time import perf_counter, sleep
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "ARRAY_ITEMS",
    "burn",
    "burnt",
    "byte_plus",
    "doze",
    "filled",
    "loops_for",
    "nap",
    "nothing",
    "pid_after",
    "square",
    "total",
]

ARRAY_ITEMS = 1_000_000  # of 8 bytes: arrays of 8 MB
DIVISORS = sum(5040 % number == 0 for number in range(2, 32))


def square(x: int) -> int:
    return x * x


def nothing() -> None:
    """Do nothing: what is left is the way there and back."""


def nap(seconds: float) -> float:
    """Wait, and return how long was asked for."""
    sleep(seconds)
    return seconds


async def doze(seconds: float) -> float:
    """Wait, as a coroutine, and return how long was asked for."""
    import asyncio  # the workers of all other claims shall do without

    await asyncio.sleep(seconds)
    return seconds


def pid_after(seconds: float) -> int:
    """Wait, so that others get tasks, too, and return the process."""
    sleep(seconds)
    return os.getpid()


def total(array: Any) -> float:
    """Return the sum of an array."""
    return float(array.sum())


def filled(value: int) -> Any:
    """Return an array of 8 MB that consists of one number."""
    import numpy as np

    return np.full(ARRAY_ITEMS, float(value))


def byte_plus(data: Sequence[int], index: int) -> int:
    """Return an item of ``data``, bytes or an array of them, and the index, added."""
    return int(data[index]) + index


def burn(loops: int) -> int:
    """Compute, in pure Python, for a time that ``loops_for`` knows.

    With small numbers only, which Python keeps ready: a loop that makes new ones runs up to
    twice as fast in one process as in the next, depending on where their memory happens to be.
    """
    divisors = 0
    for _ in range(loops):
        for number in range(2, 32):
            if 5040 % number == 0:
                divisors += 1
    return divisors


def burnt(loops: int) -> int:
    """Return what ``burn`` will, at once."""
    return loops * DIVISORS


def loops_for(seconds: float) -> int:
    """Return the argument with which ``burn`` takes so long on this machine, undisturbed."""
    loops = 2_000
    best = min(_time_of(loops) for _ in range(20))
    return max(1, round(loops * seconds / best))


def _time_of(loops: int) -> float:
    started = perf_counter()
    burn(loops)
    return perf_counter() - started
