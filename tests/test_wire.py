"""Objects into frames and back, over real sockets."""

from __future__ import annotations

import functools
import socket
import threading
from typing import Any

import pytest

import plait
from plait import wire
from plait.channel import READ_BYTES, Channel, Receiver, Sender


def there_and_back(obj: object) -> Any:
    return wire.load(wire.pack(obj))


def test_large_buffers_stay_outside_the_pickle() -> None:
    import numpy as np

    array = np.arange(100_000)
    data, buffers = wire.pack([array, array[:10]])
    assert len(buffers) == 1  # the small one is inside
    assert buffers[0].raw().nbytes == array.nbytes
    assert len(data) < 2000
    whole, part = wire.load((data, buffers))
    assert (whole == array).all()
    assert (part == array[:10]).all()


def test_arrays_that_are_not_contiguous_travel_too() -> None:
    import numpy as np

    array = np.arange(200_000).reshape(400, 500)
    for strange in (array.T, array[::2, ::3], np.asfortranarray(array)):
        assert (there_and_back(strange) == strange).all()


def test_plain_values_stand_for_themselves() -> None:
    for value in (1, 2.5, "x", b"y", None, True, 3j):
        assert wire.seal(value) is value
        assert wire.unseal(value) is value
    assert type(wire.seal([1])) is tuple
    assert type(wire.seal((1, 2))[0]) is bytes  # a tuple of the user's is no exception
    assert wire.unseal(wire.seal([1])) == [1]


class Thing:
    def __init__(self, **parts: Any) -> None:
        self.__dict__.update(parts)

    def method(self) -> None:
        """Hold on to what it is bound to."""


def global_lock_user() -> Any:
    return GLOBAL_LOCK


GLOBAL_LOCK = threading.Lock()


def local_function(captured: Any) -> Any:
    return lambda: captured


@pytest.mark.parametrize(
    ("obj", "path"),
    [
        (threading.Lock(), "item"),
        ([1, {"a": threading.Lock()}], "item[1]['a']"),
        (Thing(deep=Thing(lock=threading.Lock())), "item.deep.lock"),
        (Thing(lock=threading.Lock()).method, "item.__self__.lock"),
        (functools.partial(print, threading.Lock()), "item.args[0]"),
        (functools.partial(print, end=threading.Lock()), "item.keywords['end']"),
        (local_function(threading.Lock()), "item.__closure__['captured']"),
    ],
)
def test_the_part_to_blame_is_named(obj: object, path: str) -> None:
    with pytest.raises(plait.NotPicklable) as caught:
        wire.pack(obj, "item")
    assert caught.value.path == path
    assert caught.value.kind == "_thread.lock"


def pair() -> tuple[Channel, socket.socket]:
    ours, theirs = socket.socketpair()
    return Channel(ours), theirs


def test_frames_of_every_size_arrive_whole() -> None:
    channel, theirs = pair()
    messages = [b"x" * size for size in (0, 1, 1000, 65_535, 65_536, 300_000, 5_000_000)]

    def send() -> None:
        for message in messages:
            Sender(theirs).send(message)

    sender = threading.Thread(target=send)
    sender.start()
    import select

    received: list[Any] = []
    while len(received) < len(messages):
        select.select([channel], [], [])
        received += channel.receive()
    sender.join()
    assert received == messages
    channel.close()
    theirs.close()


def test_frames_are_cut_wherever_the_buffer_ends() -> None:
    channel, theirs = pair()
    sizes = [7, READ_BYTES // 2, READ_BYTES - 100, 3, READ_BYTES, 0, READ_BYTES + 1, 1] * 5
    messages = [bytes([number]) * size for number, size in enumerate(sizes)]
    frames = socket.socketpair()
    for (
        message
    ) in messages:  # what one socket got, in pieces of every length, is what another reads
        Sender(frames[0]).send(wire.pack(bytearray(message)) if len(message) % 2 else message)
        while data := _read_some(frames[1]):
            theirs.sendall(data)
            received = channel.receive()
            if received:
                (got,) = received
                assert (wire.load(got) if type(got) is tuple else got) == message
                break
    for sock in (*frames, theirs):
        sock.close()
    channel.close()


def _read_some(sock: socket.socket) -> bytes:
    return sock.recv(10_007)


def test_several_messages_that_came_together_are_all_received() -> None:
    ours, theirs = socket.socketpair()
    for number in range(100):
        Sender(theirs).send(number)
    receiver = Receiver(ours)
    assert [receiver.wait() for _ in range(100)] == list(range(100))
    theirs.close()
    with pytest.raises(EOFError):
        receiver.wait()
    ours.close()


def test_a_channel_never_blocks_and_keeps_what_the_kernel_does_not_take() -> None:
    channel, theirs = pair()
    message = [wire.pack(bytearray(n * 1000)) for n in range(1000)]  # more than any socket buffer
    channel.send(message)
    is_clogged = channel.is_clogged
    assert is_clogged
    received: list[Any] = []
    receiver = threading.Thread(target=lambda: received.append(Receiver(theirs).wait()))
    receiver.start()
    import select

    while channel.is_clogged:
        select.select([], [channel], [])
        channel.flush()
    receiver.join()
    assert [len(wire.load(packed)) for packed in received[0]] == [n * 1000 for n in range(1000)]
    channel.close()
    theirs.close()


def test_the_end_of_a_channel_is_told_after_what_came_before() -> None:
    channel, theirs = pair()
    Sender(theirs).send("last words")
    theirs.close()
    assert channel.receive() == ["last words"]
    with pytest.raises(EOFError):
        channel.receive()
    channel.close()


def test_sending_to_nobody_is_silent() -> None:
    channel, theirs = pair()
    theirs.close()
    channel.send("anybody there?")
    assert not channel.is_clogged
    channel.close()
