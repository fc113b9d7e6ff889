"""Room for small shared things: cells with a mutex each, texts, and the seats of who waits.

A process makes its locks in an arena of its own, a region that others map when the first of them
arrives there: so a thousand locks need few files. A cell is given out by the arena's maker alone,
and is given out again only if it never left the process; what others may still have stays as it is
until the whole arena goes.

    head | guard, counters | cells | texts | seats | tables

Each cell has a table, too, for what its own words are too few for: who has how many permits, say.
The tables take no memory before they are written to.

Everything here is written so that a process may be killed between any two instructions: what is
not whole is behind a counter or a mark that is written last.
"""

from __future__ import annotations

import atexit
import ctypes
import errno
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from time import monotonic_ns
from types import CodeType, FrameType
from typing import Any, NamedTuple
from weakref import WeakValueDictionary, finalize

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
    "short_stack",
    "start_of",
    "whoami",
]

ARENA = "arena"
CELLS, CELL_BYTES = 64, 256
TEXT_BYTES = 256 * 1024
SEATS, SEAT_BYTES = 512, 512
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

# The words of a cell behind its mutex: by whom it is held, since when; how many have ended while
# they held it; its kind and name. STATE and what follows is for those who use it.
WHO, SINCE, DEATHS, KIND, NAME, STATE = range(6)
WORDS = (CELL_BYTES - libc.MUTEX_BYTES) // 8


class Guard:
    """A robust mutex for moments, ``with guard:``; where its owner died the next one goes on.

    What it guards has to be in order after each single write.
    """

    def __init__(self, address: int) -> None:
        self.mutex = ctypes.c_void_p(address)

    def __enter__(self) -> None:
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

    def __exit__(self, *_: object) -> None:
        libc.unlock(self.mutex)


class Arena:
    """A region of cells, texts and seats, as it is seen from this process."""

    def __init__(self, region: Region) -> None:
        self.region = region
        self.guard = Guard(region.address + GUARD_AT)
        self._counters = region.words(COUNTERS_AT, 64)  # the end of the texts; used seats
        self._labels: dict[str, int] = {}
        self.sites: dict[int, int] = {}
        self._codes: list[CodeType] = []  # kept, for an id to go on meaning what it means
        self._seats = threading.local()
        self._by_number: dict[int, Seat] = {}

    @classmethod
    def create(cls) -> Arena:
        """Make an arena, in a region of its own."""
        region = Region.create(ARENA_BYTES, ARENA)
        libc.init_mutex(region.address + GUARD_AT)
        return cls(region)

    def __del__(self) -> None:
        # A mutex that is held must stay where it is: the kernel looks for it there when its owner
        # ends, and so does the C library.
        held = {libc.owner_of(self._mutex_words(number)) for number in range(CELLS)} - {0}
        if any(os.path.exists(f"/proc/self/task/{tid}") for tid in held):  # noqa: PTH110
            self.region.keep_mapped()

    def _mutex_words(self, number: int) -> memoryview[int]:
        return self.region.words(CELLS_AT + number * CELL_BYTES, libc.MUTEX_BYTES, "I")

    # --- Texts ---------------------------------------------------------------------------

    def add_text(self, text: str) -> int:
        """Keep a text for all processes, as long as the arena lasts: its number; 0: no room."""
        data = text.encode(errors="replace")[:0xFFFF]
        with self.guard:
            at = self._counters[0]
            if at + 2 + len(data) > TEXT_BYTES:
                return 0
            place = TEXTS_AT + at
            self.region.memory[place : place + 2] = len(data).to_bytes(2, "little")
            self.region.memory[place + 2 : place + 2 + len(data)] = data
            self._counters[0] = at + 2 + len(data)
        return at + 1  # 0 is for none

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
        """Give a number to a place in the program, and keep who and where that is as text."""
        self._codes.append(frame.f_code)
        number = self.sites[key] = self.add_text(f"{whoami()}\t{short_stack(frame)}")
        return number

    # --- Seats ---------------------------------------------------------------------------

    def seat(self) -> Seat:
        """Return the seat of the calling thread, in which it says what it waits for."""
        seat: Seat | None = getattr(self._seats, "seat", None)
        if seat is None or seat.pid != os.getpid():
            seat = self._seats.seat = self._take_seat()
        return seat

    def _take_seat(self) -> Seat:
        with self.guard:
            taken = self._counters[1]
            for number in range(SEATS):
                seat = Seat(self, number)
                if number >= taken:
                    self._counters[1] = number + 1
                elif not seat.is_free:
                    continue
                seat.take()
                return seat
        raise RuntimeError(f"more than {SEATS} threads use the shared data of one process")

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


# The 32-bit words of a seat, then (from TEXT_AT) a text. TAIL holds 64-bit words.
WORD, PID, TID, MODE, CELL = range(5)
TICKET, WAITS_SINCE, START = 3, 4, 5
STACK_AT = 48
IDLE, WAITING = 1, 2


