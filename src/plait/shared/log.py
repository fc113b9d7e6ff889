"""An append-only log of records in shared memory, by which processes tell each other what they did.

It lies in a region of its own, which grows. Who writes holds a lock (replica.py), and so does who
reads. A record counts once the one word that says where the log ends has been stored, after all of
its bytes: whoever is killed on the way has written nothing.

A log that has become long begins anew with one record that holds everything: a new generation. It
is written where the old one is not, and counts, again, by one store of that same word, which holds
the number of the generation, too. Nobody reads the old generation afterwards: its room is used by
the one after next, and is given back to the system where it is large. So a log takes at most about
six times what its content takes as a pickle, and 200 kB.

    head | state, starts | ... records of this generation ... | free or forgotten
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from struct import Struct

from plait.shared.memory import HEAD_BYTES, Place, Region

__all__ = ["OFFSETS", "SHIFT", "SIZE_BYTES", "STATE", "Log", "framed"]

STATE = 0
"""The word that says it all: the generation's number, and where in the region its log ends."""
SHIFT = 40
OFFSETS = (1 << SHIFT) - 1
GENERATIONS = (1 << 24) - 1
STARTS = 1  # two words: where the generations of an even and an odd number begin
WORDS_BYTES = 64
FIRST = HEAD_BYTES + WORDS_BYTES
ROOM_BYTES = 256 * 1024
"""So large is a region at first; what was never written takes no memory."""
GIVE_BACK_BYTES = 1 << 20
SIZE = Struct("<Q")
SIZE_BYTES = SIZE.size
_pack, _unpack_from = SIZE.pack, SIZE.unpack_from


def framed(data: bytes) -> bytes:
    """Return a record as it lies in the log: its size, and the bytes."""
    return _pack(len(data)) + data


class Log:
    """A log, as it is seen from this process.

    Attributes:
        region: in which it lies.
        words: of which the first is the state.
        mapped: up to where it can be read and written in this process.
    """

    def __init__(self, region: Region) -> None:
        self.region = region
        self.words = region.words(HEAD_BYTES, WORDS_BYTES)
        self.mapped = len(region.memory)

    @classmethod
    def create(cls, kind: str, record: bytes) -> Log:
        """Make a log that begins with this record."""
        log = cls(Region.create(ROOM_BYTES, kind))
        log.reach(FIRST + len(record))
        log.region.memory[FIRST : FIRST + len(record)] = record
        log.words[STARTS] = FIRST
        log.words[STATE] = FIRST + len(record)
        return log

    @classmethod
    def at(cls, place: Place, what: str) -> Log:
        """Return a log that another process has made. Raises SharedDataGone."""
        return cls(Region.at(place, what))

    def start(self, state: int) -> int:
        """Return where the generation of a state begins."""
        return self.words[STARTS + (state >> SHIFT & 1)]

    def first_size(self, state: int) -> int:
        """Return the size of the record that a generation begins with."""
        self.reach(state & OFFSETS)
        size: int = _unpack_from(self.region.memory, self.start(state))[0]
        return size

    def reach(self, end: int) -> None:
        """Have all up to there mapped, and there."""
        if end > self.mapped:
            self.region.grow(max(end, 2 * self.region.nbytes))
            # The old mapping is let go of.
            self.words = self.region.words(HEAD_BYTES, WORDS_BYTES)
            self.mapped = len(self.region.memory)

    def records(self, first: int, end: int) -> Iterator[bytes]:
        """Yield the records between two places."""
        self.reach(end)
        memory = self.region.memory
        while first < end:
            data_at = first + SIZE_BYTES
            first = data_at + _unpack_from(memory, first)[0]
            yield memory[data_at:first]

    def begin_anew(self, state: int, record: bytes) -> int:
        """Begin a generation with a record that holds everything; return the new state.

        The old one stays if this is not the state any more (see Replica._commit).
        """
        start, end = self.start(state), state & OFFSETS
        at = FIRST if FIRST + len(record) <= start else end
        self.reach(at + len(record))
        where = slice(at, at + len(record))
        generation = ((state >> SHIFT) + 1) & GENERATIONS
        new, slot = generation << SHIFT | where.stop, STARTS + (generation & 1)
        words, memory = self.words, self.region.memory
        if words[STATE] != state:
            return state
        # From here on no call is made: no signal handler runs.
        memory[where] = record
        words[slot] = at
        words[STATE] = new
        self._give_back(start, end)
        return new

    def _give_back(self, start: int, end: int) -> None:
        """Return memory to the system: what lies between two places is zero then."""
        start = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        end = end // mmap.PAGESIZE * mmap.PAGESIZE
        if end - start >= GIVE_BACK_BYTES:
            self.region.memory.madvise(mmap.MADV_REMOVE, start, end - start)
