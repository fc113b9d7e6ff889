"""The fork server: a small process with one thread that forks workers for its parent.

A program with threads must not be forked: a lock that another thread holds at that
moment stays locked in the child for ever. This process has no other thread, never
runs the user's code, and is small, so that a fork of it takes a millisecond.

Each pool of the parent has a control socket to the server. When it closes, the pool's
workers end; when the parent dies, everything does:

    the parent's pidfd or its root socket says so -> the server kills all workers, exits;
    the server dies -> the kernel kills its workers (PR_SET_PDEATHSIG).

Control messages have 16 bytes, see ``Order``. Worker ends of channels come along as
file descriptors: they are closed here as soon as the worker has them.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import struct
from contextlib import suppress
from typing import NamedTuple, NoReturn

from plait.backends import child_main

__all__ = ["Order", "main", "receive_order", "send_order"]

FORMAT = struct.Struct("<4sIq")


class Order(NamedTuple):
    """A message on a control socket.

    To the server: OPEN (a control socket comes along), FORK worker ``number`` (its
    channel and its status page come along), KILL worker ``number`` with signal ``value``.
    From it: PID of worker ``number``, ENDS with exit code or minus the signal.
    """

    verb: bytes
    number: int = 0
    value: int = 0


def send_order(sock: socket.socket, order: Order, fds: tuple[int, ...] = ()) -> None:
    """Send an order, with file descriptors."""
    socket.send_fds(sock, [FORMAT.pack(*order)], list(fds))


def receive_order(sock: socket.socket) -> tuple[Order, list[int]]:
    """Receive an order. Raises EOFError at the end, BlockingIOError if none is here."""
    data, fds, _, _ = socket.recv_fds(sock, FORMAT.size, 2)
    if len(data) < FORMAT.size:
        raise EOFError
    return Order(*FORMAT.unpack(data)), fds


def main(root_fd: int, parent_pid: int) -> None:
    """Serve until the parent is gone; does not return."""
    try:
        _Server(socket.socket(fileno=root_fd), parent_pid).serve()
    finally:
        os._exit(0)


class _Server:
    """The workers by pid, and whose they are."""

    def __init__(self, root: socket.socket, parent_pid: int) -> None:
        self._pid = os.getpid()
        self._workers: dict[int, tuple[socket.socket, int]] = {}  # pid -> control, number
        self._selector = selectors.DefaultSelector()
        self._selector.register(root, selectors.EVENT_READ, self._open)
        self._watch_parent(parent_pid)
        self._watch_children()
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, signal.SIG_IGN)  # the parent decides when this ends

    def _watch_parent(self, pid: int) -> None:
        self._parent_fd = -1
        if hasattr(os, "pidfd_open"):
            # The root socket alone would not do: a child that the parent forked may hold
            # a copy of its other end, and outlive it.
            try:
                self._parent_fd = os.pidfd_open(pid)
            except ProcessLookupError:
                os._exit(0)
            self._selector.register(self._parent_fd, selectors.EVENT_READ, self._end)

    def _watch_children(self) -> None:
        self._bell, bell_end = socket.socketpair()
        self._bell.setblocking(False)
        bell_end.setblocking(False)
        self._bell_end = bell_end
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(bell_end.fileno(), warn_on_full_buffer=False)
        self._selector.register(self._bell, selectors.EVENT_READ, self._reap)

    def serve(self) -> NoReturn:
        while True:
            for key, _ in self._selector.select():
                key.data(key.fileobj)

    def _end(self, _: object = None) -> NoReturn:
        for pid in self._workers:
            _kill(pid, signal.SIGKILL)
        os._exit(0)

    def _open(self, root: socket.socket) -> None:
        try:
            _, (fd,) = receive_order(root)
        except (EOFError, OSError):
            self._end()
        self._selector.register(socket.socket(fileno=fd), selectors.EVENT_READ, self._obey)

    def _obey(self, control: socket.socket) -> None:
        try:
            order, fds = receive_order(control)
        except (EOFError, OSError):
            self._close(control)
            return
        if order.verb == b"FORK":
            self._fork(control, order.number, fds)
        elif order.verb == b"KILL":
            for pid, worker in self._workers.items():
                if worker == (control, order.number):
                    _kill(pid, signal.Signals(order.value))

    def _close(self, control: socket.socket) -> None:
        self._selector.unregister(control)
        control.close()
        for pid, (owner, _) in self._workers.items():
            if owner is control:
                _kill(pid, signal.SIGKILL)

    def _fork(self, control: socket.socket, number: int, fds: list[int]) -> None:
        try:
            pid = os.fork()
        except OSError as error:
            self._tell(control, Order(b"ENDS", number, error.errno or 1))
            pid = -1
        if pid == 0:
            self._become_worker(fds)
        for fd in fds:
            os.close(fd)
        if pid > 0:
            self._workers[pid] = (control, number)
            self._tell(control, Order(b"PID ", number, pid))

    def _become_worker(self, fds: list[int]) -> NoReturn:
        """In the forked child: let go of all that is the server's, and be a worker."""
        try:
            child_main.die_with_parent()
            os.setpgid(0, 0)  # so that what its tasks start can be ended with it
            signal.set_wakeup_fd(-1)
            for signum in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(signum, signal.SIG_DFL)
            for key in list(self._selector.get_map().values()):
                if isinstance(key.fileobj, socket.socket):
                    key.fileobj.close()
            self._selector.close()
            self._bell_end.close()
            if self._parent_fd >= 0:
                os.close(self._parent_fd)
            if os.getppid() == self._pid:  # it did not die before the kernel was asked to watch
                child_main.main(*fds)
        finally:
            os._exit(1)

    def _reap(self, bell: socket.socket) -> None:
        with suppress(BlockingIOError):
            while bell.recv(4096):
                pass
        for pid in list(self._workers):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                control, number = self._workers.pop(pid)
                self._tell(control, Order(b"ENDS", number, os.waitstatus_to_exitcode(status)))

    def _tell(self, control: socket.socket, order: Order) -> None:
        with suppress(OSError):  # the pool is closed: nobody wants to know
            send_order(control, order)


def _kill(pid: int, signum: signal.Signals) -> None:
    """Signal a worker and what it started; it has not been reaped, so the pid is its own."""
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signum)
    if signum == signal.SIGKILL:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signum)
