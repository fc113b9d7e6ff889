"""Stores of which the first item is taken: one that forgets it then, one that keeps it until done.

What a store is, and how it changes, is in stores.py.
"""

from __future__ import annotations

import copy
import threading
from typing import NamedTuple

from plait.shared.ledgers import Ledger
from plait.shared.sections import me
from plait.shared.stores import HEAD_WORDS, Area, InArea, Record, bytes_for

__all__ = ["Keeper", "Ring"]

FIRST, NEXT, TAIL = 0, 8, 16
"""Numbers of items: the first one that is kept, the next one to take, the next one to come.

They lie apart, for two CPUs that write to the same 64 bytes wait for each other.
"""
ENTRY_WORDS, ENTRY_SHARE = 4, 128
"""An entry is four words, and there is one for so many bytes of an area."""
POSITION, SIZE, TID, TAKER = range(4)
DONE = (1 << 64) - 1
MANY_DONE = 64 * 64


class Entry(NamedTuple):
    """An item on its way to another area."""

    record: Record
    tid: int = 0
    taker: int = 0


class Ring(InArea):
    """Items in the order in which they came; what is taken is forgotten.

    The entries are a ring, and so are the bytes; the bytes of one item are never torn apart. One
    may add while another one takes: what is written for both, TAIL and NEXT, is each written by one
    of them, last. All else needs both to stand still.
    """

    _oldest_word = NEXT

    def __init__(self, area: Area, ledger: Ledger) -> None:
        super().__init__(area)
        self._ledger = ledger

    def see(self, area: Area) -> None:
        """Look at an area that is attached."""
        super().see(area)
        # What was found the last time: the number of the next item, which is given if nobody else
        # has put one since; bytes that are free, from .. to; the first number without an entry.
        self._tail, self._free, self._limit, self._last = -1, 0, 0, 0
        entries = area.nbytes // ENTRY_SHARE
        self._mask = entries - 1
        head_bytes = 8 * (HEAD_WORDS + ENTRY_WORDS * entries)
        self._data_at = area.at + head_bytes
        self._room = area.nbytes - head_bytes

    def size(self) -> int:
        """Return how many items can be taken."""
        return self.words[TAIL] - self.words[NEXT]

    def add(self, record: Record, _item: object = None) -> bool:
        """Add an item at the end; False: there is no room, see ``make_room``."""
        data, kind = record
        words, nbytes = self.words, len(data)
        tail = words[TAIL]
        # What was found free the last time still is, but for what we put there ourselves.
        is_free = tail == self._tail < self._last and self._free + nbytes < self._limit
        if not is_free and not self._find_room(tail, nbytes):
            return False
        position = self._free
        start = self._data_at + position
        self.memory[start : start + nbytes] = data
        entry = HEAD_WORDS + ENTRY_WORDS * (tail & self._mask)
        words[entry] = position
        words[entry + SIZE] = nbytes << 1 | kind
        words[entry + TAKER] = 0
        self._free = position + nbytes + 1  # one more: an item without bytes has a place, too
        words[TAIL] = self._tail = tail + 1
        return True

    def _find_room(self, tail: int, nbytes: int) -> bool:
        """Find out what is free, for entries and for bytes; False: not enough."""
        words, mask = self.words, self._mask
        oldest = words[self._oldest_word]
        if tail == oldest:
            self._free, self._limit = 0, self._room
        else:
            last = HEAD_WORDS + ENTRY_WORDS * ((tail - 1) & mask)
            self._free = words[last] + (words[last + SIZE] >> 1) + 1
            self._limit = words[HEAD_WORDS + ENTRY_WORDS * (oldest & mask)]
            if self._free > self._limit:
                if self._free + nbytes < self._room:
                    self._limit = self._room
                else:
                    self._free = 0
        self._last = oldest + mask + 1
        return tail < self._last and self._free + nbytes < self._limit

    def take(self) -> Record | None:
        """Take the oldest item out."""
        words = self.words
        number = words[NEXT]
        if number == words[TAIL]:
            return None
        entry = HEAD_WORDS + ENTRY_WORDS * (number & self._mask)  # as in _read
        start, size = self._data_at + words[entry], words[entry + SIZE]
        record = self.memory[start : start + (size >> 1)], size & 1
        words[NEXT] = number + 1
        ledger = self._ledger  # as in note_taken
        if ledger.line < 0:
            ledger.find_line()
        ledger.words[ledger.line + 1] += 1
        return record

    def is_idle(self) -> bool:
        """Return whether it keeps nothing at all."""
        return self.words[TAIL] == self.words[self._oldest_word]

    def _read(self, number: int) -> Record:
        entry = HEAD_WORDS + ENTRY_WORDS * (number & self._mask)
        start, size = self._data_at + self.words[entry], self.words[entry + SIZE]
        return self.memory[start : start + (size >> 1)], size & 1

    def clear(self) -> None:
        """Drop what can be taken."""
        self.words[NEXT] = self.words[TAIL]

    # --- Another area --------------------------------------------------------------------

    def make_room(self, nbytes: int) -> None:
        """Move to an area that has room for what is kept, and for so many bytes more."""
        numbers = range(self.words[NEXT], self.words[TAIL])
        self._fill_another([Entry(self._read(number)) for number in numbers], nbytes)

    def _fill_another(self, entries: list[Entry], nbytes: int) -> None:
        """Move there what is given: what is taken first."""
        needed = nbytes + 2 * sum(len(entry.record[0]) + 1 for entry in entries)
        room = bytes_for(
            lambda size: 2 * len(entries) < size // ENTRY_SHARE and needed <= size // 2
        )
        layout, area = self._area.another(room)
        other = copy.copy(self)
        other.see(area)
        for number, (record, tid, taker) in enumerate(entries):
            other.add(record)
            entry = HEAD_WORDS + ENTRY_WORDS * number
            other.words[entry + TID], other.words[entry + TAKER] = tid, taker
        other.words[NEXT] = sum(entry.taker != 0 for entry in entries)
        self._area.use(layout)
        self.attach()


