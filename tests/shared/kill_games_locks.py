"""Games of the kill matrix with locks and numbers (kill_matrix.py)."""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
from random import Random
from typing import Any

from plait.errors import OwnerDied
from plait.shared import Array, Lock, RLock, Value, who_holds
from tests.shared.kill_board import LONGEST_S, Board, Wrong, dawdle, game


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


@game(lambda: [Lock(f"{number} of the matrix") for number in range(3)], deaths=3)
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
        # To load numpy takes longer than most workers live.
        numbers = array.view().tolist() if rng.random() < 0.02 else array[:]
        if set(numbers) != {os.getpid()}:
            raise Wrong(f"{list(array)} is not of {os.getpid()} alone")
