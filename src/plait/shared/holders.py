"""Who has which end of a pipe: a list of processes, in shared memory. Used by pipes.py."""

from __future__ import annotations

from plait.shared.memory import HEAD_BYTES, Region
from plait.shared.sections import is_running, me

__all__ = ["HELD", "SENT", "Holders"]

LINES, LINE_WORDS = 256, 8
WHO, HELD, SENT = 0, 1, 3
"""The words of a line: a process; how often it has each end; how often each is on its way."""


class Holders:
    """Which processes have which end of a pipe, in a region of its own.

    Changed under the mutex of one of the queues. Who has ended has nothing any more.
    """

    def __init__(self, region: Region) -> None:
        self.region = region
        self._words = region.words(HEAD_BYTES, 8 * LINES * LINE_WORDS, "q")
        self.inherited: set[int] = set()
        """Ends that this process has by a fork alone, and has not used."""

    @classmethod
    def create(cls) -> Holders:
        """Make an empty list."""
        return cls(Region.create(8 * LINES * LINE_WORDS, "pipe"))

    def line(self) -> int:
        """Return the line of this process; it may become that, with the mutex held."""
        words, free = self._words, -1
        for line in range(0, len(words), LINE_WORDS):
            if words[line] == me():
                return line
            if free < 0 and not is_running(words[line]):
                free = line
            if not words[line]:
                break
        if free < 0:
            raise RuntimeError(f"more than {LINES} processes have one pipe")
        # It stays that of the dead meanwhile: behind a line of nobody's, nobody looks.
        words[free + 1 : free + LINE_WORDS] = memoryview(bytes(8 * (LINE_WORDS - 1))).cast("q")
        words[free] = me()
        return free

    def add(self, what: int, side: int, count: int) -> None:
        """Change how often this process has an end (HELD), or has it on its way (SENT)."""
        self.add_at(self.line(), me(), what + side, count)

    def add_at(self, line: int, who: int, word: int, count: int) -> None:
        """Change that for a process that may have ended."""
        if self._words[line] == who:
            self._words[line + word] = max(0, self._words[line + word] + count)

    def has_any(self, side: int) -> bool:
        """Whether a living process has that end, is sending it, or will have it by a fork."""
        return self._is_in_a_line(side) or self.region.is_marked(side)

    def _is_in_a_line(self, side: int) -> bool:
        words = self._words
        for line in range(0, len(words), LINE_WORDS):
            who = words[line]
            if not who:
                break
            if not words[line + HELD + side] and not words[line + SENT + side]:
                continue
            if who == me():
                if side in self.inherited and not words[line + SENT + side]:
                    continue
                return True
            if is_running(who):
                return True
        return False