class Keeper(Ring):
    """A ring that keeps what is taken until it is done, and knows by whom it is taken.

    FIRST <= NEXT <= TAIL: what is taken, or done, is before NEXT, the rest behind it.
    """

    _oldest_word = FIRST

    def __init__(self, area: Area) -> None:
        super().__init__(area, Ledger(area.region))

    def take(self) -> Record | None:
        """Give the oldest item that is not taken to the calling thread."""
        self._repair()
        words = self.words
        number = words[NEXT]
        if number == words[TAIL]:
            return None
        record = self._read(number)
        entry = HEAD_WORDS + ENTRY_WORDS * (number & self._mask)
        words[entry + TID] = threading.get_native_id()
        words[entry + TAKER] = me()
        words[NEXT] = number + 1
        return record

    def finish(self) -> bool:
        """Forget what this thread took first, or else its process; False: they have nothing."""
        words, who, tid = self.words, me(), threading.get_native_id()
        mine, found, done = -1, -1, 0
        for number in range(words[FIRST], words[NEXT]):
            entry = HEAD_WORDS + ENTRY_WORDS * (number & self._mask)
            taker = words[entry + TAKER]
            done += taker == DONE
            if taker == who:
                if words[entry + TID] == tid:
                    found = entry
                    break
                if mine < 0:
                    mine = entry
        found = mine if found < 0 else found
        if found < 0:
            return False
        words[found + TAKER] = DONE
        self._forget()
        # Each of these is looked at each time, until they are left behind, which takes as long as
        # there are items.
        if done * done > MANY_DONE + self.size():
            self.make_room(0)
        return True

    def _forget(self) -> None:
        words = self.words
        first = words[FIRST]
        while first < words[NEXT]:
            if words[HEAD_WORDS + ENTRY_WORDS * (first & self._mask) + TAKER] != DONE:
                break
            first += 1
        words[FIRST] = first
        if first == words[TAIL] and self.is_large:
            self.make_room(0)

    def unfinished(self) -> int:
        """Return how many items are not done; what is counted is what there is to wait for."""
        return self.size() + len([None for taker in self._takers() if taker != DONE])

    def takers(self) -> set[int]:
        """Return the processes that have items which are not done."""
        self._repair()
        return {*self._takers()} - {DONE}

    def _takers(self) -> list[int]:
        words, mask = self.words, self._mask
        return [
            words[HEAD_WORDS + ENTRY_WORDS * (number & mask) + TAKER]
            for number in range(words[FIRST], words[NEXT])
        ]

    def give_again(self, dead: set[int]) -> None:
        """Have what these have taken be the next to be taken by others."""
        entries = self._entries()
        taken = [entry for entry in entries if entry.taker and entry.taker not in dead]
        again = [Entry(entry.record) for entry in entries if entry.taker in dead]
        self._fill_another([*taken, *again, *(e for e in entries if not e.taker)], 0)

    def clear(self) -> None:
        """Drop what can be taken."""
        self._fill_another([entry for entry in self._entries() if entry.taker], 0)

    def _repair(self) -> None:
        """Find NEXT, after a death: an item is taken when its entry says so."""
        words = self.words
        while words[NEXT] < words[TAIL]:
            if not words[HEAD_WORDS + ENTRY_WORDS * (words[NEXT] & self._mask) + TAKER]:
                break
            words[NEXT] += 1

    def make_room(self, nbytes: int) -> None:
        """Move to an area that has room for what is kept, and for so many bytes more."""
        self._fill_another(self._entries(), nbytes)

    def _entries(self) -> list[Entry]:
        """Return all that is not done."""
        found = []
        for number in range(self.words[FIRST], self.words[TAIL]):
            entry = HEAD_WORDS + ENTRY_WORDS * (number & self._mask)
            tid, taker = self.words[entry + TID], self.words[entry + TAKER]
            if taker != DONE:
                found.append(Entry(self._read(number), tid, taker))
        return found
