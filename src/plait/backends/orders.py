"""What this process and its fork server say to each other.

Control messages have a fixed size, see ``Order``. File descriptors come along; what needs more
room than an Order has is in a file without a name.
"""

from __future__ import annotations

import os
import pickle
import struct
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from plait.backends.messages import new_file_fd
from plait.bare import Socket, receive_fds, send_fds

if TYPE_CHECKING:
    from plait.backends.code_watch import Stamp

__all__ = [
    "Order",
    "Preload",
    "Preloaded",
    "file_of",
    "object_in",
    "pack_order",
    "receive_order",
    "send_order",
]

FORMAT = struct.Struct("<4sIqq")
MOST_FDS = 7


class Order(NamedTuple):
    """A message on a control socket.

    To the server: ERRS (its standard error comes along), OPEN (a control socket comes along),
    FORK worker ``number`` (its channel, its status page and its ends of two pipes for output come
    along; ``value`` says whether it will need all that the server loads for workers), EXEC the same
    as a fresh interpreter (a file with its environment, pickled, comes along too), END worker
    ``number``: ask it to (SIGTERM), and kill it after ``value`` milliseconds; LOAD modules (a file
    with a Preload comes along) before workers are started.
    From it: PID of worker ``number``, ENDS with exit code or minus the signal in ``value``,
    and the most memory that it ever had, in bytes, in ``peak``; FAIL: it could not be started, by
    error number ``value``; STOP by signal ``value``,
    CONT after one; LOAD: what became of the last one is in a file, a Preloaded.
    """

    verb: bytes
    number: int = 0
    value: int = 0
    peak: int = 0


class Preload(NamedTuple):
    """Modules that the server is to import, and where the parent stands as it asks for them."""

    names: tuple[str, ...]
    cwd: str | None
    sys_path: list[str]
    dont_write_bytecode: bool
    environ: dict[str, str]

    @classmethod
    def here(cls, names: tuple[str, ...]) -> Preload:
        """Return an order for modules, as they are found from this process."""
        try:
            cwd = os.getcwd()  # noqa: PTH109  text, to be sent
        except OSError:  # it was deleted
            cwd = None
        return cls(names, cwd, list(sys.path), sys.dont_write_bytecode, dict(os.environ))


class Preloaded(NamedTuple):
    """What became of it: why some were ``refused``, and the files of the user's own modules."""

    refused: dict[str, str]
    stamps: dict[str, Stamp]


def pack_order(order: Order) -> bytes:
    """Return an order as it travels."""
    return FORMAT.pack(*order)


def send_order(sock: Socket, order: Order, fds: tuple[int, ...] = (), *, flags: int = 0) -> None:
    """Send an order, with file descriptors."""
    send_fds(sock, pack_order(order), fds, flags)


def receive_order(sock: Socket, *, flags: int = 0) -> tuple[Order, list[int]]:
    """Receive an order. Raises EOFError at the end, BlockingIOError if none is here."""
    data, fds = receive_fds(sock, FORMAT.size, MOST_FDS, flags)
    if len(data) < FORMAT.size:
        raise EOFError
    return Order(*FORMAT.unpack(data)), fds


def file_of(obj: object) -> int:
    """Return a file, open and without a name, in which an object is pickled."""
    fd = new_file_fd("plait-order")
    with open(fd, "wb", closefd=False) as file:
        pickle.dump(obj, file)
    return fd


def object_in(fd: int) -> Any:
    """Return the object in such a file, and close it."""
    with open(fd, "rb") as file:
        file.seek(0)
        return pickle.load(file)
