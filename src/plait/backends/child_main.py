"""A worker process from its first line to its last: read messages, run chunks, report.

Started by backends/server.py (forked) or backends/child.py (a fresh interpreter); the
socket and the status page were made by the parent and handed over.
"""

from __future__ import annotations

import ctypes
import os
import random
import signal
import socket
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from plait import wire
from plait.backends.messages import (
    TOGETHER,
    Forget,
    Learn,
    Ready,
    Results,
    Setup,
    StartFailed,
    StatusPage,
    Work,
)
from plait.errors import NotPicklable
from plait.outcome import Call, Stretch
from plait.wire_errors import PackedError, pack_error
from plait.worker import FLUSH_S, enter_worker, run_apart, run_together

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["die_with_parent", "main", "main_spawned"]

PR_SET_PDEATHSIG = 1
if sys.platform == "linux":
    LIBC = ctypes.CDLL(None)

# The types whose pickles cannot go wrong. A list of anything else is pickled one by one.
PLAIN = frozenset({int, float, complex, bool, str, bytes, type(None)})


def main(sock_fd: int, page_fd: int) -> None:
    """Be a worker until the parent closes the channel; does not return."""
    status = 1
    try:
        with _take_socket(sock_fd) as sock:
            page = StatusPage(page_fd)
            enter_worker()
            signal.signal(signal.SIGINT, _leave_it_to_the_parent)
            random.seed()
            _Worker(sock, page).serve()
        status = 0
    except (EOFError, OSError):  # the parent is gone
        status = 0
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        os._exit(status)


def main_spawned(sock_fd: int, page_fd: int, parent_pid: int) -> None:
    """Be a worker in a fresh interpreter."""
    die_with_parent()
    if os.getppid() == parent_pid:  # it did not die before the kernel was asked to watch
        main(sock_fd, page_fd)


def die_with_parent() -> None:
    """Ask the kernel (Linux) to kill this process when the thread that started it ends.

    It works while a task sleeps or sits in C code, when nothing in Python could notice.
    Elsewhere a worker notices at the end of its task that its channel is closed.
    """
    if sys.platform == "linux":
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _take_socket(fd: int) -> socket.socket:
    if sys.platform == "win32":  # untested: sockets are handed over through stdin there
        return socket.fromshare(sys.stdin.buffer.read())
    return socket.socket(fileno=fd)


def _leave_it_to_the_parent(signum: int, frame: object) -> None:
    """Ignore Ctrl-C; unlike SIG_IGN this is not passed on to programs that a task starts."""


class _Worker:
    """The state of a worker: its channel and the functions that it knows."""

    def __init__(self, sock: socket.socket, page: StatusPage) -> None:
        self._sock = sock
        self._page = page
        self._known: dict[int, Learn | Call] = {}

    def serve(self) -> None:
        if not self._set_up(wire.receive_message(self._sock)):
            return
        while True:
            message = wire.receive_message(self._sock)
            if isinstance(message, Work):
                self._work(message)
            elif isinstance(message, Learn):
                self._known[message.key] = message
            elif isinstance(message, Forget):
                self._known.pop(message.key, None)
            del message  # an idle worker keeps no item alive

    def _send(self, message: object) -> None:
        wire.send_message(self._sock, message)

    def _set_up(self, setup: Setup) -> bool:
        os.environ.clear()
        os.environ.update(setup.environ)
        sys.argv[:] = setup.argv
        try:
            setup.context.adopt()
            if setup.initializer is not None:
                wire.load(setup.initializer)()
        except BaseException as error:  # noqa: BLE001  whatever it is, the parent must know
            self._send(StartFailed(pack_error(error)))
            return False
        self._send(Ready())
        return True

    def _call(self, key: int) -> Call:
        """Return a function by key, loaded when it is first needed."""
        known = self._known[key]
        if isinstance(known, Learn):
            known.context.adopt()
            known = self._known[key] = Call(wire.load(known.fn), known.style)
        return known

    def _work(self, work: Work) -> None:
        if isinstance(work.items, wire.Packed):
            self._work_together(work, work.items)
        else:
            self._work_apart(work, work.items)

    def _work_together(self, work: Work, packed: wire.Packed) -> None:
        if not self._page.begin(work.seq, TOGETHER):
            self._send(Results(work.seq, 0, (), {}, [], is_last=True))
            return
        try:
            call, items = self._call(work.key), wire.load(packed)
        except BaseException:  # noqa: BLE001  apart, each task will tell its own
            self._send(Results(work.seq, 0, (), {}, [], is_last=True, unread=True))
            return
        self._report(work.seq, run_together(call, items))

    def _work_apart(self, work: Work, items: tuple[wire.Packed, ...]) -> None:
        def begin(place: int) -> bool:
            return self._page.begin(work.seq, place)

        flush_s = FLUSH_S if self._page.is_shared else 0.0
        for stretch in run_apart(
            self._lazy_call(work), items, load=wire.load, begin=begin, flush_s=flush_s
        ):
            self._report(work.seq, stretch)

    def _lazy_call(self, work: Work) -> Call:
        """Return the function; if it cannot be loaded, one that raises that for each task.

        Loading runs the user's imports, so it happens inside the first task: what goes
        wrong there, a crash too, is then a task's error like any other.
        """
        known = self._known[work.key]
        if isinstance(known, Call):
            return known

        def load_and_call(*args: Any) -> Any:
            return self._call(work.key).fn(*args)

        return Call(load_and_call, known.style)

    def _report(self, seq: int, stretch: Stretch) -> None:
        errors = {place: pack_error(error) for place, error in stretch.errors.items()}
        values = _pack_values(stretch.values, errors)
        count = len(stretch.values)
        self._send(Results(seq, count, values, errors, stretch.times, stretch.is_last))


def _pack_values(
    values: list[Any], errors: dict[int, PackedError]
) -> wire.Packed | tuple[wire.Packed | None, ...]:
    """Pickle results; add a NotPicklable to ``errors`` for each that cannot be."""
    if PLAIN.issuperset(map(type, values)):
        return wire.pack(values)
    return tuple(_pack_one_by_one(values, errors))


def _pack_one_by_one(
    values: list[Any], errors: dict[int, PackedError]
) -> Iterator[wire.Packed | None]:
    for place, value in enumerate(values):
        try:
            yield None if place in errors else wire.pack(value, "result")
        except NotPicklable as error:
            errors[place] = pack_error(error)
            yield None
