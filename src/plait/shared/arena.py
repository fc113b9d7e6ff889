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
import errno
import os
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import chain
from time import monotonic_ns
from types import CodeType, FrameType
from typing import Any, NamedTuple
from weakref import WeakSet, WeakValueDictionary, finalize

from plait.shared import libc
from plait.shared.memory import HEAD_BYTES, Place, Region

__all__ = [
    "ARENA",
    "Arena",
    "Cell",
    "Guard",
    "Holder",
    "Seat",
    "arenas",
    "cell_at",
    "cells_of",
    "is_alive",
    "known",
    "new_cell",
    "only_one",
    "short_stack",
    "start_of",
    "whoami",
]

ARENA = "arena"
CELLS, CELL_BYTES = 256, 256
TEXT_BYTES = 512 * 1024  # of all this, memory is taken only where something was written
SEATS, SEAT_BYTES = 1024, 512
GUARD_AT = HEAD_BYTES
COUNTERS_AT = GUARD_AT + libc.MUTEX_BYTES
CELLS_AT = COUNTERS_AT + 64
TEXTS_AT = CELLS_AT + CELLS * CELL_BYTES
SEATS_AT = TEXTS_AT + TEXT_BYTES
TABLES_AT = SEATS_AT + SEATS * SEAT_BYTES
TABLE_BYTES = 8 * 1024
ARENA_BYTES = TABLES_AT + CELLS * TABLE_BYTES - HEAD_BYTES
STACK_DEPTH = 4
GUARD_S = 10.0
MOST_SITES = 4096
LONGEST_TEXT_BYTES = 2000
NO_TEXT = 1  # the first text is empty; 0 is for none

# The words of a cell behind its mutex: by whom it is held (the process, in the upper half, and the
# number of a text), since when; how many have ended while they held it; its kind and name. STATE
# and what follows is for those who use it.
WHO, SINCE, DEATHS, KIND, NAME, STATE = range(6)
WORDS = (CELL_BYTES - libc.MUTEX_BYTES) // 8


class Guard:
    """A robust mutex for moments, ``with guard:``; where its owner died the next one goes on.

    What it guards has to be in order after each single write. Ctrl-C that comes right before
    ``__exit__`` leaves it locked, until its thread comes by again or ends. Where others cannot
    wait for that: ``try: guard.lock() ... finally: unlock(guard.mutex)``. Before a function of C
    Python does not look for signals, and to unlock what one has not locked does nothing.
    """

    def __init__(self, address: int) -> None:
        self.mutex = libc.mutex_at(address)

    def lock(self) -> None:
        """Lock it."""
        code = libc.try_lock(self.mutex)
        while code:
            if code == errno.EOWNERDEAD:
                libc.consistent(self.mutex)
                return
            if code == errno.EDEADLK:  # Ctrl-C came between its being locked and noted: it is ours
                return
            if code not in (errno.EBUSY, errno.ETIMEDOUT):
                raise OSError(code, os.strerror(code))
            code = libc.lock_until(self.mutex, GUARD_S)

    __enter__ = lock

    def __exit__(self, *_: object) -> None:
        libc.unlock(self.mutex)


