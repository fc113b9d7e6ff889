"""Cells: a mutex each and some words, of which locks and all that is like them are made.

A cell is given out again only if it never left the process, by pickle or by fork.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from time import monotonic_ns
from types import FrameType
from typing import Any, NamedTuple, TypeVar
from weakref import WeakValueDictionary, finalize

from plait.running import get_task, text_of_task
from plait.shared import arena as home
from plait.shared import libc
from plait.shared.arena import CELL_BYTES, CELLS, CELLS_AT, TABLE_BYTES, TABLES_AT, Arena
from plait.shared.memory import Place, Region

__all__ = [
    "DEATHS",
    "NEWS",
    "SINCE",
    "STATE",
    "TASK",
    "WHO",
    "Cell",
    "Holder",
    "arrive",
    "cell_at",
    "cells_of",
    "key_of",
    "known",
    "label_of",
    "new_cell",
    "only_one",
    "settle",
]

T = TypeVar("T")

# The words of a cell behind its mutex: by whom it is held (the process, in the upper half, and the
# number of a text), since when, in which task (running.py); whether the next owner is to be told
# something, however easily it gets the mutex; how many have ended while they held it; its kind and
# name. STATE and what follows is for those who use it. WHO is written last, and cleared first.
# _fast.c knows the first four.
WHO, SINCE, TASK, NEWS, DEATHS, KIND, NAME, STATE = range(8)
known: WeakValueDictionary[tuple[bytes, int], Any] = WeakValueDictionary()
"""What was made of cells in this process: one object for each, however often it arrives."""


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
        self.mutex = libc.mutex_at(self.address)
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
        is_of_thread = self.owner == threading.get_native_id()
        return is_of_thread and (libc.is_own is None or libc.is_own(self.mutex))

    @property
    def depth(self) -> int:
        """How often its owner, who asks, has locked it; for recursive ones."""
        return libc.depth_of(self._mutex_words)

    def depth_view(self) -> tuple[memoryview[int], int]:
        """Return the word that counts this, and what it is when it was locked once."""
        at, once = libc.depth_word()
        return self._mutex_words[at : at + 1], once

    def depth_address(self) -> tuple[int, int]:
        """Return the same, with the word by its address."""
        at, once = libc.depth_word()
        return self.address + 4 * at, once

    @property
    def label(self) -> str:
        """What it is called in messages: Lock 'results'."""
        return self.arena.texts.at(self.words[NAME])

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

    @property
    def address(self) -> int:
        """Where its mutex is, in this process."""
        return self.arena.region.address + self.offset

    def address_of(self, word: int) -> int:
        """Return the address of a word, to wait on it."""
        return self.address + libc.MUTEX_BYTES + 8 * word

    def note_holder(self, frame: FrameType) -> None:
        """Say that who locked the mutex did so there, and now."""
        key = id(frame.f_code) + frame.f_lasti
        who = self.arena.sites.get(key) or self.arena.new_site(key, frame)
        self.words[SINCE], self.words[TASK] = monotonic_ns(), get_task()
        self.words[WHO] = who

    @property
    def holder(self) -> Holder:
        """Who has noted to hold the mutex; all zero where nobody has."""
        who = self.words[WHO]
        if not who:
            return Holder(0, "", 0.0, "", "")
        name, _, stack = self.arena.texts.at(who & 0xFFFF_FFFF).partition("\t")
        held_s = (monotonic_ns() - self.words[SINCE]) / 1e9
        return Holder(who >> 32, name, held_s, stack, text_of_task(self.words[TASK]))


class Holder(NamedTuple):
    """Who holds a cell: its process, for how long, where it took it, and in which task."""

    pid: int
    name: str
    held_s: float
    stack: str
    task: str

    def __str__(self) -> str:
        who = f"{self.name or 'a process'} (pid {self.pid or 'unknown'})"
        return f"{who}, in {self.task}" if self.task else who


def new_cell(kind: int, label: str, *, recursive: bool = False) -> Cell:
    """Return a fresh cell, with an unlocked mutex and words of zero."""
    arena, offset = home.take_cell()
    cell = Cell(arena, offset)
    arena.region.memory[offset : offset + CELL_BYTES] = bytes(CELL_BYTES)
    libc.init_mutex(cell.address, recursive=recursive)
    cell.words[NAME] = arena.texts.label(label)
    cell.words[KIND] = kind
    finalize(cell, _give_back, arena, offset, cell.travels, home.forks[0]).atexit = False
    return cell


def _give_back(arena: Arena, offset: int, travels: list[None], forks: int) -> None:
    if travels or forks != home.forks[0] or _owner_at(arena, offset):
        return
    Cell(arena, offset).words[KIND] = 0
    home.free_cell(arena, offset)


def _owner_at(arena: Arena, offset: int) -> int:
    """Return who holds the mutex of a cell, by its offset."""
    return libc.owner_of(arena.region.words(offset, libc.MUTEX_BYTES, "I"))


def cell_at(place: tuple[Place, int], what: str) -> Cell:
    """Return a cell that another process has made. Raises SharedDataGone."""
    where, offset = place
    return Cell(home.arena_of(Region.at(where, what)), offset)


def label_of(cls: type[Any], name: str) -> str:
    """Return what a cell is called in messages: Event 'ready'."""
    return f"{cls.__name__} {name!r}" if name else cls.__name__


def settle(cell: Cell, thing: object) -> None:
    """Have this be the one object for its cell in this process."""
    known[cell.arena.region.ident, cell.offset] = thing


def arrive(cls: type[Any], place: tuple[Place, int], *args: Any) -> Any:
    """Return the object of this process for a cell that another one has made, perhaps."""

    def make() -> Any:
        thing = object.__new__(cls)
        thing._set_up(cell_at(place, cls.__name__), *args)
        return thing

    thing = only_one(key_of(place), make)
    assert isinstance(thing, cls)
    return thing


def key_of(place: tuple[Place, int]) -> tuple[bytes, int]:
    """Return by what an object is known whose cell is at this place."""
    where, offset = place
    return where.ident, offset


def only_one(key: tuple[bytes, int], make: Callable[[], T]) -> T:
    """Return the one object of this process for a cell, or make it now, whoever else does so.

    The key is the identity of a region, and an offset there; a replica has a region to itself.
    """
    with home.lock:
        found: T | None = known.get(key)
        if found is None:
            found = known[key] = make()
        return found


def cells_of(arena: Arena) -> Iterator[Cell]:
    """Yield the cells of an arena that are in use."""
    for number in range(CELLS):
        cell = Cell(arena, CELLS_AT + number * CELL_BYTES)
        if cell.words[KIND]:
            yield cell
