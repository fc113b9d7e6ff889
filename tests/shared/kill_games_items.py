"""Games of the kill matrix with things that hold items: queues, pipes, lists (kill_matrix.py)."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
from random import Random
from typing import Any

from plait.shared import (
    Connection,
    Dict,
    LifoQueue,
    List,
    Pipe,
    PriorityQueue,
    Queue,
)
from tests.shared.kill_board import (
    LONGEST_S,
    TOLD,
    Board,
    Wrong,
    dawdle,
    game,
    in_time,
    letter,
)

MAXSIZE = 8

# --- Queues ----------------------------------------------------------------------------------


def put(queue_: Queue, board: Board, rng: Random) -> None:
    """Put in one of the ways."""
    way = rng.randrange(4)
    if way == 0:
        board.send(lambda items: queue_.put_nowait(items[0]))
    elif way == 1:
        board.send(lambda items: queue_.put(items[0], timeout=rng.random() * 0.01))
    elif way == 2:
        board.send(queue_.put_many, 3)
    else:
        try:
            board.send(lambda items: queue_.put(items[0], timeout=LONGEST_S))
        except queue.Full:
            raise Wrong(f"no room in {LONGEST_S} s: {queue_!r}") from None


def got(queue_: Queue, most: int, way: int, rng: Random) -> list[Any]:
    """Take items in one of the ways."""
    if way == 0:
        return [queue_.get_nowait()]
    if way == 1:
        return [queue_.get(timeout=rng.random() * 0.01)]
    try:
        if most > 1:
            return queue_.get_many(most, timeout=LONGEST_S)
        return [queue_.get(timeout=LONGEST_S)]
    except queue.Empty:
        raise Wrong(f"nothing came in {LONGEST_S} s: {queue_!r}") from None


def put_or_get(queue_: Queue, board: Board, rng: Random, *, in_order: bool = False) -> None:
    """Put or take an item, or several."""
    with contextlib.suppress(queue.Full, queue.Empty):
        if rng.random() < 0.5:
            put(queue_, board, rng)
            return
        way = rng.randrange(4)
        most = 3 if way == 3 else 1
        for _ in range(board.take(lambda: got(queue_, most, way, rng), most, in_order=in_order)):
            queue_.task_done()


def put_or_get_one(queue_: Queue, board: Board) -> None:
    """Put an item if there is none, take one if there is no room."""
    with contextlib.suppress(queue.Full, queue.Empty):
        if queue_.empty():
            board.send(lambda items: queue_.put_nowait(items[0]))
        elif queue_.full():
            board.take(lambda: [queue_.get_nowait()])
            queue_.task_done()


def all_came(queue_: Queue, board: Board) -> None:
    """Take what is left: no item is lost or doubled; and what the dead had counts as done."""
    with contextlib.suppress(queue.Empty):
        while True:
            board.take(lambda: [queue_.get_nowait()])
            queue_.task_done()
    board.count_items()
    in_time(queue_.join, f"join, with {queue_.unfinished_tasks} to do: {queue_!r}")
    if queue_.qsize():
        raise Wrong(f"it is empty, but {queue_!r}")


@game(lambda: Queue(MAXSIZE, name="of the matrix"), help=put_or_get_one, check=all_came)
def fifo_queue(queue_: Queue, board: Board, rng: Random) -> None:
    put_or_get(queue_, board, rng, in_order=bool(board.number))


@game(lambda: LifoQueue(MAXSIZE, name="of the matrix"), help=put_or_get_one, check=all_came)
def lifo_queue(queue_: Queue, board: Board, rng: Random) -> None:
    put_or_get(queue_, board, rng)


@game(lambda: PriorityQueue(MAXSIZE, name="of the matrix"), help=put_or_get_one, check=all_came)
def priority_queue(queue_: Queue, board: Board, rng: Random) -> None:
    put_or_get(queue_, board, rng)


def put_or_do_one(queue_: Queue, board: Board) -> None:
    with contextlib.suppress(queue.Full, queue.Empty):
        if queue_.empty():
            board.send(lambda items: queue_.put_nowait(items[0]))
        elif queue_.full():
            board.work_on(lambda: [queue_.get_nowait()], queue_.task_done, 1)


def all_were_done(queue_: Queue, board: Board) -> None:
    """Do what is left, and what the dead had not done; then nothing is."""
    with contextlib.suppress(queue.Empty):
        while True:
            board.work_on(lambda: [queue_.get_nowait()], queue_.task_done, 1)
    board.count_items(may_come_again=True)
    in_time(queue_.join, f"join, with {queue_.unfinished_tasks} to do: {queue_!r}")


@game(
    lambda: Queue(MAXSIZE, name="of the matrix", redeliver=True),
    help=put_or_do_one,
    check=all_were_done,
)
def redelivering_queue(queue_: Queue, board: Board, rng: Random) -> None:
    """Put an item, or do what is to be done: what a dead process had not done comes again."""
    with contextlib.suppress(queue.Full, queue.Empty):
        if rng.random() < 0.5:
            put(queue_, board, rng)
            return
        way = rng.randrange(4)
        most = 3 if way == 3 else 1

        def done() -> None:
            dawdle(rng)
            queue_.task_done()

        board.work_on(lambda: got(queue_, most, way, rng), done, most)


# --- Pipes -----------------------------------------------------------------------------------

Ends = tuple[Connection, Connection]


def send_one(ends: Ends, board: Board) -> None:
    """Send where nothing is on its way."""
    for at in range(2):
        if not ends[at].poll():
            board.send(lambda items, at=at: ends[1 - at].send(items[0]))  # type: ignore[misc]


def all_were_received(ends: Ends, board: Board) -> None:
    for end in ends:
        while end.poll():
            board.take(lambda end=end: [end.recv()])  # type: ignore[misc]
    board.count_items()


@game(Pipe, help=send_one, check=all_were_received)
def pipe(ends: Ends, board: Board, rng: Random) -> None:
    """Send at one end, receive at the other; all processes have both."""
    at = rng.randrange(2)
    way = rng.randrange(4)
    if way < 2:
        board.send(lambda items: ends[at].send(items[0]))
    elif way == 2 or ends[at].poll(rng.random() * 0.01):
        board.take(lambda: [ends[at].recv()])


@game(lambda: None)
def partner(_: None, board: Board, rng: Random) -> None:
    """Receive from a process that is killed meanwhile: all that comes is whole, and ends."""
    if not board.number or rng.random() < 0.9:  # nobody forks beside the supervisor's thread
        return
    left, right = Pipe()
    pid = os.fork()
    if not pid:
        with contextlib.suppress(BaseException):
            left.close()
            for number in range(500):
                right.send(letter(number))
        os._exit(0)
    came = []
    with contextlib.suppress(ProcessLookupError):  # it may be through with it
        if is_early := rng.random() < 0.3:  # before it runs any Python, perhaps
            os.kill(pid, signal.SIGKILL)
    right.close()
    if not is_early:
        came.append(left.recv())
        dawdle(rng)
        if rng.random() < 0.8:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    with left, contextlib.suppress(EOFError):
        while True:
            came.append(left.recv())
    board.words[TOLD] += 1
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)
    if came != [letter(number) for number in range(len(came))]:
        raise Wrong(f"these came: {[number for number, _ in came]}")


# --- Lists and dicts -------------------------------------------------------------------------

Lists = tuple[List[Any], List[int]]


def all_were_popped(lists: Lists, board: Board) -> None:
    items, _ = lists
    while items:
        board.take(lambda: [items.pop()])
    board.count_items()


@game(
    lambda: (List(name="of the matrix"), List([0] * 8, name="of equals")),
    check=all_were_popped,
)
def shared_list(lists: Lists, board: Board, rng: Random) -> None:
    """Add items and pop them; and write numbers that are always all the same."""
    items, equals = lists
    way = rng.randrange(9)
    if way == 0:
        board.send(lambda new: items.append(new[0]))
    elif way == 1:
        board.send(items.extend, 3)
    elif way == 2:
        board.send(lambda new: items.insert(len(items) // 2, new[0]))
    elif way < 6:
        with contextlib.suppress(IndexError):  # it was empty
            board.take(lambda: [items.pop(rng.choice((0, -1)))])
    elif way == 6:
        equals[:] = [os.getpid()] * 8
        numbers = equals.copy()
        if len(numbers) != 8 or len({*numbers}) != 1:
            raise Wrong(f"half done: {numbers}")
    elif way == 7:
        items.sort(reverse=rng.random() < 0.5)
    else:
        with items.lock, board.alone(rng):
            before = items.copy()
            items.reverse()
            dawdle(rng)
            if items.copy() != before[::-1]:
                raise Wrong("the list was changed while it was locked")


Dicts = tuple[Dict[int, Any], Dict[str, int]]


def all_were_removed(dicts: Dicts, board: Board) -> None:
    items, _ = dicts
    while items:
        board.take(lambda: [item for _, item in [items.popitem()] if item])
    board.count_items()


@game(
    lambda: (Dict(name="of the matrix"), Dict(dict.fromkeys("abcd", 0), name="of equals")),
    check=all_were_removed,
)
def shared_dict(dicts: Dicts, board: Board, rng: Random) -> None:
    """Add items and take them out; and write numbers that are always all the same."""
    items, equals = dicts
    way = rng.randrange(8)
    if way == 0:
        board.send(lambda new: items.__setitem__(new[0][0], new[0]))
    elif way == 1:
        board.send(lambda new: items.update({item[0]: item for item in new}), 3)
    elif way == 2:
        board.send(lambda new: items.setdefault(new[0][0], new[0]))
    elif way == 3:
        with contextlib.suppress(KeyError):  # it was empty
            board.take(lambda: [item for _, item in [items.popitem()] if item])
    elif way < 6:
        key = next(iter(items), -1)
        board.take(lambda: [item for item in [items.pop(key, None)] if item])
    elif way == 6:
        equals.update(dict.fromkeys("dcba", os.getpid()))
        numbers = equals.copy()
        if [*numbers] != [*"abcd"] or len({*numbers.values()}) != 1:
            raise Wrong(f"half done: {numbers}")
    else:
        with items.lock, board.alone(rng):
            items.pop(-1, None)  # what one has left that died here
            before = items.copy()
            items[-1] = None
            dawdle(rng)
            if items.pop(-1) is not None or items.copy() != before:
                raise Wrong("the dict was changed while it was locked")
