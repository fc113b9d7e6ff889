"""Messages between two processes, over a socket.

A frame is a header (the number of buffers, the size of the message), the sizes of the
buffers, the pickled message, the buffers. Messages are plain tuples, see
backends/messages.py.

A channel is one end of a socket pair that was made before its process existed and was
handed to it: it has no name and no address, so nobody else can connect to it and there
is no secret to leak. Only for that reason may what comes out of it be unpickled.
"""

from __future__ import annotations

import pickle
import struct
import threading
from collections import deque
from collections.abc import Generator
from contextlib import suppress
from typing import Any

from plait.bare import DONT_WAIT, SHUT_WR, Socket
from plait.spin import Spin
from plait.wire import OUT_OF_BAND_BYTES, PROTOCOL

__all__ = ["Channel", "Receiver", "Sender"]

HEADER = struct.Struct("<IQ")  # number of buffers, bytes of the message
HEADER_BYTES = HEADER.size
SIZE = struct.Struct("<Q")
CAN_GATHER = hasattr(Socket, "sendmsg")  # not on Windows
MOST_PIECES = 512  # of one sendmsg call; the kernel's limit is 1,024
# What is received at a time: several small frames, so that each does not cost two system calls.
READ_BYTES = 64 * 1024


# --- Sending -----------------------------------------------------------------------------


def _frame(message: object) -> list[Any]:
    """Return the pieces of memory that make up a frame."""
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(message, PROTOCOL, buffer_callback=buffers.append)
    if not buffers and len(data) < OUT_OF_BAND_BYTES:  # one small piece is cheaper than two
        return [HEADER.pack(0, len(data)) + data]
    raw = [buffer.raw() for buffer in buffers]
    sizes = b"".join(SIZE.pack(buffer.nbytes) for buffer in raw)
    head = HEADER.pack(len(raw), len(data)) + sizes
    return [head, data, *(buffer for buffer in raw if buffer.nbytes)]


class _Outbox:
    """What is to be sent, and the sending of it."""

    def __init__(self, sock: Socket) -> None:
        self._sock = sock
        self.pieces: deque[Any] = deque()

    def add(self, message: object) -> None:
        self.pieces.extend(_frame(message))

    def push(self, flags: int = 0) -> None:
        """Send what the socket takes at once, and keep what it does not."""
        pieces = self.pieces
        if len(pieces) == 1 or not CAN_GATHER:
            piece = pieces[0]
            sent = self._sock.send(piece, flags)
            if sent == len(piece):
                pieces.popleft()
                return
        else:
            most = min(len(pieces), MOST_PIECES)
            sent = self._sock.sendmsg([pieces[i] for i in range(most)], [], flags)
        while sent:
            size = len(pieces[0])
            if sent < size:
                pieces[0] = memoryview(pieces[0])[sent:]
                return
            sent -= size
            pieces.popleft()


class Sender:
    """Sends a worker's messages through its blocking socket, from any of its threads."""

    def __init__(self, sock: Socket) -> None:
        self._lock = threading.Lock()  # held while sending
        self._sock = sock
        self._outbox = _Outbox(sock)

    def send(self, message: object) -> None:
        """Send a message, and all that waits; blocks until the kernel has taken it."""
        outbox = self._outbox
        with self._lock:
            outbox.add(message)
            while outbox.pieces:
                outbox.push()

    def send_small(self, message: object) -> None:
        """Do the same for a message without large parts, in fewer steps."""
        data = pickle.dumps(message, PROTOCOL)
        frame = HEADER.pack(0, len(data)) + data
        pieces = self._outbox.pieces
        with self._lock:
            if not pieces:
                sent = self._sock.send(frame)
                if sent == len(frame):
                    return
                frame = frame[sent:]
            pieces.append(frame)
            while pieces:
                self._outbox.push()

    def send_soon(self, message: object) -> None:
        """Send a message if that goes without waiting, else with the next one.

        A task that logs is not to wait for a parent that reads nothing at the moment.
        """
        self._outbox.add(message)
        if not self._lock.acquire(blocking=False):
            return  # another thread, or this one amid it, is sending, and takes it along
        try:
            while self._outbox.pieces:
                self._outbox.push(DONT_WAIT)
        except BlockingIOError:
            pass
        finally:
            self._lock.release()


# --- Receiving ---------------------------------------------------------------------------


