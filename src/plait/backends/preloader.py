"""Import modules in the fork server, so that workers have them from the start.

Used by server.py only. The server forks, and so must stay a process with a single thread; but
some modules start threads as they are imported. So each is first tried out in a forked child. Only
if that goes well is it imported here; else the parent is told why, and workers import it
themselves. While a module is tried out the server goes on: only new workers of those who asked for
it have to wait.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import NoReturn

from plait import blas
from plait.backends.child_end import settle_files
from plait.backends.code_watch import Stamp, are_stale, stamps_of_own
from plait.backends.kinship import kill_family
from plait.backends.orders import Order, Preload, Preloaded, file_of, send_order
from plait.bare import Socket
from plait.errors import death_text
from plait.host import child_pids

__all__ = ["Preloader"]

Start = Callable[[Socket, Order, list[int]], None]

FINE = "fine"
MOST_BYTES = 4000  # of a reason: a pipe has room for it


class _Request:
    """Modules that one pool asked for."""

    def __init__(self, control: Socket, preload: Preload) -> None:
        self.control = control
        self.preload = preload
        self.names = deque(preload.names)  # those that are not settled
        self.refused: dict[str, str] = {}


class _Trial:
    """A child that imports the next module of a request, to see what happens."""

    def __init__(self, request: _Request, become_child: Callable[[], None]) -> None:
        """Fork; ``become_child`` lets go, in the child, of all that is the server's."""
        self.request = request
        self._reader, writer = os.pipe()
        os.set_blocking(self._reader, False)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                become_child()
                _try_out(request.names[0], writer)
            finally:
                os._exit(1)
        os.close(writer)

    def result(self, status: int) -> str:
        """Return FINE or what was wrong, once it has ended."""
        said = b""
        with suppress(BlockingIOError):  # it left a child that has the other end
            said = os.read(self._reader, MOST_BYTES)
        os.close(self._reader)
        ending = death_text(os.waitstatus_to_exitcode(status))
        return said.decode(errors="replace") or f"a process that imported it {ending}"


