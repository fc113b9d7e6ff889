"""Games of the kill matrix in which processes wait for each other (kill_matrix.py)."""

from __future__ import annotations

import re
from random import Random
from threading import BrokenBarrierError
from time import monotonic

from plait.shared import Barrier, BoundedSemaphore, Condition, Event, Lock, Semaphore, who_holds
from tests.shared.kill_board import HURRY, LONGEST_S, TOLD, Board, Wrong, dawdle, ends_now, game

SEATS = 3  # of a semaphore
MOST = 4  # tokens, of a pair of conditions
PARTIES = 2
TOKENS = 1  # a word of the conditions' board
RESET_AT = 1  # one of the barrier's: when, in milliseconds
PATIENCE_MS = 2000


def all_are_back(semaphore: Semaphore, board: Board) -> None:
    """Take all that a semaphore has: what the dead had, too, but not one more."""
    for number in range(SEATS):
        if not semaphore.acquire(timeout=LONGEST_S):
            raise Wrong(f"{number} of {SEATS} are to be had, though all are dead: {semaphore!r}")
    if semaphore.acquire(timeout=0.01):
        raise Wrong(f"more than {SEATS} were to be had")
    semaphore.release(SEATS)
    if semaphore.get_value() != SEATS:
        raise Wrong(f"not {SEATS} in the end: {semaphore!r}")


def sit_down(semaphore: Semaphore, board: Board, rng: Random) -> None:
    """Take one, or two if there are as many, in one of the ways; and give them back."""
    way = rng.randrange(4)
    if way == 0:
        had = int(semaphore.acquire(blocking=False))
    elif way == 1:
        had = int(semaphore.acquire(timeout=rng.random() * 0.01))
    else:
        had = int(semaphore.acquire(timeout=LONGEST_S))
        if not had:
            raise Wrong(f"none is to be had in {LONGEST_S} s: {semaphore!r}")
    if not had:
        return
    if rng.random() < 0.3:
        had += semaphore.acquire(blocking=False)
    board.note(had)
    if rng.random() < 0.3 and (sitting := board.noted()) > SEATS:
        raise Wrong(f"{sitting} have come in where {SEATS} may")
    dawdle(rng)
    board.note(0)
    if rng.random() < 0.5:
        semaphore.release(had)
    else:
        for _ in range(had):
            semaphore.release()


@game(lambda: Semaphore(SEATS, "of the matrix"), check=all_are_back)
def semaphore(semaphore: Semaphore, board: Board, rng: Random) -> None:
    sit_down(semaphore, board, rng)


def all_are_back_and_no_more(semaphore: BoundedSemaphore, board: Board) -> None:
    all_are_back(semaphore, board)
    try:
        semaphore.release()
    except ValueError:
        return
    raise Wrong("a bounded semaphore has more than at first")


@game(lambda: BoundedSemaphore(SEATS, "of the matrix"), check=all_are_back_and_no_more)
def bounded_semaphore(semaphore: BoundedSemaphore, board: Board, rng: Random) -> None:
    sit_down(semaphore, board, rng)


# --- Conditions ------------------------------------------------------------------------------

Pair = tuple[Condition, Condition]


def conditions(lock: Lock | None = None) -> Pair:
    """Return one that is notified when there is a token, and one for when there is room."""
    lock = lock or Lock("of two conditions")
    return Condition(lock, "there is a token"), Condition(lock, "there is room")


def move_a_token(pair: Pair, board: Board) -> None:
    """Put a token if there is none, take one if there is no room."""
    is_one, is_room = pair
    with is_one:
        if board.words[TOKENS] == 0:
            board.words[TOKENS] += 1
            is_one.notify()
        elif board.words[TOKENS] == MOST:
            board.words[TOKENS] -= 1
            is_room.notify()


