"""Room for small shared things: cells with a mutex each, texts, and the seats of who waits.

A process makes its locks in an arena of its own, a region that others map when the first of them
arrives there: so a thousand locks need few files. A cell is given out by the arena's maker alone,
and is given out again only if it never left the process, by pickle or by fork; what others may
still have stays as it is until the whole arena goes.

    head | guard, counters | cells | texts | seats | tables

Each cell has a table, too, for what its own words are too few for: who has how many permits, say.
The tables take no memory before they are written to.

Everything here is written so that a process may be killed between any two instructions: what is
not whole is behind a counter or a mark that is written last.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Iterator
from itertools import chain
from types import CodeType, FrameType
from weakref import WeakSet, WeakValueDictionary

from plait.compiled import fast
from plait.shared import libc
from plait.shared.guards import Guard
from plait.shared.memory import HEAD_BYTES, Region
from plait.shared.seats import SEAT_BYTES, SEATS, TICKET, Seat
from plait.shared.texts import NO_TEXT, TEXT_BYTES, Texts
from plait.shared.whereabouts import place_in, process_name

__all__ = [
    "ARENA",
    "CELLS",
    "CELLS_AT",
    "CELL_BYTES",
    "TABLES_AT",
    "TABLE_BYTES",
    "Arena",
    "arena_of",
    "arenas",
    "forks",
    "free_cell",
    "lock",
    "take_cell",
]

ARENA = "arena"
CELLS, CELL_BYTES = 256, 256
GUARD_AT = HEAD_BYTES
COUNTERS_AT = GUARD_AT + libc.MUTEX_BYTES
CELLS_AT = COUNTERS_AT + 64
TEXTS_AT = CELLS_AT + CELLS * CELL_BYTES
SEATS_AT = TEXTS_AT + TEXT_BYTES
TABLES_AT = SEATS_AT + SEATS * SEAT_BYTES
TABLE_BYTES = 8 * 1024
ARENA_BYTES = TABLES_AT + CELLS * TABLE_BYTES - HEAD_BYTES
MOST_SITES = 4096


class Arena:
    """A region of cells, texts and seats, as it is seen from this process."""

    def __init__(self, region: Region) -> None:
        self.region = region
        self.guard = Guard(region.address + GUARD_AT)
        self._counters = region.words(COUNTERS_AT, 64)  # the end of the texts; used seats
        self.texts = Texts(region, TEXTS_AT, self._counters[:1], self.guard)
        self.sites: dict[int, int] = {}  # of this process: a place in its program, for a cell's WHO
        self._codes: list[CodeType] = []  # kept, for an id to go on meaning what it means
        self._seats = threading.local()
        self.free: list[int] = []  # cells to give out, by their offsets
        self._by_number: dict[int, Seat] = {}

    @classmethod
    def create(cls) -> Arena:
        """Make an arena, in a region of its own."""
        region = Region.create(ARENA_BYTES, ARENA)
        libc.init_mutex(region.address + GUARD_AT)
        arena = cls(region)
        arena.texts.add("")
        arena.free = [CELLS_AT + number * CELL_BYTES for number in reversed(range(CELLS))]
        return arena

    def __del__(self) -> None:
        # A mutex that is held must stay where it is: the kernel looks for it there when its owner
        # ends, and so does the C library.
        if self.is_held_here():
            with lock:
                _kept[:] = [arena for arena in _kept if arena.is_held_here()]
                _kept.append(self)
                _arenas[self.region.ident] = self  # who arrives is to find this one, not a second

    def is_held_here(self) -> bool:
        """Whether a living thread of this process holds one of its mutexes."""
        view = memoryview(self.region.memory)[CELLS_AT:TEXTS_AT].cast("I")
        step, size = CELL_BYTES // 4, libc.MUTEX_BYTES // 4
        held = {libc.owner_of(view[at : at + size]) for at in range(0, CELLS * step, step)}
        return any(os.path.exists(f"/proc/self/task/{tid}") for tid in held - {0})  # noqa: PTH110

    @property
    def has_room(self) -> bool:
        """Whether a cell is free, and its name is sure to find room."""
        return bool(self.free) and self.texts.has_room

    # --- Places in the program -------------------------------------------------------------

    def new_site(self, key: int, frame: FrameType) -> int:
        """Return who and where that is, for the word WHO, and keep it for the next time.

        The key is ``id(code) + f_lasti``: that lies within the object of the code, so it means
        nothing else for as long as the object is kept.
        """
        text = f"{process_name()}\t{place_in(frame)}"
        number = self.texts.find(text) or self.texts.add(text) or NO_TEXT
        with lock:
            if len(self._codes) >= MOST_SITES:
                self.forget_sites()
            self._codes.append(frame.f_code)
            who = self.sites[key] = os.getpid() << 32 | number
        return who

    def forget_sites(self) -> None:
        """Have each place get a number anew."""
        self.sites.clear()
        self._codes.clear()
        if fast is not None:
            fast.forget_sites()

    # --- Seats ---------------------------------------------------------------------------

    def seat(self) -> Seat:
        """Return the seat of the calling thread, in which it says what it waits for."""
        # Only its number is kept: what a thread keeps of its own would keep the arena.
        number: int | None = getattr(self._seats, "number", None)
        if number is not None:
            seat = self.seat_at(number)
            if seat.is_mine:
                return seat
        seat = self._take_seat()
        self._seats.number = seat.number
        if libc.is_own is not None:  # nobody can see that a greenlet has ended
            self._seats.keeper = _Keeper(seat)
        return seat

    def _take_seat(self) -> Seat:
        try:
            self.guard.lock()
            for number in self._seats_to_try(self._counters[1]):
                seat = self.seat_at(number)
                if number >= self._counters[1]:
                    self._counters[1] = number + 1
                elif not seat.is_free:
                    continue
                seat.take()
                return seat
        finally:
            libc.unlock(self.guard.mutex)
        raise RuntimeError(f"more than {SEATS} threads use the shared data of one process")

    def _seats_to_try(self, taken: int) -> Iterator[int]:
        """Yield some that may be free again, then a fresh one, and all only where none is left."""
        first = threading.get_native_id()
        some = {(first + step) % taken for step in range(8)} if taken else set()
        return chain(some, [taken] if taken < SEATS else range(SEATS))

    def seats(self) -> Iterator[Seat]:
        """Yield all seats that were ever taken."""
        for number in range(self._counters[1]):
            yield self.seat_at(number)

    def seat_at(self, number: int) -> Seat:
        """Return a seat by its number."""
        seat = self._by_number.get(number)
        if seat is None:
            at = SEATS_AT + number * SEAT_BYTES
            seat = self._by_number[number] = Seat(self.region, at, number)
        return seat

    def tickets(self) -> list[int]:
        """Return the tickets in all seats that were ever taken, in their order; 0: none."""
        words = self.region.words(SEATS_AT, self._counters[1] * SEAT_BYTES)
        return words[TICKET :: SEAT_BYTES // 8].tolist()


class _Keeper:
    """Gives a seat back when the greenlet ends that has it."""

    def __init__(self, seat: Seat) -> None:
        self._seat = seat

    def __del__(self) -> None:
        self._seat.give_back()


lock = threading.RLock()  # guards these; a finalizer may come while it is held
_made: list[Arena] = []  # the last one that this process made, or none
_roomy: WeakSet[Arena] = WeakSet()  # made by this process, with cells to give out
_kept: list[Arena] = []  # nothing refers to them any more, but a mutex in them is held
_arenas: WeakValueDictionary[bytes, Arena] = WeakValueDictionary()
forks: list[int] = [0]  # what there was before the last fork, a child may have, too


def take_cell() -> tuple[Arena, int]:
    """Take a free cell out of an arena that this process has made: the arena, and its offset."""
    with lock:
        arena = _arena_with_room()
        return arena, arena.free.pop()


def free_cell(arena: Arena, offset: int) -> None:
    """Have a cell be given out again."""
    with lock:
        arena.free.append(offset)
        _roomy.add(arena)


def _arena_with_room() -> Arena:
    for arena in (*_made, *_roomy):
        if arena.has_room:
            return arena
        _roomy.discard(arena)
    _made[:] = [Arena.create()]
    _arenas[_made[0].region.ident] = _made[0]
    return _made[0]


def arena_of(region: Region) -> Arena:
    """Return the arena in a region, the same one for all of this process."""
    with lock:
        arena = _arenas.get(region.ident)
        if arena is None:
            arena = _arenas[region.ident] = Arena(region)
    return arena


def arenas() -> list[Arena]:
    """Return all arenas that this process has."""
    with lock:
        return list(_arenas.values())


def _count_fork() -> None:
    forks[0] += 1


def _begin_as_child() -> None:
    """Leave to our parent what it made, to give it out, and what was noted of it."""
    global lock, _roomy
    lock, _roomy = threading.RLock(), WeakSet()  # another thread may have been at them
    _made.clear()
    _count_fork()
    for arena in arenas():
        arena.free.clear()
        arena.forget_sites()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_count_fork, after_in_parent=_count_fork, after_in_child=_begin_as_child
    )


@atexit.register
def _keep_at_exit() -> None:
    """At the end Python takes all apart, in any order: mutexes that are held stay, see above."""
    _kept.extend(arenas())
    for arena in _kept:
        arena.region.keep_mapped()
