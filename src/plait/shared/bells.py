"""Bells: words of a cell on which threads of any process sleep until another one rings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from plait.shared import libc
from plait.spin import Spin

if TYPE_CHECKING:
    from plait.shared.cells import Cell

__all__ = ["EVERYBODY", "Bell"]

RINGS, EXPECTED, AWAKE = range(3)
EVERYBODY = 0x7FFF_FFFF


class Bell:
    """A word on which threads of any process sleep until another one rings.

    To ring for nobody is to cost nothing, so who is about to sleep is counted, and so are those
    among them who are known to have woken: all, when a ring wakes nobody. A killed sleeper is one
    that no ring finds. Who waits says so first, then looks once more, then sleeps; who changes
    something does so first, then sees whether somebody waits.

    To be woken while the mutex is held would mean to go back to sleep on that, and often on the
    CPU of who holds it; so ``QueueCore._ring`` wakes after it is unlocked.
    """

    def __init__(self, cell: Cell, word: int, mutex: Any) -> None:
        self.mutex = mutex
        self.spin: Spin = Spin()
        self._address = cell.address_of(word)
        offset = cell.offset + libc.MUTEX_BYTES + 8 * word
        self._halves = cell.arena.region.words(offset, 16, "I")

    def expect(self) -> int:
        """Say, with the mutex held, that somebody is about to sleep; returns what to wait with."""
        halves = self._halves
        halves[EXPECTED] = (halves[EXPECTED] + 1) & 0xFFFF_FFFF
        return halves[RINGS]

    def is_awaited(self) -> bool:
        """Whether anybody may be asleep."""
        halves = self._halves
        return halves[EXPECTED] != halves[AWAKE]

    def begin(self) -> int:
        """Begin to ring, with the mutex held: who is not yet asleep will not go to sleep."""
        halves = self._halves
        halves[RINGS] = (halves[RINGS] + 1) & 0xFFFF_FFFF
        return halves[EXPECTED]

    def finish(self, expected: int, count: int) -> None:
        """Wake so many of the sleepers that were expected when the ringing began."""
        if not libc.wake_word(self._address, count):
            self._halves[AWAKE] = expected

    def wait(self, number: int, seconds: float) -> bool:
        """Sleep until it rings after ``expect`` returned that; False: the time is up."""
        return libc.wait_word(self._address, number, seconds)
