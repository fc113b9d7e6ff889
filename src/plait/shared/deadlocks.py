"""Who waits for whom: a cycle of owners that wait is told to one of them; a table of all of it.

A thread that waits for a lock says so in its seat after a second (seats.py). The lock knows its
owner, by the system's number of the thread; if that has a seat, too, and waits, the path goes on
from there. Should it come back to where it began, none of them will ever go on. What was seen is
read twice, and is believed if nothing changed: each of them held and waited at one moment. The one
that said last that it waits raises DeadlockError; what it held is released on the way out. A wait
with a timeout ends by itself, and where one of them has that, it is no deadlock.
"""

from __future__ import annotations

from contextlib import suppress
from time import monotonic_ns
from typing import TYPE_CHECKING, NamedTuple

from plait.errors import DeadlockError, indented
from plait.shared.arena import ARENA, Arena, arenas
from plait.shared.cells import WHO, Cell, cells_of
from plait.shared.memory import regions_of

if TYPE_CHECKING:
    from plait.shared.memory import Region
    from plait.shared.seats import Seat

__all__ = ["Holdings", "Lookout", "Row", "who_holds"]


class Step(NamedTuple):
    """A thread that waits for a cell, and who holds that."""

    seat: Seat
    cell: Cell
    since_ns: int
    owner: int

    @property
    def facts(self) -> tuple[int, int, int, int]:
        """What has to be the same if it is read again."""
        return self.seat.tid, self.cell.offset, self.since_ns, self.owner


class Lookout:
    """What a thread that waits looks around with, again and again, until it waits no more.

    What it found of other processes stays open as long: a Ctrl-C that comes while Python closes
    something for us (``__del__``) is lost, and most of them come while somebody waits.
    """

    def __init__(self, seat: Seat) -> None:
        self._seat = seat
        self._arenas: dict[bytes, Arena] = {}  # of this process, and of those on the path

    def look(self) -> None:
        """Raise DeadlockError if this thread is the one to end a cycle."""
        self._arenas.update((arena.region.ident, arena) for arena in arenas())
        cycle = self._cycle()
        if not cycle or [step.facts for step in self._cycle()] != [step.facts for step in cycle]:
            return
        # It is the first that could see all of the cycle.
        last = max(cycle, key=lambda step: (step.seat.noted_ns, step.seat.tid))
        if last.seat.tid == self._seat.tid:
            raise DeadlockError.of([_told(step, cycle) for step in cycle])

    def _cycle(self) -> list[Step]:
        """Follow who waits for whom, from our seat back to it; empty: the path ends elsewhere."""
        path: list[Step] = []
        at: Seat | None = self._seat
        while at is not None:
            offset = at.waits_for
            if not offset or not at.may_wait_forever:
                return []
            cell = Cell(self._arena_in(at.region), offset)
            path.append(Step(at, cell, at.since_ns, cell.owner))
            if path[-1].owner == self._seat.tid:
                return path
            if any(step.seat.tid == path[-1].owner for step in path):
                return []  # a cycle, without this thread: others will find it
            at = self._seat_of(path[-1].owner)
        return []

    def _arena_in(self, region: Region) -> Arena:
        """Return the arena in a region; its seats are among those we know from now on."""
        if region.ident not in self._arenas:
            self._arenas[region.ident] = Arena(region)
        return self._arenas[region.ident]

    def _seat_of(self, tid: int) -> Seat | None:
        """Return the seat in which this thread waits, in any arena that can be found."""
        if not tid:
            return None
        for region in regions_of(_pid_of(tid), ARENA):
            self._arena_in(region)
        for arena in self._arenas.values():
            for seat in arena.seats():
                if seat.tid == tid and seat.waits_for and not seat.is_free:
                    return seat
        return None


def _told(step: Step, cycle: list[Step]) -> str:
    name, stack = step.seat.name_and_stack
    waited_s = (monotonic_ns() - step.since_ns) / 1e9
    held = [_told_held(other.cell) for other in cycle if other.owner == step.seat.tid]
    return (
        f"{name} of pid {step.seat.pid} " + "; ".join(held) + f"\n  and has waited {waited_s:.1f} s"
        f" for {step.cell.label} at\n{indented(stack)}"
    )


def _told_held(cell: Cell) -> str:
    *_, held_s, stack, task = cell.holder
    within = f" in {task}" if task else ""
    return f"holds {cell.label}, taken {held_s:.1f} s ago{within} at\n{indented(stack)}"


def _pid_of(tid: int) -> int:
    """Return the process of a thread; 0: it has none any more."""
    with suppress(OSError, ValueError), open(f"/proc/{tid}/status", encoding="utf-8") as file:  # noqa: PTH123
        return next(int(line[5:]) for line in file if line.startswith("Tgid:"))
    return 0


class Row(NamedTuple):
    """A lock that is held, as far as this process can see it.

    Attributes:
        what: its kind and name.
        pid, owner: the process that holds it, and the system's number of the thread.
        held_s: for how many seconds.
        stack: where it was acquired, innermost first.
        task: in which task of a plait pool, "task 12", or "".
        waiting: who has waited for it for more than a second: pid, thread and where.
    """

    what: str
    pid: int
    owner: int
    held_s: float
    stack: str
    task: str
    waiting: tuple[str, ...]

    def __str__(self) -> str:
        who = f"pid {self.pid}, thread {self.owner}" + (f", {self.task}" if self.task else "")
        lines = [f"{self.what}: held by {who}, for {self.held_s:.1f} s"]
        lines += [indented(self.stack)] if self.stack else []
        for one in self.waiting:
            lines.append("  " + one.replace("\n", "\n    "))
        return "\n".join(lines)


class Holdings(tuple[Row, ...]):
    """All locks that are held; prints as a table."""

    __slots__ = ()

    def __str__(self) -> str:
        return "\n".join(map(str, self)) or "No lock is held."

    __repr__ = __str__


def who_holds() -> Holdings:
    """Return who holds which of the shared locks that this process has, and who waits for them.

    It can be called at any time, by any thread; it takes no lock. A wait is seen after a second.

    >>> from plait.shared import Lock, who_holds
    >>> with Lock("results"):
    ...     who_holds()[0].what
    "Lock 'results'"
    """
    rows = []
    for arena in arenas():
        waiting: dict[int, list[str]] = {}
        for seat in arena.seats():
            if (offset := seat.waits_for) and not seat.is_free:
                name, stack = seat.name_and_stack
                text = f"waited for by {name} of pid {seat.pid} at\n{stack}"
                waiting.setdefault(offset, []).append(text)
        for cell in cells_of(arena):
            owner = cell.owner
            if owner and cell.words[WHO]:  # a mutex inside of a Semaphore, say, has no WHO
                texts = tuple(waiting.get(cell.offset, ()))
                _, _, held_s, stack, task = cell.holder
                rows.append(Row(cell.label, _pid_of(owner), owner, held_s, stack, task, texts))
    return Holdings(rows)
