"""A store of which the last item is taken, or the smallest one.

What a store is, and how it changes, is in stores.py.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from plait.shared.stores import HEAD_WORDS, Area, InArea, Record, bytes_for, decode

if TYPE_CHECKING:
    from plait.shared.ledgers import Ledger

__all__ = ["Stack"]

ORDER, END = range(2)
"""How many items there are, twice, plus which of two lists counts; the end of their bytes."""
PLACE_SHARE = 64
"""A list has a word for so many bytes of an area."""


class Stack(InArea):
    """Items of which the last one is taken; a new one goes to the end, or where it belongs.

    The order is a list of places. To put one in between, the other of two lists is written, and
    one write says that it counts: that takes time in proportion to the number of items, but very
    little (8 bytes of each are copied).

    Args:
        is_sorted: have the smallest item last. Items are unpickled to be compared, as many as the
            logarithm of their number.
    """

    def __init__(self, area: Area, ledger: Ledger, *, is_sorted: bool = False) -> None:
        super().__init__(area)
        self._ledger = ledger
        self._is_sorted = is_sorted

    def see(self, area: Area) -> None:
        """Look at an area that is attached."""
        super().see(area)
        self._most = area.nbytes // PLACE_SHARE
        self._data_at = 8 * (HEAD_WORDS + 2 * self._most)
        self._room = area.nbytes - self._data_at

    def size(self) -> int:
        """Return how many items can be taken."""
        return self.words[ORDER] >> 1

    def _list_at(self, which: int) -> int:
        return HEAD_WORDS + which * self._most

    def add(self, record: Record, item: object = None) -> bool:
        """Add an item at its place."""
        self._put(record, self._index_for(item) if self._is_sorted else self.size())
        return True

    def append(self, record: Record) -> None:
        """Add an item at the end."""
        self._put(record, self.size())

    def _put(self, record: Record, index: int) -> None:
        count, which = self.size(), self.words[ORDER] & 1
        nbytes = 8 + (len(record[0]) + 7) // 8 * 8
        if count == self._most or self.words[END] + nbytes > self._room:
            self.make_room(nbytes)
            which = 0
        self._insert(self._write(record, nbytes), index, count, which)

    def _insert(self, place: int, index: int, count: int, which: int) -> None:
        words, at = self.words, self._list_at(which)
        if index < count:
            which = 1 - which
            to = self._list_at(which)
            words[to : to + index] = words[at : at + index]
            words[to + index + 1 : to + count + 1] = words[at + index : at + count]
            at = to
        words[at + index] = place
        words[ORDER] = (count + 1) << 1 | which

    def _write(self, record: Record, nbytes: int) -> int:
        data, kind = record
        place = self.words[END]
        start = self._data_at + place
        self.words[start // 8] = len(data) << 1 | kind
        start += self._area.at + 8
        self.memory[start : start + len(data)] = data
        self.words[END] = place + nbytes
        return place

    def _index_for(self, item: Any) -> int:
        """Return how many items are larger: what is equal is taken in the order of coming."""
        low, high = 0, self.size()
        while low < high:
            middle = (low + high) // 2
            if item < decode(self._read(middle)):
                low = middle + 1
            else:
                high = middle
        return low

    def take(self) -> Record | None:
        """Take the last item out."""
        words = self.words
        order = words[ORDER]
        count = order >> 1
        if not count:
            return None
        place = words[self._list_at(order & 1) + count - 1]
        record = self._read(count - 1)
        words[ORDER] = order - 2
        self._ledger.note_taken()
        if count == 1:
            words[END] = 0
        elif place + 8 + (len(record[0]) + 7) // 8 * 8 == words[END]:
            words[END] = place
        return record

    def _read(self, number: int) -> Record:
        place = self.words[self._list_at(self.words[ORDER] & 1) + number]
        start = self._data_at + place
        size = self.words[start // 8]
        start += self._area.at + 8
        return self.memory[start : start + (size >> 1)], size & 1

    def clear(self) -> None:
        """Drop what can be taken."""
        self.words[ORDER] &= 1

    def is_idle(self) -> bool:
        """Return whether it keeps nothing at all."""
        return self.size() == 0

    def make_room(self, nbytes: int) -> None:
        """Move to an area that has room for what there is, and for so many bytes more."""
        self._fill_another([self._read(number) for number in range(self.size())], nbytes)

    def _fill_another(self, records: list[Record], nbytes: int) -> None:
        needed = nbytes + 2 * sum(len(data) + 16 for data, _ in records)
        room = bytes_for(
            lambda size: 2 * len(records) < size // PLACE_SHARE and needed <= size // 2
        )
        layout, area = self._area.another(room)
        other = copy.copy(self)
        other.see(area)
        for record in records:
            other.append(record)
        self._area.use(layout)
        self.attach()
