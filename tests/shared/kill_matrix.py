"""Many processes use shared data, and are killed at random moments: nothing may hang or be left.

    python -m tests.shared.kill_matrix --kills 1000 --seed 7 --only Lock,RLock

To add a primitive, write one function here, with ``@game``: it does something random with it, and
raises Wrong where something cannot be. It is called again and again in all workers, and at last
some times in this process alone, when nobody is left who could disturb it. OwnerDied may leave it
at any time: the harness looks whether its owner is dead indeed.

Workers come about in both ways: forked from here, with all there is, and forked from a process
that has none of it, where things arrive by pickle.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import pickle
import random
import select
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from time import monotonic
from typing import Any, NamedTuple, NoReturn

from plait.errors import OwnerDied
from plait.shared import Array, Lock, RLock, Value, who_holds
from plait.shared.memory import HEAD_BYTES, Place, Region

WORKERS = 6
LONGEST_S = 30.0  # what takes longer hangs
PAUSE_S = 0.006  # between two kills, at most
DYING_S = 5.0
WORDS = 64  # of a game's own, beside what it is about
STOP, OPERATIONS, TOLD = range(3)  # of the supervisor's board; then two words for each worker


class Wrong(Exception):
    """Something is as it must not be."""


class Board:
    """Numbers that all workers see, without any lock."""

    def __init__(self, place: Place | None = None) -> None:
        self._region = Region.at(place, "board") if place else Region.create(WORDS * 8, "board")
        self.words = self._region.words(HEAD_BYTES, WORDS * 8)

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


def ends_now(pid: int) -> bool:
    """Whether a process is at its end: the kernel frees its locks somewhat earlier."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], DYING_S)[0])
    finally:
        os.close(fd)


def dawdle(rng: Random) -> None:
    """Take some time, or none."""
    chance = rng.random()
    if chance < 0.3:
        time.sleep(rng.random() * 0.002)
    elif chance < 0.6:
        sum(range(rng.randrange(2000)))


# --- The games -------------------------------------------------------------------------------

Play = Callable[[Any, Board, Random], None]


class Game(NamedTuple):
    """A primitive, and what is done with it."""

    make: Callable[[], Any]
    play: Play


GAMES: dict[str, Game] = {}


def game(make: Callable[[], Any]) -> Callable[[Play], Play]:
    """Add a game, with what makes its thing: whatever is picklable."""

    def add(play: Play) -> Play:
        GAMES[play.__name__] = Game(make, play)
        return play

    return add


def acquired(lock: Lock, rng: Random) -> bool:
    """Acquire it in one of the ways; if it can be had at all, it is had in time."""
    way = rng.randrange(4)
    if way == 0:
        return lock.acquire(blocking=False)
    if way == 1:
        return lock.acquire(timeout=rng.random() * 0.01)
    if not lock.acquire(timeout=LONGEST_S):
        raise Wrong(f"it cannot be had in {LONGEST_S} s: {lock!r}\n{who_holds()}")
    return True


@game(lambda: Lock("of the matrix"))
def lock(lock: Lock, board: Board, rng: Random) -> None:
    if acquired(lock, rng):
        try:
            with board.alone(rng):
                if lock.acquire(blocking=False):
                    raise Wrong("it was acquired twice")
        finally:
            lock.release()


@game(lambda: Lock("of the matrix", on_owner_death="ignore"))
def ignoring_lock(lock: Lock, board: Board, rng: Random) -> None:
    try:
        with lock, board.alone(rng):
            pass
    except OwnerDied as error:
        raise Wrong("it was told of a death that is to be ignored") from error


@game(lambda: RLock("of the matrix"))
def rlock(lock: RLock, board: Board, rng: Random) -> None:
    times = 0
    try:
        while times < rng.randrange(1, 4) and acquired(lock, rng):
            times += 1
        if times:
            with board.alone(rng):
                pass
    finally:
        for _ in range(times):
            lock.release()


@game(lambda: [Lock(f"{number} of the matrix") for number in range(3)])
def locks_in_order(locks: list[Lock], board: Board, rng: Random) -> None:
    """Take some of several; always in the same order, so there is no deadlock."""
    with contextlib.ExitStack() as stack:
        for at, lock in enumerate(locks):
            if rng.random() < 0.6:
                stack.enter_context(lock)
                stack.enter_context(board.alone(rng, at))


