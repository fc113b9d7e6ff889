"""Texts in an arena: the names of things, and who took them where, by numbers for all processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plait.shared import libc

if TYPE_CHECKING:
    from plait.shared.guards import Guard
    from plait.shared.memory import Region

__all__ = ["NO_TEXT", "TEXT_BYTES", "Texts"]

TEXT_BYTES = 512 * 1024  # of all this, memory is taken only where something was written
LONGEST_TEXT_BYTES = 2000
NO_TEXT = 1  # the first text is empty; 0 is for none


class Texts:
    """Texts, each with a number, that stay as long as their region does.

    Args:
        used: a word of the region: how many bytes there are texts in.
        guard: for who adds one.
    """

    def __init__(self, region: Region, at: int, used: memoryview[int], guard: Guard) -> None:
        self._region = region
        self._at = at
        self._used = used
        self._guard = guard
        self._labels: dict[str, int] = {}

    @property
    def has_room(self) -> bool:
        """Whether a name is sure to find room: a quarter is for places."""
        return self._used[0] < TEXT_BYTES * 3 // 4

    def add(self, text: str) -> int:
        """Keep a text for all processes, as long as the arena lasts: its number; 0: no room."""
        data = _text_data(text)
        try:
            self._guard.lock()
            at = self._used[0]
            place = self._at + at
            if place + len(data) > self._at + TEXT_BYTES:
                return 0
            self._region.memory[place : place + len(data)] = data
            self._used[0] = at + len(data)
        finally:
            libc.unlock(self._guard.mutex)
        return at + 1  # 0 is for none

    def find(self, text: str) -> int:
        """Return the number of a text that any process has added; 0: there is none."""
        # Found in the midst of others it reads the same.
        end = self._at + self._used[0]
        return max(0, self._region.memory.find(_text_data(text), self._at, end) - self._at + 1)

    def at(self, number: int) -> str:
        """Return a text by its number."""
        if not 0 < number <= TEXT_BYTES:
            return ""
        place = self._at + number - 1
        size = int.from_bytes(self._region.memory[place : place + 2], "little")
        return self._region.memory[place + 2 : place + 2 + size].decode(errors="replace")

    def label(self, text: str) -> int:
        """Return the number of a text that may be there already."""
        number = self._labels.get(text)
        if number is None:
            number = self._labels[text] = self.add(text)
        return number


def _text_data(text: str) -> bytes:
    data = text.encode(errors="replace")[:LONGEST_TEXT_BYTES]
    return len(data).to_bytes(2, "little") + data
