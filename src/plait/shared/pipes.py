"""Pipes: two ends, each in whatever process, that send each other objects or bytes.

A pipe is a queue for each direction (queues.py), so that a sender who is killed leaves a whole
message or none. A pipe of the kernel's would be torn by it: what does not fit into its 64 KiB is
written piece by piece. Besides, there is a list of who has which end: when nobody has it any more,
because it was closed or because they have ended, the other end is told.

An end that is on its way (pickled, not yet arrived) counts as one that its sender has. One that
goes to a child by ``fork`` is not counted: the child may be killed before it runs any of our code,
or ``fork`` may fail, and nobody would take that back. It is marked (memory.py) by a file that the
child inherits and closes when it has said that it has the end; if it is killed before, the kernel
closes it.
"""

from __future__ import annotations

import atexit
import os
import pickle
import queue
from io import UnsupportedOperation
from threading import get_ident
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakSet

from plait.shared.cells import known
from plait.shared.holders import HELD, SENT, Holders
from plait.shared.memory import Mark, Region
from plait.shared.queue_core import LOOK_S, ShutDown
from plait.shared.queues import Queue
from plait.shared.sections import me
from plait.shared.stores import Record, decode, encode

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Connection", "Pipe"]

MOST_MESSAGES = 1024
"""A sender waits while so many of its messages have not been received."""


