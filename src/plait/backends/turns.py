"""Let whoever waits drive: of several waiting threads one serves the sockets for all.

Used by backends/processes.py only. A thread that waits for something of its own waits in
the selector itself, handles whatever happens, also for others, and wakes those it
concerns. No helper thread stands between a socket and who waits for it.
"""

from __future__ import annotations

import math
import selectors
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

from plait.bare import socketpair
from plait.clocks import monotonic
from plait.spin import Moderation, Spin

__all__ = ["Turns"]

# So many workers for each CPU are many: then results are let come together.
MANY = 8

Handler = Callable[[Any, int], object]


class HasFileno(Protocol):
    """What a selector can wait on."""

    def fileno(self) -> int:
        """Return the file descriptor."""
        ...


class _Watched(NamedTuple):
    handler: Handler
    is_first: bool


def _comes_later(ready: tuple[selectors.SelectorKey, int]) -> bool:
    return not ready[0].data.is_first


class Turns:
    """A selector, the lock of what it serves, and whose turn it is to wait in it."""

    def __init__(self, cpus: int = 1) -> None:
        """Serve sockets whose other ends share so many CPUs with us."""
        self._cpus = cpus
        # Guards everything here, and all that handlers touch. It knows who has it: an exception
        # from outside may strike while it is given back or taken again.
        self.lock = threading.RLock()
        self.struck: BaseException | None = None  # came from outside while a thread only waited
        self.expected = 0  # how many workers will send something
        self._spin = Spin()
        self._moderation = Moderation()
        self._driver = 0  # the thread that is waiting in the selector; 0: none
        # Conditions of the threads that wait for the driver, and how many wait for each.
        self._sleeping: Counter[threading.Condition] = Counter()
        self.due = math.inf  # when ``on_due`` is to be called by whoever drives then
        self.on_due: Callable[[], object] = lambda: None
        self._bell, self._bell_end = socketpair()
        try:
            self._selector = selectors.DefaultSelector()
        except OSError:
            self._bell.close()
            self._bell_end.close()
            raise
        self._bell.setblocking(False)
        self._bell_end.setblocking(False)
        self.watch(self._bell, selectors.EVENT_READ, self._hear_bell)

    def watch(
        self, file: HasFileno, mask: int, handler: Handler, *, is_first: bool = False
    ) -> None:
        """Have ``handler(file, mask)`` called, with the lock, when something is ready.

        Of several that are ready together those that are *first* come first.
        """
        known = self._selector.get_map().get(file)
        if known is None:
            self._selector.register(file, mask, _Watched(handler, is_first))
        elif known.events != mask:
            self._selector.modify(file, mask, _Watched(handler, is_first))
        else:
            return
        if self._driver:  # not every kind of selector notices by itself
            self.ring()

    def unwatch(self, file: HasFileno) -> None:
        """Wait for it no longer; may be called again, but not after it was closed."""
        with suppress(KeyError):
            self._selector.unregister(file)

    def tell(self, arrived: threading.Condition) -> None:
        """Wake the threads that sleep with this condition, if some do; called with the lock."""
        if arrived in self._sleeping:
            arrived.notify_all()

    def ring(self) -> None:
        """Have every waiting thread look again whether it is done.

        Takes no lock: it may be called from a signal handler, amid anything. Rings also if
        nobody drives yet: a thread may be about to.
        """
        with suppress(OSError):
            self._bell_end.send(b"!")

    def _hear_bell(self, *_: object) -> None:
        self._bell.recv(4096)
        for arrived in self._sleeping:
            arrived.notify_all()

    def wait_until(
        self, is_done: Callable[[], bool], arrived: threading.Condition, deadline: float | None
    ) -> None:
        """Drive until something is so, or sleep while another thread drives.

        Also where the time is over from the beginning it looks once at what is there. Called with
        the lock; ``arrived`` is a condition of that lock, which handlers notify when they changed
        something for this thread.
        """
        has_looked = False
        try:
            while not is_done():
                left = None if deadline is None else max(0.0, deadline - monotonic())
                if left == 0.0 and (has_looked or self._driver):
                    return
                has_looked = True
                if not self._driver:
                    self._drive(left)
                else:
                    self._sleep(arrived, left)
        finally:
            # Whoever leaves wakes one sleeper to drive. If nobody did, all would sleep
            # while results pile up in the channels.
            if not self._driver and self._sleeping:
                next(iter(self._sleeping)).notify()

    def _sleep(self, arrived: threading.Condition, timeout: float | None) -> None:
        self._sleeping[arrived] += 1
        try:
            arrived.wait(timeout)
        except BaseException as error:
            self.struck = error
            raise
        finally:
            self._sleeping[arrived] -= 1
            if not self._sleeping[arrived]:
                del self._sleeping[arrived]

    def _drive(self, timeout: float | None) -> None:
        """Wait for the next things to happen, without the lock, and handle them, with it."""
        if self.due < math.inf:
            left = max(0.0, self.due - monotonic())
            timeout = left if timeout is None else min(timeout, left)
        self._driver = threading.get_ident()
        try:
            self.lock.release()
            ready = self._select(timeout)
            self.lock.acquire()
        except BaseException as error:
            self.struck = error
            self.recover()
            raise
        self._driver = 0
        # What a worker printed comes before what it sent later: results, for example.
        if len(ready) > 1:
            ready.sort(key=_comes_later)
        for key, mask in ready:
            key.data.handler(key.fileobj, mask)
        if self.due < math.inf and self.due <= monotonic():
            self.on_due()

    def recover(self) -> None:
        """Have the lock, and drive no more, wherever an exception has struck this thread."""
        if not self.lock._is_owned():  # type: ignore[attr-defined]  # noqa: SLF001  as Condition
            self.lock.acquire()
        if self._driver == threading.get_ident():
            self._driver = 0

    def _select(self, timeout: float | None) -> list[tuple[selectors.SelectorKey, int]]:
        select, expected = self._selector.select, self.expected
        if timeout == 0.0:
            return select(0)
        if expected <= self._cpus:
            return self._spin.wait(lambda: select(0), lambda: select(timeout))
        # There is no CPU to be kept from going to sleep.
        if expected >= MANY * self._cpus:
            self._moderation.pause()
            ready = select(timeout)
            self._moderation.learn(len(ready), expected)
            return ready
        return select(timeout)

    def close(self) -> None:
        """Close the files of its own."""
        self._selector.close()
        self._bell.close()
        self._bell_end.close()
