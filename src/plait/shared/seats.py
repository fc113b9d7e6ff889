"""The seats of those who wait, in an arena: one for each thread, for all processes to see."""

from __future__ import annotations

import os
import threading
from time import monotonic_ns
from types import FrameType
from typing import TYPE_CHECKING

from plait.running import get_task, text_of_task
from plait.shared.whereabouts import is_alive, short_stack, start_of

if TYPE_CHECKING:
    from plait.shared.memory import Region

__all__ = ["IDLE", "SEATS", "SEAT_BYTES", "START", "TICKET", "Seat"]

SEATS, SEAT_BYTES = 1024, 512
# A seat's words of 32 bits; its words of 64 bits, behind them; then, from STACK_AT, a text.
WORD, PID, TID, MODE, CELL = range(5)
TICKET, WAITS_SINCE, START, NOTED = 3, 4, 5, 6
STACK_AT = 56
IDLE, WAITING, WAITING_SHORTLY = 1, 2, 3


class Seat:
    """Where one thread says what it waits for, so that others can wake it, and see it wait.

    Attributes:
        region: that of its arena. The arena keeps its seats: so they do not refer to it.
        number: which one of the arena's.
        word_address: of the futex that it may wait on.
        mode: one word. To set ``mode[0] = IDLE`` is wait_no_more() where Ctrl-C may come.
    """

    def __init__(self, region: Region, at: int, number: int) -> None:
        self.region = region
        self.number = number
        self._at = at
        self._small = region.words(at, 24, "I")
        self._large = region.words(at, STACK_AT)
        self.mode = self._small[MODE : MODE + 1]
        self.word_address = region.address + at

    def take(self) -> None:
        """Have it be that of the calling thread; it is free again when that has ended."""
        self._small[MODE] = 0
        self._large[TICKET] = 0
        self._small[PID], self._small[TID] = os.getpid(), threading.get_native_id()
        self._large[START] = max(0, start_of(self.pid, self.tid))
        self._small[MODE] = IDLE

    def give_back(self) -> None:
        """Have it be free, while its thread goes on."""
        self._small[MODE] = 0

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
        name, task = threading.current_thread().name, text_of_task(get_task())
        text = f"{f'{name}, in {task},' if task else name}\t{short_stack(frame)}"
        stack = text.encode(errors="replace")[: SEAT_BYTES - STACK_AT - 2]
        at = self._at + STACK_AT
        self.region.memory[at : at + 2] = len(stack).to_bytes(2, "little")
        self.region.memory[at + 2 : at + 2 + len(stack)] = stack
        self._large[WAITS_SINCE] = since_ns
        self._large[NOTED] = monotonic_ns()
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
    def noted_ns(self) -> int:
        """Since when others can see it wait."""
        return self._large[NOTED]

    @property
    def name_and_stack(self) -> tuple[str, str]:
        """The name of its thread, and where that waits."""
        at = self._at + STACK_AT
        size = int.from_bytes(self.region.memory[at : at + 2], "little")
        text = self.region.memory[at + 2 : at + 2 + size].decode(errors="replace")
        name, _, stack = text.partition("\t")
        return name, stack