class Arena:
    """A region of cells, texts and seats, as it is seen from this process."""

    def __init__(self, region: Region) -> None:
        self.region = region
        self.guard = Guard(region.address + GUARD_AT)
        self._counters = region.words(COUNTERS_AT, 64)  # the end of the texts; used seats
        self._labels: dict[str, int] = {}
        self.sites: dict[int, int] = {}  # of this process: a place in its program, for WHO
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
        arena.add_text("")
        arena.free = [CELLS_AT + number * CELL_BYTES for number in reversed(range(CELLS))]
        return arena

    def __del__(self) -> None:
        # A mutex that is held must stay where it is: the kernel looks for it there when its owner
        # ends, and so does the C library.
        if self.is_held_here():
            with _lock:
                _kept[:] = [arena for arena in _kept if arena.is_held_here()]
                _kept.append(self)
                _arenas[self.region.ident] = self  # who arrives is to find this one, not a second

    def is_held_here(self) -> bool:
        """Whether a living thread of this process holds one of its mutexes."""
        view = memoryview(self.region.memory)[CELLS_AT:TEXTS_AT].cast("I")
        step, size = CELL_BYTES // 4, libc.MUTEX_BYTES // 4
        held = {libc.owner_of(view[at : at + size]) for at in range(0, CELLS * step, step)}
        return any(os.path.exists(f"/proc/self/task/{tid}") for tid in held - {0})  # noqa: PTH110

    # --- Texts ---------------------------------------------------------------------------

    def add_text(self, text: str) -> int:
        """Keep a text for all processes, as long as the arena lasts: its number; 0: no room."""
        data = _text_data(text)
        try:
            self.guard.lock()
            at = self._counters[0]
            place = TEXTS_AT + at
            if place + len(data) > SEATS_AT:
                return 0
            self.region.memory[place : place + len(data)] = data
            self._counters[0] = at + len(data)
        finally:
            libc.unlock(self.guard.mutex)
        return at + 1  # 0 is for none

    def find_text(self, text: str) -> int:
        """Return the number of a text that any process has added; 0: there is none."""
        # Found in the midst of others it reads the same.
        end = TEXTS_AT + self._counters[0]
        return max(0, self.region.memory.find(_text_data(text), TEXTS_AT, end) - TEXTS_AT + 1)

    @property
    def has_room(self) -> bool:
        """Whether a cell is free, and its name is sure to find room: a quarter is for places."""
        return bool(self.free) and self._counters[0] < TEXT_BYTES * 3 // 4

    def text(self, number: int) -> str:
        """Return a text by its number."""
        if not 0 < number <= TEXT_BYTES:
            return ""
        place = TEXTS_AT + number - 1
        size = int.from_bytes(self.region.memory[place : place + 2], "little")
        return self.region.memory[place + 2 : place + 2 + size].decode(errors="replace")

    def label(self, text: str) -> int:
        """Return the number of a text that may be there already."""
        number = self._labels.get(text)
        if number is None:
            number = self._labels[text] = self.add_text(text)
        return number

    def new_site(self, key: int, frame: FrameType) -> int:
        """Return who and where that is, for the word WHO, and keep it for the next time.

        The key is ``id(code) + f_lasti``: that lies within the object of the code, so it means
        nothing else for as long as the object is kept.
        """
        text = f"{_process_name()}\t{_place_in(frame)}"
        number = self.find_text(text) or self.add_text(text) or NO_TEXT
        with _lock:
            if len(self._codes) >= MOST_SITES:
                self.forget_sites()
            self._codes.append(frame.f_code)
            who = self.sites[key] = os.getpid() << 32 | number
        return who

    def forget_sites(self) -> None:
        """Have each place get a number anew."""
        self.sites.clear()
        self._codes.clear()

    # --- Seats ---------------------------------------------------------------------------

    def seat(self) -> Seat:
        """Return the seat of the calling thread, in which it says what it waits for."""
        # Only its number is kept: what a thread keeps of its own would keep the arena.
        number: int | None = getattr(self._seats, "number", None)
        if number is not None:
            seat = Seat(self, number)
            if seat.is_mine:
                return seat
        seat = self._take_seat()
        self._seats.number = seat.number
        return seat

    def _take_seat(self) -> Seat:
        try:
            self.guard.lock()
            for number in self._seats_to_try(self._counters[1]):
                seat = Seat(self, number)
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
            yield Seat(self, number)

    def seat_at(self, number: int) -> Seat:
        """Return a seat by its number."""
        seat = self._by_number.get(number)
        if seat is None:
            seat = self._by_number[number] = Seat(self, number)
        return seat

    def tickets(self) -> list[int]:
        """Return the tickets in all seats that were ever taken, in their order; 0: none."""
        words = self.region.words(SEATS_AT, self._counters[1] * SEAT_BYTES)
        return words[TICKET :: SEAT_BYTES // 8].tolist()


def _text_data(text: str) -> bytes:
    data = text.encode(errors="replace")[:LONGEST_TEXT_BYTES]
    return len(data).to_bytes(2, "little") + data


# The 32-bit words of a seat, then (from TEXT_AT) a text. TAIL holds 64-bit words.
WORD, PID, TID, MODE, CELL = range(5)
TICKET, WAITS_SINCE, START = 3, 4, 5
STACK_AT = 48
IDLE, WAITING, WAITING_SHORTLY = 1, 2, 3


class Seat:
    """Where one thread says what it waits for, so that others can wake it, and see it wait.

    Attributes:
        number: which one of the arena's.
        word_address: of the futex that it may wait on.
        mode: one word. To set ``mode[0] = IDLE`` is wait_no_more() where Ctrl-C may come.
    """

    def __init__(self, arena: Arena, number: int) -> None:
        self.arena = arena
        self.number = number
        self._at = SEATS_AT + number * SEAT_BYTES
        self._small = arena.region.words(self._at, 24, "I")
        self._large = arena.region.words(self._at, STACK_AT)
        self.mode = self._small[MODE : MODE + 1]
        self.word_address = arena.region.address + self._at

    def take(self) -> None:
        """Have it be that of the calling thread; it is free again when that has ended."""
        self._small[MODE] = 0
        self._large[TICKET] = 0
        self._small[PID], self._small[TID] = os.getpid(), threading.get_native_id()
        self._large[START] = max(0, start_of(self.pid, self.tid))
        self._small[MODE] = IDLE

    @property
    def pid(self) -> int:
        """The process of its thread."""
        return self._small[PID]

    @property
    def tid(self) -> int:
        """Its thread, by the system's number."""
        return self._small[TID]

    @property
    def is_mine(self) -> bool:
        """Whether it is that of the calling thread."""
        return self.pid == os.getpid() and self.tid == threading.get_native_id()

    @property
    def start(self) -> int:
        """When its thread began: tells it from another one that gets the same number."""
        return self._large[START]

    @property
    def is_free(self) -> bool:
        """Whether its thread is no more."""
        return not self._small[MODE] or not self.is_alive

    @property
    def is_alive(self) -> bool:
        """Whether its thread is there, and is not another one that got the same number."""
        return is_alive(self.pid, self.tid, self.start)

    # --- What its thread is to be told ---------------------------------------------------

    @property
    def word(self) -> int:
        """What its thread may wait to see changed (at ``word_address``)."""
        return self._small[WORD]

    @word.setter
    def word(self, value: int) -> None:
        self._small[WORD] = value

    @property
    def ticket(self) -> int:
        """Where its thread stands in a queue; 0: in none."""
        return self._large[TICKET]

    @ticket.setter
    def ticket(self, value: int) -> None:
        self._large[TICKET] = value

    # --- What its thread waits for -------------------------------------------------------

    def wait_for(
        self, cell: int, frame: FrameType | None, since_ns: int, *, ends: bool = False
    ) -> None:
        """Say that its thread waits for a cell, given by its offset, where, and since when.

        A wait that ends by itself, at a timeout, is no part of a deadlock.
        """
        text = f"{threading.current_thread().name}\t{short_stack(frame)}"
        stack = text.encode(errors="replace")[: SEAT_BYTES - STACK_AT - 2]
        at = self._at + STACK_AT
        self.arena.region.memory[at : at + 2] = len(stack).to_bytes(2, "little")
        self.arena.region.memory[at + 2 : at + 2 + len(stack)] = stack
        self._large[WAITS_SINCE] = since_ns
        self._small[CELL] = cell
        self._small[MODE] = WAITING_SHORTLY if ends else WAITING

    def wait_no_more(self) -> None:
        """Say that it waits for nothing."""
        self._small[MODE] = IDLE

    @property
    def waits_for(self) -> int:
        """The offset of the cell that its thread waits for; 0: none."""
        return self._small[CELL] if self._small[MODE] in (WAITING, WAITING_SHORTLY) else 0

    @property
    def may_wait_forever(self) -> bool:
        """Whether it waits without a timeout."""
        return self._small[MODE] == WAITING

    @property
    def since_ns(self) -> int:
        """Since when it waits."""
        return self._large[WAITS_SINCE]

    @property
    def name_and_stack(self) -> tuple[str, str]:
        """The name of its thread, and where that waits."""
        at = self._at + STACK_AT
        size = int.from_bytes(self.arena.region.memory[at : at + 2], "little")
        text = self.arena.region.memory[at + 2 : at + 2 + size].decode(errors="replace")
        name, _, stack = text.partition("\t")
        return name, stack


# --- Cells -------------------------------------------------------------------------------


class Cell:
    """A mutex and some words in an arena, by which a lock, say, is one for all processes.

    Attributes:
        arena: in which it lies; lives as long as this does.
        offset: from the region's first byte.
        mutex: for the functions of libc.py.
        words: behind the mutex, 64 bits each.
        travels: not empty any more when others may have it.
    """

    __slots__ = ("__weakref__", "_mutex_words", "arena", "mutex", "offset", "travels", "words")

    def __init__(self, arena: Arena, offset: int) -> None:
        self.arena = arena
        self.offset = offset
        self.mutex = libc.mutex_at(arena.region.address + offset)
        self._mutex_words = arena.region.words(offset, libc.MUTEX_BYTES, "I")
        self.words = arena.region.words(offset + libc.MUTEX_BYTES, CELL_BYTES - libc.MUTEX_BYTES)
        self.travels: list[None] = []

    @property
    def owner(self) -> int:
        """The system's number of the thread that holds the mutex; 0: none."""
        return libc.owner_of(self._mutex_words)

    @property
    def is_abandoned(self) -> bool:
        """Whether the mutex is free because its owner has ended, and none has been told yet."""
        return libc.is_abandoned(self._mutex_words)

    @property
    def is_mine(self) -> bool:
        """Whether the calling thread holds the mutex."""
        return self.owner == threading.get_native_id()

    @property
    def depth(self) -> int:
        """How often its owner, who asks, has locked it; for recursive ones."""
        return libc.depth_of(self._mutex_words)

    @property
    def label(self) -> str:
        """What it is called in messages: Lock 'results'."""
        return self.arena.text(self.words[NAME])

    @property
    def place(self) -> tuple[Place, int]:
        """Where others find it; from now on they may have it."""
        self.travels.append(None)
        return self.arena.region.place, self.offset

    @property
    def table(self) -> memoryview[int]:
        """Its table: signed words; a new cell may find there what another one has left."""
        number = (self.offset - CELLS_AT) // CELL_BYTES
        return self.arena.region.words(TABLES_AT + number * TABLE_BYTES, TABLE_BYTES, "q")

    def address_of(self, word: int) -> int:
        """Return the address of a word, to wait on it."""
        return self.arena.region.address + self.offset + libc.MUTEX_BYTES + 8 * word

    def note_holder(self, frame: FrameType) -> None:
        """Say that who locked the mutex did so there, and now."""
        key = id(frame.f_code) + frame.f_lasti
        self.words[WHO] = self.arena.sites.get(key) or self.arena.new_site(key, frame)
        self.words[SINCE] = monotonic_ns()

    @property
    def holder(self) -> Holder:
        """Who has noted to hold the mutex; all zero where nobody has."""
        who = self.words[WHO]
        if not who:
            return Holder(0, "", 0.0, "")
        name, _, stack = self.arena.text(who & 0xFFFF_FFFF).partition("\t")
        return Holder(who >> 32, name, (monotonic_ns() - self.words[SINCE]) / 1e9, stack)


class Holder(NamedTuple):
    """Who holds a cell: its process and thread, for how long, and where it took it."""

    pid: int
    name: str
    held_s: float
    stack: str

    def __str__(self) -> str:
        return f"{self.name or 'a process'} (pid {self.pid or 'unknown'})"


_lock = threading.RLock()  # guards these; a finalizer may come while it is held
_made: list[Arena] = []  # the last one that this process made, or none
_roomy: WeakSet[Arena] = WeakSet()  # made by this process, with cells to give out
_kept: list[Arena] = []  # nothing refers to them any more, but a mutex in them is held
_arenas: WeakValueDictionary[bytes, Arena] = WeakValueDictionary()
known: WeakValueDictionary[tuple[bytes, int], Any] = WeakValueDictionary()
"""What was made of cells in this process: one object for each, however often it arrives."""
_forks: list[int] = [0]  # what there was before the last fork, a child may have, too


def new_cell(kind: int, label: str, *, recursive: bool = False) -> Cell:
    """Return a fresh cell, with an unlocked mutex and words of zero."""
    with _lock:
        arena = _arena_with_room()
        offset = arena.free.pop()
    cell = Cell(arena, offset)
    arena.region.memory[offset : offset + CELL_BYTES] = bytes(CELL_BYTES)
    libc.init_mutex(arena.region.address + offset, recursive=recursive)
    cell.words[NAME] = arena.label(label)
    cell.words[KIND] = kind
    finalize(cell, _give_back, arena, offset, cell.travels, _forks[0]).atexit = False
    return cell


def _arena_with_room() -> Arena:
    for arena in (*_made, *_roomy):
        if arena.has_room:
            return arena
        _roomy.discard(arena)
    _made[:] = [Arena.create()]
    _arenas[_made[0].region.ident] = _made[0]
    return _made[0]


def _give_back(arena: Arena, offset: int, travels: list[None], forks: int) -> None:
    if travels or forks != _forks[0] or owner_at(arena, offset):
        return
    Cell(arena, offset).words[KIND] = 0
    with _lock:
        arena.free.append(offset)
        _roomy.add(arena)


def _count_fork() -> None:
    _forks[0] += 1


def _begin_as_child() -> None:
    """Leave to our parent what it made, to give it out, and what was noted of it."""
    global _lock, _roomy
    _lock, _roomy = threading.RLock(), WeakSet()  # another thread may have been at them
    _made.clear()
    _count_fork()
    for arena in arenas():
        arena.free.clear()
        arena.forget_sites()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_count_fork, after_in_parent=_count_fork, after_in_child=_begin_as_child
    )