class Seat:
    """Where one thread says what it waits for, so that others can wake it, and see it wait.

    Attributes:
        number: which one of the arena's.
        word_address: of the futex that it may wait on.
    """

    def __init__(self, arena: Arena, number: int) -> None:
        self.arena = arena
        self.number = number
        self._at = SEATS_AT + number * SEAT_BYTES
        self._small = arena.region.words(self._at, 24, "I")
        self._large = arena.region.words(self._at, STACK_AT)
        self.word_address = arena.region.address + self._at

    def take(self) -> None:
        """Have it be that of the calling thread; it is free again when that has ended."""
        self._small[MODE] = 0
        self._large[TICKET] = 0
        self._small[PID], self._small[TID] = os.getpid(), threading.get_native_id()
        self._large[START] = start_of(self.pid, self.tid)
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

    def wait_for(self, cell: int, frame: FrameType | None, since_ns: int) -> None:
        """Say that its thread waits for a cell, given by its offset, where, and since when."""
        text = f"{threading.current_thread().name}\t{short_stack(frame)}"
        stack = text.encode(errors="replace")[: SEAT_BYTES - STACK_AT - 2]
        at = self._at + STACK_AT
        self.arena.region.memory[at : at + 2] = len(stack).to_bytes(2, "little")
        self.arena.region.memory[at + 2 : at + 2 + len(stack)] = stack
        self._large[WAITS_SINCE] = since_ns
        self._small[CELL] = cell
        self._small[MODE] = WAITING

    def wait_no_more(self) -> None:
        """Say that it waits for nothing."""
        self._small[MODE] = IDLE

    @property
    def waits_for(self) -> int:
        """The offset of the cell that its thread waits for; 0: none."""
        return self._small[CELL] if self._small[MODE] == WAITING else 0

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
        self.mutex = ctypes.c_void_p(arena.region.address + offset)
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
        """Who locked the mutex last."""
        who, _, stack = self.arena.text(self.words[WHO]).partition("\t")
        pid, _, name = who.partition(" ")
        held_s = (monotonic_ns() - self.words[SINCE]) / 1e9
        return Holder(int(pid) if pid.isdigit() else 0, name, held_s, stack)


class Holder(NamedTuple):
    """Who holds a cell: its process and thread, for how long, and where it took it."""

    pid: int
    name: str
    held_s: float
    stack: str

    def __str__(self) -> str:
        return f"{self.name or 'a process'} (pid {self.pid or 'unknown'})"


_lock = threading.RLock()  # guards these; a finalizer may come while it is held
_made: list[Arena] = []  # by this process; the last one has room
_free: list[tuple[Arena, int]] = []
_arenas: WeakValueDictionary[bytes, Arena] = WeakValueDictionary()
known: WeakValueDictionary[tuple[bytes, int], Any] = WeakValueDictionary()
"""What was made of cells in this process: one object for each, however often it arrives."""
_made_by = [os.getpid()]
_next: list[int] = [CELLS]


def new_cell(kind: int, label: str, *, recursive: bool = False) -> Cell:
    """Return a fresh cell, with an unlocked mutex and words of zero."""
    with _lock:
        if _made_by[0] != os.getpid():  # forked: what is left there is our parent's to give out
            _made_by[0] = os.getpid()
            _free.clear()
            _next[0] = CELLS
        if _free:
            arena, offset = _free.pop()
        else:
            if _next[0] == CELLS:
                _made[:] = [Arena.create()]
                _arenas[_made[0].region.ident] = _made[0]
                _next[0] = 0
            arena, offset = _made[0], CELLS_AT + _next[0] * CELL_BYTES
            _next[0] += 1
    cell = Cell(arena, offset)
    arena.region.memory[offset : offset + CELL_BYTES] = bytes(CELL_BYTES)
    libc.init_mutex(arena.region.address + offset, recursive=recursive)
    cell.words[NAME] = arena.label(label)
    cell.words[KIND] = kind
    finalize(cell, _give_back, arena, offset, cell.travels, os.getpid())
    return cell


def _give_back(arena: Arena, offset: int, travels: list[None], pid: int) -> None:
    if travels or pid != os.getpid() or owner_at(arena, offset):
        return
    Cell(arena, offset).words[KIND] = 0
    with _lock:
        _free.append((arena, offset))


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
    for arena in arenas():
        arena.region.keep_mapped()


# --- Processes and places ----------------------------------------------------------------


def is_alive(pid: int, tid: int, start: int = 0) -> bool:
    """Whether a thread of a process is there, and no zombie; the one with this start, if given."""
    found = start_of(pid, tid)
    return found > 0 and start in (0, found)


def start_of(pid: int, tid: int) -> int:
    """Return when a thread began, as the system counts it; 0: it has ended.

    Numbers are used again: with this they mean one thread only.
    """
    with suppress(OSError), open(f"/proc/{pid}/task/{tid}/stat", "rb") as file:  # noqa: PTH123
        fields = file.read().rpartition(b")")[2].split()
        if fields[0] not in (b"Z", b"X"):
            return int(fields[19])
    return 0


def whoami() -> str:
    """Return who this process is, as texts tell it: its number and its name."""
    return f"{os.getpid()} {_process_name()}"


def _process_name() -> str:
    process = sys.modules.get("multiprocessing.process")
    return process.current_process().name if process else "MainProcess"


def short_stack(frame: FrameType | None) -> str:
    """Return where a frame is, and its callers, as some lines of text."""
    lines: list[str] = []
    while frame is not None and len(lines) < STACK_DEPTH:
        code = frame.f_code
        lines.append(f"{code.co_filename}:{frame.f_lineno} in {code.co_qualname}")
        frame = frame.f_back
    return "\n".join(lines)
