"""Look about for a moment before going to sleep, where that pays.

A sleeping process that is woken takes some 30 µs until it runs, on another CPU: about as long
as everything else in sending a task to a warm worker and having its result back. So whoever
waits looks for a moment whether it is there already before it sleeps. It does so only while its
waits have been that short: a worker that waits for milliseconds, or a pool whose CPUs are all
at work, sleeps at once. (Giving the CPU away between two looks, by sched_yield, made it slower
wherever another program had work for that CPU.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from plait.clocks import monotonic

__all__ = ["Spin"]

T = TypeVar("T")

SPIN_S = 0.000_07
"""How long it is looked about."""
SHORT_S = 0.000_15
"""A wait that was shorter, waking up included, would have been over while looking about."""
MOST_SKIPPED = 255


class Spin:
    """The waits of one place, each of which tells whether the next one is likely to be short."""

    def __init__(self) -> None:
        self._was_short = False
        self._skipped = 0  # waits that are not to look about, as the last time was in vain
        self._to_skip = 0

    def wait(self, look: Callable[[], T], sleep: Callable[[], T]) -> T:
        """Return what ``look`` finds, or what ``sleep``, which blocks, returns."""
        started = monotonic()
        if self._was_short:
            if self._to_skip:
                self._to_skip -= 1
            elif found := self._look_about(look, started + SPIN_S):
                return found
        found = sleep()
        self._was_short = monotonic() - started < SHORT_S
        return found

    def _look_about(self, look: Callable[[], T], until: float) -> T | None:
        while True:
            if found := look():
                self._skipped = 0
                return found
            if monotonic() >= until:
                # Perhaps whoever is to send something needs this very CPU for it.
                self._to_skip = self._skipped = min(2 * self._skipped + 1, MOST_SKIPPED)
                return None
