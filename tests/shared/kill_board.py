"""What the games of the kill matrix have in common: a board that all processes see, and a list.

A worker may be killed between any two lines. So each note on the board is a single write, and says
what is about to be done, or what has been done: what lies between may be either.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import threading
import time
from collections.abc import Callable, Iterator
from random import Random
from typing import Any, ClassVar, NamedTuple

from plait.shared.memory import HEAD_BYTES, Place, Region

LONGEST_S = 30.0  # what takes longer hangs
DYING_S = 5.0
WORDS = 64
OPERATIONS, TOLD, HURRY = range(WORDS - 3, WORDS)
"""Of the words: how many operations came to an end, how many deaths were told, about; whether
nobody else is to come.
"""
LINES = 4096  # a line for each process, by its number: its pid, and what it has noted
EACH, OF_SUPERVISOR = 64, 1 << 15  # so many items for each worker, at most, and for number 0
ITEMS = OF_SUPERVISOR + EACH * LINES
WORDS_BYTES, LINES_BYTES = 8 * WORDS, 16 * LINES
BEGUN, SENT = 1, 2


class Wrong(Exception):
    """Something is as it must not be."""


class Board:
    """Numbers that all workers see, without any lock.

    Attributes:
        number: of this process: 0 is the supervisor.
        sent: for each item: whether it was put, or at least begun to be.
        taken: how often it was taken.
        done: whether it was done after that.
    """

    number: ClassVar[int] = 0

    def __init__(self, place: Place | None = None) -> None:
        size = WORDS_BYTES + LINES_BYTES + 3 * ITEMS
        self._region = Region.at(place, "board") if place else Region.create(size, "board")
        self.words = self._region.words(HEAD_BYTES, WORDS_BYTES)
        self.lines = self._region.words(HEAD_BYTES + WORDS_BYTES, LINES_BYTES)
        at = HEAD_BYTES + WORDS_BYTES + LINES_BYTES
        self.sent, self.taken, self.done = (
            self._region.words(at + table * ITEMS, ITEMS, "B") for table in range(3)
        )
        self._items: Iterator[int] | None = None
        self._whose = self._notes = 0
        self._last_of: dict[int, int] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return Board, (self._region.place,)

    @contextlib.contextmanager
    def alone(self, rng: Random, at: int = 0) -> Iterator[None]:
        """Stay where but one may be at a time, and see to it that nobody else is."""
        me, other = os.getpid(), self.words[at]
        if other and not ends_now(other):
            raise Wrong(f"{me} came in while {other} was in")
        self.words[at] = me
        dawdle(rng)
        try:
            yield
        finally:
            if self.words[at] != me:
                raise Wrong(f"{self.words[at]} came in while {me} was in")
            self.words[at] = 0

    # --- What a process has, or is about to take ------------------------------------------

    def note(self, count: int) -> None:
        """Say that this process has so many, or is about to; it stays there after its death."""
        self._notes += 1
        self.lines[2 * self.number] = os.getpid()
        self.lines[2 * self.number + 1] = self._notes << 8 | count

    def noted(self) -> int:
        """Return how many living processes have noted, all of them at one and the same moment."""
        before, after = self.lines.tolist(), self.lines.tolist()
        both = zip(before[::2], before[1::2], after[1::2], strict=True)
        return sum(
            note & 0xFF
            for pid, note, same in both
            if note & 0xFF and note == same and is_there(pid)
        )

    def left_by_dead(self) -> int:
        """Return how many were noted by all workers at their end."""
        return sum(note & 0xFF for note in self.lines[3::2].tolist())

    def count(self) -> None:
        """Count one more, for this process."""
        self.lines[2 * self.number + 1] += 1

    def counted(self) -> int:
        """Return how many all processes have counted."""
        return sum(self.lines[1::2].tolist())

    # --- Items, of which none may be lost or doubled ---------------------------------------

    def new_items(self, count: int) -> list[int]:
        """Return numbers of so many new items; fewer when this process has had too many."""
        if self._items is None or self._whose != self.number:  # it came by fork
            self._whose = self.number
            first = OF_SUPERVISOR + EACH * (self.number - 1) if self.number else 0
            self._items = iter(range(first, first + EACH if self.number else OF_SUPERVISOR))
        return list(itertools.islice(self._items, count))

    def send(self, send: Callable[[list[Any]], object], count: int = 1) -> None:
        """Have a function put new items; if it raises an error, none of them was put."""
        numbers = self.new_items(count)
        if not numbers:
            return
        for number in numbers:
            self.sent[number] = BEGUN
        try:
            send([letter(number) for number in numbers])
        except Exception:
            for number in numbers:
                self.sent[number] = 0
            raise
        for number in numbers:
            self.sent[number] = SENT

    def take(self, take: Callable[[], list[Any]], most: int = 1, *, in_order: bool = False) -> int:
        """Have a function take up to so many items, each of which nobody has had; how many."""
        self.note(most)
        try:
            numbers = [self.opened(item) for item in take()]
            for number in numbers:
                if self.taken[number]:
                    raise Wrong(f"item {number} came twice")
                self.taken[number] = 1
                if in_order:
                    self._see_order(number)
            return len(numbers)
        finally:
            self.note(0)

    def work_on(self, take: Callable[[], list[Any]], done: Callable[[], object], most: int) -> None:
        """Take items that come again if this process ends before they are done."""
        self.note(most)
        try:
            for number in [self.opened(item) for item in take()]:
                if self.done[number]:
                    raise Wrong(f"item {number} came once more after it was done")
                self.taken[number] = min(255, self.taken[number] + 1)
                done()
                self.done[number] = 1
        finally:
            self.note(0)

    def opened(self, item: Any) -> int:
        """Return the number of an item that came, whole."""
        number = item[0]
        if item != letter(number):
            raise Wrong(f"item {number} is torn: {str(item)[:100]}")
        if not self.sent[number]:
            raise Wrong(f"item {number} came, but was not put")
        return int(number)

    def _see_order(self, number: int) -> None:
        sender = (number - OF_SUPERVISOR) // EACH if number >= OF_SUPERVISOR else -1
        if self._last_of.get(sender, -1) > number:
            raise Wrong(f"item {number} came after {self._last_of[sender]} of the same sender")
        self._last_of[sender] = number

    def count_items(self, *, may_come_again: bool = False) -> None:
        """See, when there is nothing left to take, that no item was lost or doubled.

        What a process had just taken may be lost with it; or come once more, if that is promised.
        """
        lost = [n for n, sent in enumerate(self.sent) if sent == SENT and not self.taken[n]]
        again = sum(times - 1 for times in self.taken if times)
        most_lost, most_again = self.left_by_dead(), 0
        if may_come_again:
            most_lost, most_again = most_again, most_lost
        if len(lost) > most_lost:
            raise Wrong(f"lost: {lost[:20]}, {len(lost)} of them; {most_lost} were being taken")
        if again > most_again:
            raise Wrong(f"{again} came again; {most_again} were being worked on")


def letter(number: int) -> tuple[int, bytes]:
    """Return an item: what it has to be for its number, to see that it is whole."""
    size = number * 37 % 300 if number % 16 else 9000
    return number, bytes([number % 251]) * size


def ends_now(pid: int, seconds: float | None = None) -> bool:
    """Whether a process is at its end: the kernel frees its locks somewhat earlier."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], DYING_S if seconds is None else seconds)[0])
    finally:
        os.close(fd)


