"""The shared classes have the methods of those whose names they have."""

from __future__ import annotations

import io
import multiprocessing
import queue
import threading
from collections.abc import Callable
from multiprocessing import managers
from typing import Any

import pytest

import plait
from plait import shared
from plait.shared import Array, Connection, Counter, Pipe, Queue, Value

OLD = {"acquire_lock", "isSet", "locked_lock", "notifyAll", "release_lock"}
"""Names that Python keeps for old programs."""
INSIDE = {"all_tasks_done", "mutex", "not_empty", "not_full", "queue"}
"""What queue.Queue is made of."""

THEIRS: list[tuple[str, Callable[[], object]]] = [
    *((name, getattr(threading, name)) for name in ("Lock", "RLock", "Condition", "Event")),
    *((name, getattr(threading, name)) for name in ("Semaphore", "BoundedSemaphore")),
    ("Barrier", lambda: threading.Barrier(1)),
    *((name, getattr(queue, name)) for name in ("Queue", "LifoQueue", "PriorityQueue")),
    ("SimpleQueue", queue.SimpleQueue),
    *((name, getattr(multiprocessing, name)) for name in ("Lock", "RLock", "Condition", "Event")),
    *((name, getattr(multiprocessing, name)) for name in ("Semaphore", "BoundedSemaphore")),
    ("Barrier", lambda: multiprocessing.Barrier(1)),
    *((name, getattr(multiprocessing, name)) for name in ("Queue", "JoinableQueue")),
    ("SimpleQueue", multiprocessing.SimpleQueue),
    ("Pipe", lambda: multiprocessing.Pipe()[0]),
    ("Value", lambda: multiprocessing.Value("i", 0)),
    ("Array", lambda: multiprocessing.Array("d", 3)),
    ("List", list),
    ("List", lambda: managers.ListProxy),
    ("Dict", dict),
    ("Dict", lambda: managers.DictProxy),
]
OURS: dict[str, Callable[[], object]] = {
    "Barrier": lambda: shared.Barrier(1),
    "Pipe": lambda: Pipe()[0],
    "Value": lambda: Value("i", 0),
    "Array": lambda: Array("d", 3),
}


def public(thing: object) -> set[str]:
    return {name for name in dir(thing) if not name.startswith("_")}


@pytest.mark.parametrize(("name", "theirs"), THEIRS)
def test_no_method_of_the_namesake_is_missing(name: str, theirs: Callable[[], Any]) -> None:
    ours = OURS.get(name, getattr(shared, name))()
    model = theirs()
    try:
        assert public(model) - public(ours) - OLD <= (INSIDE if name.endswith("Queue") else set())
    finally:
        if type(model).__module__ == "multiprocessing.queues":
            model.close()


def test_a_queue_shows_what_users_call_and_nothing_else() -> None:
    standard = public(queue.Queue()) | public(multiprocessing.get_context().Queue()) - INSIDE
    ours = {"get_many", "is_shutdown", "put_many", "shutdown", "unfinished_tasks"}
    assert public(Queue) <= standard | ours | {"join", "maxsize", "task_done"}


def test_a_pipe_shows_what_users_call_and_nothing_else() -> None:
    assert public(Connection) == public(type(multiprocessing.Pipe()[0]))


def test_to_close_a_queue_takes_nothing_from_it() -> None:
    """It is the word for "this process puts no more": threads of one process say it one by one."""
    jobs = shared.JoinableQueue()

    def produce(number: int) -> None:
        jobs.put(number)
        jobs.close()
        jobs.join_thread()
        jobs.cancel_join_thread()

    plait.map(produce, range(5), backend="threads")
    plait.map(produce, range(5, 10), backend="processes", max_workers=1)
    jobs.shutdown()
    assert sorted(jobs) == list(range(10))


def test_bytes_are_received_into_a_buffer() -> None:
    receiver, sender = Pipe(duplex=False)
    sender.send_bytes(b"message")
    sender.send_bytes(b"too long")
    sender.send_bytes(b"")
    room = bytearray(8)
    assert receiver.recv_bytes_into(room, 1) == 7
    assert room == b"\0message"
    with pytest.raises(multiprocessing.BufferTooShort) as caught:
        receiver.recv_bytes_into(memoryview(room)[:7])
    assert caught.value.args == (b"too long",)
    assert receiver.recv_bytes_into(room, 8) == 0
    sender.send_bytes(b"kept")
    with pytest.raises(TypeError, match="cannot be written to"):
        receiver.recv_bytes_into(b"bytes")
    with pytest.raises(ValueError, match="offset=9 must be within the 8 bytes"):
        receiver.recv_bytes_into(room, 9)
    assert receiver.recv_bytes() == b"kept"
    sender.close()
    with pytest.raises(EOFError):
        receiver.recv_bytes_into(room)


def test_a_buffer_of_other_items_takes_bytes() -> None:
    left, right = Pipe()
    numbers = Array("i", 3)
    left.send_bytes(Array("i", [1, 2, 3]).get_obj())
    assert right.recv_bytes_into(numbers.get_obj()) == 12
    assert numbers[:] == [1, 2, 3]


def test_what_a_pipe_cannot_be_asked_is_told() -> None:
    with pytest.raises(io.UnsupportedOperation, match=r"use poll\(timeout\)"):
        Pipe()[0].fileno()


@pytest.mark.parametrize("lock", [True, False])
def test_numbers_take_the_word_lock_as_multiprocessing_does(lock: bool) -> None:
    value, array = Value("i", 5, lock=lock), Array("d", [1.5, 2.5], lock=lock)
    value.get_obj().value += 1
    with array.get_lock():
        array.get_obj()[0] += 1
    assert (value.value, array[:]) == (6, [2.5, 2.5])
    assert (value.get_obj(), Counter().get_obj().value) == (value, 0)


@pytest.mark.parametrize("make", [Value, Array])
def test_a_lock_for_what_is_its_own_lock_is_refused(make: Any) -> None:
    with pytest.raises(TypeError, match=r"must be True or False: a shared \w+ is its own lock"):
        make("i", 1, lock=shared.RLock())


def test_a_tuple_for_an_array_is_asked_what_it_means() -> None:
    with pytest.raises(TypeError, match=r"Write shape=\(3, 4\) .* or a list .*: \[3, 4\]"):
        Array(float, (3, 4))
    assert Array(float, shape=(3, 4)).shape == (3, 4)
    assert Array(float, [3, 4])[:] == [3, 4]
    assert Array(float, (0.5, 1))[:] == [0.5, 1]
    assert Array(int, range(3))[:] == [0, 1, 2]