class Connection:
    """One end of a pipe, as that of ``multiprocessing.Pipe``, that can be sent to any process.

    Several threads and processes may use an end at once: each message is received by one of them,
    whole. It is closed when all who have it have closed it, let go of it or ended; the last is
    noticed within a second.

    There is no file behind it on which to wait: ``fileno()`` tells so, and ``poll`` waits.

    >>> left, right = Pipe()
    >>> left.send({"a": 1})
    >>> right.recv()
    {'a': 1}
    >>> left.close()
    >>> right.recv()
    Traceback (most recent call last):
    EOFError: the other end of the pipe is closed
    """

    def __init__(self, holders: Holders, side: int, incoming: Queue | None, outgoing: Queue | None):
        self._holders, self._side = holders, side
        self._incoming, self._outgoing = incoming, outgoing
        self._is_closed = False
        self._look_at = 0.0
        known[holders.region.ident, side] = self
        self._do(holders.add, HELD, side, 1)
        _open.add(self)

    # --- As in multiprocessing -------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether it has been closed, in this process."""
        return self._is_closed

    @property
    def readable(self) -> bool:
        """Whether it can receive."""
        return self._incoming is not None

    @property
    def writable(self) -> bool:
        """Whether it can send."""
        return self._outgoing is not None

    def send(self, item: object) -> None:
        """Send an object; while a thousand messages have not been received, wait.

        Raises:
            BrokenPipeError: the other end is closed.
            NotPicklable: the object cannot travel.
        """
        self._send(encode(item))

    def recv(self) -> Any:
        """Receive the next object; wait for it. Raises EOFError where there will be none."""
        return decode(self._recv())

    def send_bytes(
        self, data: bytes | bytearray | memoryview, offset: int = 0, size: int | None = None
    ) -> None:
        """Send bytes, or a part of them, as one message.

        >>> receiver, sender = Pipe(duplex=False)
        >>> sender.send_bytes(b"some bytes", 5)
        >>> receiver.recv_bytes()
        b'bytes'
        """
        view = memoryview(data).cast("B")
        end = len(view) if size is None else offset + size
        if not 0 <= offset <= end <= len(view):
            raise ValueError(f"offset={offset}, size={size} must be within the {len(view)} bytes")
        self._send((bytes(view[offset:end]), 0))

    def recv_bytes(self, maxlength: int | None = None) -> bytes:
        """Receive the next message as bytes; a sent object is a pickle.

        Raises:
            EOFError: there will be none.
            OSError: it is longer than that; it is lost.
        """
        data, _ = self._recv()
        if maxlength is not None and len(data) > maxlength:
            raise OSError(f"a message of {len(data)} bytes is longer than maxlength={maxlength}")
        return data

    def recv_bytes_into(self, buffer: Buffer, offset: int = 0) -> int:
        """Receive the next message into a buffer that can be written to; return its length.

        Raises:
            EOFError: there will be none.
            multiprocessing.BufferTooShort: there is no room for it; its only argument is the
                message, which is received.

        >>> receiver, sender = Pipe(duplex=False)
        >>> sender.send_bytes(b"some")
        >>> room = bytearray(b"0123456789")
        >>> receiver.recv_bytes_into(room, 3), room
        (4, bytearray(b'012some789'))
        """
        room = memoryview(buffer).cast("B")
        if room.readonly:
            raise TypeError("the buffer cannot be written to; a bytearray can")
        if not 0 <= offset <= len(room):
            raise ValueError(f"offset={offset} must be within the {len(room)} bytes of the buffer")
        data, _ = self._recv()
        if offset + len(data) > len(room):
            from multiprocessing import BufferTooShort

            raise BufferTooShort(data)
        room[offset : offset + len(data)] = data
        return len(data)

    def fileno(self) -> int:
        """Raise io.UnsupportedOperation, which is an OSError: there is no file behind it."""
        raise UnsupportedOperation(
            "a pipe of plait.shared lies in memory and has no file to wait on: use poll(timeout)"
        )

    def poll(self, timeout: float | None = 0.0) -> bool:
        """Return whether there is something to receive, or the end; wait for it so long.

        Args:
            timeout: in seconds; None: for ever.
        """
        incoming = self._usable(self._incoming, "receive")
        until = None if timeout is None else monotonic() + timeout
        while True:
            left = LOOK_S if until is None else max(0.0, min(LOOK_S, until - monotonic()))
            if incoming._wait_item(left):
                return True
            if self._end_if_alone():
                return True
            if until is not None and monotonic() >= until:
                return False

    def close(self) -> None:
        """Let go of this end, in this process. Once nobody has it, the other one is told."""
        if self._is_closed:
            return
        self._is_closed = True
        _open.discard(self)
        self._holders.inherited.discard(self._side)
        self._do(self._holders.add, HELD, self._side, -1)
        if not self._do(self._holders.has_any, self._side):
            if self._outgoing is not None:
                self._outgoing.shutdown()
            if self._incoming is not None:
                self._incoming.shutdown(immediate=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_is_closed"):
            self.close()

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else "open"
        return f"<plait.shared Connection: end {self._side + 1} of a pipe, {state}>"

    def __reduce__(self) -> tuple[Any, ...]:
        if self._is_closed:
            raise pickle.PicklingError("an end of a pipe that is closed cannot be sent")
        _, *sender = self._count()
        return _arrive, (
            self._holders.region.place,
            self._side,
            self._incoming,
            self._outgoing,
            tuple(sender),
        )

    # --- Inside ------------------------------------------------------------------------------

    def _do(self, step: Any, *args: Any) -> Any:
        """Do something with the list of holders, under the mutex that guards it."""
        first = self._incoming if self._side == 0 else self._outgoing
        other = self._outgoing if self._side == 0 else self._incoming
        guard = first or other
        assert guard is not None
        return guard._do_locked(step, *args)

    def _usable(self, which: Queue | None, verb: str) -> Queue:
        if self._is_closed:
            raise OSError("this end of the pipe is closed")
        if which is None:
            raise OSError(f"this end of the pipe cannot {verb}")
        if self._holders.inherited:
            self._holders.inherited.discard(self._side)
        return which

    def _send(self, record: Record) -> None:
        outgoing = self._usable(self._outgoing, "send")
        if (now := monotonic()) >= self._look_at:  # who has died does not say so
            self._look_at = now + LOOK_S
            self._end_if_alone()
        while True:
            try:
                outgoing._put_record(record, LOOK_S)
            except queue.Full:
                self._end_if_alone()
            except ShutDown:
                raise BrokenPipeError("the other end of the pipe is closed") from None
            else:
                return

    def _recv(self) -> Record:
        incoming = self._usable(self._incoming, "receive")
        while True:
            try:
                return incoming._get_record(LOOK_S)
            except queue.Empty:
                self._end_if_alone()
            except ShutDown:
                raise EOFError("the other end of the pipe is closed") from None

    def _end_if_alone(self) -> bool:
        """Shut the pipe down where nobody has the other end any more."""
        if self._do(self._holders.has_any, 1 - self._side):
            return False
        if self._incoming is not None:
            self._incoming.shutdown()
        if self._outgoing is not None:
            self._outgoing.shutdown(immediate=True)
        return True

    # --- Around a fork -------------------------------------------------------------------------

    def _add_to(self, sides: dict[Region, list[int]]) -> None:
        """Note it in a list of ends of each pipe."""
        sides.setdefault(self._holders.region, []).append(self._side)

    def _count(self) -> tuple[Connection, int, int]:
        """Say that it is on its way, until somebody takes that back; return what for that."""
        self._do(self._holders.add, SENT, self._side, 1)
        return self, self._do(self._holders.line), me()

    def _take_back(self, line: int, who: int) -> None:
        """Say that it is not on its way any more."""
        self._do(self._holders.add_at, line, who, SENT + self._side, -1)

    def _come_by_fork(self) -> None:
        """Say that this end has arrived in this process, which is a child."""
        self._do(self._holders.add, HELD, self._side, 1)
        self._holders.inherited.add(self._side)


def Pipe(duplex: bool = True) -> tuple[Connection, Connection]:  # noqa: FBT001, FBT002, N802
    """Return the two ends of a pipe, as ``multiprocessing.Pipe``, for threads and processes.

    Each can be sent to any process at any time. A message is whole, or it was not sent: also where
    its sender is killed. An end that was pickled and is never loaded, as its receiver was killed
    before, counts as open until its sender ends.

    Args:
        duplex: whether both ends can send. If not, the first one receives, the second one sends.

    >>> left, right = Pipe()
    >>> right.send("hello")
    >>> left.poll(), left.recv()
    (True, 'hello')
    """
    holders = Holders.create()
    to_first = Queue(MOST_MESSAGES, name="pipe")
    to_second = Queue(MOST_MESSAGES, name="pipe") if duplex else None
    return Connection(holders, 0, to_first, to_second), Connection(holders, 1, to_second, to_first)


def _arrive(
    place: Any, side: int, incoming: Queue | None, outgoing: Queue | None, sender: tuple[int, int]
) -> Connection:
    found = known.get((place.ident, side))
    if found is None or found.closed:
        other = known.get((place.ident, 1 - side))
        holders = other._holders if other else Holders(Region.at(place, "Connection"))
        found = Connection(holders, side, incoming, outgoing)
    assert isinstance(found, Connection)
    found._holders.inherited.discard(side)
    found._take_back(*sender)
    return found


_open: WeakSet[Connection] = WeakSet()


@atexit.register
def _close_all() -> None:
    """Tell the other ends that this process ends; if it is killed, they notice."""
    for connection in list(_open):
        connection.close()


class _Fork:
    """All ends on their way to a child, by a fork that this thread is about to do."""

    def __init__(self) -> None:
        self.thread = get_ident()
        self._marks: list[Mark] = []
        self._counted: list[tuple[Connection, int, int]] = []

    def expect(self, connections: list[Connection]) -> None:
        """Mark them, those of one pipe together.

        Where too many files are open, count them as sent: better an end that stays open, if the
        child is killed early, than one that is taken for closed while the child comes up.
        """
        sides: dict[Region, list[int]] = {}
        for connection in connections:
            connection._add_to(sides)
        try:
            for region, numbers in sides.items():
                self._marks.append(region.mark(*numbers))
        except OSError:
            self.close()
            self._marks = []
            self._counted = [connection._count() for connection in connections]

    def arrive(self) -> None:
        """Say that they have arrived: also if others have inherited the marks, who should not."""
        for mark in self._marks:
            mark.take_off()
        for connection, line, who in self._counted:
            connection._take_back(line, who)

    def close(self) -> None:
        """Close the marks in this process, which has made them."""
        for mark in self._marks:
            mark.close()

    def close_inherited(self) -> None:
        """Close them in a child, which may be that of another fork."""
        for mark in self._marks:
            mark.close_inherited()


_forks: list[_Fork] = []
"""Those under way: of several threads, or of a signal's handler that forks amidst another fork.

A child inherits the marks of all of them.
"""


def _latest_fork() -> _Fork | None:
    """Return that of this thread: if they are nested, the inner one ends first.

    None: there was no open end, or a program in C has told the child's Python alone.
    """
    for fork in reversed(_forks):
        if fork.thread == get_ident():
            return fork
    return None


def _before_fork() -> None:
    if connections := list(_open):
        _forks.append(fork := _Fork())
        fork.expect(connections)


def _after_fork() -> None:
    """In the parent, also if there is no child."""
    # Little is done here: after a fork, each page of memory that is written to has to be copied.
    if _forks and (fork := _latest_fork()):
        try:
            fork.close()
        finally:
            _forks.remove(fork)


def _after_fork_in_child() -> None:
    try:
        for connection in list(_open):
            connection._come_by_fork()
        if fork := _latest_fork():
            fork.arrive()
    finally:
        for fork in _forks:
            fork.close_inherited()
        _forks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child
    )
