"""Hold back signal handlers while shared state is being changed.

Python runs a signal handler between any two steps of the main thread, and most of them raise:
Ctrl-C a KeyboardInterrupt, that of a program's own alarm a TimeoutError. Amid the books of a pool
that other threads use, that would leave them half written, and the exception would be taken for
that of whatever is being done just then: of an item that is packed, of a task whose result comes.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import current_thread, main_thread
from types import FrameType, TracebackType
from typing import Any, Self

from plait.bare import signal

SIGINT, getsignal, set_handler = signal.SIGINT, signal.getsignal, signal.signal

__all__ = ["Shield"]

# Those for which programs have handlers. To ask for each of the 64 would take too long.
NAMES = ("INT", "ALRM", "TERM", "USR1", "USR2", "HUP", "QUIT", "CHLD", "VTALRM", "PROF", "BREAK")
SIGNALS = tuple(getattr(signal, f"SIG{name}") for name in NAMES if hasattr(signal, f"SIG{name}"))


def _nothing() -> None:
    """Leave a block that is over soon to itself."""


# The one that is up, in the main thread: blocks within its block need none of their own.
_up: list[Shield] = []


class Shield:
    """A ``with`` block in which signal handlers wait until the block has ended.

    ``on_hit`` is called at once, from the signal handler: it is to make whatever the block
    waits for return soon. The program's own handlers are then called as if the signals had
    come after the block. A second Ctrl-C does not wait.
    """

    is_hit = False
    # On the class: the handlers that were found last, and those of them that can be held back.
    # Most often they are still the same, and this is on the way of every message.
    _found: tuple[Any, ...] = ()
    _known: tuple[tuple[int, Any], ...] = ()

    _handlers: tuple[tuple[int, Any], ...] = ()  # those of the program
    _hits: tuple[tuple[int, FrameType | None], ...] = ()

    def __init__(self, on_hit: Callable[[], object] = _nothing) -> None:
        self._on_hit = on_hit

    def __enter__(self) -> Self:
        if not _up and current_thread() is main_thread():
            found = tuple(map(getsignal, SIGNALS))
            if found != Shield._found:
                # The others are ignored, or not Python's business.
                pairs = zip(SIGNALS, found, strict=True)
                Shield._known = tuple((number, one) for number, one in pairs if callable(one))
                Shield._found = found
            self._handlers = Shield._known
            hit = self._hit
            try:
                if self._handlers:
                    _up.append(self)
                for number, _ in self._handlers:
                    set_handler(number, hit)
            except BaseException:  # of a handler that is not held back yet
                self._take_down()
                raise
        return self

    def _take_down(self) -> None:
        """Give the handlers back; one that is back may raise before the others are."""
        try:
            self._give_back()
        except BaseException:
            self._give_back()
            raise

    def _give_back(self) -> None:
        _up.clear()
        hit = self._hit
        for number, handler in self._handlers:
            if getsignal(number) == hit:  # else the block has set another one
                set_handler(number, handler)

    def _hit(self, number: int, frame: FrameType | None) -> None:
        is_second = number == SIGINT and any(hit == SIGINT for hit, _ in self._hits)
        self.is_hit = True
        if is_second:
            dict(self._handlers)[SIGINT](number, frame)
        else:
            self._hits += ((number, frame),)
        self._on_hit()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._handlers:
            return
        try:
            self._take_down()
        finally:
            if self._hits:
                # They would keep all alive that their frames know.
                hits, self._hits = self._hits, ()
                handlers = dict(self._handlers)
                _call([(handlers[number], number, frame) for number, frame in hits])


def _call(due: list[tuple[Any, int, FrameType | None]]) -> None:
    """Call handlers, each of them also if one before it raises."""
    try:
        handler, number, frame = due.pop(0)
        handler(number, frame)
    finally:
        if due:
            _call(due)
