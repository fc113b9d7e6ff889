"""End what was dropped, but not in the garbage collector.

To end a run is to wait for its tasks, and to take locks. The collector comes amid anything: in one
of these very tasks, or in a thread that has a lock that they need. Whatever waits there may wait
for ever. So what is to be ended in a collection is left to a thread that begins after it.
"""

from __future__ import annotations

import gc
import threading
from _thread import get_ident, start_new_thread
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Ending", "end_later", "is_collecting", "start_ending"]

_collector = 0  # the thread in which the garbage collector is at work; there is one at most
_left: deque[Callable[[], object]] = deque()


def is_collecting() -> bool:
    """Whether it is the garbage collector that has called."""
    return _collector == get_ident()


def end_later(end: Callable[[], object]) -> None:
    """Have something called by another thread, after this collection; takes no lock."""
    _left.append(end)


class Ending(ExitStack):
    """An ExitStack that another thread unwinds if the garbage collector would."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> bool | None:
        if is_collecting():
            end_later(self.pop_all().close)
            return False
        return super().__exit__(kind, error, traceback)


def _hear(phase: str, _: dict[str, Any]) -> None:
    global _collector
    _collector = get_ident() if phase == "start" else 0
    if _left and not _collector:
        try:
            start_ending(_end_all, "plait-ending")
        except RuntimeError:  # no more threads: after the next collection, then
            return


def start_ending(end: Callable[[], object], name: str) -> None:
    """Call a function in a thread of its own, taking no lock. RuntimeError: there can be none."""
    start_new_thread(_go_on, (end, name))


def _go_on(end: Callable[[], object], name: str) -> None:
    """Go on in a thread that ``threading`` knows; to start that takes locks of its."""
    try:
        threading.Thread(target=end, name=name, daemon=True).start()
    except RuntimeError:  # no more threads
        end()


def _end_all() -> None:
    try:
        while _left:
            _left.popleft()()
    except IndexError:  # another thread was faster
        return
    finally:
        if _left:  # an error ended this one
            _go_on(_end_all, "plait-ending")


gc.callbacks.append(_hear)
