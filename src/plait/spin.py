"""How to wait: look about before going to sleep, or let several things come, where that pays.

A sleeping process that is woken takes some 30 µs until it runs, on another CPU: about as long
as everything else in sending a task to a warm worker and having its result back. So whoever
waits looks for a moment whether it is there already before it sleeps. It does so only while its
waits have been that short: a worker that waits for milliseconds, or a pool whose CPUs are all
at work, sleeps at once. (Giving the CPU away between two looks, by sched_yield, made it slower
wherever another program had work for that CPU.)

The opposite holds where many workers keep every CPU busy: to wake up for each of their results
costs more than the result. There the waiting thread pauses a little, and finds several.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from plait.clocks import monotonic

__all__ = ["Moderation", "Spin"]

T = TypeVar("T")

SPIN_S = 0.000_07
"""How long it is looked about."""
SHORT_S = 0.000_15
"""A wait that was shorter, waking up included, would have been over while looking about."""
MOST_SKIPPED = 255
MOST_PAUSE_S = 0.001
"""The longest pause for the sake of things that come together."""


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


class Moderation:
    """Pauses of a place at which many things arrive, so that a good share comes together.

    As network cards do it with their interrupts, and adaptively: at best between an eighth and a
    quarter of what is to come is there after a pause. With more, those that wait for an answer
    would have nothing to do; so the pause gets shorter then.
    """

    def __init__(self) -> None:
        self._pause_s = 0.0

    def pause(self) -> None:
        """Give some of them time to come."""
        if self._pause_s:
            time.sleep(self._pause_s)

    def learn(self, came: int, expected: int) -> None:
        """Hear how many came, of those that are expected."""
        if 4 * came > expected:
            self._pause_s = 0.7 * self._pause_s
        elif 8 * came < expected:
            self._pause_s = min(1.2 * self._pause_s + MOST_PAUSE_S / 50, MOST_PAUSE_S)
