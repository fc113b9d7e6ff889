"""A worker process from its first line to its last: read messages, run chunks, report.

Started by backends/server.py (forked) or backends/child.py (a fresh interpreter); the
socket and the status page were made by the parent and handed over.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import random
import signal
import socket
import sys
from contextlib import suppress
from typing import Any

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
from plait.channel import receive_message, send_message
from plait.errors import NotPicklable
from plait.host import QueueClock, monotonic
from plait.outcome import Call, Stretch
from plait.wire_errors import pack_error
from plait.worker import FLUSH_S, enter_worker, run_apart, run_together

# Results are sent at the end of a chunk, and in a longer one this often.
SEND_S = 0.05

__all__ = ["die_with_parent", "main", "main_spawned"]

PR_SET_PDEATHSIG = 1
if sys.platform == "linux":
    LIBC = ctypes.CDLL(None)


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
        self._queue_clock = QueueClock()
        self._unsent: list[Results] = []
        self._sent_at = 0.0

    def serve(self) -> None:
        if not self._set_up(receive_message(self._sock)):
            return
        while True:
            message = receive_message(self._sock)
            if isinstance(message, Work):
                self._work(message)
            elif isinstance(message, Learn):
                self._known[message.key] = message
            elif isinstance(message, Forget):
                self._known.pop(message.key, None)
            del message  # an idle worker keeps no item alive

    def _send(self, message: object) -> None:
        send_message(self._sock, message)

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
        self._sent_at = monotonic()
        if work.together:
            self._work_together(work)
        else:
            self._work_apart(work)

    def _work_together(self, work: Work) -> None:
        if not self._page.begin(work.seq, TOGETHER):
            self._report(work.seq, Stretch([], {}, []))
            return
        try:
            call, items = self._call(work.key), wire.unseal(work.items)
        except BaseException:  # noqa: BLE001  apart, each task will tell its own
            self._report(work.seq, Stretch([], {}, []), unread=True)
            return
        stretch = run_together(call, items)
        is_plain = wire.PLAIN.issuperset(map(type, stretch.values))
        if not is_plain:
            _seal_all(stretch)
        self._report(work.seq, stretch, is_plain=is_plain)

    def _work_apart(self, work: Work) -> None:
        def begin(place: int) -> bool:
            return self._page.begin(work.seq, place)

        place = 0
        flush_s = FLUSH_S if self._page.is_shared else 0.0
        for stretch in run_apart(
            self._lazy_call(work),
            work.items,
            load=wire.unseal,
            dump=_seal_result,
            begin=begin,
            flush_s=flush_s,
        ):
            is_plain = wire.Packed not in set(map(type, stretch.values))
            self._report(work.seq, stretch, place, is_plain=is_plain)
            place += len(stretch.values)

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

    def _report(
        self,
        seq: int,
        stretch: Stretch,
        place: int = 0,
        *,
        is_plain: bool = True,
        unread: bool = False,
    ) -> None:
        """Send results, or keep them in the box to be sent with the next ones.

        Each message wakes the parent, which costs more than a task of a millisecond is
        worth: so a chunk that is over soon sends one.
        """
        values, errors, times, is_last, _ = stretch
        packed = {offset: pack_error(error) for offset, error in errors.items()}
        results = Results(seq, place, values, is_plain, packed, times, is_last, 0.0, unread)
        self._unsent.append(results)
        is_due = is_last or monotonic() - self._sent_at >= SEND_S
        if is_due or not self._keep(results):
            queued_s = self._queue_clock.read_since_last()
            self._send(_merged(self._unsent)._replace(queued_s=queued_s))
            self._page.empty()
            self._unsent = []
            self._sent_at = monotonic()

    def _keep(self, results: Results) -> bool:
        is_large = any(type(value) is wire.Packed and value.buffers for value in results.values)
        return not is_large and self._page.keep(pickle.dumps(tuple(results), wire.PROTOCOL))


def _merged(parts: list[Results]) -> Results:
    """Join results that follow each other in a chunk: the parent has less to do with one."""
    if len(parts) == 1:
        return parts[0]
    first, last = parts[0], parts[-1]
    errors = {
        part.place - first.place + offset: error
        for part in parts
        for offset, error in part.errors.items()
    }
    return last._replace(
        place=first.place,
        values=[value for part in parts for value in part.values],
        is_plain=all(part.is_plain for part in parts),
        errors=errors,
        times=[times for part in parts for times in part.times],
    )


def _seal_result(value: Any) -> Any:
    return wire.seal(value, "result")


def _seal_all(stretch: Stretch) -> None:
    """Seal the values of tasks that ran together; one that cannot be is that task's error."""
    for place, value in enumerate(stretch.values):
        try:
            stretch.values[place] = _seal_result(value)
        except NotPicklable as error:
            stretch.values[place] = None
            stretch.errors[place] = error
