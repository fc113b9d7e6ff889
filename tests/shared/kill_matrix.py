"""Many processes use shared data, and are killed at random moments: nothing may hang or be left.

    python -m tests.shared.kill_matrix --kills 1000 --seed 7 --only lock,event

To add a primitive, write one function in kill_games_*.py, with ``@game``: it does something random
with it, and raises Wrong where something cannot be. It is called again and again in all workers,
and at last some times in this process alone, when nobody is left who could disturb it. OwnerDied
may leave it at any time: the harness looks whether its owner is dead indeed. What waits for another
process waits for long: the game's ``help`` sees to it that one comes. Its ``check``, at the very
end, sees whether all adds up.

Workers come about in both ways: forked from here, with all there is, and forked from a process
that has none of it, where things arrive by pickle.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import os
import pickle
import random
import select
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from random import Random
from time import monotonic
from types import FrameType
from typing import Any, NamedTuple, NoReturn

from plait.errors import OwnerDied
from plait.shared import Lock, arena, who_holds
from tests.shared import kill_games_items, kill_games_locks, kill_games_sync
from tests.shared.kill_board import (
    GAMES,
    HURRY,
    LINES,
    LONGEST_S,
    OPERATIONS,
    TOLD,
    Board,
    Wrong,
    ends_now,
)

__all__ = ["GAMES"]

WORKERS = 6
PAUSE_S = 0.006  # between two kills, at most
REST_S = 1.1  # now and then: what a dead process had is found within a second
RESTS = 60  # so many kills from one to the next
ALONE = 15  # so often each game is played alone, about
STOP, DOOMED = range(2)  # words of the supervisor's board
DOOM_S = 0.02  # for so long it waits for one to kill itself
LAST_LINE = 60
SHARED = str(Path(arena.__file__).parent)
BOOKS = kill_games_locks, kill_games_sync, kill_games_items  # where GAMES come from


# --- A worker --------------------------------------------------------------------------------


class Table(NamedTuple):
    """All that a worker gets."""

    number: int
    board: Board
    things: dict[str, tuple[Any, Board]]


def work(table: Table, seed: float, errors: int) -> NoReturn:
    """Play until it is over."""
    try:
        rng = Random(seed)
        Board.number = table.number
        while not table.board.words[STOP]:
            if table.board.words[DOOMED] == table.number:
                die_at_a_line(rng.randrange(LAST_LINE))
            play_once(table, rng)
        code = 0
    except BaseException:  # a process of its own: what went wrong is told by its text
        os.write(errors, f"in worker {os.getpid()}:\n{traceback.format_exc()}\n".encode())
        code = 1
    os._exit(code)


def die_at_a_line(count: int) -> None:
    """Be killed in the midst of plait.shared, at a line: from outside that is seldom hit."""
    pid, lines = os.getpid(), itertools.count()

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if not frame.f_code.co_filename.startswith(SHARED):
            return None
        if event == "line" and next(lines) >= count and os.getpid() == pid:
            os.kill(pid, signal.SIGKILL)
        return trace

    sys.settrace(trace)


def play_once(table: Table, rng: Random) -> str:
    """Play one of the games; return whose death was told, if one was."""
    name = rng.choice(names := list(table.things))
    thing, board = table.things[name]
    table.board.note(names.index(name) + 1)
    try:
        GAMES[name].play(thing, board, rng)
    except OwnerDied as error:
        board.words[TOLD] += 1  # about: nobody guards it
        see_that_it_died(name, error)
        return name
    except Exception as error:
        raise Wrong(f"in {name}: {error}") from error
    board.words[OPERATIONS] += 1
    return ""


def see_that_it_died(name: str, error: OwnerDied) -> None:
    """Look whether what was told is true."""
    if error.pid and not ends_now(error.pid):
        raise Wrong(f"{name} told of a death, but {error.pid} lives") from error


def help_all(table: Table) -> None:
    """Have nobody wait for ever, in any of the games."""
    for name, (thing, board) in table.things.items():
        if step := GAMES[name].help:
            try:
                step(thing, board)
            except OwnerDied as error:
                board.words[TOLD] += 1
                see_that_it_died(name, error)
            except Exception as error:
                raise Wrong(f"in {name}, to help: {error}") from error


class Helper:
    """A thread that helps while this process plays alone."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._is_over = threading.Event()
        self._errors: list[BaseException] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._is_over.wait(0.001):
                help_all(self._table)
        except BaseException as error:
            self._errors.append(error)

    def close(self) -> None:
        """Have it end, and raise what it could not do."""
        self._is_over.set()
        self._thread.join(LONGEST_S)
        if self._errors or self._thread.is_alive():
            raise Wrong(f"to help was not possible: {self._errors or 'it hangs'}")