@game(lambda: [Lock("to send"), None])
def passing_on(box: list[Any], board: Board, rng: Random) -> None:
    """Use a lock that has made a journey through bytes, and locks of one's own beside it."""
    own = [Lock("own") for _ in range(rng.randrange(5))]
    data = pickle.dumps(box)
    box.clear()
    if rng.random() < 0.2:
        gc.collect()
    box.extend(pickle.loads(data))
    with contextlib.ExitStack() as stack:
        for lock in own:
            stack.enter_context(lock)
        stack.enter_context(box[0])
        with board.alone(rng):
            pass


@game(lambda: Value(int, name="of the matrix"))
def value(value: Value[int], board: Board, rng: Random) -> None:
    """Count up, at one stroke and under the lock; it never goes down."""
    number = value.add(rng.randrange(1, 4))
    if value.value < number:
        raise Wrong(f"{value.value} after {number}")
    with value, board.alone(rng):
        number = value.value
        value.value += 1
        if value.add(0) != number + 1:
            raise Wrong(f"{value.value} is not {number} + 1")


@game(lambda: Array(int, 8, name="of the matrix"))
def array(array: Array, board: Board, rng: Random) -> None:
    """Write numbers that are all the same, and see that nobody else does so meanwhile."""
    with array, board.alone(rng):
        array[:] = [os.getpid()] * 8
        dawdle(rng)
        if set(array.view().tolist()) != {os.getpid()}:
            raise Wrong(f"{list(array)} is not of {os.getpid()} alone")


# --- A worker --------------------------------------------------------------------------------


class Table(NamedTuple):
    """All that a worker gets."""

    board: Board
    things: dict[str, tuple[Any, Board]]


def work(table: Table, seed: float, errors: int) -> NoReturn:
    """Play until it is over."""
    try:
        rng = Random(seed)
        while not table.board.words[STOP]:
            play_once(table, rng)
        code = 0
    except BaseException:  # a process of its own: what went wrong is told by its text
        os.write(errors, f"in worker {os.getpid()}:\n{traceback.format_exc()}\n".encode())
        code = 1
    os._exit(code)


def play_once(table: Table, rng: Random) -> str:
    """Play one of the games; return whose death was told, if one was."""
    name = rng.choice(list(table.things))
    thing, board = table.things[name]
    try:
        GAMES[name].play(thing, board, rng)
    except OwnerDied as error:
        table.board.words[TOLD] += 1  # about: nobody guards it
        if error.pid and not ends_now(error.pid):
            raise Wrong(f"{name} told of a death, but {error.pid} lives") from error
        return name
    table.board.words[OPERATIONS] += 1
    return ""


class Nursery:
    """A process that has none of the shared data, and forks workers that get it by pickle."""

    def __init__(self, errors: int) -> None:
        ours, theirs = os.pipe(), os.pipe()
        self._pid = os.fork()
        if not self._pid:
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
            os.close(ours[1])
            os.close(theirs[0])
            self._serve(os.fdopen(ours[0], "rb"), theirs[1], errors)
        os.close(ours[0])
        os.close(theirs[1])
        self._orders, self._pids = ours[1], os.fdopen(theirs[0], "rb")

    def _serve(self, orders: Any, pids: int, errors: int) -> NoReturn:
        while head := orders.read(4):
            data = orders.read(int.from_bytes(head, "big"))
            pid = os.fork()
            if not pid:
                table, seed = pickle.loads(data)
                work(table, seed, errors)
            os.write(pids, pid.to_bytes(4, "big"))
        os._exit(0)

    def fork(self, table: Table, seed: float) -> int:
        """Have it fork a worker, and return that's pid."""
        data = pickle.dumps((table, seed))
        os.write(self._orders, len(data).to_bytes(4, "big") + data)
        return int.from_bytes(self._pids.read(4), "big")

    def close(self) -> None:
        """End it."""
        os.close(self._orders)
        self._pids.close()
        os.waitpid(self._pid, 0)


# --- Who kills -------------------------------------------------------------------------------