@game(conditions, help=move_a_token)
def condition(pair: Pair, board: Board, rng: Random) -> None:
    """Put a token where there is room, or take one; whoever waits is told of it."""
    is_one, is_room = pair
    tokens = board.words
    way = rng.randrange(6)
    if way == 0:
        with is_one:
            is_one.wait(timeout=rng.random() * 0.005)
            with board.alone(rng):
                pass
            is_one.notify()  # what it was told is for others
    elif way == 1:
        with is_room:
            is_one.notify_all()  # in vain
            is_room.notify(2)
    elif way < 4:
        with is_one:
            if not is_one.wait_for(lambda: tokens[TOKENS] > 0, LONGEST_S):
                raise Wrong(f"no token in {LONGEST_S} s\n{who_holds()}")
            with board.alone(rng):
                tokens[TOKENS] -= 1
            is_room.notify()
    else:
        with is_room:
            if not is_room.wait_for(lambda: tokens[TOKENS] < MOST, LONGEST_S):
                raise Wrong(f"no room in {LONGEST_S} s\n{who_holds()}")
            with board.alone(rng):
                tokens[TOKENS] += 1
            is_one.notify()
    if not 0 <= tokens[TOKENS] <= MOST:
        raise Wrong(f"{tokens[TOKENS]} tokens")


# --- Events ----------------------------------------------------------------------------------


def set_it(event: Event, board: Board) -> None:
    if not event.is_set():
        event.set()


def is_set_and_cleared(event: Event, board: Board) -> None:
    event.set()
    if not event.is_set() or not event.wait(0):
        raise Wrong("it was set, but is not")
    event.clear()
    if event.is_set() or event.wait(0.001):
        raise Wrong("it was cleared, but is set")


@game(lambda: Event("of the matrix"), help=set_it, check=is_set_and_cleared)
def event(event: Event, board: Board, rng: Random) -> None:
    way = rng.randrange(6)
    if way == 0:
        event.set()
    elif way == 1:
        event.wait(rng.random() * 0.005)
    elif way < 4:
        event.clear()
    if way > 2 and not event.wait(LONGEST_S):
        raise Wrong(f"it is set again and again, but that was not seen in {LONGEST_S} s: {event!r}")


# --- Barriers --------------------------------------------------------------------------------


class Tick:
    """A barrier's action: it counts the rounds."""

    def __init__(self, rounds: Board) -> None:
        self._rounds = rounds

    def __call__(self) -> None:
        self._rounds.count()


Rounds = tuple[Barrier, Board, Board]  # rounds that began; who went first in one


def barrier_and_counts() -> Rounds:
    rounds = Board()
    return Barrier(PARTIES, Tick(rounds), name="of the matrix"), rounds, Board()


def let_go(thing: Rounds, board: Board) -> None:
    """Have a broken barrier be as new; and if there is nobody else to come, those wait no more."""
    barrier, now = thing[0], int(monotonic() * 1000)
    is_late = now - board.words[RESET_AT] > PATIENCE_MS or board.words[HURRY]
    if barrier.broken or (is_late and barrier.n_waiting):
        barrier.reset()
    if barrier.broken or is_late:
        board.words[RESET_AT] = now


def rounds_add_up(thing: Rounds, board: Board) -> None:
    """See that nobody went on without all others, or without the action."""
    barrier, rounds, first = thing
    passed = board.counted()
    if passed > PARTIES * rounds.counted() or first.counted() > rounds.counted():
        raise Wrong(f"{passed} passed ({first.counted()} first) in {rounds.counted()} rounds")
    barrier.reset()
    if barrier.broken or barrier.n_waiting:
        raise Wrong(f"all are dead, but {barrier!r}")


@game(barrier_and_counts, help=let_go, check=rounds_add_up)
def barrier(thing: Rounds, board: Board, rng: Random) -> None:
    """Wait for another one; or break the barrier, or have it be as new."""
    barrier, _, first = thing
    chance, started = rng.random(), monotonic()
    if chance < 0.04:
        barrier.abort()
    elif chance < 0.08:
        barrier.reset()
    try:
        is_short = chance > 0.9 or not board.number
        index = barrier.wait(rng.random() * 0.01 if is_short else LONGEST_S)
    except BrokenBarrierError as error:
        if died := re.search(r"pid (\d+)\) ended while it waited", str(error)):
            board.words[TOLD] += 1
            if not ends_now(int(died[1])):
                raise Wrong(f"told of a death, but it lives: {error}") from error
        if monotonic() - started > LONGEST_S:
            raise Wrong(f"{error}, and nobody reset it before") from error
        if rng.random() < 0.5:
            barrier.reset()
        return
    board.count()
    if index == 0:
        first.count()
    elif not 0 < index < PARTIES:
        raise Wrong(f"number {index} of {PARTIES} parties")