class Preloader:
    """The modules that were imported for workers, and who has asked for which."""

    def __init__(self, become_child: Callable[[], None], start: Start) -> None:
        """``start`` has a worker start, as it was ordered."""
        self._become_child = become_child
        self._start = start
        self._held: list[tuple[Socket, Order, list[int]]] = []  # orders that have to wait
        self._requests: deque[_Request] = deque()  # the first is being worked at
        self._trial: _Trial | None = None
        self._stamps: dict[str, Stamp] = {}  # of the user's own modules that are loaded here
        self._place: tuple[object, ...] = ()  # where they were found from
        self._known: dict[Socket, dict[str, Stamp]] = {}  # those that each pool watches

    # --- What the server asks for ------------------------------------------------------

    def ask(self, control: Socket, preload: Preload) -> None:
        """Import modules for a pool, sooner or later."""
        self._requests.append(_Request(control, preload))
        if len(self._requests) == 1:
            self._begin()

    def hold(self, control: Socket, order: Order, fds: list[int]) -> bool:
        """Keep the order for a worker until all is there that its pool asked for, if it is not."""
        has_to_wait = any(request.control is control for request in self._requests)
        if has_to_wait:
            self._held.append((control, order, fds))
        return has_to_wait

    def drop_held(self, control: Socket, number: int | None = None) -> bool:
        """Forget such orders of a pool, or that for one worker; whether there were any."""
        dropped = [
            one for one in self._held if one[0] is control and number in (None, one[1].number)
        ]
        self._held = [one for one in self._held if one not in dropped]
        for _, _, fds in dropped:
            for fd in fds:
                os.close(fd)
        return bool(dropped)

    @property
    def trial_pid(self) -> int:
        """The child that tries out a module, 0 if there is none."""
        return self._trial.pid if self._trial else 0

    def hear_end(self, status: int) -> None:
        """Settle the module that was tried out, as the child has ended."""
        assert self._trial is not None
        trial, self._trial = self._trial, None
        reason, request = trial.result(status), trial.request
        if request not in self._requests:  # who asked has gone
            self._begin()
            return
        name = request.names.popleft()
        if reason == FINE:
            reason = self._load(name)
        if reason != FINE:
            request.refused[name] = reason
        self._go_on()

    def forget(self, control: Socket) -> None:
        """Do nothing more for a pool that was closed."""
        if self._trial is not None and self._trial.request.control is control:
            kill_family(self._trial.pid)
        self._requests = deque(one for one in self._requests if one.control is not control)
        self.drop_held(control)
        self._known.pop(control, None)

    def tidy_up(self, control: Socket) -> None:
        """In a new worker: keep none of the user's modules that have changed or are not watched.

        It imports them itself when it needs them, as other workers do.
        """
        known = self._known.get(control, {})
        are_others = any(known.get(name, now) != now for name, now in self._stamps.items())
        kept = set() if are_others or are_stale(self._stamps) else set(known)
        _unload(set(self._stamps) - kept)

    # --- One request after the other ---------------------------------------------------

    def _begin(self) -> None:
        if not self._requests or self._trial is not None:
            return
        preload = self._requests[0].preload
        _stand_at(preload)
        place = (preload.cwd, preload.sys_path)
        if place != self._place or are_stale(self._stamps):
            _unload(self._stamps)
            self._stamps = {}
        self._place = place
        self._go_on()

    def _go_on(self) -> None:
        """Try out the next module that is not here yet; if all are, answer."""
        request = self._requests[0]
        while request.names and request.names[0] in sys.modules:
            request.names.popleft()
        if request.names:
            self._trial = _Trial(request, self._become_child)
            return
        self._requests.popleft()
        self._answer(request)
        held, self._held = self._held, []
        for entry in held:
            if not self.hold(*entry):
                self._start(*entry)
        self._begin()

    def _load(self, name: str) -> str:
        before = set(sys.modules)
        reason = _import(name)
        loaded = [new for new in set(sys.modules) - before if not new.startswith("plait.")]
        self._stamps |= stamps_of_own(loaded)
        return reason

    def _answer(self, request: _Request) -> None:
        blas.find_libraries()  # in a worker it would take a millisecond
        settle_files()
        gc.freeze()  # what is never collected is not written to: all workers share it
        self._known[request.control] = dict(self._stamps)
        fd = file_of(Preloaded(request.refused, self._stamps))
        with suppress(OSError):  # the pool is closed
            send_order(request.control, Order(b"LOAD"), (fd,))
        os.close(fd)


def _stand_at(preload: Preload) -> None:
    """Import from now on what the parent would import."""
    with suppress(OSError):  # it was deleted
        if preload.cwd is not None:
            os.chdir(preload.cwd)
    sys.path[:] = preload.sys_path
    sys.dont_write_bytecode = preload.dont_write_bytecode
    os.environ.clear()
    os.environ.update(preload.environ)
    os.environ.update(dict.fromkeys(blas.VARIABLES, "1"))  # or numpy would start threads
    importlib.invalidate_caches()


def _unload(names: Iterable[str]) -> None:
    for name in names:
        sys.modules.pop(name, None)


def _import(name: str) -> str:
    """Import a module; return FINE or what it raised."""
    reason = FINE
    try:
        importlib.import_module(name)
    except BaseException as error:  # noqa: BLE001  SystemExit, too: the server goes on
        reason = f"importing it raised {type(error).__name__}: {error}"
    for stream in (sys.stdout, sys.stderr):  # what it printed would come out of each worker again
        with suppress(Exception):
            stream.flush()
    return reason


def _try_out(name: str, writer: int) -> NoReturn:
    """In the child: import a module, say what came of it, and end."""
    null = os.open(os.devnull, os.O_RDWR)  # what it prints comes once, if it is imported
    os.dup2(null, 1)
    os.dup2(null, 2)
    reason = _import(name)
    if reason == FINE and (threads := _count_threads()) > 1:
        reason = f"importing it started threads ({threads - 1}), which cannot be forked"
    elif reason == FINE and child_pids(os.getpid()):
        reason = "importing it started another process"
    os.write(writer, reason.encode(errors="replace")[:MOST_BYTES])
    os._exit(0)


def _count_threads() -> int:
    try:
        return len(os.listdir("/proc/self/task"))  # noqa: PTH208
    except OSError:
        return threading.active_count()