class Supervisor:
    """Starts workers, kills them, and looks whether all is well."""

    def __init__(self, names: list[str], workers: int, seed: int) -> None:
        self._rng = Random(seed)
        self._workers = workers
        self._errors, self._errors_in = os.pipe()
        os.set_blocking(self._errors, False)
        self._nursery = Nursery(self._errors_in)  # before there is anything to inherit
        self._table = Table(Board(), {name: (GAMES[name].make(), Board()) for name in names})
        self._alive: dict[int, tuple[int, bool]] = {}  # pids: pidfd, whether it is our child
        self.kills = 0

    def run(self, kills: int) -> None:
        """Kill so many, one after the other."""
        self._refill()
        started, seen = monotonic(), 0
        while self.kills < kills:
            time.sleep(self._rng.random() * PAUSE_S)
            self._kill(self._rng.choice(list(self._alive)))
            self._refill()
            self._look()
            if (done := self.operations) != seen:
                started, seen = monotonic(), done
            if monotonic() - started > LONGEST_S:
                raise Wrong(f"nothing goes on any more:\n{who_holds()}")
        self._wind_up()

    def _refill(self) -> None:
        while len(self._alive) < self._workers:
            seed, is_ours = self._rng.random(), self._rng.random() < 0.5
            pid = self._fork(seed) if is_ours else self._nursery.fork(self._table, seed)
            self._alive[pid] = os.pidfd_open(pid), is_ours

    def _fork(self, seed: float) -> int:
        pid = os.fork()
        if not pid:
            work(self._table, seed, self._errors_in)
        return pid

    def _kill(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # it found that something is wrong
            os.kill(pid, signal.SIGKILL)
        self.kills += 1
        self._wait_for(pid)

    def _wait_for(self, pid: int) -> None:
        fd, is_ours = self._alive.pop(pid)
        is_over = bool(select.select([fd], [], [], LONGEST_S)[0])
        os.close(fd)
        if not is_over:
            os.kill(pid, signal.SIGKILL)
        if is_ours:
            os.waitpid(pid, 0)
        if not is_over:
            raise Wrong(f"worker {pid} does not end:\n{who_holds()}")

    def _look(self) -> None:
        with contextlib.suppress(BlockingIOError):
            raise Wrong(os.read(self._errors, 1 << 16).decode())

    def _wind_up(self) -> None:
        """Have all of them end, and play alone: each thing tells of one more death at most."""
        self._table.board.words[STOP] = 1
        for pid in list(self._alive):
            self._wait_for(pid)
        self._look()
        if held := who_holds():
            raise Wrong(f"all are dead, but\n{held}")
        told = Counter(play_once(self._table, self._rng) for _ in range(300))
        del told[""]
        for name, times in told.items():
            most = 3 if name == "locks_in_order" else 1
            if times > most:
                raise Wrong(f"{name} tells of {times} deaths, but nobody is there to die")

    @property
    def operations(self) -> int:
        """How many operations came to an end, about."""
        return self._table.board.words[OPERATIONS]

    def line(self) -> str:
        """Return what was done."""
        told = self._table.board.words[TOLD]
        return f"{self.kills} kills, about {self.operations} operations, {told} deaths told"

    def close(self) -> None:
        """Kill who is left, and let go of all."""
        for pid in list(self._alive):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            self._wait_for(pid)
        self._nursery.close()
        os.close(self._errors)
        os.close(self._errors_in)


def leavings() -> tuple[int, set[str], bool]:
    """Return how many files are open, what is in /dev/shm, and whether there are children."""
    Lock()  # an arena stays
    gc.collect()
    shared = {path.name for path in Path("/dev/shm").iterdir() if "plait" in path.name}
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return len(list(Path("/proc/self/fd").iterdir())), shared, False
    return len(list(Path("/proc/self/fd").iterdir())), shared, True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=WORKERS)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--only", default=",".join(GAMES))
    given = parser.parse_args()
    seed = random.randrange(1 << 32) if given.seed is None else given.seed
    before, started = leavings(), monotonic()
    supervisor = Supervisor(given.only.split(","), given.workers, seed)
    try:
        supervisor.run(given.kills)
        line = supervisor.line()
    except Wrong as wrong:
        print(f"kill matrix: FAILED with --seed {seed}, after {supervisor.kills} kills: {wrong}")
        return 1
    finally:
        supervisor.close()
    del supervisor
    if (after := leavings()) != before:
        print(f"kill matrix: FAILED with --seed {seed}: left: {after}, before: {before}")
        return 1
    print(f"kill matrix: all well, {line}, {monotonic() - started:.1f} s, --seed {seed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