def is_there(pid: int) -> bool:
    """Whether a process has not ended yet."""
    return not ends_now(pid, 0.0)


def dawdle(rng: Random) -> None:
    """Take some time, or none."""
    chance = rng.random()
    if chance < 0.3:
        time.sleep(rng.random() * 0.002)
    elif chance < 0.6:
        sum(range(rng.randrange(2000)))


def in_time(function: Callable[[], object], what: str) -> None:
    """Call a function that waits, in a thread of its own."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    thread.join(LONGEST_S)
    if thread.is_alive():
        raise Wrong(f"it took more than {LONGEST_S} s: {what}")


# --- The list of games -----------------------------------------------------------------------

Play = Callable[[Any, Board, Random], None]
Step = Callable[[Any, Board], None]


class Game(NamedTuple):
    """A primitive, and what is done with it.

    Attributes:
        make: makes it, or several in a tuple: whatever is picklable.
        play: does something random with it.
        help: what the supervisor does meanwhile, so that nobody has to wait for the dead alone.
        check: what has to be true in the end, when all are dead.
        deaths: how many it may tell of in the end.
    """

    make: Callable[[], Any]
    play: Play
    help: Step | None
    check: Step | None
    deaths: int


GAMES: dict[str, Game] = {}


def game(
    make: Callable[[], Any],
    help: Step | None = None,  # noqa: A002
    check: Step | None = None,
    deaths: int = 1,
) -> Callable[[Play], Play]:
    """Add a game."""

    def add(play: Play) -> Play:
        GAMES[play.__name__] = Game(make, play, help, check, deaths)
        return play

    return add
