"""Where the items of a queue lie: pickled, in shared memory that grows.

Used by queues.py only, which holds the queue's mutexes around each call here. Everything that says
what is in a queue lies in one *area* of its region, and each change of it becomes true with a
single write of 64 bits: the last one of a method. So whoever is killed, wherever, leaves an item
in the queue or out of it, and nothing else. When an area is full, another one is filled with what
is still wanted, larger if need be; then one write (LAYOUT, in the queue's cell) says that it
counts. The memory of the old one is given back to the system.

    region: head | ledger | areas
    area:   24 words | which items, in order | their bytes
"""

from __future__ import annotations

import copy
import mmap
import os
import pickle
import sys
import threading
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol
from weakref import WeakSet

from plait import wire
from plait.shared.memory import HEAD_BYTES, Region
from plait.shared.sections import is_running, me

__all__ = [
    "AREAS_AT",
    "Area",
    "Keeper",
    "Ledger",
    "Record",
    "Ring",
    "Stack",
    "Store",
    "decode",
    "encode",
]

AREAS_AT = 8192
PAGE = 4096
SMALLEST_BYTES = 64 * 1024
KEPT_BYTES = 16 * 1024 * 1024
"""A larger area is given back when the queue is empty."""
HEAD_WORDS = 24

Record = tuple[bytes, int]
"""An item as it travels: bytes, and a kind: 0 a pickle, 1 a pickle of what wire.pack made."""
PICKLED, PACKED = 0, 1
_dumps = pickle.dumps


def encode(item: object) -> Record:
    """Pickle an item. Raises NotPicklable."""
    # The fast path. What it cannot carry, or carries as a name of __main__, is for wire.py.
    try:
        data = _dumps(item, 5)
    except Exception:  # noqa: BLE001  whatever pickle raises, cloudpickle may do better
        data = b"__main__"
    if b"__main__" not in data:
        return data, PICKLED
    return pickle.dumps(wire.pack(item, "item"), wire.PROTOCOL), PACKED


def decode(record: Record) -> Any:
    """Unpickle an item; may raise whatever its class raises."""
    data, kind = record
    item = pickle.loads(data)
    return wire.load(item) if kind == PACKED else item


class Store(Protocol):
    """What a queue needs of the place where its items are."""

    layout: int

    def attach(self) -> None:
        """See what another process has changed of the memory."""

    def size(self) -> int:
        """Return how many items can be taken."""

    is_large: bool

    def add(self, record: Record, _item: object, /) -> bool:
        """Add an item, given in both its forms; False: there is no room."""

    def make_room(self, nbytes: int) -> None:
        """Have room for so many bytes more; with 0, for what there is."""

    def is_idle(self) -> bool:
        """Return whether it keeps nothing at all."""

    def take(self) -> Record | None:
        """Take the next item out; None: there is none."""

    def clear(self) -> None:
        """Drop what can be taken."""


class Area:
    """A part of a region that can be exchanged for another, whole, by one write."""

    def __init__(self, region: Region, cell_words: memoryview[int], layout_word: int) -> None:
        self.region = region
        self._cell_words, self._layout_word = cell_words, layout_word
        self.layout = -1

    @property
    def is_there(self) -> bool:
        """Whether there is one at all."""
        return self._cell_words[self._layout_word] != 0

    def attach(self) -> None:
        """Map the area that counts now."""
        layout = self._cell_words[self._layout_word]
        self.at, self.nbytes = _unpacked(layout)
        self.region.grow(self.at + self.nbytes - HEAD_BYTES)
        self.words = self.region.words(self.at, self.nbytes)
        self.memory = self.region.memory
        self.layout = layout

    def use(self, layout: int) -> None:
        """Have another area count from now on, and give the old one back."""
        self._cell_words[self._layout_word] = layout
        if self.layout >= 0:
            self.region.memory.madvise(mmap.MADV_REMOVE, self.at, self.nbytes)

    def another(self, nbytes: int) -> tuple[int, Area]:
        """Return a new area, all zero, beside the one that counts."""
        at = AREAS_AT
        if self.is_there and self.at < AREAS_AT + nbytes:
            at = self.at + self.nbytes
        layout = _packed(max(0, self.layout) >> 38, at, nbytes)
        fresh = Area(self.region, memoryview(layout.to_bytes(8, sys.byteorder)).cast("Q"), 0)
        fresh.attach()
        # Who was killed on the way may have left something there.
        fresh.memory.madvise(mmap.MADV_REMOVE, at, nbytes)
        return layout, fresh