def owner_at(arena: Arena, offset: int) -> int:
    """Return who holds the mutex of a cell, by its offset."""
    return libc.owner_of(arena.region.words(offset, libc.MUTEX_BYTES, "I"))


def cell_at(place: tuple[Place, int], what: str) -> Cell:
    """Return a cell that another process has made. Raises SharedDataGone."""
    where, offset = place
    region = Region.at(where, what)
    with _lock:
        arena = _arenas.get(where.ident)
        if arena is None:
            arena = _arenas[where.ident] = Arena(region)
    return Cell(arena, offset)


def only_one(place: tuple[Place, int], make: Callable[[], Any]) -> Any:
    """Return what was made of a cell in this process, or make it now, whoever else does so."""
    where, offset = place
    with _lock:
        found = known.get((where.ident, offset))
        return make() if found is None else found


def arenas() -> list[Arena]:
    """Return all arenas that this process has."""
    with _lock:
        return list(_arenas.values())


def cells_of(arena: Arena) -> Iterator[Cell]:
    """Yield the cells of an arena that are in use."""
    for number in range(CELLS):
        cell = Cell(arena, CELLS_AT + number * CELL_BYTES)
        if cell.words[KIND]:
            yield cell


@atexit.register
def _keep_at_exit() -> None:
    """At the end Python takes all apart, in any order: mutexes that are held stay, see above."""
    _kept.extend(arenas())
    for arena in _kept:
        arena.region.keep_mapped()


