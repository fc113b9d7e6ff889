"""Messages between two processes, over a socket.

A frame is a header (the number of buffers, the size of the message), the sizes of the
buffers, the pickled message, the buffers.

A channel is one end of a socket pair that was made before its process existed and was
handed to it: it has no name and no address, so nobody else can connect to it and there
is no secret to leak. Only for that reason may what comes out of it be unpickled.
"""

from __future__ import annotations

import pickle
import socket
import struct
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any

from plait.wire import OUT_OF_BAND_BYTES, PROTOCOL, Packed, load

__all__ = ["Channel", "Sender", "receive_message"]

HEADER = struct.Struct("<IQ")  # number of buffers, bytes of the message
SIZE = struct.Struct("<Q")
CAN_GATHER = hasattr(socket.socket, "sendmsg")  # not on Windows
DONT_WAIT = getattr(socket, "MSG_DONTWAIT", 0)
MOST_PIECES = 512  # of one sendmsg call; the kernel's limit is 1,024


def _pack_message(message: object) -> Packed:
    """Pickle one of plait's own messages; the Packed objects in it keep their buffers apart."""
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(message, protocol=PROTOCOL, buffer_callback=buffers.append)
    return Packed(data, tuple(buffers))


def _pieces(packed: Packed) -> list[memoryview]:
    data = packed.data
    buffers = [buffer.raw() for buffer in packed.buffers]
    head = HEADER.pack(len(buffers), len(data)) + b"".join(
        SIZE.pack(buffer.nbytes) for buffer in buffers
    )
    if len(data) < OUT_OF_BAND_BYTES:  # one small piece is cheaper than two
        head, data = head + data, b""
    pieces = [memoryview(head), memoryview(data), *buffers]
    return [piece for piece in pieces if piece.nbytes]


def _reader() -> Iterator[memoryview | Packed]:
    """Yield each stretch of memory to be filled next and, after those of a frame, the frame."""
    while True:
        header = bytearray(HEADER.size)
        yield memoryview(header)
        count, size = HEADER.unpack(header)
        data = bytearray(size)
        buffers: tuple[bytearray, ...] = ()
        if count:
            sizes = bytearray(SIZE.size * count)
            yield memoryview(sizes)
            buffers = tuple(bytearray(n) for (n,) in SIZE.iter_unpack(sizes))
        for part in (data, *buffers):
            yield memoryview(part)
        yield Packed(data, buffers)  # type: ignore[arg-type]  # a bytearray does as well


def _push(sock: socket.socket, pieces: deque[memoryview], flags: int = 0) -> None:
    """Send what the socket takes, and leave in ``pieces`` what it did not."""
    if CAN_GATHER:
        most = min(len(pieces), MOST_PIECES)
        sent = sock.sendmsg([pieces[i] for i in range(most)], [], flags)
    else:
        sent = sock.send(pieces[0])
    while sent:
        piece = pieces[0]
        if sent < piece.nbytes:
            pieces[0] = piece[sent:]
            return
        sent -= piece.nbytes
        pieces.popleft()


class Sender:
    """Sends a worker's messages through its blocking socket, from any of its threads."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lock = threading.Lock()  # held while sending
        self._outgoing: deque[memoryview] = deque()

    def send(self, message: object) -> None:
        """Send a message, and all that waits; blocks until the kernel has taken it."""
        with self._lock:
            self._outgoing.extend(_pieces(_pack_message(message)))
            while self._outgoing:
                _push(self._sock, self._outgoing)

    def send_soon(self, message: object) -> None:
        """Send a message if that goes without waiting, else with the next one.

        A task that logs is not to wait for a parent that reads nothing at the moment.
        """
        self._outgoing.extend(_pieces(_pack_message(message)))
        if not self._lock.acquire(blocking=False):
            return  # another thread, or this one amid it, is sending, and takes it along
        try:
            while self._outgoing:
                _push(self._sock, self._outgoing, DONT_WAIT)
        except BlockingIOError:
            pass
        finally:
            self._lock.release()


def receive_message(sock: socket.socket) -> Any:
    """Wait for a message from a blocking socket. Raises EOFError at its end."""
    for target in _reader():
        if isinstance(target, Packed):
            return load(target)
        while target:
            count = sock.recv_into(target)
            if not count:
                raise EOFError
            target = target[count:]
    raise AssertionError("a reader never ends")


class Channel:
    """The parent's end of a socket to one process: it never blocks.

    Whoever drives the channels calls ``receive`` when there is something to read and
    ``flush`` when the kernel has room again. A parent that blocked while sending to a
    worker that blocks while sending to its parent would wait for ever.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._outgoing: deque[memoryview] = deque()
        self._reader = _reader()
        self._target = next(self._reader)

    def fileno(self) -> int:
        """Return the file descriptor to wait on."""
        return self.sock.fileno()

    @property
    def is_clogged(self) -> bool:
        """Whether something waits to be sent until the kernel has room."""
        return bool(self._outgoing)

    def send(self, message: object) -> None:
        """Send a message, as much of it now as goes."""
        self._outgoing.extend(_pieces(_pack_message(message)))
        self.flush()

    def flush(self) -> None:
        """Send what the kernel takes now. A broken channel swallows it: the death tells."""
        try:
            while self._outgoing:
                _push(self.sock, self._outgoing)
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self._outgoing.clear()

    def receive(self) -> Any:
        """Return a message, or None if no whole one is here.

        Raises EOFError when no more can come.
        """
        while not isinstance(self._target, Packed):
            if not self._target.nbytes:
                self._target = next(self._reader)
                continue
            try:
                count = self.sock.recv_into(self._target)
            except (BlockingIOError, InterruptedError):
                return None
            except OSError as error:
                raise EOFError from error
            if not count:
                raise EOFError
            self._target = self._target[count:]
        frame, self._target = self._target, next(self._reader)
        return load(frame)

    def close(self) -> None:
        """Close this end; the other side reads the end of the channel."""
        self.sock.close()