def _packed(last: int, at: int, nbytes: int) -> int:
    """Make one number of where an area is, its size, and a count, to tell it from others there."""
    return ((last + 1) & 0x3FF_FFFF) << 38 | (at // PAGE) << 6 | nbytes.bit_length() - 1


def _unpacked(layout: int) -> tuple[int, int]:
    return (layout >> 6 & 0xFFFF_FFFF) * PAGE, 1 << (layout & 63)


def _bytes_for(fits: Callable[[int], bool]) -> int:
    nbytes = SMALLEST_BYTES
    while not fits(nbytes):
        nbytes *= 2
    return nbytes


UNKNOWN = -1


class Ledger:
    """How many items each process has taken that are not done, in the queue's region.

    A process that has ended has nothing any more. The first line is everybody's: what more
    processes have than there are lines for, and what was done before it was taken.
    """

    LINES = 256

    def __init__(self, region: Region) -> None:
        self.words = region.words(HEAD_BYTES, 16 * self.LINES, "q")
        self.line = UNKNOWN
        _ledgers.add(self)

    def note_taken(self) -> None:
        """Say that this process has taken an item."""
        if self.line == UNKNOWN:
            self.find_line()
        self.words[self.line + 1] += 1

    def note_done(self) -> None:
        """Say that an item is done, by whomever it was taken."""
        if self.line > 0 and self.words[self.line + 1] > 0:
            self.words[self.line + 1] -= 1
            return
        lines = range(2, 2 * self._used(), 2)
        line = next((line for line in lines if self.words[line + 1] > 0), 0)
        self.words[line + 1] -= 1

    def unfinished(self) -> int:
        """Return how many are not done."""
        return sum(self.words[1 : 2 * self._used() : 2])

    def settle(self) -> None:
        """Have items of processes that have ended count as done."""
        for line in range(2, 2 * self._used(), 2):
            if self.words[line + 1] and not is_running(self.words[line]):
                self.words[line + 1] = 0

    def forget_line(self) -> None:
        """Find the line of this process anew: it is another one now."""
        self.line = UNKNOWN

    def _used(self) -> int:
        free = (n for n in range(1, self.LINES) if not self.words[2 * n])
        return next(free, self.LINES)

    def find_line(self) -> None:
        """Find or take the line of this process."""
        self.line = self._find_line()

    def _find_line(self) -> int:
        used = self._used()
        if used == self.LINES:
            self.settle()
        for line in range(2, 2 * used, 2):
            is_left = not self.words[line + 1] and not is_running(self.words[line])
            if is_left or self.words[line] == me():
                self.words[line] = me()
                return line
        if used == self.LINES:
            return 0
        self.words[2 * used] = me()
        return 2 * used


_ledgers: WeakSet[Ledger] = WeakSet()


def _forget_lines() -> None:
    for ledger in _ledgers:
        ledger.forget_line()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_lines)


# --- First in, first out -----------------------------------------------------------------

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


class Ring:
    """Items in the order in which they came; what is taken is forgotten.

    The entries are a ring, and so are the bytes; the bytes of one item are never torn apart. One
    may add while another one takes: what is written for both, TAIL and NEXT, is each written by one
    of them, last. All else needs both to stand still.
    """

    _oldest_word = NEXT

    def __init__(self, area: Area, ledger: Ledger) -> None:
        self._area = area
        self._ledger = ledger
        self.layout = -1

    def attach(self) -> None:
        """See what another process has changed of the memory; make the first area."""
        if not self._area.is_there:
            self._fill_another([], 0)
        self._area.attach()
        self.see(self._area)

    def see(self, area: Area) -> None:
        """Look at an area that is attached."""
        self._area = area
        self.layout = area.layout
        self.words, self.memory = area.words, area.memory
        self.is_large = area.nbytes > KEPT_BYTES
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
        room = _bytes_for(
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


# --- Last in, first out; smallest first ----------------------------------------------------

ORDER, END = range(2)
"""How many items there are, twice, plus which of two lists counts; the end of their bytes."""
PLACE_SHARE = 64
"""A list has a word for so many bytes of an area."""


class Stack:
    """Items of which the last one is taken; a new one goes to the end, or where it belongs.

    The order is a list of places. To put one in between, the other of two lists is written, and
    one write says that it counts: that takes time in proportion to the number of items, but very
    little (8 bytes of each are copied).

    Args:
        is_sorted: have the smallest item last. Items are unpickled to be compared, as many as the
            logarithm of their number.
    """

    def __init__(self, area: Area, ledger: Ledger, *, is_sorted: bool = False) -> None:
        self._area = area
        self._ledger = ledger
        self._is_sorted = is_sorted
        self.layout = -1

    def attach(self) -> None:
        """See what another process has changed of the memory; make the first area."""
        if not self._area.is_there:
            self._fill_another([], 0)
        self._area.attach()
        self.see(self._area)

    def see(self, area: Area) -> None:
        """Look at an area that is attached."""
        self._area = area
        self.layout = area.layout
        self.words, self.memory = area.words, area.memory
        self.is_large = area.nbytes > KEPT_BYTES
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
        room = _bytes_for(
            lambda size: 2 * len(records) < size // PLACE_SHARE and needed <= size // 2
        )
        layout, area = self._area.another(room)
        other = copy.copy(self)
        other.see(area)
        for record in records:
            other.append(record)
        self._area.use(layout)
        self.attach()