class Worker(NamedTuple):
    """A process that plays: its number, a pidfd, whether it is our child."""

    number: int
    pidfd: int
    is_ours: bool


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
        things = {name: (GAMES[name].make(), Board()) for name in names}
        self._table = Table(0, Board(), things)
        self._alive: dict[int, Worker] = {}
        self._started = 0
        self.kills = 0
        self.killed_in: Counter[str] = Counter()

    def run(self, kills: int) -> None:
        """Kill so many, one after the other."""
        self._refill()
        started, seen = monotonic(), 0
        while self.kills < kills:
            if self.kills % RESTS == RESTS // 2:
                self._rest(REST_S)
            self._rest(self._rng.random() * PAUSE_S)
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
            self._started += 1
            table = self._table._replace(number=self._started)
            pid = self._fork(table, seed) if is_ours else self._nursery.fork(table, seed)
            self._alive[pid] = Worker(self._started, os.pidfd_open(pid), is_ours)

    def _fork(self, table: Table, seed: float) -> int:
        pid = os.fork()
        if not pid:
            work(table, seed, self._errors_in)
        return pid

    def _rest(self, seconds: float) -> None:
        """Let them play."""
        until = monotonic() + seconds
        help_all(self._table)
        while (left := until - monotonic()) > 0:
            time.sleep(min(0.01, left))
            help_all(self._table)

    def _kill(self, pid: int) -> None:
        number, pidfd, _ = self._alive[pid]
        if self._rng.random() < 0.5:
            self._table.board.words[DOOMED] = number
            until = monotonic() + DOOM_S
            while not select.select([pidfd], [], [], 0.002)[0] and monotonic() < until:
                help_all(self._table)
        with contextlib.suppress(ProcessLookupError):  # or it found that something is wrong
            os.kill(pid, signal.SIGKILL)
        self.kills += 1
        self._wait_for(pid)
        played = self._table.board.lines[2 * number + 1] & 0xFF
        self.killed_in[["at the start", *self._table.things][played]] += 1

    def _wait_for(self, pid: int) -> None:
        _, fd, is_ours = self._alive.pop(pid)
        until = monotonic() + LONGEST_S
        while not (is_over := bool(select.select([fd], [], [], 0.002)[0])):
            if monotonic() > until:
                break
            help_all(self._table)
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
        """Have all of them end, and play alone: each lock tells of one more death at most."""
        self._table.board.words[STOP] = 1
        for _, board in self._table.things.values():
            board.words[HURRY] = 1
        for pid in list(self._alive):
            self._wait_for(pid)
        self._look()
        if held := who_holds():
            raise Wrong(f"all are dead, but\n{held}")
        helper = Helper(self._table)
        try:
            rounds = range(ALONE * len(self._table.things))
            told = Counter(play_once(self._table, self._rng) for _ in rounds)
        finally:
            helper.close()
        del told[""]
        for name, times in told.items():
            if times > GAMES[name].deaths:
                raise Wrong(f"{name} tells of {times} deaths, but nobody is there to die")
        for name, (thing, board) in self._table.things.items():
            if check := GAMES[name].check:
                try:
                    check(thing, board)
                except Wrong as wrong:
                    raise Wrong(f"{name}, in the end: {wrong}") from wrong

    @property
    def operations(self) -> int:
        """How many operations came to an end, about."""
        return self._sum_of(OPERATIONS)

    def _sum_of(self, word: int) -> int:
        return sum(board.words[word] for _, board in self._table.things.values())

    def line(self) -> str:
        """Return what was done."""
        told = self._sum_of(TOLD)
        return f"{self.kills} kills, about {self.operations} operations, {told} deaths told"

    def table(self) -> Iterable[str]:
        """Yield that for each game."""
        for name, (_, board) in self._table.things.items():
            done, told = board.words[OPERATIONS], board.words[TOLD]
            yield f"{name:20} {self.killed_in[name]:6} killed {done:6} operations {told:5} told"
        yield f"{'at the start':20} {self.killed_in['at the start']:6} killed"

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
    if given.kills + given.workers >= LINES:
        parser.error(f"at most {LINES - given.workers - 1} kills: each worker has its own line")
    seed = random.randrange(1 << 32) if given.seed is None else given.seed
    before, started = leavings(), monotonic()
    supervisor = Supervisor(given.only.split(","), given.workers, seed)
    try:
        supervisor.run(given.kills)
        line, table = supervisor.line(), list(supervisor.table())
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
    print(*table, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