# --- Processes and places ----------------------------------------------------------------


def is_alive(pid: int, tid: int, start: int = 0) -> bool:
    """Whether a thread of a process is there, and no zombie; the one with this start, if given."""
    found = start_of(pid, tid)
    return found < 0 or (found > 0 and start in (0, found))


def start_of(pid: int, tid: int) -> int:
    """Return when a thread began, as the system counts it; 0: it has ended.

    Numbers are used again: with this they mean one thread only. -1: it cannot be found out, say
    since too many files are open; then nobody is to be taken for dead.
    """
    try:
        with open(f"/proc/{pid}/task/{tid}/stat", "rb") as file:  # noqa: PTH123
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    except OSError:
        return -1
    return 0 if fields[0] in (b"Z", b"X") else int(fields[19])


def whoami() -> str:
    """Return who this process is, as texts tell it: its number and its name."""
    return f"{os.getpid()} {_process_name()}"


def _process_name() -> str:
    process = sys.modules.get("multiprocessing.process")
    return process.current_process().name if process else "MainProcess"


def _place_in(frame: FrameType) -> str:
    """Return a place in the program, for all who will come by: they may have other callers."""
    here, *callers = short_stack(frame).splitlines()
    return "\n".join([here, *(f"  first called from {line}" for line in callers)])


def short_stack(frame: FrameType | None) -> str:
    """Return where a frame is, and its callers, as some lines of text."""
    lines: list[str] = []
    while frame is not None and len(lines) < STACK_DEPTH:
        code = frame.f_code
        lines.append(f"{code.co_filename}:{frame.f_lineno} in {code.co_qualname}")
        frame = frame.f_back
    return "\n".join(lines)
