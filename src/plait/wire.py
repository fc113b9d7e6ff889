"""Everything that travels between processes: objects, errors, and the frames that carry them.

An object becomes a ``Packed``: a pickle (protocol 5) and its large buffers beside it,
not inside, so that an array is never copied into a pickle. What plain pickle cannot
carry, or would carry as a name in a ``__main__`` that the other side does not have,
goes by cloudpickle, by value.

A frame on a channel is a header (the number of buffers, the size of the message), the
sizes of the buffers, the pickled message, the buffers. A channel is one end of a
socket pair that was made before its process existed and was handed to it: it has no
name and no address, so nobody else can connect to it and there is no secret to leak.
Only for that reason may what comes out of it be unpickled.
"""

from __future__ import annotations

import pickle
import socket
import struct
import types
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

from plait.errors import NotPicklable

__all__ = [
    "Channel",
    "Packed",
    "load",
    "pack",
    "pack_message",
    "receive_message",
    "seal",
    "seal_list",
    "send_message",
    "unseal",
]

# A buffer below this is cheaper inside the pickle than as a piece of its own.
OUT_OF_BAND_BYTES = 64 * 1024
PROTOCOL = 5
# Types that need no pickle of their own within a message: nothing about them can go wrong.
PLAIN = frozenset({int, float, complex, bool, str, bytes, type(None)})


class Packed(NamedTuple):
    """A pickled object: the pickle, and the large buffers it refers to, in order."""

    data: bytes
    buffers: tuple[Any, ...] = ()

    @property
    def nbytes(self) -> int:
        """The size of it all in bytes."""
        return len(self.data) + sum(memoryview(buffer).nbytes for buffer in self.buffers)


def pack(obj: object, what: str = "object") -> Packed:
    """Pickle an object for the journey; ``what`` names it in the error.

    Raises NotPicklable, which says which part of the object is to blame.
    """
    try:
        packed = _dump(pickle.dumps, obj)
    except Exception:  # noqa: BLE001  whatever pickle raises, cloudpickle may do better
        packed = None
    # A name in __main__ means something else on the other side. The bytes are searched
    # because pickle itself does not tell; a false alarm costs time, nothing more.
    if packed is not None and b"__main__" not in packed.data:
        return packed
    import cloudpickle

    try:
        return _dump(cloudpickle.dumps, obj)
    except Exception as error:
        path, blamed = _find_unpicklable(obj, what)
        reason = str(error).partition("\n")[0]
        raise NotPicklable(what, path, blamed, reason) from error


def load(packed: Packed) -> Any:
    """Unpickle; may raise whatever the object's own class raises."""
    return pickle.loads(packed.data, buffers=packed.buffers)


def seal(obj: object, what: str = "object") -> Any:
    """Return what stands for an object in a message: itself if it is plain, else a Packed.

    Raises NotPicklable.
    """
    return obj if type(obj) in PLAIN else pack(obj, what)


def seal_list(objects: list[Any]) -> Any:
    """Return what stands for a whole list in a message. Raises NotPicklable."""
    return objects if PLAIN.issuperset(map(type, objects)) else pack(objects)


def unseal(sealed: Any) -> Any:
    """Return the object; may raise whatever the object's own class raises."""
    return load(sealed) if type(sealed) is Packed else sealed


def _dump(dumps: Callable[..., bytes], obj: object) -> Packed:
    buffers: list[pickle.PickleBuffer] = []

    def keep_inside(buffer: pickle.PickleBuffer) -> bool:
        try:
            is_small = buffer.raw().nbytes < OUT_OF_BAND_BYTES
        except BufferError:  # not contiguous: pickle copies it
            return True
        if not is_small:
            buffers.append(buffer)
        return is_small

    data = dumps(obj, protocol=PROTOCOL, buffer_callback=keep_inside)
    return Packed(data, tuple(buffers))


# --- Who is to blame -----------------------------------------------------------------


def _find_unpicklable(obj: object, name: str, depth: int = 6) -> tuple[str, object]:
    """Return the innermost part that cannot be pickled, as (path, part)."""
    if depth:
        for path, part in _parts(obj, name):
            if not _is_picklable(part):
                return _find_unpicklable(part, path, depth - 1)
    return name, obj


def _is_picklable(obj: object) -> bool:
    import cloudpickle

    try:
        cloudpickle.dumps(obj, protocol=PROTOCOL)
    except Exception:  # noqa: BLE001  that it fails is the answer
        return False
    return True


def _parts(obj: object, name: str) -> Iterator[tuple[str, object]]:
    if isinstance(obj, partial):
        yield f"{name}.func", obj.func
        yield from _parts(obj.args, f"{name}.args")
        yield from _parts(obj.keywords, f"{name}.keywords")
    elif isinstance(obj, types.MethodType):
        yield f"{name}.__self__", obj.__self__
    elif isinstance(obj, types.FunctionType):
        yield from _function_parts(obj, name)
    elif isinstance(obj, dict):
        yield from ((f"{name}[{key!r}]", value) for key, value in obj.items())
    elif isinstance(obj, list | tuple | set | frozenset):
        yield from ((f"{name}[{place}]", value) for place, value in enumerate(obj))
    else:
        attributes = getattr(obj, "__dict__", None)
        if isinstance(attributes, dict):
            yield from ((f"{name}.{key}", value) for key, value in attributes.items())


def _function_parts(fn: types.FunctionType, name: str) -> Iterator[tuple[str, object]]:
    for variable, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
        yield f"{name}.__closure__[{variable!r}]", cell.cell_contents
    for variable in fn.__code__.co_names:
        if variable in fn.__globals__:
            yield f"{name}.__globals__[{variable!r}]", fn.__globals__[variable]


# --- Messages and frames ---------------------------------------------------------------


def pack_message(message: object) -> Packed:
    """Pickle one of plait's own messages; the Packed objects in it keep their buffers apart."""
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(message, protocol=PROTOCOL, buffer_callback=buffers.append)
    return Packed(data, tuple(buffers))


HEADER = struct.Struct("<IQ")  # number of buffers, bytes of the message
SIZE = struct.Struct("<Q")
CAN_GATHER = hasattr(socket.socket, "sendmsg")  # not on Windows
MOST_PIECES = 512  # of one sendmsg call; the kernel's limit is 1,024


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


def _push(sock: socket.socket, pieces: deque[memoryview]) -> None:
    """Send what the socket takes, and leave in ``pieces`` what it did not."""
    if CAN_GATHER:
        sent = sock.sendmsg([pieces[i] for i in range(min(len(pieces), MOST_PIECES))])
    else:
        sent = sock.send(pieces[0])
    while sent:
        piece = pieces[0]
        if sent < piece.nbytes:
            pieces[0] = piece[sent:]
            return
        sent -= piece.nbytes
        pieces.popleft()


def send_message(sock: socket.socket, message: object) -> None:
    """Send a message through a blocking socket."""
    pieces = deque(_pieces(pack_message(message)))
    while pieces:
        _push(sock, pieces)


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
        self._outgoing.extend(_pieces(pack_message(message)))
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
