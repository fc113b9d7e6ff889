"""The functions that the benchmarks have called: importable, so that every pool can take them."""

from __future__ import annotations

from time import perf_counter

__all__ = ["burn", "loops_for", "nothing", "square"]


def square(x: int) -> int:
    return x * x


def nothing() -> None:
    """Do nothing: what is left is the way there and back."""


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


def loops_for(seconds: float) -> int:
    """Return the argument with which ``burn`` takes so long on this machine, undisturbed."""
    loops = 2_000
    best = min(_time_of(loops) for _ in range(20))
    return max(1, round(loops * seconds / best))


def _time_of(loops: int) -> float:
    started = perf_counter()
    burn(loops)
    return perf_counter() - started
