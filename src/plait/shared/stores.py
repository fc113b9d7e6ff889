"""Where the items of a queue lie: pickled, in shared memory that grows.

Here is what the stores have in common; they are in rings.py and stacks.py. Used by queues.py, which
holds the queue's mutexes around each call. Everything that says what is in a queue lies in one
*area* of its region, and each change of it becomes true with a single write of 64 bits: the last
one of a method. So whoever is killed, wherever, leaves an item in the queue or out of it, and
nothing else. When an area is full, another one is filled with what is still wanted, larger if need
be; then one write (LAYOUT, in the queue's cell) says that it counts. The memory of the old one is
given back to the system.

    region: head | ledger | areas
    area:   24 words | which items, in order | their bytes
"""

from __future__ import annotations

import mmap
import pickle
import sys
from collections.abc import Callable
from typing import Any, Protocol

from plait import wire
from plait.shared.memory import HEAD_BYTES, Region

__all__ = [
    "AREAS_AT",
    "HEAD_WORDS",
    "KEPT_BYTES",
    "Area",
    "InArea",
    "Record",
    "Store",
    "bytes_for",
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
        data = wire.MAIN
    if wire.MAIN not in data:
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


class InArea:
    """What stores have in common that keep their items in an area."""

    def __init__(self, area: Area) -> None:
        self._area = area
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

    def _fill_another(self, kept: list[Any], nbytes: int) -> None:
        """Move to an area with what is given, and room for so many bytes more."""
        raise NotImplementedError


def _packed(last: int, at: int, nbytes: int) -> int:
    """Make one number of where an area is, its size, and a count, to tell it from others there."""
    return ((last + 1) & 0x3FF_FFFF) << 38 | (at // PAGE) << 6 | nbytes.bit_length() - 1


def _unpacked(layout: int) -> tuple[int, int]:
    return (layout >> 6 & 0xFFFF_FFFF) * PAGE, 1 << (layout & 63)


def bytes_for(fits: Callable[[int], bool]) -> int:
    """Return how large an area is to be: the smallest size that fits."""
    nbytes = SMALLEST_BYTES
    while not fits(nbytes):
        nbytes *= 2
    return nbytes
