"""Events: all wait until one says go."""

from __future__ import annotations

from time import monotonic
from typing import Any

from plait.shared import libc
from plait.shared.cells import STATE, Cell, arrive, label_of, new_cell, settle
from plait.shared.locks import LOOK_S
from plait.shared.sections import Section, end_of, futex_of, nothing

__all__ = ["Event"]

EVENT = 13
# WORD: how often it was set or cleared: it is set when that is odd. ANY: whether anybody may wait.
WORD, ANY = STATE, STATE + 1


class Event:
    """An event for threads and processes, as ``threading.Event``.

    Args:
        name: what it is called in messages.

    Raises:
        SharedDataGone: when it arrives after all who had it have ended.

    >>> ready = Event()
    >>> ready.set()
    >>> ready.wait()
    True
    """

    def __init__(self, name: str = "") -> None:
        self._set_up(new_cell(EVENT, label_of(type(self), name)))

    def _set_up(self, cell: Cell) -> None:
        self._cell, self._words = cell, cell.words
        self._section = Section(cell, nothing)
        self._address = futex_of(cell, WORD)
        settle(cell, self)

    def is_set(self) -> bool:
        """Return whether it is set.

        >>> Event().is_set()
        False
        """
        return self._words[WORD] & 1 == 1

    def set(self) -> None:
        """Set it, and wake all who wait.

        >>> Event().set()
        """
        if self._section.run(self._set):
            libc.wake_word(self._address)

    def clear(self) -> None:
        """Have it be not set; those who were woken before go on all the same.

        >>> Event().clear()
        """
        self._section.run(self._clear)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set, also if it is cleared at once; False: the time was up before.

        Args:
            timeout: in seconds; None: for ever.

        >>> Event().wait(timeout=0.01)
        False
        """
        seen = self._words[WORD]
        if seen & 1:
            return True
        until = end_of(timeout)
        self._section.run(self._note_waiting)
        while self._words[WORD] == seen:
            left = until - monotonic()
            if left <= 0:
                return False
            libc.wait_word(self._address, seen, min(left, LOOK_S))
        return True

    def __repr__(self) -> str:
        return f"<plait.shared {self._cell.label}: {'set' if self.is_set() else 'unset'}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return arrive, (type(self), self._cell.place)

    # In the section:

    def _set(self) -> bool:
        """Set it; whether anybody has to be woken."""
        words = self._words
        if words[WORD] & 1:
            return False
        words[WORD] = (words[WORD] + 1) & 0xFFFF_FFFF
        return words[ANY] == 1

    def _clear(self) -> None:
        words = self._words
        if words[WORD] & 1:
            words[ANY] = 0  # now: those who have waited were woken, others are still to come
            words[WORD] = (words[WORD] + 1) & 0xFFFF_FFFF

    def _note_waiting(self) -> None:
        self._words[ANY] = 1
