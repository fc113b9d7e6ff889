"""What ``socket`` and ``signal`` are made of, without their enums.

To make these takes a millisecond in the program and in its server, and ``signal.signal`` turns
numbers into them and back at each call. A Socket is closed by ``close`` (or ``closing``), it is
no context manager.
"""

from __future__ import annotations

import _socket
import sys

TYPE_CHECKING = False  # as in typing
if TYPE_CHECKING:
    import signal
    from collections.abc import Sequence
else:
    import _signal as signal

__all__ = [
    "DONT_WAIT",
    "SHUT_WR",
    "Socket",
    "receive_fds",
    "send_fds",
    "signal",
    "socketpair",
    "take_socket",
]

Socket = _socket.socket
SHUT_WR = _socket.SHUT_WR
DONT_WAIT = getattr(_socket, "MSG_DONTWAIT", 0)
FD_BYTES = 4

if sys.platform == "win32":  # untested
    from socket import fromshare, socketpair
else:
    socketpair = _socket.socketpair


def take_socket(fd: int) -> Socket:
    """Return the socket that a new process was given; on Windows it comes through stdin."""
    if sys.platform == "win32":  # untested
        return fromshare(sys.stdin.buffer.read())
    return Socket(fileno=fd)


def send_fds(sock: Socket, data: bytes, fds: Sequence[int], flags: int = 0) -> None:
    """Send bytes with copies of file descriptors, to another process on this machine."""
    rights = b"".join(fd.to_bytes(FD_BYTES, sys.byteorder) for fd in fds)
    sock.sendmsg([data], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)] if fds else [], flags)


def receive_fds(
    sock: Socket, nbytes: int, most_fds: int, flags: int = 0
) -> tuple[bytes, list[int]]:
    """Receive what ``send_fds`` has sent."""
    fds: list[int] = []
    data, ancillary, _, _ = sock.recvmsg(nbytes, _socket.CMSG_LEN(most_fds * FD_BYTES), flags)
    for level, kind, rights in ancillary:
        if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS):
            whole = len(rights) - len(rights) % FD_BYTES
            fds += memoryview(rights)[:whole].cast("i")
    return data, fds