class Receiver:
    """Cuts what arrives at a socket into messages."""

    def __init__(self, sock: Socket) -> None:
        self._sock = sock
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._start = self._end = 0  # what is in the buffer and was not taken
        self._large: Generator[memoryview, None, Any] | None = None  # a frame that is assembled
        self._target = memoryview(b"")  # what it waits for
        self._spin = Spin()
        self.may_spin = True  # or there are others who need the CPU

    def wait(self) -> Any:
        """Return the next message from a blocking socket. Raises EOFError at its end."""
        while (message := self.take()) is None:
            if self.may_spin:
                self._spin.wait(self._look, self._sleep)
            else:
                self.read()
        return message

    def _look(self) -> bool:
        try:
            self.read(DONT_WAIT)
        except BlockingIOError:
            return False
        return True

    def _sleep(self) -> bool:
        self.read()
        return True

    def read(self, flags: int = 0) -> bool:
        """Receive once; whether there may be more now.

        Raises EOFError at the end, BlockingIOError if nothing is here.
        """
        target = self._target if self._large else self._buffer[self._end :]
        count = self._sock.recv_into(target, 0, flags)
        if not count:
            raise EOFError
        if self._large:
            self._target = target[count:]
        else:
            self._end += count
        return count == len(target)

    def take(self) -> Any:
        """Return a message of those that were received; None if no whole one is here."""
        if self._large is None:
            start, end = self._start, self._end
            if start == end:  # most messages come alone
                self._start = self._end = 0
                return None
            if end - start < HEADER_BYTES:
                self._move_to_front()
                return None
            count, size = HEADER.unpack_from(self._buffer, start)
            start += HEADER_BYTES
            if not count and start + size <= end:
                self._start = start + size
                return pickle.loads(self._buffer[start : start + size])
            if not count and HEADER_BYTES + size <= READ_BYTES:
                self._move_to_front()
                return None
            self._start = start
            self._large = _assemble(count, size)
            self._target = next(self._large)
        return self._fill()

    def _move_to_front(self) -> None:
        if self._start:
            held = self._end - self._start
            self._buffer[:held] = bytes(self._buffer[self._start : self._end])
            self._start, self._end = 0, held

    def _fill(self) -> Any:
        """Give what is here to the frame that is assembled; return its message if it is whole."""
        assert self._large is not None
        try:
            while True:
                count = min(len(self._target), self._end - self._start)
                self._target[:count] = self._buffer[self._start : self._start + count]
                self._start += count
                self._target = self._target[count:]
                if self._target:
                    return None
                self._target = next(self._large)
        except StopIteration as end:
            self._large = None
            return end.value


def _assemble(count: int, size: int) -> Generator[memoryview, None, Any]:
    """Yield each stretch of memory of a frame that is to be filled, then return its message."""
    sizes = bytearray(SIZE.size * count)
    yield memoryview(sizes)
    data = bytearray(size)
    buffers = [bytearray(n) for (n,) in SIZE.iter_unpack(sizes)]
    for part in (data, *buffers):
        yield memoryview(part)
    return pickle.loads(data, buffers=buffers)


class Channel:
    """The parent's end of a socket to one process: it never blocks.

    Whoever drives the channels calls ``receive`` when there is something to read and
    ``flush`` when the kernel has room again. A parent that blocked while sending to a
    worker that blocks while sending to its parent would wait for ever.
    """

    def __init__(self, sock: Socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._outbox = _Outbox(sock)
        self._receiver = Receiver(sock)

    def fileno(self) -> int:
        """Return the file descriptor to wait on."""
        return self.sock.fileno()

    @property
    def is_clogged(self) -> bool:
        """Whether something waits to be sent until the kernel has room."""
        return bool(self._outbox.pieces)

    def send(self, *messages: object) -> None:
        """Send messages, as much of them now as goes."""
        for message in messages:
            self._outbox.add(message)
        self.flush()

    def flush(self) -> None:
        """Send what the kernel takes now. A broken channel swallows it: the death tells."""
        try:
            while self._outbox.pieces:
                self._outbox.push()
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self._outbox.pieces.clear()

    def receive(self) -> list[Any]:
        """Return the messages that are here.

        Raises EOFError when there are none and no more can come.
        """
        messages: list[Any] = []
        is_more = True
        while is_more:
            try:
                is_more = self._receiver.read()
            except (BlockingIOError, InterruptedError):
                break
            except (EOFError, OSError) as error:
                if not messages:
                    raise EOFError from error
                break
            while (message := self._receiver.take()) is not None:
                messages.append(message)
        return messages

    def hang_up(self) -> None:
        """Send nothing more: the other side reads the end of the channel, and may still send."""
        self._outbox.pieces.clear()
        with suppress(OSError):  # the other side has ended
            self.sock.shutdown(SHUT_WR)

    def close(self) -> None:
        """Close this end; the other side reads the end of the channel."""
        self.sock.close()
